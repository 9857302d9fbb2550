"""Adapts all-MiniLM-L6-v2 with its documents frozen: what the training examples share.

Either kind of model starts exactly at MiniLM's ranking and learns on the query side alone, so that every index that MiniLM
made can be searched with it. The bi-encoder learns query vectors; the Hypencoder learns the same, and a small network beside
the inner product.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import torch

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndex, HypencoderIndexer, HypencoderTrainer
from pyterrier_hypencoder.encoders import checkpoint, hub
from pyterrier_hypencoder.encoders.loading import load_encoder
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.data import RowSampler, TrainingRows
from pyterrier_hypencoder.training.frozen_vectors import make_vector_lookup
from shared.collections import Collection

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
KINDS = ("hypencoder", "bi-encoder")
DOC_LENGTH = 256
#: How much of what was learnt is tried out.
SHARES = ("0", "0.4", "0.6", "0.8", "1.0")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the same for both kinds, but for what a bi-encoder does not have.

    Attributes:
        hidden: widths of the q-nets' hidden layers.
        backbone_layers: layers of the query encoder that are trained, the last ones; 0 leaves it as it is, and a linear map
            of its vectors is trained in its place.
        batch_size: queries in a step; the documents of the others are the negatives.
        max_steps: optimiser steps.
        every: steps between validations.
        learning_rate: of the query encoder's layers, or of that linear map.
        head_learning_rate: of the hyper-head; see ``HypencoderTrainer``.
        warmup_steps: of the linear schedule.
        dropout: of the q-nets' hidden layers.
        losses: see ``HypencoderTrainer``.
        negatives: documents beside the relevant one that are sampled from a row.
        bf16: whether to compute in bf16 where torch can.
    """

    hidden: tuple[int, ...] = (96,)
    backbone_layers: int = 3
    batch_size: int = 128
    max_steps: int = 600
    every: int = 200
    learning_rate: float = 3e-5
    head_learning_rate: float = 2e-3
    warmup_steps: int = 100
    dropout: float = 0.1
    losses: tuple[str, ...] = ("in_batch_ce",)
    negatives: int = 0
    bf16: bool = True


def minilm(**options: Any) -> BiEncoder:
    """MiniLM as it is, from the wheel that holds it or from the hub."""
    return BiEncoder(MINILM, **{"doc_max_length": DOC_LENGTH, **options})


def indexed(
    folder: Path,
    name: str,
    docs: Callable[[], Iterable[Mapping[str, Any]]],
    fields: list[str],
    doc_length: int = DOC_LENGTH,
) -> HypencoderIndex:
    """The index of a collection by MiniLM, made where it does not exist; a killed run goes on where it was."""
    path = folder / f"{name}.hyp"
    if path.exists():
        return HypencoderIndex(path)
    full = ({**dict.fromkeys(fields, ""), **doc} for doc in docs())
    HypencoderIndexer(path, minilm(doc_max_length=doc_length), text_field=fields, mode="resume", verbose=True).index(full)
    return HypencoderIndex(path)


def index_collection(folder: Path, name: str, collection: Collection, doc_length: int = DOC_LENGTH) -> HypencoderIndex:
    """The index of a test collection."""
    return indexed(folder, name, collection.docs, collection.text_fields, doc_length)


def joined(folder: Path, name: str, indexes: Mapping[str, HypencoderIndex]) -> HypencoderIndex:
    """One index with the vectors of several, in which docnos begin with the name of where they come from."""
    path = folder / f"{name}.hyp"
    if not path.exists():
        vectors = (
            {"docno": f"{source}/{doc['docno']}", "doc_vec": doc["doc_vec"]}
            for source, index in indexes.items()
            for doc in index.get_corpus_iter()
        )
        HypencoderIndexer(path, mode="resume").index(vectors)
    return HypencoderIndex(path)


def judged_rows(name: str, topics: pd.DataFrame, qrels: pd.DataFrame) -> list[dict[str, Any]]:
    """Training rows of topics with their relevant documents, of which the trainer takes one at a time."""
    relevant = qrels[qrels["label"] > 0].groupby("qid")["docno"]
    lists = {qid: [{"id": f"{name}/{docno}", "type": "positive"} for docno in docnos] for qid, docnos in relevant}
    return [
        {"query": {"id": f"{name}/{topic.qid}", "content": topic.query}, "items": lists[topic.qid]}
        for topic in topics.itertuples()
        if topic.qid in lists
    ]


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Writes training rows."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def train(
    kind: str,
    recipe: Recipe,
    rows: Path,
    documents: HypencoderIndex,
    validate: Callable[[Path], Mapping[str, float]],
    folder: Path,
    seed: int,
) -> Path:
    """Trains a model, or goes on with what a killed run has left; what is trained already is used again.

    Args:
        kind: ``hypencoder`` or ``bi-encoder``.
        recipe: how.
        rows: the file with the training rows.
        documents: has the vectors of their items.
        validate: measures a checkpoint; ``mean`` decides which is the best.
        folder: where to.
        seed: of the head's start and dropout.

    Returns:
        The directory of the best checkpoint.
    """
    done, stated = folder / "model", json.dumps({"kind": kind, "seed": seed, **asdict(recipe)}, sort_keys=True)
    if (folder / "recipe.json").exists() and (folder / "recipe.json").read_text() != stated:
        shutil.rmtree(folder)  # of another recipe
    if (done / "config.json").exists():
        return done
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(stated)
    hyper = kind == "hypencoder"
    options = {"do_dropout": recipe.dropout > 0, "dropout_prob": recipe.dropout} if hyper else {}
    frozen = recipe.backbone_layers == 0
    start = checkpoint.from_dense(
        MINILM, hidden=recipe.hidden if hyper else None, query_projection=frozen, seed=seed, **options
    )
    tokenizer = hub.load_tokenizer(MINILM, None)
    trainer = HypencoderTrainer(
        start,
        folder,
        tokenizer=tokenizer,
        losses=recipe.losses,
        train="head" if frozen else "queries",
        backbone_layers=None if frozen else recipe.backbone_layers,
        scale=1.0 if hyper else 20.0,  # which a Hypencoder's inner product has by itself
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
            "eval_steps": recipe.every,
            "save_steps": recipe.every,
            "save_total_limit": 2,
        },
    )
    sampler = RowSampler(positive="type", negatives=recipe.negatives, item_texts=False)
    collator = Collator(tokenizer, query_max_length=32, vectors=make_vector_lookup(documents))
    return trainer.fit(TrainingRows(rows, sampler, shuffle_buffer=0), collator, validate=validate, best="mean", resume=True)


def blended(
    trained: Path,
    folder: Path,
    validate: Callable[[Path], Mapping[str, float]],
    choose: Callable[[Mapping[str, Mapping[str, float]]], str],
) -> Path:
    """Goes back part of the way to MiniLM: weights between both forget less of what it knew.

    Interpolated weights are those of WiSE-FT (Wortsman et al., arXiv 2109.01903); a Hypencoder's gate is lowered alike.

    Args:
        trained: the directory of a model that :func:`train` made.
        folder: where to; what was measured there already is used again.
        validate: measures a checkpoint.
        choose: takes what was measured by share, ``0`` being MiniLM itself, and gives the share to keep.

    Returns:
        The directory of the chosen one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes = folder / "shares.json"
    found: dict[str, Mapping[str, float]] = json.loads(notes.read_text()) if notes.exists() else {}
    for share in SHARES:
        if share not in found:
            with tempfile.TemporaryDirectory() as temporary:
                found[share] = dict(validate(_between(trained, float(share), Path(temporary))))
            notes.write_text(json.dumps(found, indent=1))
    return _between(trained, float(choose(found)), folder / choose(found))


def _between(trained: Path, share: float, folder: Path) -> Path:
    """Writes the model between MiniLM and what it was trained to; what is there already is left."""
    if not (folder / "config.json").exists():
        model, _ = checkpoint.load(str(trained))
        start = {f"query_encoder.transformer.{key}": value for key, value in hub.load_transformer(MINILM).state_dict().items()}
        learned = model.state_dict()
        weights = {key: torch.lerp(start[key], value, share) if key in start else value for key, value in learned.items()}
        qnet = model.config.query_encoder_kwargs.get("converter_kwargs", {})
        if qnet:
            qnet["skip_gate"] = qnet.get("skip_gate", 1.0) * share
        checkpoint.save(model, folder, tokenizer=hub.load_tokenizer(MINILM, None), weights=weights)
    return folder


def without_network(model: Path, folder: Path) -> Hypencoder:
    """A trained Hypencoder's inner product alone, its gate shut."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["query_encoder_kwargs"]["converter_kwargs"]["skip_gate"] = 0.0
    (folder / "config.json").write_text(json.dumps(config))
    return Hypencoder(folder, doc_max_length=DOC_LENGTH)


def load(model: Path) -> Any:
    """A trained model, for retrieval."""
    return load_encoder(str(model), doc_max_length=DOC_LENGTH)


def rows_in_blocks(
    sources: Mapping[str, list[dict[str, Any]]], seed: int, epochs: int, size: int = 32
) -> list[dict[str, Any]]:
    """Orders training rows so that those of one source stand together, in blocks, and blocks in random order.

    A query's negatives are the documents of the other queries of its batch: those of its own source are worth telling apart,
    and those of others too easy.

    Args:
        sources: the rows by where they come from.
        seed: of the order.
        epochs: how often every row comes, each time among others.
        size: rows of a block.
    """
    rng, ordered = random.Random(seed), []
    for _ in range(epochs):
        blocks = []
        for rows in sources.values():
            shuffled = rng.sample(rows, len(rows))
            blocks += [shuffled[start : start + size] for start in range(0, len(rows), size)]
        rng.shuffle(blocks)
        ordered += [row for block in blocks for row in block]
    return ordered


def compare(systems: Mapping[str, Any], index: HypencoderIndex, collection: Collection, measures: list[Any]) -> pd.DataFrame:
    """Searches a collection with several models over one index; the first one is the baseline.

    Returns:
        name, the measures, and the p-value of nDCG@10 against the baseline.
    """
    retrievers = [index.retriever(model, num_results=100) for model in systems.values()]
    table = pt.Experiment(
        retrievers, collection.topics, collection.qrels, measures, names=list(systems), baseline=0, filter_by_qrels=True
    )
    return table[["name", *map(str, measures), "nDCG@10 p-value"]]


def means(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Means over seeds: systems are called by their kind and a seed."""
    kinds = table["name"].str.replace(r" \d+$", "", regex=True)
    return table.groupby(kinds, sort=False)[columns].agg(["mean", "std"])
