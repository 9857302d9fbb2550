"""The CPU back-end: what it supports, and that blocks, stored precision, views and threads do not change scores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.scoring import cpu

CPU = torch.device("cpu")
SPEC = QNetSpec((24, 24, 24, 1))


@pytest.fixture
def qnets() -> QNets:
    return QNets.unflatten(torch.randn(3, SPEC.size, generator=torch.Generator().manual_seed(0)) / 5, SPEC)


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(200, 24, generator=torch.Generator().manual_seed(1))


def prepare(qnets: QNets, precision: str = "fp32") -> scoring.Scorer:
    return cpu.Cpu().prepare(qnets, CPU, precision)


def test_cpu_backend_supports_qnets_with_hidden_layers_on_a_cpu():
    supports = cpu.Cpu().supports
    assert supports(SPEC, CPU, "fp32") and supports(SPEC, CPU, "bf16")
    assert not supports(SPEC, torch.device("cuda"), "fp32")
    assert not supports(SPEC, CPU, "int8") and not supports(QNetSpec((24, 1)), CPU, "fp32")


@pytest.mark.parametrize("n_documents", [6, 7, 8, 15, 200])
def test_block_size_of_the_cpu_backend_does_not_change_scores(qnets, vectors, monkeypatch, n_documents):
    counts = [n_documents // 2, 0, n_documents - n_documents // 2]
    expected = [prepare(qnets)(vectors[:n_documents]), prepare(qnets).each(vectors[:n_documents], counts)]
    monkeypatch.setattr(cpu, "_DOCS_PER_BLOCK", 7)
    found = [prepare(qnets)(vectors[:n_documents]), prepare(qnets).each(vectors[:n_documents], counts)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_vectors_in_any_precision_are_scored_as_float32(qnets, vectors, dtype):
    stored = vectors.to(dtype)
    torch.testing.assert_close(prepare(qnets)(stored), qnets.score(stored.float()), rtol=1e-5, atol=1e-5)


def test_transposed_weights_and_strided_vectors_give_the_same_scores(qnets, vectors):
    transposed = QNets(SPEC, [w.transpose(1, 2).contiguous().transpose(1, 2) for w in qnets.weights], qnets.biases)
    strided = torch.stack([vectors, -vectors], dim=2)[:, :, 0]
    torch.testing.assert_close(prepare(transposed)(strided), prepare(qnets)(vectors), rtol=1e-5, atol=1e-5)


def test_one_scorer_serves_several_threads(qnets, vectors):
    """Buffers belong to a call, not to the scorer."""
    score = prepare(qnets)
    blocks = [vectors * factor for factor in (0.5, 1, 2, 3)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(score, blocks * 10))
    expected = [score(block) for block in blocks] * 10
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_selected_queries_share_the_weights(qnets):
    score = prepare(qnets, "bf16")
    assert score.select([2])._networks[0] is score._networks[2]


def test_bf16_error_of_the_cpu_backend_is_below_that_of_the_reference_times_two(vectors):
    """Six layers, so errors of layers add up."""
    spec = QNetSpec((*[24] * 7, 1))
    nets = QNets.unflatten(torch.randn(3, spec.size, generator=torch.Generator().manual_seed(2)) * (2 / 24) ** 0.5, spec)
    exact = nets.to(dtype=torch.float64).score(vectors)
    reference = next(backend for backend in scoring.BACKENDS if backend.name == "reference")
    errors = [(backend.prepare(nets, CPU, "bf16")(vectors) - exact).abs().mean() for backend in (cpu.Cpu(), reference)]
    assert errors[0] <= 2 * errors[1]
