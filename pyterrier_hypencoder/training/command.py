"""Train as a configuration says: build rows, batches and validation from it, and check that they fit the model."""

from __future__ import annotations

import dataclasses
import gzip
import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import pandas as pd
import pyterrier as pt

from ..artifact import HypencoderIndex
from ..encoders.checkpoint import compute_fingerprint
from ..encoders.columns import join_text
from ..encoders.hub import get_max_length
from ..encoders.hypencoder import Hypencoder
from ..encoders.loading import get_encoder_class
from ..encoders.networks import HypencoderDualEncoder
from .collator import Collator
from .config import Config, DataConfig, ValidationConfig
from .frozen_vectors import make_vector_lookup
from .initial_model import build_initial_model
from .objective import DISTILLATION
from .row_sampler import RowSampler
from .trainer import HypencoderTrainer
from .training_rows import TrainingRows
from .validation import Validation

_LOG = logging.getLogger(__name__)


def train(config: Config) -> Path:
    """Train as a configuration says.

    Args:
        config: The configuration.

    Returns:
        Directory of the trained model.

    Raises:
        FileExistsError: If ``output_dir`` contains a run and ``resume`` is false.
        FileNotFoundError: If data or a model does not exist.
        ValueError: If data, model or options are invalid, or do not fit together.
    """
    _LOG.info("%s", config)
    _check_output_dir(Path(config.output_dir), config.resume)
    rows = _make_rows(config)  # before the model, because missing data is then reported at once
    validation = None if config.validation is None else _make_validation(config, config.validation)
    encoder, tokenizer = build_initial_model(config.model)
    if get_encoder_class(encoder.config) is Hypencoder and (config.data.query_prefix or config.data.doc_prefix):
        raise ValueError("data.query_prefix and data.doc_prefix need a bi-encoder, got a Hypencoder. Remove them.")
    collator = _make_collator(config.data, encoder, tokenizer)
    options = {entry.name: getattr(config.trainer, entry.name) for entry in dataclasses.fields(config.trainer)}
    if validation is not None and config.validation is not None:
        _check_encoder_options(encoder, validation.options)
        options["arguments"] = {**(options["arguments"] or {}), "eval_steps": config.validation.every}
    try:
        trainer = HypencoderTrainer(encoder, config.output_dir, tokenizer=tokenizer, **options)
    except TypeError as err:
        raise ValueError(f"transformers (trainer.arguments) or peft (trainer.lora) refused an option: {err}") from err
    best = None if validation is None else str(validation.measures[0])
    return trainer.fit(rows, collator, validate=validation, best=best, resume=config.resume)


def _check_output_dir(folder: Path, resume: bool) -> None:
    """Check that training overwrites nothing."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output_dir must be a directory or not exist, got the file {folder}.")
    checkpoints = sorted(path.name for path in folder.glob("checkpoint-*"))
    if checkpoints and resume:
        return
    if found := checkpoints + ["model"] * (folder / "model").exists():
        advice = " or continue from the last checkpoint with resume=true" if checkpoints else ""
        raise FileExistsError(f"output_dir {folder} already contains {', '.join(found)}. Choose another output_dir{advice}.")


def _make_rows(config: Config) -> TrainingRows:
    """Build the training rows."""
    data = config.data
    sampler = RowSampler(
        positive=data.positive,
        negatives_per_row=data.negatives_per_row,
        positive_type=data.positive_type,
        threshold=data.threshold,
        require_scores=any(name in DISTILLATION for name in config.trainer.losses),
        content=data.content,
        item_texts=data.vectors is None,
    )
    return TrainingRows(data.paths, sampler, shuffle_buffer=data.shuffle_buffer, on_too_few_items=data.on_too_few_items)


def _make_collator(data: DataConfig, encoder: HypencoderDualEncoder, tokenizer: Any) -> Collator:
    """Build the collator, which makes batches of rows."""
    query_positions = get_max_length(encoder.query_encoder.transformer)
    doc_positions = get_max_length(encoder.passage_encoder.transformer)
    return Collator(
        tokenizer,
        query_max_length=min(data.query_max_length, query_positions),
        doc_max_length=min(data.doc_max_length, doc_positions),
        query_prefix=data.query_prefix,
        doc_prefix=data.doc_prefix,
        vectors=None if data.vectors is None else _open_vectors(data.vectors, encoder, data.doc_prefix),
    )


def _open_vectors(path: str, encoder: HypencoderDualEncoder, doc_prefix: str) -> Any:
    """Open an index as a lookup of document vectors, and check that the document encoder built it."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"data.vectors: no index at {path!r}. Give the directory of an index.")
    try:
        index = pt.Artifact.load(path)
    except ValueError as err:
        raise ValueError(f"data.vectors must be a HypencoderIndex or a FlexIndex, got {path!r}: {err}") from err
    if isinstance(index, HypencoderIndex) and (expected := (index.meta.get("model") or {}).get("fingerprint")):
        found = compute_fingerprint(encoder.passage_encoder, doc_prefix)
        if found != expected:
            raise ValueError(
                f"data.vectors: the index {path!r} was built by another document encoder ({expected}) than the initial "
                f"model's ({found}). Index the documents with the initial model."
            )
    return make_vector_lookup(index)


def _make_validation(config: Config, validation: ValidationConfig) -> Validation:
    """Build the validation, which measures checkpoints."""
    topics = pd.concat([_read_topics(path) for path in validation.topics])
    if (repeated := topics["qid"].duplicated()).any():
        raise ValueError(f"validation.topics: the qid {topics['qid'][repeated].iloc[0]!r} occurs twice. Make qids unique.")
    _check_measures(validation.measures)
    data, arguments = config.data, config.trainer.arguments or {}
    options: dict[str, Any] = {"query_max_length": data.query_max_length, "doc_max_length": data.doc_max_length}
    options |= {name: getattr(data, name) for name in ("query_prefix", "doc_prefix") if getattr(data, name)}
    options |= {"device": "cpu"} if arguments.get("use_cpu") else {}
    made = Validation(
        topics,
        pd.concat([_read_qrels(path) for path in validation.qrels]),
        _open_docs(validation.docs, validation.text_field),
        measures=validation.measures,
        judged_only=validation.judged_only,
        text_field=validation.text_field,
        num_results=validation.num_results,
        options={**options, **validation.options},
    )
    if isinstance(made.docs, HypencoderIndex) and config.trainer.train == "all":
        raise ValueError(
            f"validation.docs: the index {validation.docs!r} does not fit trainer.train=all, which changes document vectors. "
            "Give the documents themselves."
        )
    if isinstance(made.docs, list) and not made.docs:
        raise ValueError(f"validation.docs: {validation.docs!r} contains no judged document. Check the docnos in the qrels.")
    return made


def _check_measures(measures: Sequence[str]) -> None:
    for name in measures:
        try:
            ir_measures.parse_measure(name)
        except (NameError, ValueError) as err:
            raise ValueError(f"validation.measures must be names of ir_measures, got {name!r}: {err}") from err


def _require_file(key: str, path: str) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{key}: no file at {path!r}. Set {key}, or train without validation (validation=null).")
    return path


def _read_topics(path: str) -> pd.DataFrame:
    path = _require_file("validation.topics", path)
    topics = pd.read_csv(path, sep="\t", header=None, dtype=str, quoting=3, keep_default_na=False)
    if topics.shape[1] != 2:
        raise ValueError(f"validation.topics: {path!r} must have two columns (qid, tab, query), got {topics.shape[1]}.")
    return topics.set_axis(["qid", "query"], axis=1)


def _read_qrels(path: str) -> pd.DataFrame:
    problem = f"validation.qrels: {path!r} must have TREC's format (qid, 0, docno and an integer in every line)"
    try:
        qrels = pt.io.read_qrels(_require_file("validation.qrels", path))
    except (ValueError, KeyError) as err:
        raise ValueError(f"{problem}, got an error: {err}") from err
    if qrels.empty or qrels.isna().any(axis=None) or not pd.api.types.is_integer_dtype(qrels["label"]):
        raise ValueError(f"{problem}, got lines in another format.")
    return qrels


def _open_docs(name: str, text_field: Sequence[str]) -> Any:
    """Return the validation collection: a dataset, an index, or an iterator over a file."""
    if name.startswith("irds:"):
        try:
            return pt.get_dataset(name)
        except KeyError as err:
            raise ValueError(f"validation.docs must be a dataset of ir_datasets, got {name!r}: {err}") from err
    return HypencoderIndex(name) if Path(name).is_dir() else _read_docs(_require_file("validation.docs", name), text_field)


def _read_docs(path: str, text_field: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the documents of a JSON lines file."""
    with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                doc = json.loads(line)
            except ValueError:
                doc = None
            if not isinstance(doc, dict) or not isinstance(doc.get("docno"), str):
                raise ValueError(f"{path}, line {number} must be a JSON object with docno and text, got {line!r:.80}.")
            join_text(doc, text_field)  # reports a missing text now, not at the first validation
            yield doc


def _check_encoder_options(encoder: HypencoderDualEncoder, options: Mapping[str, Any]) -> None:
    """Check the options that checkpoints are loaded with, because the first validation comes after many steps."""
    kind = get_encoder_class(encoder.config)
    if kind is Hypencoder and {"query_prefix", "doc_prefix"} & set(options):
        raise ValueError("data.query_prefix and data.doc_prefix need a bi-encoder, got a Hypencoder. Remove them.")
    known = list(inspect.signature(kind).parameters)[1:]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"validation.options must be among {', '.join(known)}, got {', '.join(unknown)}.")
