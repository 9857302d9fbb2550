"""The command line: ``python -m pyterrier_hypencoder.training config.yaml key=value``."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config as configuration
from .config import Config, ValidationConfig

if TYPE_CHECKING:
    import pandas as pd

    from ..encoders.networks import HypencoderDualEncoder
    from .collator import Collator
    from .data import TrainingRows
    from .validation import Validation

_LOG = logging.getLogger("pyterrier_hypencoder.training")
# What users can put right; anything else comes with a traceback.
_MISTAKES = (
    ValueError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    PermissionError,
    FloatingPointError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: what was typed; None takes it from ``sys.argv``.

    Returns:
        The exit status: 0, or 2 after a mistake, which is then on stderr in one line.
    """
    names = "\n".join(f"  {name:<20} {purpose}" for name, purpose in configuration.shipped().items())
    parser = argparse.ArgumentParser(
        prog="python -m pyterrier_hypencoder.training",
        description="Trains a Hypencoder or bi-encoder as a configuration says, and prints the folder of the model.",
        epilog=f"configurations that come with this package, in {configuration.FOLDER}:\n{names}\n\n"
        "on several GPUs: torchrun --nproc-per-node 2 -m pyterrier_hypencoder.training ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="a YAML file, or the name of one of those below")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as trainer.learning_rate=1e-5 resume=true")
    parser.add_argument("--debug", action="store_true", help="log more, and show where errors come from")
    given = parser.parse_args(arguments)
    if given.config is None:
        parser.print_help()
        return 0
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("pyterrier_hypencoder").setLevel(logging.DEBUG if given.debug else logging.INFO)
    try:
        folder = run(configuration.load(given.config, given.overrides))
    except _MISTAKES as err:
        if given.debug:
            raise
        sys.stderr.write(f"error: {' '.join(str(err).split())}\n")
        return 2
    if os.environ.get("RANK", "0") == "0":  # a launcher's other processes have nothing to add
        sys.stdout.write(f"{folder}\n")
    return 0


def run(config: Config) -> Path:
    """Trains as a configuration says.

    Returns:
        The folder of the model.

    Raises:
        FileExistsError: where ``output_dir`` holds a run and ``resume`` is not set.
        FileNotFoundError: where data or a model are missing.
        ValueError: where data, model and options are not what they should be, or do not fit together.
    """
    try:
        import datasets  # type: ignore[import-untyped]  # noqa: F401  (or the rows would miss it later)

        from .initial_model import build_initial_model
        from .trainer import HypencoderTrainer
    except ImportError as err:
        raise ImportError(f"training needs more packages ({err}): pip install 'pyterrier-hypencoder[train]'") from err

    _LOG.info("%s", config)
    _check_output(Path(config.output_dir), config.resume)
    rows = make_rows(config)  # what is missing is found before a model is loaded
    validation = None if config.validation is None else make_validation(config, config.validation)
    encoder, tokenizer = build_initial_model(config.model)
    collator = make_collator(config, encoder, tokenizer)
    if validation is not None:
        _check_encoder_options(encoder, validation.options)
    options = {entry.name: getattr(config.trainer, entry.name) for entry in dataclasses.fields(config.trainer)}
    if config.validation is not None:
        every = config.validation.every
        steps = {"eval_strategy": "steps", "eval_steps": every, "save_steps": every}
        options["arguments"] = {**(options["arguments"] or {}), **steps}
    try:
        trainer = HypencoderTrainer(encoder, config.output_dir, tokenizer=tokenizer, **options)
    except TypeError as err:
        raise ValueError(
            f"trainer: expected options that transformers (arguments) and peft (lora) take, found: {err}"
        ) from err
    best = None if validation is None else str(validation.measures[0])
    return trainer.fit(rows, collator, validate=validation, best=best, resume=config.resume)


def _check_output(folder: Path, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output_dir: expected a directory, or nothing yet, found a file at {folder}; give another")
    checkpoints = sorted(path.name for path in folder.glob("checkpoint-*"))
    if checkpoints and resume:
        return
    if there := checkpoints + ["model"] * (folder / "model").exists():
        advice = "give another output_dir" + (", or go on from the last checkpoint with resume=true" if checkpoints else "")
        raise FileExistsError(f"expected no checkpoint and no model in {folder}, found {', '.join(there)}; {advice}")


def make_rows(config: Config) -> TrainingRows:
    """The training rows.

    Raises:
        FileNotFoundError: where a path leads to no file.
        ValueError: where an option is wrong.
    """
    from .data import RowSampler, TrainingRows
    from .objective import DISTILLATION

    data = config.data
    sampler = RowSampler(
        positive=data.positive,
        negatives=data.negatives,
        positive_type=data.positive_type,
        threshold=data.threshold,
        require_scores=any(name in DISTILLATION for name in config.trainer.losses),
        content=data.content,
        item_texts=data.vectors is None,
    )
    return TrainingRows(data.paths, sampler, shuffle_buffer=data.shuffle_buffer, on_too_few_items=data.on_too_few_items)


def make_collator(config: Config, encoder: HypencoderDualEncoder, tokenizer: Any) -> Collator:
    """What makes batches.

    Raises:
        FileNotFoundError: where an index is missing.
        ValueError: where it is of another model.
    """
    from ..encoders.hub import longest_input
    from .collator import Collator

    data = config.data
    sides = (encoder.query_encoder, encoder.passage_encoder)
    query_positions, doc_positions = (longest_input(side.transformer.config) for side in sides)
    return Collator(
        tokenizer,
        query_max_length=min(data.query_max_length, query_positions),
        doc_max_length=min(data.doc_max_length, doc_positions),
        query_prefix=data.query_prefix,
        doc_prefix=data.doc_prefix,
        vectors=None if data.vectors is None else _open_vectors(data.vectors, encoder, data.doc_prefix),
    )


def _open_vectors(path: str, encoder: HypencoderDualEncoder, doc_prefix: str) -> Any:
    import pyterrier as pt

    from ..artifact import HypencoderIndex
    from ..encoders.checkpoint import fingerprint
    from .frozen_vectors import make_vector_lookup

    if not Path(path).is_dir():
        raise FileNotFoundError(f"data.vectors: expected an index in {path!r}, found no such folder")
    try:
        index = pt.Artifact.load(path)
    except ValueError as err:
        raise ValueError(f"data.vectors: expected a HypencoderIndex or a FlexIndex in {path!r}, found another: {err}") from err
    if isinstance(index, HypencoderIndex) and (expected := (index.meta.get("model") or {}).get("fingerprint")):
        side = encoder.passage_encoder
        found = fingerprint(side.transformer, side.pooling, side.pool_padding, side.normalize, doc_prefix)
        if found != expected:
            raise ValueError(
                f"data.vectors: expected an index made by the model's document encoder ({found}), found one by another "
                f"({expected}) in {path!r}; index the documents with the model that training begins with"
            )
    return make_vector_lookup(index)


def make_validation(config: Config, validation: ValidationConfig) -> Validation:
    """What measures checkpoints.

    Raises:
        FileNotFoundError: where a file is missing.
        ValueError: where a file does not hold what it should, or nothing is judged.
    """
    import pandas as pd

    from ..artifact import HypencoderIndex
    from .validation import Validation

    topics = pd.concat([_topics(path) for path in _files("validation.topics", validation.topics)])
    if topics["qid"].duplicated().any():
        raise ValueError(
            f"validation.topics: expected every qid once, found {topics['qid'][topics['qid'].duplicated()].iloc[0]!r} twice"
        )
    qrels = pd.concat([_qrels(path) for path in _files("validation.qrels", validation.qrels)])
    data, arguments = config.data, config.trainer.arguments or {}
    options: dict[str, Any] = {"query_max_length": data.query_max_length, "doc_max_length": data.doc_max_length}
    options |= {name: getattr(data, name) for name in ("query_prefix", "doc_prefix") if getattr(data, name)}
    options |= {"device": "cpu"} if arguments.get("use_cpu") else {}
    _check_measures(validation.measures)
    made = Validation(
        topics,
        qrels,
        _docs(validation.docs, validation.text_field),
        measures=validation.measures,
        judged_only=validation.judged_only,
        text_field=validation.text_field,
        num_results=validation.num_results,
        options={**options, **validation.options},
    )
    if isinstance(made.docs, HypencoderIndex) and config.trainer.train == "all":
        raise ValueError(
            "validation.docs: expected a collection that is encoded anew, as trainer.train=all changes document vectors, "
            f"found the index {validation.docs!r}"
        )
    if isinstance(made.docs, list) and not made.docs:
        raise ValueError(f"validation.docs: expected documents that are judged, found none of them in {validation.docs!r}")
    return made


def _check_measures(measures: Sequence[str]) -> None:
    import ir_measures

    for name in measures:
        try:
            ir_measures.parse_measure(name)
        except (NameError, ValueError) as err:
            raise ValueError(f"validation.measures: expected measures of ir_measures, found {name!r}: {err}") from err


def _files(key: str, paths: Sequence[str]) -> Sequence[str]:
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{key}: expected a file, found none at {path!r}; give {key}=..., or train without (validation=null)"
            )
    return paths


def _topics(path: str) -> pd.DataFrame:
    import pandas as pd

    topics = pd.read_csv(path, sep="\t", header=None, dtype=str, quoting=3, keep_default_na=False)
    if topics.shape[1] != 2:
        raise ValueError(
            f"validation.topics: expected qid and query, separated by a tab, found {topics.shape[1]} columns in {path!r}"
        )
    return topics.set_axis(["qid", "query"], axis=1)


def _qrels(path: str) -> pd.DataFrame:
    import pandas as pd
    import pyterrier as pt

    try:
        qrels = pt.io.read_qrels(path)
    except (ValueError, KeyError) as err:
        raise ValueError(f"validation.qrels: expected judgements in TREC's format in {path!r}, found others ({err})") from err
    if qrels.empty or qrels.isna().any(axis=None) or not pd.api.types.is_integer_dtype(qrels["label"]):
        raise ValueError(
            f"validation.qrels: expected qid, 0, docno and a whole number in every line of {path!r}, found others"
        )
    return qrels


def _docs(name: str, text_field: Sequence[str]) -> Any:
    """The validation collection: a dataset, an index, or an iterator over a file."""
    import pyterrier as pt

    if name.startswith("irds:"):
        try:
            return pt.get_dataset(name)
        except KeyError as err:
            raise ValueError(f"validation.docs: expected a dataset of ir_datasets, found {name!r}: {err}") from err
    if Path(name).is_dir():
        from ..artifact import HypencoderIndex

        return HypencoderIndex(name)
    _files("validation.docs", [name])
    return _read_docs(name, text_field)


def _read_docs(path: str, text_field: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    from ..encoders.columns import join_text

    with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                doc = json.loads(line)
            except ValueError:
                doc = None
            if not isinstance(doc, dict) or not isinstance(doc.get("docno"), str):
                raise ValueError(f"{path}, line {number}: expected a document with docno and text as JSON, found {line!r:.80}")
            join_text(doc, text_field)  # an error now, not at the first validation
            yield doc


def _check_encoder_options(encoder: HypencoderDualEncoder, options: Mapping[str, Any]) -> None:
    """Checks what validation will load checkpoints with, which is many steps later."""
    from ..encoders.hypencoder import Hypencoder
    from ..encoders.loading import get_encoder_class

    kind = get_encoder_class(encoder.config)
    if kind is Hypencoder and {"query_prefix", "doc_prefix"} & set(options):
        raise ValueError(
            "data.query_prefix, data.doc_prefix: expected none with a Hypencoder, which searches without; leave them out"
        )
    known = list(inspect.signature(kind).parameters)[1:]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"validation.options: expected some of {known}, found {', '.join(unknown)}")


if __name__ == "__main__":
    sys.exit(main())
