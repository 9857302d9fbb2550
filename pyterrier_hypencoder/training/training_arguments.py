"""Arguments of Hugging Face's Trainer: defaults of this package, and when checkpoints are saved and validated."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer_utils import IntervalStrategy

from ..options import check_number

_LOG = logging.getLogger(__name__)
_N_VALIDATIONS = 10
"""Number of validations in a run, unless ``eval_steps`` or ``save_steps`` say otherwise."""
_OPTIONS = {
    "output_dir": "output_dir",
    "per_device_train_batch_size": "batch_size",
    "max_steps": "max_steps",
    "num_train_epochs": "epochs",
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup_steps",
    "lr_scheduler_type": "lr_scheduler_type",
    "seed": "seed",
    "disable_tqdm": "verbose",
    "resume_from_checkpoint": "resume in fit(...)",
    "load_best_model_at_end": "best in fit(...)",
    "metric_for_best_model": "best in fit(...)",
    "greater_is_better": "best in fit(...)",
}
"""Training arguments that have an option of the trainer, and that option."""
_WITHOUT_EFFECT = {
    *("data_seed", "group_by_length", "length_column_name", "train_sampling_strategy", "auto_find_batch_size"),
    *("dataloader_drop_last", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("per_device_eval_batch_size", "eval_accumulation_steps", "batch_eval_metrics", "prediction_loss_only", "past_index"),
    *("label_smoothing_factor", "label_names", "include_for_metrics", "include_inputs_for_metrics", "save_safetensors"),
    *("do_train", "do_eval", "do_predict"),
}
"""Training arguments without a meaning here, because batches, losses, validation and checkpoints are this package's own."""
_FIXED = {"remove_unused_columns": False, "ignore_data_skip": True}  # the training rows skip themselves


def make_training_arguments(
    output_dir: str | Path, options: Mapping[str, Any], given: Mapping[str, Any], *, verbose: bool
) -> transformers.TrainingArguments:
    """Build the training arguments of a run.

    Args:
        output_dir: Directory of the checkpoints.
        options: Training arguments that the trainer has options for, such as ``max_steps``.
        given: Training arguments of the user, which replace defaults and options.
        verbose: If True, show a progress bar.

    Raises:
        ValueError: If an argument of the user is unknown or would have no effect.
    """
    _check_given(given)
    _check_warm_up(given, options)
    arguments = transformers.TrainingArguments(
        **{
            "output_dir": str(output_dir),
            **options,
            "weight_decay": 0.0,
            "save_steps": options["max_steps"],
            "logging_steps": 50,
            "report_to": "none",
            "ddp_find_unused_parameters": False,  # all parameters but frozen ones take part in every loss
            "disable_tqdm": not verbose,
            # Without it, transformers refuses bf16 if there is no GPU.
            "use_cpu": not (torch.cuda.is_available() or torch.backends.mps.is_available()),
            **given,
            **_FIXED,
        }
    )
    if arguments.n_gpu > 1:  # transformers would split a batch over them, and separate queries from their items
        _LOG.warning("Training uses one of %d GPUs. Start the program with torchrun to use all.", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


def _check_given(given: Mapping[str, Any]) -> None:
    """Refuse arguments that do not exist or would be ignored."""
    known = [field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init]
    for name in given:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {similar[0]!r}?" if similar else ""
            raise ValueError(f"arguments must be options of transformers.TrainingArguments, got {name!r}.{hint}")
        if name in _FIXED and given[name] != _FIXED[name]:
            raise ValueError(f"{name} must be {_FIXED[name]} in arguments, got {given[name]!r}. Remove it.")
        if name in _OPTIONS:
            raise ValueError(f"{name} is no key of arguments, got {given[name]!r}. Set the option {_OPTIONS[name]} instead.")
        if name in _WITHOUT_EFFECT:
            raise ValueError(f"{name} has no effect in arguments, got {given[name]!r}. Remove it.")
        if name in ("save_steps", "eval_steps", "logging_steps") and given[name] is not None:
            check_number(name, given[name])
            if given[name] <= 0:
                raise ValueError(f"{name} must be positive, got {given[name]!r}.")


def _check_warm_up(given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    if given.get("warmup_ratio") and options["warmup_steps"]:
        raise ValueError(f"warmup_ratio contradicts warmup_steps, got {given['warmup_ratio']} and {options['warmup_steps']}.")


def schedule_validation(
    arguments: transformers.TrainingArguments, given: Mapping[str, Any], best: str | None, measures: Sequence[str]
) -> None:
    """Set when checkpoints are validated, in place. If the best one is kept, they are saved at the same steps.

    Args:
        arguments: Training arguments of the run.
        given: Training arguments of the user.
        best: Measure that chooses the best checkpoint. None keeps the last checkpoints.
        measures: Names of the measures that the validation returns.

    Raises:
        ValueError: If the measure is unknown, or if the user's arguments save at other steps than they validate.
    """
    if given.get("eval_strategy", "steps") != "steps":
        raise ValueError(f"eval_strategy must be 'steps' with a validation, got {given['eval_strategy']!r}. Remove it.")
    every = given.get("eval_steps") or given.get("save_steps") or max(1, arguments.max_steps // _N_VALIDATIONS)
    if every > arguments.max_steps:
        raise ValueError(f"eval_steps must be at most max_steps ({arguments.max_steps}), got {every}. Lower it.")
    arguments.eval_strategy, arguments.eval_steps = IntervalStrategy.STEPS, every
    if best is None:
        return
    if best not in measures:
        raise ValueError(
            f"best must be one of the measures {', '.join(measures)}, got {best!r}. Pass it to Validation(measures=[...])."
        )
    strategy = given.get("save_strategy", "steps")
    if given.get("save_steps", every) != every or strategy != "steps":
        raise ValueError(
            f"save_steps must equal eval_steps ({every}), because the best checkpoint is kept, got {given.get('save_steps')} "
            f"with save_strategy={strategy!r}. Remove both arguments."
        )
    arguments.save_steps = every
    arguments.save_total_limit = given.get("save_total_limit", 2)  # the best and the last
    arguments.metric_for_best_model = f"eval_{best}"
    arguments.greater_is_better = True
    arguments.load_best_model_at_end = True
