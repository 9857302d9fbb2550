"""The reference back-end: precision, and the two ways to score different documents for every query."""

from __future__ import annotations

import pytest
import torch

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.scoring.reference import Reference, ReferenceScorer

SPEC = QNetSpec((24, 24, 24, 1))


@pytest.fixture
def qnets() -> QNets:
    return QNets.unflatten(torch.randn(3, SPEC.size, generator=torch.Generator().manual_seed(0)) / 5, SPEC)


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(200, 24, generator=torch.Generator().manual_seed(1))


def test_half_precision_vectors_are_scored_in_the_requested_precision(qnets, vectors):
    half = vectors.half()
    found = scoring.make_scorer(qnets, device="cpu")(half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, qnets.score(half.float()), rtol=1e-5, atol=1e-5)


def test_precision_auto_is_fp32(qnets, vectors):
    auto, fp32, bf16 = (scoring.make_scorer(qnets, device="cpu", precision=name)(vectors) for name in ("auto", "fp32", "bf16"))
    assert torch.equal(auto, fp32) and not torch.equal(auto, bf16)


def test_block_size_does_not_change_scores(qnets, vectors, monkeypatch):
    expected = ReferenceScorer(qnets)
    monkeypatch.setattr("pyterrier_hypencoder.scoring.reference._DOCS_PER_BLOCK", {"cpu": 7})
    in_blocks = ReferenceScorer(qnets)
    torch.testing.assert_close(in_blocks(vectors), expected(vectors), rtol=1e-5, atol=1e-5)
    counts = [100, 0, 100]
    torch.testing.assert_close(in_blocks.each(vectors, counts), expected.each(vectors, counts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("counts", [[1, 0, 199], [0, 0, 200], [67, 67, 66], [0, 0, 0]])
@pytest.mark.parametrize("docs_per_block", [1, 50, 1024])
def test_padded_evaluation_of_gpus_equals_evaluation_by_query(qnets, vectors, counts, docs_per_block, monkeypatch):
    monkeypatch.setattr("pyterrier_hypencoder.scoring.reference._DOCS_PER_BLOCK", {"cpu": docs_per_block})
    score = ReferenceScorer(qnets)
    parts = vectors[: sum(counts)].split(counts)
    torch.testing.assert_close(score._each_padded(parts), score._each_by_query(parts), rtol=1e-5, atol=1e-5)


def test_reference_supports_fp32_and_bf16_only():
    cpu = torch.device("cpu")
    assert [Reference().supports(SPEC, cpu, name) for name in ("fp32", "bf16", "int8")] == [True, True, False]
