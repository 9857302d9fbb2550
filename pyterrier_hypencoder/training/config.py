"""The configuration of a training run: a YAML file and ``key=value`` overrides, checked into dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..options import check_choice, check_positive
from . import schema

FOLDER = Path(__file__).parent / "configs"
"""The configurations that come with this package."""
# What the trainer takes under names of its own, and what follows from other keys.
_ELSEWHERE = {
    "output_dir": "output_dir",
    "resume_from_checkpoint": "resume",
    "per_device_train_batch_size": "trainer.batch_size",
    "max_steps": "trainer.max_steps",
    "num_train_epochs": "trainer.max_steps",
    "learning_rate": "trainer.learning_rate",
    "warmup_steps": "trainer.warmup_steps",
    "lr_scheduler_type": "trainer.lr_scheduler_type",
    "seed": "trainer.seed",
    "disable_tqdm": "trainer.verbose",
    "eval_strategy": "validation.every",
    "eval_steps": "validation.every",
    "load_best_model_at_end": "validation.measures",
    "metric_for_best_model": "validation.measures",
}


@dataclass(frozen=True)
class ModelConfig:
    """Where the model begins: exactly one of ``checkpoint``, ``dense`` and ``backbone``.

    Args:
        checkpoint: a dual encoder, directory or hub id, taken as it is.
        dense: a dense model whose ranking the model begins with; see :func:`pyterrier_hypencoder.checkpoint.from_dense`.
        backbone: an encoder that both sides begin as; the hyper-head begins at random, as in the paper.
        head_from: a Hypencoder checkpoint from which a model with ``backbone`` takes its hyper-head.
        hidden: widths of the q-nets' hidden layers; null makes a bi-encoder.
        qnet: other options of :class:`pyterrier_hypencoder.QNetSpec`; with ``checkpoint``, in place of its own (see
            :func:`pyterrier_hypencoder.checkpoint.override_config`).
        pooling: ``cls``, ``mean``, ``max`` or ``last``; null is ``cls`` with ``backbone``, and what it says of itself with
            ``dense``.
        normalize: whether vectors have length 1; null is no with ``backbone``, and what it says of itself with ``dense``.
        shared_encoder: whether queries and documents are encoded by one transformer.
        tokenizer: directory or hub id; null takes that of where the model begins.
        weights: whether weights are loaded; false makes the same architecture with random ones.
        seed: of random weights.
    """

    checkpoint: str | None = None
    dense: str | None = None
    backbone: str | None = None
    head_from: str | None = None
    hidden: tuple[int, ...] | None = None
    qnet: Mapping[str, Any] = field(default_factory=dict)
    pooling: str | None = None
    normalize: bool | None = None
    shared_encoder: bool = False
    tokenizer: str | None = None
    weights: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        starts = [name for name in ("checkpoint", "dense", "backbone") if getattr(self, name) is not None]
        if len(starts) != 1:
            raise ValueError(
                f"model: expected exactly one of checkpoint, dense and backbone, found {starts or 'none'}; set the others to "
                "null"
            )
        if self.checkpoint is not None:
            keys = ("head_from", "hidden", "pooling", "normalize", "shared_encoder")
            decided = [key for key in keys if getattr(self, key) not in (None, {}, False)]
            if decided:
                raise ValueError(
                    f"model: expected nothing that the checkpoint {self.checkpoint!r} decides, found {decided}; leave it out, "
                    "or start from a backbone"
                )
        if self.head_from is not None and (self.backbone is None or self.hidden is None):
            raise ValueError("model.head_from: expected it beside model.backbone and model.hidden, found one of them missing")
        if self.dense is not None and not self.weights:
            raise ValueError("model.weights: expected true with model.dense, which begins with what a dense model knows")


@dataclass(frozen=True)
class DataConfig:
    """The training rows, and what is taken from them.

    Args:
        paths: files (``.jsonl``, ``.jsonl.gz``), directories or patterns.
        positive: see :class:`pyterrier_hypencoder.training.data.RowSampler`, as for the next four.
        negatives: documents beside the positive.
        positive_type: for ``positive: type``.
        threshold: for ``positive: score_above``.
        content: ``auto``, ``text`` or ``tokens``.
        shuffle_buffer: see :class:`pyterrier_hypencoder.training.data.TrainingRows`, as for the next.
        on_too_few_items: ``error`` or ``skip``.
        query_max_length: tokens of a query.
        doc_max_length: tokens of a document.
        query_prefix: put before every query; for bi-encoders.
        doc_prefix: put before every document; for bi-encoders.
        vectors: an index whose document vectors are used, so that documents, which must be frozen, are not encoded: a
            ``HypencoderIndex``, or a ``FlexIndex`` of pyterrier_dr.
    """

    paths: tuple[str, ...]
    positive: str = "first"
    negatives: int = 8
    positive_type: str = "positive"
    threshold: float = 0.0
    content: str = "auto"
    shuffle_buffer: int = 1000
    on_too_few_items: str = "error"
    query_max_length: int = 32
    doc_max_length: int = 196
    query_prefix: str = ""
    doc_prefix: str = ""
    vectors: str | None = None

    def __post_init__(self) -> None:
        check_positive("data.query_max_length", self.query_max_length)
        check_positive("data.doc_max_length", self.doc_max_length)


@dataclass(frozen=True)
class TrainerConfig:
    """The options of :class:`pyterrier_hypencoder.training.trainer.HypencoderTrainer`, which explains them."""

    losses: tuple[str, ...] | Mapping[str, float] = ("margin_mse",)
    train: str = "all"
    backbone_layers: int | None = None
    lora: Mapping[str, Any] | None = None
    scale: float = 1.0
    widths: tuple[int, ...] | None = None
    batch_size: int = 64
    max_steps: int = 1000
    learning_rate: float = 2e-5
    head_learning_rate: float | None = None
    warmup_steps: int = 0
    lr_scheduler_type: str = "constant_with_warmup"
    seed: int = 0
    verbose: bool = False
    arguments: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_positive("trainer.batch_size", self.batch_size)
        check_positive("trainer.max_steps", self.max_steps)
        for name in self.arguments or {}:
            if name in _ELSEWHERE:
                raise ValueError(f"trainer.arguments.{name}: expected it as {_ELSEWHERE[name]}; write it there instead")


@dataclass(frozen=True)
class ValidationConfig:
    """What a model is measured on while it is trained; see :class:`pyterrier_hypencoder.validation.Validation`.

    Args:
        topics: tab-separated files of qid and query, together.
        qrels: judgements in TREC's format, together.
        docs: the collection: a file of docno and text (``.jsonl``, ``.jsonl.gz``), a dataset (``irds:...``), or a
            ``HypencoderIndex``, whose vectors are used as they are (documents frozen).
        every: steps from one validation, and one checkpoint, to the next.
        measures: of ir_measures; the checkpoint that is best by the first one is kept.
        judged_only: whether judged documents only are indexed.
        text_field: the field with a document's text, or several.
        num_results: documents that are retrieved.
        options: of the encoder, such as ``batch_size``, ``dtype`` and ``device``.
    """

    topics: tuple[str, ...]
    qrels: tuple[str, ...]
    docs: str
    every: int
    measures: tuple[str, ...] = ("Rprec",)
    judged_only: bool = False
    text_field: tuple[str, ...] = ("text",)
    num_results: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_positive("validation.every", self.every)
        check_positive("validation.num_results", self.num_results)


@dataclass(frozen=True)
class Config:
    """A training run.

    Args:
        model: where the model begins.
        data: the training rows.
        output_dir: where checkpoints go, and the model into its folder ``model``.
        trainer: options of the trainer.
        validation: null trains without, and keeps the last model.
        resume: go on from the last checkpoint in ``output_dir``; begins anew where there is none.
    """

    model: ModelConfig
    data: DataConfig
    output_dir: str
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    validation: ValidationConfig | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        check_choice("trainer.train", self.trainer.train, ("all", "queries", "head"))
        if self.data.vectors is not None and self.trainer.train == "all":
            raise ValueError(
                "data.vectors: expected frozen documents (trainer.train: queries, or head), found all; vectors in an index do "
                "not learn"
            )
        if self.validation is None:
            return
        every, given = self.validation.every, (self.trainer.arguments or {}).get("save_steps", self.validation.every)
        if given != every:
            raise ValueError(
                f"trainer.arguments.save_steps: expected validation.every ({every}), so that the best model is among those "
                f"that are kept, found {given}; leave it out"
            )
        if every > self.trainer.max_steps:
            raise ValueError(
                f"validation.every: expected at most trainer.max_steps ({self.trainer.max_steps}), found {every}; lower it, "
                "or train without (validation=null)"
            )


def shipped() -> dict[str, str]:
    """The configurations that come with this package: what each begins to say of itself, by name."""
    first = {path.stem: path.read_text(encoding="utf-8").partition("\n")[0] for path in sorted(FOLDER.glob("*.yaml"))}
    return {name: line.removeprefix("#").strip() for name, line in first.items()}


def find(name: str, beside: Path | None = None) -> Path:
    """The file of a configuration.

    Args:
        name: its path, or the name of one that comes with this package.
        beside: a folder in which it may also lie.

    Raises:
        FileNotFoundError: where there is none, naming those that come with this package.
    """
    at_hand = FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    for path in (*([] if beside is None else [beside / name]), Path(name), at_hand):
        if path.is_file():
            return path
    raise FileNotFoundError(f"expected the path of a configuration, or one of {', '.join(shipped())}; found {name!r}")


def load(name: str, overrides: Iterable[str] = ()) -> Config:
    """Reads a configuration.

    Args:
        name: its path, or the name of one that comes with this package.
        overrides: ``key=value``, such as ``trainer.learning_rate=1e-5``; values are YAML.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where a key does not exist, naming the nearest that does, or a value is not what it should be.
    """
    values = _read(find(name))
    for override in overrides:
        _override(values, override)
    try:
        config: Config = schema.read(Config, values)
        if config.model.qnet:
            schema.check_keys(config.model.qnet, _qnet_options(), "model.qnet")
        if config.trainer.arguments:
            schema.check_keys(config.trainer.arguments, _training_arguments(), "trainer.arguments")
    except schema.UnknownKeyError as err:
        raise ValueError(f"{err}; the nearest that does is {_nearest(err.section, err.name)}") from None
    return config


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file, over those of the file that its ``base`` names."""
    if path.resolve() in above:
        raise ValueError(f"base: expected files that do not lead back to themselves, found {path} again")
    values = schema.parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, found {values!r:.80}")
    base = values.pop("base", None)
    if base is None:
        return values
    return _merged(_read(find(str(base), path.parent), (*above, path.resolve())), values)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        known = under.get(key)
        both[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return both


def _override(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not sign or not all([*sections, name]):
        raise ValueError(f"expected key=value, such as trainer.learning_rate=1e-5, found {override!r}")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ValueError(f"{override!r}: expected {section} to have keys of its own, found {values!r:.80}")
    values[name] = schema.parse(text, override)


def _nearest(section: str, name: str) -> str:
    """Of all keys the one whose name is most like this one, rather of the same section."""
    keys = schema.list_keys(Config)
    keys += [f"model.qnet.{key}" for key in _qnet_options()]
    keys += [f"trainer.arguments.{key}" for key in _training_arguments() if key not in _ELSEWHERE]

    def likeness(key: str) -> float:
        its_section, _, its_name = key.rpartition(".")
        return difflib.SequenceMatcher(None, its_name, name).ratio() + (0.1 if its_section == section else 0)

    return max(keys, key=likeness)


def _qnet_options() -> list[str]:
    from ..qnet import QNetSpec

    return [entry.name for entry in dataclasses.fields(QNetSpec) if entry.name not in ("vector_dimensions", "narrowed")]


def _training_arguments() -> list[str]:
    """What this version of transformers takes."""
    from transformers import TrainingArguments

    return [entry.name for entry in dataclasses.fields(TrainingArguments) if entry.init]
