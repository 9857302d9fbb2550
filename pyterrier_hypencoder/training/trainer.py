"""The trainer: Hypencoders and bi-encoders on Hugging Face's Trainer, with checkpoints that load as models."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import IntervalStrategy

from ..encoders import checkpoint
from ..encoders.base import Encoder
from ..encoders.networks import HypencoderDualEncoder
from . import parameters
from . import run_state as checkpoints
from .collator import Collator
from .data import TrainingRows
from .initial_model import prepare_training
from .objective import TrainingNetwork

_TRAINED = "trained.safetensors"
_LOG = logging.getLogger(__name__)
Validate = Callable[[Path], Mapping[str, float]]
"""Measures a checkpoint directory, for example by indexing and searching a validation collection with it."""


class HypencoderTrainer:
    """Trains a dual encoder as the paper does (section 4.2): AdamW, constant rate after warm-up, distillation or contrast.

    Args:
        model: a ``Hypencoder`` or ``BiEncoder``, which stays as it is, or a dual encoder of
            :mod:`pyterrier_hypencoder.checkpoint` (``load``, ``build``, ``from_dense``), which is trained in place.
        output_dir: where checkpoints go, each a directory that ``Hypencoder(...)`` or ``BiEncoder(...)`` loads.
        tokenizer: a Hugging Face tokenizer, written beside every checkpoint; None takes the model's.
        losses: names, or factors by name; see :data:`pyterrier_hypencoder.training.network.LOSSES`.
        train: what is trained: ``all``; ``queries`` (documents frozen, so that an existing index stays valid); ``head``
            (only the hyper-head). Frozen documents are encoded without dropout; a frozen query backbone keeps it.
        backbone_layers: how many of the last layers of a trained backbone are trained; None for all, and the embeddings.
        lora: options of ``peft.LoraConfig``: backbones then learn through adapters, which checkpoints have merged in.
        scale: factor of the scores in all losses, an inverse temperature; about 20 for bi-encoders that give cosines, over
            which cross-entropy is nearly flat.
        widths: widths of the q-nets over which losses are averaged (Matryoshka); None for the full one.
        batch_size: rows per device and step.
        max_steps: optimiser steps.
        learning_rate: of AdamW; 2e-5 in the paper.
        head_learning_rate: None for one rate, as in the paper. Otherwise by how much a step changes what the hyper-head's
            layers give: their rates are this divided by fan-in, for heads that start beside what a dense model knows.
        warmup_steps: linear warm-up; 6,000 in the paper.
        lr_scheduler_type: of ``transformers``; constant after warm-up in the paper.
        seed: of data order, sampling and dropout.
        verbose: whether to show a progress bar; losses and measures go to ``logging`` in any case, and to what
            ``report_to`` names.
        arguments: any other of ``transformers.TrainingArguments``: bf16, gradient_accumulation_steps,
            gradient_checkpointing, save_steps, report_to, ...

    Raises:
        ValueError: for options that do not exist or do not fit the encoder.
    """

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
        learning_rate: float = 2e-5,
        head_learning_rate: float | None = None,
        warmup_steps: int = 0,
        lr_scheduler_type: str = "constant_with_warmup",
        seed: int = 0,
        verbose: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        encoder, own_tokenizer, self.collator, self.encoder_options = prepare_training(model, shared=train == "all")
        weights = losses if isinstance(losses, Mapping) else dict.fromkeys(losses, 1.0)
        self.network = TrainingNetwork(encoder, weights, widths, scale)
        if widths is not None:  # so that users of the model know at which widths its q-nets were trained
            encoder.config.extra["matryoshka_widths"] = list(widths)
        self.output_dir = Path(output_dir)
        self.tokenizer = own_tokenizer if tokenizer is None else tokenizer
        self.head_learning_rate = head_learning_rate
        self._choices = {"train": train, "backbone_layers": backbone_layers, "lora": None if lora is None else dict(lora)}
        parameters.choose(encoder, train, backbone_layers=backbone_layers, lora=lora)
        self._given = dict(arguments or {})
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
                "ddp_find_unused_parameters": False,  # poolers are frozen, and all else has a part in every loss
                "disable_tqdm": not verbose,
                # Without it, transformers refuses bf16 where there is no GPU.
                "use_cpu": not (torch.cuda.is_available() or torch.backends.mps.is_available()),
                **(arguments or {}),
                "remove_unused_columns": False,
                "ignore_data_skip": True,  # the rows skip by themselves
            }
        )
        if self.arguments.n_gpu > 1:  # transformers would split a batch over them, queries and items alike
            _LOG.warning("one of %d GPUs is used; for all of them, start the program with torchrun", self.arguments.n_gpu)
            self.arguments._n_gpu = 1

    def fit(
        self,
        rows: TrainingRows,
        collator: Collator | None = None,
        *,
        validate: Validate | None = None,
        best: str | None = None,
        resume: bool = False,
    ) -> Path:
        """Trains.

        Args:
            rows: the sampled rows; split over processes and, on resuming, skipped here.
            collator: makes batches of them; None cuts texts where the model does.
            validate: measures a checkpoint every ``eval_steps``; where those are not among the arguments, every
                ``save_steps``, or ten times in all.
            best: the measure by which the best checkpoint is kept, which are then written whenever they are measured; None
                keeps the last one.
            resume: go on from the last checkpoint in ``output_dir``; begins anew where there is none.

        Returns:
            The directory of the model: the best one by validation, or the last.

        Raises:
            FloatingPointError: where loss or weights are NaN or infinite, naming the step; checkpoints stay as they are.
            FileExistsError: where ``output_dir`` holds checkpoints and ``resume`` is not set.
            ValueError: where the checkpoint to resume from is of another model or run, options do not fit together, or rows
                are bad.
        """
        collator = self.collator if collator is None else collator
        if collator is None:
            raise ValueError("collator: expected one with a dual encoder, found none; give Collator(tokenizer, ...)")
        if collator.vectors is not None and parameters.is_trained(self.network.encoder.passage_encoder):
            raise ValueError(
                "collator.vectors: expected documents to be encoded, as train='all' changes their encoder, found vectors; use "
                "train='queries' or 'head', or leave the vectors out"
            )
        last = checkpoints.last_in(self.output_dir)
        if last is not None and not resume:
            raise FileExistsError(
                f"expected no checkpoints in {self.output_dir}, found {last.name}; pass resume=True to go on from it, or give "
                "another output_dir"
            )
        self._schedule(validate, best)
        rows.skip = 0
        if last is not None:
            checkpoints.check_same(last, self.facts())
            rows.skip = (
                checkpoints.read_step(last)
                * self.arguments.per_device_train_batch_size
                * self.arguments.gradient_accumulation_steps
            )
        trainer = _Trainer(self, rows, collator, validate)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        self.check_finite(trainer.state.global_step)
        final = self.output_dir / "model"
        if trainer.is_world_process_zero():
            self.save(final)
        trainer.accelerator.wait_for_everyone()
        return final

    def _schedule(self, validate: Validate | None, best: str | None) -> None:
        """When checkpoints are written and measured: together, where the best one is kept."""
        given, arguments = self._given, self.arguments
        if validate is None:
            if best is not None:
                raise ValueError(f"best: expected validate=... to measure {best!r} with, found none; give both or neither")
            return
        every = given.get("eval_steps") or given.get("save_steps") or max(1, arguments.max_steps // 10)
        arguments.eval_strategy, arguments.eval_steps = IntervalStrategy.STEPS, every
        if best is None:
            return
        known = [str(measure) for measure in getattr(validate, "measures", [best])]
        if best not in known:
            raise ValueError(f"best: expected one of the measures {known}, found {best!r}")
        if given.get("save_steps", every) != every or given.get("save_strategy", "steps") != "steps":
            raise ValueError(
                f"save_steps: expected eval_steps ({every}), as the best checkpoint is kept, found "
                f"{given.get('save_steps')} with save_strategy={given.get('save_strategy', 'steps')!r}; leave them out"
            )
        arguments.save_steps = every
        arguments.save_total_limit = given.get("save_total_limit", 2)  # the best and the last
        arguments.metric_for_best_model = f"eval_{best}"
        arguments.greater_is_better = True
        arguments.load_best_model_at_end = True

    def facts(self) -> dict[str, Any]:
        """What a run that goes on has in common with the one that was begun."""
        arguments, encoder = self.arguments, self.network.encoder
        elsewhere = ("base_weights", "backbone_configs")  # where weights were, and how transformers writes them down
        return {
            "model": {key: value for key, value in encoder.config.to_dict().items() if key not in elsewhere},
            **self._choices,
            "losses": self.network.weights,
            "scale": self.network.scale,
            "batch_size": arguments.per_device_train_batch_size,
            "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
            "processes": arguments.world_size,
            "seed": arguments.seed,
            "frozen": parameters.frozen_digest(encoder),
        }

    def check_finite(self, step: int) -> None:
        """Checks that what was trained is numbers.

        Raises:
            FloatingPointError: where it is not.
        """
        if not all(bool(value.isfinite().all()) for value in parameters.trained(self.network).values()):
            raise _diverged("finite weights, found NaN or infinity", step, self.output_dir)

    def save(self, directory: str | Path) -> None:
        """Writes the encoder, as it is now, to a directory that loads as a model."""
        encoder = self.network.encoder
        checkpoint.save(encoder, directory, tokenizer=self.tokenizer, weights=parameters.merged(encoder))


class _Trainer(transformers.Trainer):
    """Hugging Face's Trainer with our batches, checkpoints and validation."""

    def __init__(self, owner: HypencoderTrainer, rows: TrainingRows, collator: Collator, validate: Validate | None) -> None:
        super().__init__(model=owner.network, args=owner.arguments, train_dataset=rows, eval_dataset=[])
        self.remove_callback(transformers.PrinterCallback)  # a library logs
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
            num_workers=self.args.dataloader_num_workers,
            # One of its own: beginning to iterate draws from it, which would shift the dropout of a resumed run.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as transformers does, and through ``logging``."""
        super().log(logs, *args, **kwargs)
        if self.is_world_process_zero():
            _LOG.info("step %d: %s", self.state.global_step, logs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """AdamW; with a rate of its own for the head, by fan-in."""
        if self.optimizer is None and self.owner.head_learning_rate is not None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            rates = self.args.learning_rate, self.owner.head_learning_rate, self.args.weight_decay
            self.optimizer = kind(parameters.groups(self.owner.network, *rates), **options)
        return super().create_optimizer(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The network's loss; stops where it is no number."""
        outputs = model(**inputs)
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            raise _diverged(f"a finite loss, found {loss.item()}", self.state.global_step, self.owner.output_dir)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Writes the encoder as it is and has it measured."""
        if self.validate is None:
            return {}
        found: list[Any] = [None]
        if self.is_world_process_zero():  # the others wait for what it finds
            directory = self.owner.output_dir / "validation"
            self.owner.save(directory)
            found = [{name: float(value) for name, value in self.validate(directory).items()}]
            shutil.rmtree(directory)
        metrics = {f"eval_{name}": value for name, value in broadcast_object_list(found)[0].items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.owner.check_finite(self.state.global_step)
        super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        directory = output_dir or self.owner.output_dir
        self.owner.save(directory)
        checkpoints.write_facts(Path(directory), self.owner.facts())
        if parameters.has_adapters(self.owner.network):  # which are merged into the weights that were saved
            weights = parameters.trained(self.owner.network)
            save_file({name: value.cpu().contiguous() for name, value in weights.items()}, Path(directory) / _TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if parameters.has_adapters(self.owner.network):
            parameters.load_trained(self.owner.network, load_file(Path(resume_from_checkpoint) / _TRAINED))
            return
        weights = checkpoint.read_weights(resume_from_checkpoint)
        checkpoint.fit_weights(self.owner.network.encoder, weights, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


def _diverged(expectation: str, step: int, folder: Path) -> FloatingPointError:
    return FloatingPointError(
        f"expected {expectation} after step {step}; the checkpoints in {folder} are as they were: lower the learning rate or "
        "look at the data there"
    )
