"""The trainer: Hypencoders and bi-encoders on Hugging Face's Trainer, with checkpoints that load as models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

from .. import checkpoint
from ..frames import check_choice
from ..model import HypencoderDualEncoder
from .collator import Collator
from .data import TrainingRows
from .network import TrainingNetwork

TRAINED = ("all", "queries", "head")
Validate = Callable[[Path], Mapping[str, float]]
"""Measures a checkpoint directory, for example by indexing and searching a validation collection with it."""


class HypencoderTrainer:
    """Trains a dual encoder as the paper does (section 4.2): AdamW, constant rate after warm-up, distillation or contrast.

    Args:
        encoder: the dual encoder, from :func:`pyterrier_hypencoder.checkpoint.load` or ``build``; trained in place.
        output_dir: where checkpoints go, each a directory that ``Hypencoder(...)`` or ``BiEncoder(...)`` loads.
        tokenizer: a Hugging Face tokenizer, written beside every checkpoint.
        losses: names, or factors by name; see :data:`pyterrier_hypencoder.training.network.LOSSES`.
        train: what is trained: ``all``; ``queries`` (documents frozen, so that an existing index stays valid); ``head``
            (only the hyper-head).
        widths: widths of the q-nets over which losses are averaged (Matryoshka); None for the full one.
        batch_size: rows per device and step.
        max_steps: optimiser steps.
        learning_rate: of AdamW; 2e-5 in the paper.
        warmup_steps: linear warm-up; 6,000 in the paper.
        lr_scheduler_type: of ``transformers``; constant after warm-up in the paper.
        seed: of data order, sampling and dropout.
        arguments: any other of ``transformers.TrainingArguments``: bf16, gradient_accumulation_steps, save_steps, ...

    Raises:
        ValueError: for options that do not exist or do not fit the encoder.
    """

    def __init__(
        self,
        encoder: HypencoderDualEncoder,
        output_dir: str | Path,
        *,
        tokenizer: Any = None,
        losses: Sequence[str] | Mapping[str, float] = ("margin_mse",),
        train: str = "all",
        widths: Sequence[int] | None = None,
        batch_size: int = 64,
        max_steps: int = 1000,
        learning_rate: float = 2e-5,
        warmup_steps: int = 0,
        lr_scheduler_type: str = "constant_with_warmup",
        seed: int = 0,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("train", train, TRAINED)
        weights = losses if isinstance(losses, Mapping) else dict.fromkeys(losses, 1.0)
        self.network = TrainingNetwork(encoder, weights, widths)
        self.output_dir = Path(output_dir)
        self.tokenizer = tokenizer
        _freeze(encoder, train)
        self.arguments = transformers.TrainingArguments(
            **{
                "output_dir": str(output_dir),
                "per_device_train_batch_size": batch_size,
                "max_steps": max_steps,
                "learning_rate": learning_rate,
                "warmup_steps": warmup_steps,
                "lr_scheduler_type": lr_scheduler_type,
                "weight_decay": 0.0,
                "seed": seed,
                "save_steps": max_steps,
                "logging_steps": 50,
                "report_to": "none",
                "disable_tqdm": True,
                **(arguments or {}),
                "remove_unused_columns": False,
                "ignore_data_skip": True,  # the rows skip by themselves, without reading
            }
        )

    def fit(
        self,
        rows: TrainingRows,
        collator: Collator,
        *,
        validate: Validate | None = None,
        best: str | None = None,
        resume: bool = False,
    ) -> Path:
        """Trains.

        Args:
            rows: the sampled rows; split over processes and, on resuming, skipped here.
            collator: makes batches of them.
            validate: measures a checkpoint every ``eval_steps`` steps (with ``eval_strategy="steps"``).
            best: the measure by which the best checkpoint is kept; None keeps the last one.
            resume: go on from the last checkpoint in ``output_dir``; begins anew where there is none.

        Returns:
            The directory of the model: the best one by validation, or the last.

        Raises:
            FloatingPointError: where the loss is NaN or infinite, naming the step; checkpoints stay as they are.
            FileExistsError: where ``output_dir`` holds checkpoints and ``resume`` is not set.
            ValueError: where the checkpoint to resume from is of another model, or rows are bad.
        """
        last = transformers.trainer_utils.get_last_checkpoint(str(self.output_dir)) if self.output_dir.is_dir() else None
        if last and not resume:
            raise FileExistsError(
                f"expected no checkpoints in {self.output_dir}, found {Path(last).name}; pass resume=True to go on from it, "
                "or give another output_dir"
            )
        if best is not None:
            self.arguments.metric_for_best_model = f"eval_{best.removeprefix('eval_')}"
            self.arguments.greater_is_better = True
            self.arguments.load_best_model_at_end = True
        trainer = _Trainer(self, rows, collator, validate)
        if last:
            step = json.loads((Path(last) / "trainer_state.json").read_text())["global_step"]
            rows.skip = step * self.arguments.per_device_train_batch_size * self.arguments.gradient_accumulation_steps
        trainer.train(resume_from_checkpoint=last)
        final = self.output_dir / "model"
        if trainer.is_world_process_zero():
            self.save(final)
        return final

    def save(self, directory: str | Path) -> None:
        """Writes the encoder, as it is now, to a directory that loads as a model."""
        checkpoint.save(self.network.encoder, directory, tokenizer=self.tokenizer)


class _Trainer(transformers.Trainer):
    """Hugging Face's Trainer with our batches, checkpoints and validation."""

    def __init__(self, owner: HypencoderTrainer, rows: TrainingRows, collator: Collator, validate: Validate | None) -> None:
        super().__init__(model=owner.network, args=owner.arguments, train_dataset=rows, eval_dataset=[])
        self.owner = owner
        self.rows = rows
        self.collator = collator
        self.validate = validate

    def get_train_dataloader(self) -> DataLoader:
        """Batches of this process's own rows; accelerate would split items and queries alike."""
        self.rows.rank, self.rows.world_size = self.args.process_index, self.args.world_size
        self.rows.seed, self.rows.epochs = self.args.seed, None
        return DataLoader(
            self.rows,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.collator,
            # One of its own: beginning to iterate draws from it, which would shift the dropout of a resumed run.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The network's loss; stops where it is no number."""
        outputs = model(**inputs)
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"expected a finite loss, found {loss.item()} after step {self.state.global_step}; the checkpoints in "
                f"{self.args.output_dir} are as they were: lower the learning rate or look at the data there"
            )
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Writes the encoder as it is and has it measured."""
        if self.validate is None:
            return {}
        directory = self.owner.output_dir / "validation"
        if self.is_world_process_zero():
            self.owner.save(directory)
        self.accelerator.wait_for_everyone()
        self.owner.network.eval()
        metrics = {f"eval_{name}": float(value) for name, value in self.validate(directory).items()}
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            shutil.rmtree(directory)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.owner.save(output_dir or self.owner.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = checkpoint.read_weights(resume_from_checkpoint)
        checkpoint.fit_weights(self.owner.network.encoder, weights, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


def _freeze(encoder: HypencoderDualEncoder, train: str) -> None:
    """Freezes what is not trained, and poolers, which no score depends on."""
    shared = encoder.query_encoder.transformer is encoder.passage_encoder.transformer
    if train == "queries" and shared:
        raise ValueError(
            "train='queries': expected encoders of their own for queries and documents, found a shared one (shared_encoder), "
            "which cannot be trained and frozen at once; use train='head', or a checkpoint with two"
        )
    if train in ("queries", "head"):
        encoder.passage_encoder.requires_grad_(False)
    if train == "head":
        encoder.query_encoder.transformer.requires_grad_(False)
    for side in (encoder.query_encoder, encoder.passage_encoder):
        pooler = getattr(side.transformer, "pooler", None)
        if isinstance(pooler, nn.Module):
            pooler.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise ValueError(f"train={train!r}: expected something to train, found nothing; a bi-encoder has no head")
