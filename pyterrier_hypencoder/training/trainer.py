"""Train Hypencoders and bi-encoders, with checkpoints that load as models."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..encoders.base import Encoder
from ..encoders.loading import load_encoder
from ..encoders.model_card import TRAINING_FILE
from ..encoders.networks import HypencoderDualEncoder
from ..options import check_non_negative, check_number, check_option_names, check_positive
from . import run_state
from .adapters import digest_base_weights
from .collator import Collator
from .global_state import keep_global_state
from .initial_model import prepare_training
from .objective import DISTILLATION, TrainingObjective
from .packages import require_package
from .parameters import has_trained_head, is_trained, select_parameters
from .row_files import Paths
from .row_sampler import RowSampler
from .training_arguments import make_training_arguments, schedule_validation
from .training_loop import TrainingLoop, Validate
from .training_rows import TrainingRows

_LOG = logging.getLogger(__name__)


class HypencoderTrainer:
    """Train a dual encoder by distillation or with contrastive losses.

    The defaults follow the paper (section 4.2): AdamW with a constant learning rate after the warm-up.

    Args:
        model: ``Hypencoder`` or ``BiEncoder``, which does not change. A dual encoder of
            :mod:`pyterrier_hypencoder.encoders.checkpoint` (``load``, ``build``, ``from_dense``) is trained in place.
        output_dir: Directory for checkpoints. ``Hypencoder(...)`` or ``BiEncoder(...)`` loads each of them.
        tokenizer: Hugging Face tokenizer to write into every checkpoint. None uses the model's.
        losses: Names of losses, or their factors by name; see :data:`pyterrier_hypencoder.training.objective.LOSSES`.
        train: Parameters to train. Frozen documents are encoded without dropout.

            - ``all``: queries and documents.
            - ``queries``: documents are frozen, so an existing index stays valid.
            - ``head``: only the hyper-head. The query backbone keeps its dropout.
        backbone_layers: Number of last layers of a trained backbone to train. None trains all layers and the embeddings.
        lora: Options of ``peft.LoraConfig``. Backbones are trained through adapters, which checkpoints have merged.
        scale: Factor of the scores in all losses, an inverse temperature. Cosine scores need about 20, because cross-entropy
            is nearly flat otherwise.
        widths: Widths of the q-nets over which the losses are averaged (Matryoshka). None uses the full width.
        batch_size: Number of rows per device and step.
        max_steps: Number of optimiser steps.
        epochs: Number of passes over the rows, instead of ``max_steps``. It may be a fraction.
        learning_rate: Learning rate of AdamW; 2e-5 in the paper.
        head_learning_rate: Learning rate of the hyper-head, divided by the fan-in of each layer. Use it for heads that start
            small beside the query vector of a dense model. None uses ``learning_rate`` for all, as in the paper.
        warmup_steps: Number of steps with a linear warm-up; 6,000 in the paper.
        lr_scheduler_type: Name of a scheduler of ``transformers``. The paper uses a constant rate after the warm-up.
        seed: Seed of row order, sampling and dropout.
        verbose: If True, show a progress bar. Losses and measures are always logged.
        arguments: Further arguments of ``transformers.TrainingArguments``, such as bf16, gradient_accumulation_steps,
            gradient_checkpointing, save_steps and report_to.
        callbacks: Callbacks of ``transformers.Trainer``, such as ``transformers.EarlyStoppingCallback(3)``.

    Raises:
        ImportError: If accelerate is not installed, or peft if ``lora`` is given.
        ValueError: If an option has a wrong value or does not fit the model.

    Example:
        >>> from pyterrier_hypencoder import Hypencoder, HypencoderTrainer
        >>> model = Hypencoder("hypencoder-minilm")
        >>> trainer = HypencoderTrainer(model, "new-model", losses=["in_batch_ce"], train="head", max_steps=100)
        >>> trainer
        HypencoderTrainer(Hypencoder('hypencoder-minilm'), 'new-model', train='head', max_steps=100)
        >>> new_model = Hypencoder(trainer.fit("rows.jsonl"))  # doctest: +SKIP
    """

    @check_option_names
    def __init__(
        self,
        model: Encoder | HypencoderDualEncoder,
        output_dir: str | Path,
        *,
        tokenizer: Any = None,
        losses: Sequence[str] | Mapping[str, float] = ("margin_mse",),
        train: str = "all",
        backbone_layers: int | None = None,
        lora: Mapping[str, Any] | None = None,
        scale: float = 1.0,
        widths: Sequence[int] | None = None,
        batch_size: int = 64,
        max_steps: int = 1000,
        epochs: float | None = None,
        learning_rate: float = 2e-5,
        head_learning_rate: float | None = None,
        warmup_steps: int = 0,
        lr_scheduler_type: str = "constant_with_warmup",
        seed: int = 0,
        verbose: bool = False,
        arguments: Mapping[str, Any] | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        require_package("accelerate")  # transformers reports it only when training starts
        _check_numbers(batch_size, max_steps, epochs, learning_rate, head_learning_rate, warmup_steps, seed)
        for name, value in {"lora": lora, "arguments": arguments}.items():
            if not isinstance(value, Mapping | None):
                raise ValueError(f"{name} must be a mapping of names to values, got {value!r:.80}.")
        encoder, own_tokenizer, self.collator, self.encoder_options = prepare_training(model, shared=train == "all")
        self.objective = TrainingObjective(encoder, losses, widths, scale)
        if self.objective.widths is not None:  # so users of the model can see the widths of its q-nets
            encoder.config.extra["matryoshka_widths"] = self.objective.widths
        self.output_dir = Path(output_dir).expanduser().absolute()
        self.tokenizer = own_tokenizer if tokenizer is None else tokenizer
        self.head_learning_rate = head_learning_rate
        self.epochs = epochs
        self.callbacks = callbacks
        self.verbose = verbose
        self._name = repr(model) if isinstance(model, Encoder) else type(model).__name__
        # A card is public, so it names no directories of this machine.
        self._start = os.path.basename(model.name_or_path) if isinstance(model, Encoder) else self._name
        self._trained: Path | None = None
        self._selection = {"train": train, "backbone_layers": backbone_layers, "lora": None if lora is None else dict(lora)}
        select_parameters(encoder, train, backbone_layers=backbone_layers, lora=lora)
        if head_learning_rate is not None and not has_trained_head(encoder):
            raise ValueError(
                "head_learning_rate has no effect, because the model has no hyper-head. Set learning_rate instead."
            )
        self._given = dict(arguments or {})
        options = {
            "per_device_train_batch_size": batch_size,
            "max_steps": max_steps,
            "learning_rate": learning_rate,
            "warmup_steps": warmup_steps,
            "lr_scheduler_type": lr_scheduler_type,
            "seed": seed,
        }
        self.arguments = make_training_arguments(self.output_dir, options, self._given, verbose=verbose)

    def __repr__(self) -> str:
        length = f"max_steps={self.arguments.max_steps}" if self.epochs is None else f"epochs={self.epochs}"
        return f"HypencoderTrainer({self._name}, {self.output_dir.name!r}, train={self._selection['train']!r}, {length})"

    @property
    def model(self) -> Encoder:
        """The model that :meth:`fit` trained, for example to save it with ``save_pretrained``.

        Raises:
            ValueError: If :meth:`fit` was not called.
        """
        if self._trained is None:
            raise ValueError("The trainer must be fitted first, got no training run. Call fit(rows).")
        return load_encoder(self._trained, **self.encoder_options)

    def fit(
        self,
        rows: TrainingRows | Paths | Sequence[Any],
        collator: Collator | None = None,
        *,
        negatives_per_row: int | None = None,
        validate: Validate | None = None,
        best: str | None = None,
        resume: bool = False,
    ) -> Path:
        """Train the model.

        Args:
            rows: File of training rows, list of files, list of rows, ``datasets.Dataset``, or sampled rows. The positive of a
                row is an item of type ``positive``, or the first item if items have no types. Rows are split over processes
                and, if the run resumes, skipped here.
            collator: Collator of the rows. None uses the lengths and prefixes of the model.
            negatives_per_row: Number of negatives to draw whenever a row is used. None means 8. Rows with fewer are left out.
            validate: Function that measures a checkpoint. It runs every ``eval_steps``, or every ``save_steps`` if that is
                not set. If neither is set, it runs ten times in the run.
            best: Measure that chooses the best checkpoint. Checkpoints are then saved when they are validated. None keeps
                the last one.
            resume: If True, continue from the last checkpoint in ``output_dir``, or start if there is none.

        Returns:
            Directory of the best model by validation, or of the last one.

        Raises:
            FloatingPointError: If the loss or a weight is NaN or infinite. Earlier checkpoints stay as they are.
            FileExistsError: If ``output_dir`` holds checkpoints and ``resume`` is False.
            ValueError: If the last checkpoint belongs to another model or run, options contradict each other, or a row is
                malformed.
        """
        collator = self._check_collator(self.collator if collator is None else collator)
        rows = self._open_rows(rows, negatives_per_row)
        self._set_steps(rows)
        facts = self.describe_run()
        last = self._find_start(rows, facts, resume)
        self._schedule(validate, best)
        with keep_global_state():
            loop = TrainingLoop(
                self.objective,
                self.arguments,
                rows=rows,
                collator=collator,
                tokenizer=self.tokenizer,
                facts=facts,
                validate=validate,
                head_learning_rate=self.head_learning_rate,
                callbacks=self.callbacks,
            )
            loop.train(resume_from_checkpoint=None if last is None else str(last))
        self._trained = self._write_model(loop, rows)
        return self._trained

    def _write_model(self, loop: TrainingLoop, rows: TrainingRows) -> Path:
        """Write the trained model with the facts of its training, and return its directory."""
        loop.check_finite_weights()
        final = self.output_dir / "model"
        if loop.is_world_process_zero():
            loop.save_encoder(final)
            training = {"started_from": self._start, **self.describe_training(rows, loop)}
            (final / TRAINING_FILE).write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
            kept = ", ".join(path.name for path in run_state.list_checkpoints(self.output_dir))
            _LOG.info("%s holds the trained model. %s are kept, to resume and to compare.", final, kept or "No checkpoints")
        loop.accelerator.wait_for_everyone()
        return final

    def _open_rows(self, rows: Any, negatives_per_row: int | None) -> TrainingRows:
        """Return sampled rows of files or of a list."""
        if isinstance(rows, TrainingRows):
            if negatives_per_row is not None:
                raise ValueError("negatives_per_row has no effect on TrainingRows. Set it in their RowSampler.")
            return rows
        sampler = RowSampler(
            positive="auto",
            negatives_per_row=8 if negatives_per_row is None else negatives_per_row,
            require_scores=any(name in DISTILLATION for name in self.objective.weights),
        )
        return TrainingRows(rows, sampler, on_too_few_items="skip")

    def _set_steps(self, rows: TrainingRows) -> None:
        """Turn epochs into a number of steps."""
        if self.epochs is None:
            return
        arguments = self.arguments
        per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        arguments.max_steps = max(1, math.ceil(self.epochs * rows.count_rows() / per_step))
        arguments.save_steps = self._given.get("save_steps", arguments.max_steps)

    def describe_training(self, rows: TrainingRows, loop: TrainingLoop) -> dict[str, Any]:
        """Return the facts of a finished run, for the model card. Measures are those of the best validation, or the last."""
        state, arguments = loop.state, self.arguments
        validated = [entry for entry in state.log_history if any(key.startswith("eval_") for key in entry)]
        best = [entry for entry in validated if state.best_metric in entry.values()] or validated[-1:]
        return {
            "rows": [Path(name).name for name in rows.files] or f"{len(rows.rows or ())} rows in memory",
            "steps": state.global_step,
            "rows_per_step": arguments.per_device_train_batch_size
            * arguments.gradient_accumulation_steps
            * arguments.world_size,
            "negatives_per_row": rows.sampler.negatives_per_row,
            "losses": self.objective.weights,
            "train": self._selection["train"],
            "learning_rate": arguments.learning_rate,
            "seed": arguments.seed,
            "measures": {k.removeprefix("eval_"): v for e in best[:1] for k, v in e.items() if k.startswith("eval_")},
        }

    def describe_run(self) -> dict[str, Any]:
        """Return the facts that a run must share with the checkpoint from which it resumes."""
        arguments, encoder = self.arguments, self.objective.encoder
        volatile = ("base_weights", "backbone_configs")  # a path, and a dictionary that depends on transformers' version
        return {
            "model": {key: value for key, value in encoder.config.to_dict().items() if key not in volatile},
            **self._selection,
            "losses": self.objective.weights,
            "scale": self.objective.scale,
            "batch_size": arguments.per_device_train_batch_size,
            "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
            "world_size": arguments.world_size,
            "seed": arguments.seed,
            "frozen_weights": digest_base_weights(encoder),
        }

    def _check_collator(self, collator: Collator | None) -> Collator:
        if collator is None:
            raise ValueError("A dual encoder needs a collator. Pass fit(rows, Collator(tokenizer, ...)).")
        if collator.vectors is not None and is_trained(self.objective.encoder.passage_encoder):
            raise ValueError(
                "collator.vectors needs frozen documents, but train='all' trains their encoder. Use train='queries' or "
                "'head', or leave out the vectors."
            )
        return collator

    def _find_start(self, rows: TrainingRows, facts: Mapping[str, Any], resume: bool) -> Path | None:
        """Return the checkpoint to resume from, or None, and set how many rows are skipped."""
        rows.skip = 0
        last = run_state.find_last_checkpoint(self.output_dir)
        if last is None:
            return None
        if not resume:
            raise FileExistsError(
                f"{self.output_dir} already holds {last.name}. Pass resume=True to continue from it, delete it, "
                "or pass another output_dir."
            )
        run_state.check_facts(last, facts)
        rows_per_step = self.arguments.per_device_train_batch_size * self.arguments.gradient_accumulation_steps
        rows.skip = run_state.read_step(last) * rows_per_step
        return last

    def _schedule(self, validate: Validate | None, best: str | None) -> None:
        """Set when checkpoints are validated and saved."""
        if validate is not None:
            measures = [str(measure) for measure in getattr(validate, "measures", [best])]
            schedule_validation(self.arguments, self._given, best, measures)
        elif best is not None:
            raise ValueError(f"best={best!r} needs a validation. Pass validate=... as well, or leave out best.")
        elif self._given.get("eval_steps") or self._given.get("eval_strategy", "no") != "no":
            # An error would be too strict: an estimator may be fitted with a validation first, and then without.
            _LOG.warning("eval_steps and eval_strategy have no effect without a validation. Pass validate=... to fit.")


def _check_numbers(
    batch_size: Any, max_steps: Any, epochs: Any, learning_rate: Any, head_learning_rate: Any, warmup_steps: Any, seed: Any
) -> None:
    check_positive("batch_size", batch_size)
    check_positive("max_steps", max_steps)
    if epochs is not None:
        check_number("epochs", epochs)
        if epochs <= 0:
            raise ValueError(f"epochs must be positive, got {epochs!r}.")
        if max_steps != 1000:
            raise ValueError(f"Give epochs or max_steps, not both, got {epochs!r} and {max_steps!r}.")
    check_number("learning_rate", learning_rate, 0)
    if head_learning_rate is not None:
        check_number("head_learning_rate", head_learning_rate, 0)
    check_non_negative("warmup_steps", warmup_steps)
    check_non_negative("seed", seed)
