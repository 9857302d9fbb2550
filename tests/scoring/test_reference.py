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


def test_padded_evaluation_skips_qnets_without_documents(qnets, vectors, monkeypatch):
    """Algorithm 1 scores a long list in parts, and a part belongs to a few of the queries."""
    evaluated = []
    monkeypatch.setattr(
        QNets, "score", lambda nets, block: evaluated.append(len(nets)) or torch.zeros(len(block), block.shape[1])
    )
    many = QNets.cat([qnets] * 10)
    assert ReferenceScorer(many)._each_padded(vectors[:9].split([0] * 20 + [4, 0, 5] + [0] * 7)).shape == (9,)
    assert evaluated == [3]


@pytest.mark.parametrize("counts", [[1, 0, 199], [0, 0, 200], [67, 67, 66], [0, 0, 0]])
@pytest.mark.parametrize("docs_per_block", [1, 50, 1024])
def test_padded_evaluation_of_gpus_equals_evaluation_by_query(qnets, vectors, counts, docs_per_block, monkeypatch):
    monkeypatch.setattr("pyterrier_hypencoder.scoring.reference._DOCS_PER_BLOCK", {"cpu": docs_per_block})
    score = ReferenceScorer(qnets)
    parts = vectors[: sum(counts)].split(counts)
    torch.testing.assert_close(score._each_padded(parts), score._each_by_query(parts), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        QNetSpec((64, 64, 64, 64, 1)),
        QNetSpec((64, 1)),
        QNetSpec((64, 32, 1), do_residual=False, inner_product_skip=True, skip_gate=0.3, normalize_input=True),
        QNetSpec((64, 64, 1), do_layer_norm=False),
    ],
    ids=str,
)
def test_bf16_scores_are_as_distinct_as_fp32_scores(spec):
    """If scores were rounded to bf16, 1,000 of the best documents would share a few dozen scores."""
    generator = torch.Generator().manual_seed(0)
    nets = QNets.unflatten(torch.randn(1, spec.size, generator=generator) / 8, spec)
    vectors = torch.randn(20_000, 64, generator=generator)
    score = scoring.make_scorer(nets, device="cpu", precision="bf16")
    for scores in (score(vectors)[0], score.each(vectors, [20_000])):
        assert scores.dtype == torch.float32 and scores.topk(1000).values.unique().numel() > 950
        torch.testing.assert_close(scores, nets.score(vectors)[0], rtol=0, atol=0.05 * float(scores.std()))


def test_bf16_output_layer_and_skip_are_computed_in_fp32():
    nets, vectors = QNets.linear(torch.randn(3, 24)), torch.randn(50, 24).half()
    torch.testing.assert_close(scoring.make_scorer(nets, precision="bf16", device="cpu")(vectors), nets.score(vectors))
    spec = QNetSpec((24, 8, 1), do_residual=False, inner_product_skip=True, skip_gate=0.0)
    nets = QNets.unflatten(torch.randn(3, spec.size), spec)
    torch.testing.assert_close(scoring.make_scorer(nets, precision="bf16", device="cpu")(vectors), nets.score(vectors))


def test_scores_can_be_used_in_computations_with_gradients(qnets, vectors):
    factor = torch.ones(3, requires_grad=True)
    score = scoring.make_scorer(qnets, device="cpu")
    (score(vectors).mean(dim=1) @ factor + score.each(vectors, [100, 0, 100]).mean() * factor[0]).backward()
    assert factor.grad.isfinite().all()


@pytest.mark.parametrize("default", ["float16", "float64", "meta"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_global_defaults_of_torch_change_no_score(qnets, vectors, torch_default, default, precision):
    def list_scores():
        score = scoring.make_scorer(qnets, device="cpu", precision=precision)
        return [score(vectors), score.each(vectors, [50, 0, 150]), score.select([1]).each(vectors, [200])]

    expected = list_scores()
    with torch_default(default):
        found = list_scores()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_reference_supports_fp32_and_bf16_only():
    cpu = torch.device("cpu")
    assert [Reference().supports(SPEC, cpu, name) for name in ("fp32", "bf16", "int8")] == [True, True, False]
