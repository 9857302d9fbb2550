"""TrainingLoop: it stops at numbers that are not finite, and validates and keeps checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import BASE_MATRIX, make_rows, make_trainer, read_weights, train

from pyterrier_hypencoder import Hypencoder
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.objective import DISTILLATION


def test_nan_loss_stops_training_and_keeps_checkpoints(rows_file, tmp_path, monkeypatch):
    train(tmp_path, rows_file, max_steps=4, arguments={"save_steps": 2})
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setitem(DISTILLATION, "margin_mse", lambda scores, teacher: scores.sum() * float("nan"))
    with pytest.raises(FloatingPointError, match="after step 4"):
        train(tmp_path, rows_file, max_steps=8, arguments={"save_steps": 2}, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_nan_weights_are_not_saved(tokenizer, rows_file, tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, arguments={"save_steps": 1, "save_total_limit": 1})
    steps = []
    weight = trainer.objective.encoder.query_encoder.hyper_base_matrices[0]
    weight.register_hook(lambda gradient: steps.append(1) or (gradient * float("nan") if len(steps) == 2 else gradient))
    with pytest.raises(FloatingPointError, match="Trained weights are NaN or infinite after step 2"):
        trainer.fit(make_rows(rows_file), Collator(tokenizer))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_nan_weights_after_the_last_step_give_no_model(tokenizer, rows_file, tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, arguments={"save_strategy": "no"})
    weight = trainer.objective.encoder.query_encoder.hyper_base_matrices[0]
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="after step 1"):
        trainer.fit(make_rows(rows_file), Collator(tokenizer))
    assert not (tmp_path / "model").exists()


def test_best_checkpoint_becomes_the_model(rows_file, tmp_path):
    measured = []

    def validate(folder: Path) -> dict[str, float]:
        Hypencoder(folder, device="cpu").encode_docs(["a planet"])
        measured.append(read_weights(folder)[BASE_MATRIX])
        return {"Rprec": [0.1, 0.9, 0.3][len(measured) - 1]}

    arguments = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    folder = train(tmp_path, rows_file, max_steps=6, arguments=arguments, validate=validate, best="Rprec")
    kept = read_weights(folder)[BASE_MATRIX]
    assert len(measured) == 3
    assert torch.equal(kept, measured[1]) and not torch.equal(kept, measured[2])
    assert not (tmp_path / "validation").exists()
