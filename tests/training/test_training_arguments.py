"""Training arguments: when checkpoints are validated and saved."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import BASE_MATRIX, load_tokenizer, make_trainer, read_weights, train

from pyterrier_hypencoder.training.collator import Collator


def test_validation_follows_save_steps_by_default(rows_file, tmp_path):
    measured = []
    train(
        tmp_path,
        rows_file,
        max_steps=4,
        arguments={"save_steps": 2},
        validate=lambda folder: measured.append(1) or {"AP": 0.1},
        best="AP",
    )
    assert len(measured) == 2


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [({}, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]), ({"eval_steps": 5}, [5, 10, 15, 20]), ({"save_steps": 10}, [10, 20])],
)
def test_best_checkpoint_is_a_validated_one(rows_file, tmp_path, arguments, steps):
    measured = []

    def validate(folder: Path) -> dict[str, float]:
        measured.append(read_weights(folder)[BASE_MATRIX])
        return {"AP": 1.0 - len(measured) / 100}

    options = {"max_steps": 20, "batch_size": 2, "train": "head", "arguments": arguments}
    folder = train(tmp_path, rows_file, validate=validate, best="AP", **options)
    assert len(measured) == len(steps)
    assert torch.equal(read_weights(folder)[BASE_MATRIX], measured[0])
    kept = {int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*")}
    assert kept == {steps[0], steps[-1]}


@pytest.mark.parametrize(
    ("best", "validate", "arguments", "message"),
    [
        ("AP", None, {}, "needs a validation.*validate="),
        ("AP", lambda folder: {"AP": 0.1}, {"eval_steps": 2, "save_steps": 3}, r"save_steps must equal eval_steps \(2\)"),
        ("AQ", SimpleNamespace(measures=["AP"]), {}, r"best must be one of the measures AP, got 'AQ'"),
    ],
)
def test_impossible_choice_of_best_checkpoint_raises(rows_file, tmp_path, best, validate, arguments, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, rows_file, arguments=arguments, validate=validate, best=best)
    assert not list(tmp_path.glob("model"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_train_epochs": 1}, "num_train_epochs is no key of arguments, got 1. Set the option epochs instead"),
        (
            {"warmup_step": 3},
            "must be options of transformers.TrainingArguments, got 'warmup_step'. Did you mean 'warmup_steps'",
        ),
        ({"k": 3}, "got 'k'"),
        ({"max_steps": 5}, "max_steps is no key of arguments, got 5. Set the option max_steps instead"),
        ({"per_device_train_batch_size": 5}, "Set the option batch_size instead"),
        ({"metric_for_best_model": "AP"}, r"Set the option best in fit\(...\) instead"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last has no effect in arguments, got True. Remove it"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect"),
        ({"eval_steps": 0}, "eval_steps must be positive, got 0"),
        ({"save_steps": "ten"}, "save_steps must be a finite number, got 'ten'"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be False in arguments, got True. Remove it"),
    ],
)
def test_arguments_without_effect_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, arguments=given).fit(None, None)


def test_warm_up_as_steps_and_as_a_ratio_is_refused(tmp_path):
    """Transformers 5 has no ratio any more."""
    with pytest.raises(ValueError, match="warmup_ratio contradicts warmup_steps, got 0.1 and 3|got 'warmup_ratio'"):
        make_trainer(tmp_path, warmup_steps=3, arguments={"warmup_ratio": 0.1})


@pytest.mark.parametrize("arguments", [{"eval_steps": 2}, {"eval_strategy": "steps"}])
def test_steps_of_validations_without_a_validation_are_a_warning(rows_file, tmp_path, caplog, arguments):
    train(tmp_path, rows_file, max_steps=1, arguments=arguments)
    assert "no effect without a validation. Pass validate=... to fit." in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eval_steps": 11}, "eval_steps must be at most max_steps"),
        ({"eval_strategy": "epoch"}, "eval_strategy must be 'steps'"),
    ],
)
def test_validations_that_would_never_happen_are_refused(rows_file, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, rows_file, arguments=arguments, validate=lambda folder: {"AP": 0.1}, best="AP")


def test_losses_as_one_string_are_refused(tmp_path):
    with pytest.raises(ValueError, match="losses must be a list of names or a mapping .*, got 'margin_mse'. Use a list"):
        make_trainer(tmp_path, losses="margin_mse")


def test_collator_is_pickled_for_worker_processes():
    collator = Collator(load_tokenizer(), query_max_length=16)
    again = pickle.loads(pickle.dumps(collator))
    rows = [{"query": "heart attack", "item_ids": ["d1"], "items": ["a text"], "scores": None}]
    for name, tensor in collator(rows).items():
        assert torch.equal(tensor, again(rows)[name])
