"""TrainingObjective: widths, weights of losses, and frozen documents."""

from __future__ import annotations

import pytest
import torch
from tiny_training import make_batch, make_encoder, make_trainer

from pyterrier_hypencoder.training.objective import LOSSES, TrainingObjective


def compute_loss(encoder, batch, weights, widths=None) -> float:
    return TrainingObjective(encoder, weights, widths).eval()(**batch)["loss"].item()


@pytest.mark.parametrize(("train", "shared"), [("queries", False), ("head", False), ("head", True)])
def test_frozen_documents_are_encoded_without_dropout(rows_file, tmp_path, train, shared):
    encoder = make_encoder(shared=shared, dropout=0.5)
    objective = make_trainer(tmp_path, encoder, train=train).objective
    outputs = []
    encoder.passage_encoder.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    batch = make_batch(rows_file)
    objective.train()(**batch)
    assert encoder.query_encoder.transformer.training and not outputs[0].requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(objective.eval().encoder.passage_encoder(batch["item_ids"], batch["item_mask"]), outputs[0])


def test_matryoshka_loss_is_the_mean_over_widths(rows_file):
    encoder, batch = make_encoder(), make_batch(rows_file)
    narrow, wide, both = (compute_loss(encoder, batch, {"margin_mse": 1.0}, widths) for widths in ([8], [24], [8, 24]))
    full = compute_loss(encoder, batch, {"margin_mse": 1.0})
    assert both == pytest.approx((narrow + wide) / 2, rel=1e-5)
    assert wide == pytest.approx(full, rel=1e-5)
    assert narrow != pytest.approx(full, rel=1e-4)


def test_losses_are_weighted_and_added(rows_file):
    encoder, batch = make_encoder(), make_batch(rows_file)
    single = {name: compute_loss(encoder, batch, {name: 1.0}) for name in LOSSES}
    weights = {name: 0.5 + i for i, name in enumerate(LOSSES)}
    total = compute_loss(encoder, batch, weights)
    assert total == pytest.approx(sum(weights[name] * single[name] for name in LOSSES), rel=1e-5)


def test_distillation_without_teacher_scores_raises(rows_file):
    batch = make_batch(rows_file)
    del batch["teacher"]
    with pytest.raises(ValueError, match="needs teacher scores"):
        TrainingObjective(make_encoder(), {"margin_mse": 1.0})(**batch)
