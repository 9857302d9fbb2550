"""Hugging Face's Trainer with the batches, checkpoints and validation of this package."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from ..encoders import checkpoint
from . import run_state
from .adapters import has_adapters, merge_adapters
from .collator import Collator
from .objective import TrainingObjective
from .parameters import get_trained_weights, group_parameters, set_trained_weights
from .training_rows import TrainingRows

_TRAINED_FILE = "trained.safetensors"
"""Weights of LoRA adapters in a checkpoint, whose model file has them merged."""
_LOG = logging.getLogger(__name__)
Validate = Callable[[Path], Mapping[str, float]]
"""Function that measures a checkpoint directory, for example by indexing and searching a validation collection."""


class TrainingLoop(transformers.Trainer):
    """Train an objective with Hugging Face's Trainer.

    Args:
        objective: Dual encoder with its losses.
        arguments: Training arguments.
        rows: Training rows.
        collator: Collator of the rows.
        tokenizer: Tokenizer to write into every checkpoint.
        facts: Facts to write into every checkpoint; see :mod:`pyterrier_hypencoder.training.run_state`.
        validate: Function that measures a checkpoint. None trains without validation.
        head_learning_rate: Learning rate of the hyper-head before the division by fan-in. None uses one rate for all.
        callbacks: Further callbacks.
    """

    def __init__(
        self,
        objective: TrainingObjective,
        arguments: transformers.TrainingArguments,
        *,
        rows: TrainingRows,
        collator: Collator,
        tokenizer: Any,
        facts: Mapping[str, Any],
        validate: Validate | None = None,
        head_learning_rate: float | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        super().__init__(model=objective, args=arguments, train_dataset=rows, eval_dataset=[], callbacks=list(callbacks))
        self.remove_callback(transformers.PrinterCallback)  # a library logs and does not print
        self.objective: TrainingObjective = objective
        self.rows = rows
        self.collator = collator
        self.tokenizer_to_save = tokenizer
        self.facts = facts
        self.validate = validate
        self.head_learning_rate = head_learning_rate
        self.output_dir = Path(str(arguments.output_dir))

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of this process. Accelerate would split a batch, and separate queries from their items."""
        self.rows.rank, self.rows.world_size = self.args.process_index, self.args.world_size
        self.rows.seed, self.rows.epochs = self.args.seed, None
        return DataLoader(
            self.rows,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.collator,
            num_workers=self.args.dataloader_num_workers,
            # The start of an iteration draws a number. The global generator would change the dropout of a resumed run.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as transformers does, and through ``logging``."""
        super().log(logs, *args, **kwargs)
        if self.is_world_process_zero():
            _LOG.info("step %d: %s", self.state.global_step, logs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Return the optimiser, with rates of the head divided by fan-in if ``head_learning_rate`` is given."""
        if self.optimizer is None and self.head_learning_rate is not None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            rates = self.args.learning_rate, self.head_learning_rate, self.args.weight_decay
            self.optimizer = cls(group_parameters(self.objective, *rates), **options)
        return super().create_optimizer(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return the loss of a batch.

        Raises:
            FloatingPointError: If the loss is NaN or infinite.
        """
        outputs = model(**inputs)
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            raise self._make_divergence_error(f"The loss is {loss.item()}")
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Write the encoder to a temporary directory and measure it."""
        from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

        if self.validate is None:
            return {}
        found: list[Any] = [None]
        if self.is_world_process_zero():  # the other processes wait for its result
            directory = self.output_dir / "validation"
            self.save_encoder(directory)
            found = [{name: float(value) for name, value in self.validate(directory).items()}]
            shutil.rmtree(directory)
        metrics = {f"eval_{name}": value for name, value in broadcast_object_list(found)[0].items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def check_finite_weights(self) -> None:
        """Check that all trained weights are finite.

        Raises:
            FloatingPointError: If a weight is NaN or infinite.
        """
        if not all(bool(value.isfinite().all()) for value in get_trained_weights(self.objective).values()):
            raise self._make_divergence_error("Trained weights are NaN or infinite")

    def save_encoder(self, directory: Path) -> None:
        """Write the encoder to a directory that ``Hypencoder`` or ``BiEncoder`` can load."""
        encoder = self.objective.encoder
        checkpoint.save(encoder, directory, tokenizer=self.tokenizer_to_save, weights=merge_adapters(encoder))

    def _make_divergence_error(self, finding: str) -> FloatingPointError:
        return FloatingPointError(
            f"{finding} after step {self.state.global_step}. The checkpoints in {self.output_dir} are unchanged. Lower the "
            "learning rate, or check the training rows of this step."
        )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.check_finite_weights()
        super()._save_checkpoint(*args, **kwargs)
        if self.args.load_best_model_at_end and self.is_world_process_zero():  # older checkpoints are only compared
            run_state.drop_states(self.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:  # transformers 5 calls this in every process
            return
        directory = Path(output_dir or self.output_dir)
        self.save_encoder(directory)
        run_state.write_facts(directory, self.facts)
        if has_adapters(self.objective):
            weights = get_trained_weights(self.objective)
            save_file({name: value.cpu().contiguous() for name, value in weights.items()}, directory / _TRAINED_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if has_adapters(self.objective):
            set_trained_weights(self.objective, load_file(Path(resume_from_checkpoint) / _TRAINED_FILE))
            return
        weights = checkpoint.read_weights(resume_from_checkpoint)
        checkpoint.fit_weights(self.objective.encoder, weights, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            self._load_from_checkpoint(self.state.best_model_checkpoint)
