"""Training arguments: when checkpoints are validated and saved."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import BASE_MATRIX, read_weights, train


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
