"""The configuration of a training run, as dataclasses. ``config_files.py`` reads them from YAML files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..options import check_choice, check_positive

FOLDER = Path(__file__).parent / "configs"
"""Folder of the configurations that come with this package."""
REQUIRED: Any = "???"
"""Value of a key that has no default. This is OmegaConf's marker."""
MOVED_ARGUMENTS = {
    "output_dir": "output_dir",
    "resume_from_checkpoint": "resume",
    "per_device_train_batch_size": "trainer.batch_size",
    "max_steps": "trainer.max_steps",
    "num_train_epochs": "trainer.epochs",
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
"""Fields of ``transformers.TrainingArguments`` that have another key, and that key."""


def list_configs() -> dict[str, str]:
    """Return the name and title of every configuration that comes with this package."""
    titles = {path.stem: path.read_text(encoding="utf-8").partition("\n")[0] for path in sorted(FOLDER.glob("*.yaml"))}
    return {name: title.removeprefix("#").strip() for name, title in titles.items()}


@dataclass
class ModelConfig:
    """The model that training starts from: exactly one of ``checkpoint``, ``dense`` and ``backbone``.

    Args:
        checkpoint: Directory or hub id of a dual encoder, which is used unchanged.
        dense: Directory or hub id of a dense model. The new model starts with its ranking, see
            :func:`pyterrier_hypencoder.encoders.dense_start.from_dense`.
        backbone: Directory or hub id of an encoder. Both sides start from it; the hyper-head is random, as in the paper.
        head_from: Hypencoder checkpoint whose hyper-head replaces the random one. Only with ``backbone``.
        hidden: Widths of the q-nets' hidden layers. Null builds a bi-encoder.
        qnet: Other options of :class:`pyterrier_hypencoder.QNetSpec`. With ``checkpoint`` they override its options.
        pooling: ``cls``, ``mean``, ``max`` or ``last``. Null means ``cls`` with ``backbone``, and the dense model's pooling
            with ``dense``.
        normalize: If true, vectors are scaled to length 1. Null means false with ``backbone``, and the dense model's setting
            with ``dense``.
        shared_encoder: If true, one transformer encodes queries and documents.
        tokenizer: Directory or hub id of the tokenizer. Null uses the one of the initial model.
        weights: If false, the same architecture gets random weights.
        seed: Seed of random weights.
    """

    checkpoint: str | None = None
    dense: str | None = None
    backbone: str | None = None
    head_from: str | None = None
    hidden: list[int] | None = None
    qnet: dict[str, Any] = field(default_factory=dict)
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
                f"model needs exactly one of checkpoint, dense and backbone, got {starts or 'none'}. Set the others to null."
            )
        decided = [n for n in ("head_from", "hidden", "pooling", "normalize", "shared_encoder") if getattr(self, n)]
        if self.checkpoint is not None and decided:
            raise ValueError(
                f"model.checkpoint {self.checkpoint!r} already decides {', '.join(decided)}. Remove these keys, or start from "
                "model.backbone."
            )
        if self.head_from is not None and (self.backbone is None or self.hidden is None):
            raise ValueError("model.head_from needs model.backbone and model.hidden. Set both, or remove model.head_from.")
        if self.dense is not None and not self.weights:
            raise ValueError("model.weights must be true with model.dense, because training starts from its weights.")


@dataclass
class DataConfig:
    """The training rows, and how they become batches.

    Args:
        paths: Files (``.jsonl``, ``.jsonl.gz``), directories or patterns.
        positive: Rule that chooses the positive; this and the next four keys are options of ``RowSampler``.
        negatives_per_row: Number of documents besides the positive.
        positive_type: Type of positives, for ``positive: type``.
        threshold: Score that positives must exceed, for ``positive: score_above``.
        content: ``auto``, ``text`` or ``tokens``.
        shuffle_buffer: Number of rows in the shuffle buffer.
        on_too_few_items: ``error`` or ``skip``, for rows with too few documents.
        query_max_length: Length in tokens at which queries are cut.
        doc_max_length: Length in tokens at which documents are cut.
        query_prefix: Text before every query. Only for bi-encoders.
        doc_prefix: Text before every document. Only for bi-encoders.
        vectors: Path of a ``HypencoderIndex``, or a ``FlexIndex`` of pyterrier_dr. Its document vectors are used instead of
            encoding the documents, so documents must be frozen.
    """

    paths: list[str] = REQUIRED
    positive: str = "first"
    negatives_per_row: int = 8
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


@dataclass
class TrainerConfig:
    """Options of :class:`pyterrier_hypencoder.HypencoderTrainer`, which documents them.

    ``losses`` is a name, a list of names, or a mapping from names to factors.
    """

    losses: Any = "margin_mse"
    train: str = "all"
    backbone_layers: int | None = None
    lora: dict[str, Any] | None = None
    scale: float = 1.0
    widths: list[int] | None = None
    batch_size: int = 64
    max_steps: int = 1000
    epochs: float | None = None
    learning_rate: float = 2e-5
    head_learning_rate: float | None = None
    warmup_steps: int = 0
    lr_scheduler_type: str = "constant_with_warmup"
    seed: int = 0
    verbose: bool = False
    arguments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.losses = [self.losses] if isinstance(self.losses, str) else self.losses
        names, factors = (self.losses, self.losses.values()) if isinstance(self.losses, dict) else (self.losses, [])
        if (
            not isinstance(names, list | dict)
            or not all(isinstance(name, str) for name in names)
            or not all(isinstance(factor, int | float) for factor in factors)
        ):
            raise ValueError(f"trainer.losses must be names, or a mapping of names to numbers, got {self.losses!r:.80}.")
        check_choice("trainer.train", self.train, ("all", "queries", "head"))
        check_positive("trainer.batch_size", self.batch_size)
        check_positive("trainer.max_steps", self.max_steps)
        for name in self.arguments or {}:
            if name in MOVED_ARGUMENTS:
                raise ValueError(f"trainer.arguments.{name} has another key. Set {MOVED_ARGUMENTS[name]} instead.")


@dataclass
class ValidationConfig:
    """How checkpoints are measured during training; see :class:`pyterrier_hypencoder.training.validation.Validation`.

    Args:
        topics: Tab-separated files of qid and query. They are concatenated.
        qrels: Relevance judgements in TREC's format. They are concatenated.
        docs: The collection: a file of docno and text (``.jsonl``, ``.jsonl.gz``), a dataset (``irds:...``), or a
            ``HypencoderIndex``. Vectors of an index are used unchanged, so documents must be frozen.
        every: Number of steps between two validations, each of which also saves a checkpoint.
        measures: Names of ir_measures. The checkpoint that is best by the first one is kept.
        judged_only: If true, only judged documents are indexed.
        text_field: Fields with a document's text.
        num_results: Number of documents to retrieve.
        options: Options of the encoder, such as ``batch_size``, ``dtype`` and ``device``.
    """

    topics: list[str] = REQUIRED
    qrels: list[str] = REQUIRED
    docs: str = REQUIRED
    every: int = REQUIRED
    measures: list[str] = field(default_factory=lambda: ["Rprec"])
    judged_only: bool = False
    text_field: list[str] = field(default_factory=lambda: ["text"])
    num_results: int = 1000
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_positive("validation.every", self.every)
        check_positive("validation.num_results", self.num_results)


@dataclass
class Config:
    """A training run.

    Args:
        model: The model that training starts from.
        data: The training rows.
        output_dir: Directory for checkpoints. The trained model goes into its folder ``model``.
        trainer: Options of the trainer.
        validation: How checkpoints are measured. Null trains without validation and keeps the last model.
        resume: If true, continue from the last checkpoint in ``output_dir``, or start if there is none.
    """

    model: ModelConfig = REQUIRED
    data: DataConfig = REQUIRED
    output_dir: str = REQUIRED
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    validation: ValidationConfig | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.data.vectors is not None and self.trainer.train == "all":
            raise ValueError(
                "data.vectors needs frozen documents, got trainer.train=all. Set trainer.train to queries or head, because "
                "vectors in an index cannot be trained."
            )
        if self.validation is None:
            return
        every, given = self.validation.every, (self.trainer.arguments or {}).get("save_steps", self.validation.every)
        if given != every:
            raise ValueError(
                f"trainer.arguments.save_steps must equal validation.every ({every}), got {given!r}. Remove it, because only "
                "saved checkpoints can be the best model."
            )
        if self.trainer.epochs is None and every > self.trainer.max_steps:
            raise ValueError(
                f"validation.every must be at most trainer.max_steps ({self.trainer.max_steps}), got {every}. Lower it, or "
                "train without validation (validation=null)."
            )


SECTIONS = {"model": ModelConfig, "data": DataConfig, "trainer": TrainerConfig, "validation": ValidationConfig}
"""Dataclass of every section of a configuration."""
