"""Losses: values of the released code, and cases with known values."""

from __future__ import annotations

import json

import pytest
import torch

from pyterrier_hypencoder import QNets
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.training import losses


@pytest.fixture(scope="module", params=["tiny_6l_cls_shared", "tiny_2l_mean_separate_reslast"])
def batch(request, golden):
    """Return the golden losses, and scores for two queries with four items each: own items, all items, teacher."""
    import numpy as np

    arrays = np.load(golden / request.param / "golden.npz")
    facts = json.loads((golden / request.param / "golden.json").read_text())["meta"]["loss"]
    model, _ = checkpoint.load(str(golden / request.param), pool_padding=True)
    tensors = {name: torch.from_numpy(arrays[name]).long() for name in ("doc_ids", "doc_mask", "q_ids", "q_mask")}

    def cut(ids, mask):
        longest = int(mask.sum(1).max())
        return ids[:, :longest], mask[:, :longest]

    with torch.inference_mode():
        docs = model.passage_encoder(*cut(tensors["doc_ids"][facts["docs"]], tensors["doc_mask"][facts["docs"]]))
        qnets: QNets = model.query_encoder(*cut(tensors["q_ids"][facts["queries"]], tensors["q_mask"][facts["queries"]]))
    groups = docs.view(2, 4, -1)
    return facts, qnets.score(groups), qnets.score(docs), torch.tensor(facts["labels"])


def test_margin_mse_equals_released_value(batch):
    facts, own, _, teacher = batch
    assert losses.margin_mse(own, teacher).item() == pytest.approx(facts["margin_mse"], rel=2e-4)


def test_in_batch_ce_of_first_items_equals_released_value(batch):
    facts, _, all_items, _ = batch
    first = all_items[:, ::4]
    torch.testing.assert_close(first, torch.tensor(facts["ce_similarity"]), rtol=0, atol=2e-3)
    assert losses.in_batch_ce(first).item() == pytest.approx(facts["cross_entropy"], abs=1e-3)


def test_margin_mse_compares_margins_and_not_scores():
    teacher = torch.tensor([[5.0, 1.0, 3.0], [2.0, 2.0, -1.0]])
    assert losses.margin_mse(teacher + torch.tensor([[7.0], [-3.0]]), teacher).item() == 0
    assert losses.margin_mse(torch.zeros(2, 3), teacher).item() == pytest.approx((16 + 4 + 0 + 9) / 4)


def test_in_batch_ce_targets_are_first_items_of_rows():
    scores = torch.full((2, 6), -50.0)
    scores[0, 0] = scores[1, 3] = 50.0
    assert losses.in_batch_ce(scores).item() == pytest.approx(0, abs=1e-6)
    assert losses.in_batch_ce(scores.flip(0)).item() > 50


def test_listwise_ce_and_kl_have_known_values():
    scores = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    expected = -(torch.tensor([2.0, 0.0]).log_softmax(0)[0] + torch.tensor(0.5).log()) / 2
    assert losses.listwise_ce(scores).item() == pytest.approx(expected.item())
    assert losses.kl(scores + 3, scores).item() == pytest.approx(0, abs=1e-6)
    assert losses.kl(scores, scores.flip(1)).item() > 0.1
    one = losses.kl(scores / 2, scores.flip(1) / 2).item()
    assert losses.kl(scores, scores.flip(1), temperature=2.0).item() == pytest.approx(one)


@pytest.mark.parametrize("loss", [losses.margin_mse, losses.kl])
def test_mismatched_shapes_raise(loss):
    with pytest.raises(ValueError, match="teacher scores"):
        loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="at least two items"):
        loss(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="multiple"):
        losses.in_batch_ce(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at least two items"):
        losses.listwise_ce(torch.zeros(2, 1))
