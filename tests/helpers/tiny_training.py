"""Tiny encoders and trainers, so tests can train for real in a second."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pyterrier_hypencoder import HypencoderTrainer
from pyterrier_hypencoder.encoders import checkpoint, tokenizer_files
from pyterrier_hypencoder.encoders.checkpoint_config import DualEncoderConfig
from pyterrier_hypencoder.encoders.networks import HypencoderDualEncoder
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.training_rows import TrainingRows

GOLDEN = Path(__file__).parents[1] / "golden"
BASE_MATRIX = "query_encoder.hyper_base_matrices.0"
"""A weight that every training of the hyper-head changes."""


@cache
def load_tokenizer() -> Any:
    """Return the tokenizer of the golden checkpoints."""
    return tokenizer_files.load_tokenizer(str(GOLDEN / "tiny_6l_cls_shared"), None)


def make_encoder(
    *,
    layers: int = 2,
    shared: bool = False,
    architecture: str = "HypencoderDualEncoder",
    dropout: float = 0.0,
    seed: int = 1,
) -> HypencoderDualEncoder:
    """Build a dual encoder of 24 dimensions with random weights."""
    backbone = json.loads((GOLDEN / "tiny_base_bert" / "config.json").read_text())
    backbone |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
    config = DualEncoderConfig(
        architecture,
        query_encoder_kwargs={
            "model_name_or_path": str(GOLDEN / "tiny_base_bert"),
            "base_encoder_output_dim": 24,
            "converter_kwargs": {"vector_dimensions": [24] * (layers + 1) + [1]},
        },
        passage_encoder_kwargs={"model_name_or_path": str(GOLDEN / "tiny_base_bert"), "pooling_type": "mean"},
        shared_encoder=shared,
        extra={"backbone_configs": {"query": backbone, "passage": backbone}},
    )
    return checkpoint.build(config, seed=seed)


def make_rows(path: Path, **options: Any) -> TrainingRows:
    """Return the rows of a file in their order, each with three negatives."""
    return TrainingRows(path, RowSampler(negatives_per_row=3, **options), shuffle_buffer=0)


def make_batch(path: Path) -> dict[str, torch.Tensor]:
    """Return all rows of a file as one batch."""
    return Collator(load_tokenizer())(list(make_rows(path)))


def make_trainer(output_dir: Path, model: Any = None, *, arguments: dict[str, Any] | None = None, **options: Any) -> Any:
    """Return a trainer of ten steps, of a new tiny encoder unless a model is given."""
    defaults = {"batch_size": 8, "max_steps": 10, "learning_rate": 2e-3, "tokenizer": load_tokenizer()}
    arguments = {"use_cpu": True, **(arguments or {})}
    return HypencoderTrainer(model or make_encoder(), output_dir, arguments=arguments, **(defaults | options))


def train(output_dir: Path, path: Path, model: Any = None, **options: Any) -> Path:
    """Train on the rows of a file, and return the directory of the model."""
    fit_options = {name: options.pop(name) for name in ("resume", "validate", "best") if name in options}
    return make_trainer(output_dir, model, **options).fit(make_rows(path), Collator(load_tokenizer()), **fit_options)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint by name."""
    return checkpoint.read_weights(str(folder))


def list_changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the weights that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def assert_equal_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], atol: float = 1e-6) -> None:
    """Assert that two sets of weights have the same names and, up to a tolerance, the same values."""
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=atol, msg=name)
