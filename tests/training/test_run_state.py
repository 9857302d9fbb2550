"""Resumed runs: they continue exactly, and only from checkpoints of the same run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_training import assert_equal_weights, make_encoder, make_rows, make_trainer, read_weights, train

from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.objective import LOSSES


@pytest.fixture(scope="module")
def one_step(rows_file, tmp_path_factory) -> Path:
    """Return the directory of a run of one step. Tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "one_step"
    train(folder, rows_file, max_steps=1)
    return folder


def test_resumed_run_gives_the_weights_of_an_uninterrupted_one(rows_file, tmp_path):
    def run(folder: Path, **fit_options) -> Path:
        # Only the saved random state makes dropout the same after resuming.
        options = {"batch_size": 3, "arguments": {"save_steps": 4}, "warmup_steps": 3, "losses": LOSSES}
        return train(folder, rows_file, make_encoder(dropout=0.1), **options, **fit_options)

    whole = run(tmp_path / "whole")
    interrupted = tmp_path / "interrupted"
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", interrupted / "checkpoint-4")
    assert_equal_weights(read_weights(whole), read_weights(run(interrupted, resume=True)))


def test_existing_checkpoints_are_not_overwritten(one_step, rows_file, tmp_path):
    shutil.copytree(one_step, tmp_path, dirs_exist_ok=True)
    with pytest.raises(FileExistsError, match="resume=True"):
        train(tmp_path, rows_file)
    with pytest.raises(
        ValueError, match=r"another model or run: .*vector_dimensions=\[24, 24, 24, 1\] \(now \[24, 24, 24, 24, 1\]\)"
    ):
        train(tmp_path, rows_file, make_encoder(layers=3), max_steps=20, resume=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"losses": ["in_batch_ce"]}, "losses"),
        ({"batch_size": 4}, "batch_size"),
        ({"seed": 1}, "seed"),
        ({"train": "head"}, "train"),
        ({"widths": [12, 24]}, "matryoshka_widths"),
        ({"scale": 2.0}, "scale"),
    ],
)
def test_resume_with_other_options_raises(one_step, rows_file, tmp_path, change, named):
    shutil.copytree(one_step, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=f"another model or run: .*{named}"):
        train(tmp_path, rows_file, resume=True, **change)
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes() == before


def test_resume_can_change_steps_and_learning_rate(one_step, rows_file, tmp_path):
    shutil.copytree(one_step, tmp_path, dirs_exist_ok=True)
    assert train(tmp_path, rows_file, max_steps=2, learning_rate=1e-4, resume=True)
    assert (tmp_path / "checkpoint-2").is_dir()


def test_resume_passes_over_an_incomplete_checkpoint(tokenizer, rows_file, tmp_path):
    options = {"max_steps": 4, "arguments": {"save_steps": 2}}
    whole = read_weights(train(tmp_path, rows_file, **options))
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    rows = make_rows(rows_file)
    again = make_trainer(tmp_path, **options).fit(rows, Collator(tokenizer), resume=True)
    assert rows.skip == 2 * 8
    assert_equal_weights(whole, read_weights(again))
    make_trainer(tmp_path / "new", max_steps=1).fit(rows, Collator(tokenizer))
    assert rows.skip == 0  # a new run starts at the first row
