"""Adapt all-MiniLM-L6-v2 while its document encoder stays frozen.

A bi-encoder and a Hypencoder can be adapted. Both start with exactly the ranking of MiniLM and learn only on the query side,
so they can search every index that MiniLM built. The bi-encoder learns query vectors. The Hypencoder learns query vectors
and a small network that is added to the inner product.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderTrainer
from pyterrier_hypencoder.encoders import checkpoint, dense_start, hub
from pyterrier_hypencoder.encoders.loading import load_encoder
from pyterrier_hypencoder.encoders.tokenizer_files import load_tokenizer
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.frozen_vectors import make_vector_lookup
from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.training_rows import TrainingRows
from shared.indexes import DOC_LENGTH, MINILM

KINDS = ("hypencoder", "bi-encoder")
#: Positions between MiniLM ("0") and the trained model ("1.0") that are validated.
INTERPOLATIONS = ("0", "0.4", "0.6", "0.8", "1.0")

Measures = Mapping[str, float]
Validate = Callable[[Path], Measures]


@dataclass(frozen=True)
class Recipe:
    """Training options. Both kinds of model use the same recipe.

    Attributes:
        hidden: Widths of the q-nets' hidden layers. A bi-encoder has none.
        backbone_layers: Number of the last layers of the query encoder that are trained. If 0, the query encoder stays
            frozen, and a linear map of its vectors is trained instead.
        batch_size: Queries per step.
        max_steps: Optimizer steps.
        eval_steps: Steps between validations.
        learning_rate: Learning rate of the query encoder's layers, or of the linear map.
        head_learning_rate: Learning rate of the hyper-head. See ``HypencoderTrainer``.
        warmup_steps: Warm-up steps of the linear schedule.
        dropout: Dropout in the q-nets' hidden layers.
        losses: Names of losses. See ``HypencoderTrainer``.
        negatives_per_row: Negatives that are sampled from each row, in addition to the documents of other rows.
        bf16: If True, compute in bf16 by autocast.
    """

    hidden: tuple[int, ...] = (96,)
    backbone_layers: int = 3
    batch_size: int = 128
    max_steps: int = 600
    eval_steps: int = 200
    learning_rate: float = 3e-5
    head_learning_rate: float = 2e-3
    warmup_steps: int = 100
    dropout: float = 0.1
    losses: tuple[str, ...] = ("in_batch_ce",)
    negatives_per_row: int = 0
    bf16: bool = True


def train_model(
    kind: str,
    recipe: Recipe,
    rows: Path,
    documents: HypencoderIndex,
    validate: Validate,
    folder: Path,
    seed: int,
) -> Path:
    """Train a model and keep the best checkpoint.

    If the folder contains an unfinished run of the same recipe, the run is resumed. If the run is finished, its model is
    returned. A run of another recipe is deleted.

    Args:
        kind: ``hypencoder`` or ``bi-encoder``.
        recipe: Training options.
        rows: File with the training rows.
        documents: Index with the vectors of all documents in the rows.
        validate: Function that measures a checkpoint directory. The checkpoint with the highest ``mean`` is the best.
        folder: Directory for checkpoints.
        seed: Random seed of the initial head and of dropout.

    Returns:
        Directory of the best checkpoint.
    """
    model, recipe_file = folder / "model", folder / "recipe.json"
    description = json.dumps({"kind": kind, "seed": seed, **asdict(recipe)}, sort_keys=True)
    if recipe_file.exists() and recipe_file.read_text() != description:
        shutil.rmtree(folder)
    if (model / "config.json").exists():
        return model
    folder.mkdir(parents=True, exist_ok=True)
    recipe_file.write_text(description)
    tokenizer = load_tokenizer(MINILM, None)
    sampler = RowSampler(positive="type", negatives_per_row=recipe.negatives_per_row, item_texts=False)
    collator = Collator(tokenizer, query_max_length=32, vectors=make_vector_lookup(documents))
    trainer = _make_trainer(kind, recipe, tokenizer, folder, seed)
    return trainer.fit(TrainingRows(rows, sampler, shuffle_buffer=0), collator, validate=validate, best="mean", resume=True)


def _make_trainer(kind: str, recipe: Recipe, tokenizer: Any, folder: Path, seed: int) -> HypencoderTrainer:
    is_hypencoder, is_frozen = kind == "hypencoder", recipe.backbone_layers == 0
    dropout = {"do_dropout": recipe.dropout > 0, "dropout_prob": recipe.dropout} if is_hypencoder else {}
    start = dense_start.from_dense(
        MINILM, hidden=recipe.hidden if is_hypencoder else None, query_projection=is_frozen, seed=seed, **dropout
    )
    return HypencoderTrainer(
        start,
        folder,
        tokenizer=tokenizer,
        losses=recipe.losses,
        train="head" if is_frozen else "queries",
        backbone_layers=None if is_frozen else recipe.backbone_layers,
        scale=1.0 if is_hypencoder else 20.0,  # the inner product of a Hypencoder is scaled by 20 already
        batch_size=recipe.batch_size,
        max_steps=recipe.max_steps,
        learning_rate=recipe.learning_rate,
        head_learning_rate=recipe.head_learning_rate,
        warmup_steps=recipe.warmup_steps,
        lr_scheduler_type="linear",
        verbose=True,
        seed=seed,
        arguments={
            "bf16": recipe.bf16,
            "eval_strategy": "steps",
            "eval_steps": recipe.eval_steps,
            "save_steps": recipe.eval_steps,
            "save_total_limit": 2,
        },
    )


def choose_interpolation(
    trained: Path, folder: Path, validate: Validate, choose: Callable[[Mapping[str, Measures]], str]
) -> Path:
    """Choose a model between MiniLM and a trained model, which forgets less than the trained model.

    Weights are interpolated as in WiSE-FT (Wortsman et al., arXiv 2109.01903). The gate of a Hypencoder is scaled likewise.

    Args:
        trained: Directory of a model from :func:`train_model`.
        folder: Directory for the chosen model. Validation results in it are used again.
        validate: Function that measures a checkpoint directory.
        choose: Function that takes the results by interpolation (see ``INTERPOLATIONS``) and returns the one to keep.

    Returns:
        Directory of the chosen model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "interpolations.json"
    results: dict[str, Measures] = json.loads(file.read_text()) if file.exists() else {}
    for interpolation in INTERPOLATIONS:
        if interpolation not in results:
            with tempfile.TemporaryDirectory() as temporary:
                results[interpolation] = dict(validate(interpolate(trained, float(interpolation), Path(temporary))))
            file.write_text(json.dumps(results, indent=1))
    chosen = choose(results)
    return interpolate(trained, float(chosen), folder / chosen)


def interpolate(trained: Path, weight: float, folder: Path) -> Path:
    """Write a model between MiniLM (weight 0) and a trained model (weight 1), unless the folder has one."""
    if not (folder / "config.json").exists():
        model, _ = checkpoint.load(str(trained))
        minilm = hub.load_transformer(MINILM).state_dict()
        start = {f"query_encoder.transformer.{name}": value for name, value in minilm.items()}
        weights = {
            name: torch.lerp(start[name], value, weight) if name in start else value
            for name, value in model.state_dict().items()
        }
        qnet = model.config.query_encoder_kwargs.get("converter_kwargs", {})
        if qnet:
            qnet["skip_gate"] = qnet.get("skip_gate", 1.0) * weight
        checkpoint.save(model, folder, tokenizer=load_tokenizer(MINILM, None), weights=weights)
    return folder


def load_model(folder: Path) -> Any:
    """Load a trained model for retrieval."""
    return load_encoder(str(folder), doc_max_length=DOC_LENGTH)


def load_without_network(model: Path, folder: Path) -> Hypencoder:
    """Copy a trained Hypencoder to a folder and load it with its gate closed, so only the inner product is left."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["query_encoder_kwargs"]["converter_kwargs"]["skip_gate"] = 0.0
    (folder / "config.json").write_text(json.dumps(config))
    return Hypencoder(folder, doc_max_length=DOC_LENGTH)
