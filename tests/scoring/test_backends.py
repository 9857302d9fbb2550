"""Every back-end agrees with the reference; the resolver takes what was asked for or says why not."""

from __future__ import annotations

import pytest
import torch

from pyterrier_hypencoder import QNets, QNetSpec, scoring

SPECS = [QNetSpec((24, 1)), QNetSpec((24, 24, 24, 1)), QNetSpec((24, 24, 1), inner_product_skip=True, skip_scale=3.0)]
BACKENDS = [backend for backend in scoring.BACKENDS if backend.is_available()]


def case(spec: QNetSpec, queries: int, documents: int) -> tuple[QNets, torch.Tensor]:
    generator = torch.Generator().manual_seed(documents)
    flat = torch.randn(queries, spec.size, generator=generator) / 5
    return QNets.unflatten(flat, spec), torch.randn(documents, 24, generator=generator)


def kendall(a: torch.Tensor, b: torch.Tensor) -> float:
    pairs = torch.combinations(torch.arange(len(a)))
    return float(((a[pairs[:, 0]] - a[pairs[:, 1]]).sign() == (b[pairs[:, 0]] - b[pairs[:, 1]]).sign()).float().mean())


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("queries", "documents"), [(1, 1), (3, 1023), (2, 1024), (2, 1025), (5, 0)])
def test_fp32_agrees_with_the_reference(backend, spec, queries, documents):
    device = torch.device("cpu")
    if not backend.supports(spec, device, "fp32"):
        pytest.skip(f"{backend.name} does not evaluate such q-nets")
    qnets, vectors = case(spec, queries, documents)
    found = backend.scorer(qnets, device, "fp32")(vectors)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, qnets.score(vectors), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_bf16_is_no_worse_than_twice_plain_bf16(backend, spec):
    device = torch.device("cpu")
    if not backend.supports(spec, device, "bf16"):
        pytest.skip(f"{backend.name} does not compute in bf16")
    qnets, vectors = case(spec, 2, 200)
    exact = qnets.to(dtype=torch.float64).score(vectors)
    plain = qnets.to(dtype=torch.bfloat16).score(vectors).double()
    found = backend.scorer(qnets, device, "bf16")(vectors).double()
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max()
    assert all(kendall(found[q], exact[q]) > 0.95 for q in range(2))


def test_half_precision_vectors_are_scored_in_the_precision_asked_for():
    qnets, vectors = case(SPECS[1], 2, 50)
    half = vectors.half()
    torch.testing.assert_close(scoring.make_scorer(qnets, device="cpu")(half), qnets.score(half.float()), rtol=1e-5, atol=1e-5)


def test_the_environment_forces_a_back_end(monkeypatch):
    qnets, vectors = case(SPECS[1], 2, 5)
    monkeypatch.setenv(scoring.ENVIRONMENT, "reference")
    torch.testing.assert_close(scoring.make_scorer(qnets, device="cpu")(vectors), qnets.score(vectors), rtol=1e-5, atol=1e-5)
    monkeypatch.setenv(scoring.ENVIRONMENT, "abacus")
    with pytest.raises(ValueError, match="abacus"):
        scoring.make_scorer(qnets, device="cpu")


def test_the_first_back_end_that_can_is_taken(monkeypatch):
    class Unable:
        name = "unable"
        available, supported = True, False

        def is_available(self):
            return self.available

        def supports(self, spec, device, precision):
            return self.supported

        def scorer(self, qnets, device, precision):
            return lambda vectors: torch.zeros(len(qnets), len(vectors))

    backend = Unable()
    monkeypatch.setattr(scoring, "BACKENDS", [backend, *scoring.BACKENDS])
    cpu = torch.device("cpu")
    assert scoring.select_backend(SPECS[0], cpu, "fp32").name == "reference"
    backend.supported = True
    assert scoring.select_backend(SPECS[0], cpu, "fp32").name == "unable"
    backend.available = False
    assert scoring.select_backend(SPECS[0], cpu, "fp32").name == "reference"
    monkeypatch.setenv(scoring.ENVIRONMENT, "unable")
    with pytest.raises(ValueError, match="unset"):
        scoring.select_backend(SPECS[0], cpu, "fp32")


def test_unknown_precisions_and_devices():
    qnets, _ = case(SPECS[0], 1, 1)
    with pytest.raises(ValueError, match="bf16"):
        scoring.make_scorer(qnets, precision="fp8")
    for device in ("tpu", "mps", "cuda:77", 3.5):
        with pytest.raises(ValueError, match="device: expected"):
            scoring.make_scorer(qnets, device=device)
    assert scoring.resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_cuda_agrees_with_the_cpu(spec):
    qnets, vectors = case(spec, 3, 1000)
    found = scoring.make_scorer(qnets, device="cuda", precision="fp32")(vectors).cpu()
    torch.testing.assert_close(found, qnets.score(vectors), rtol=1e-3, atol=1e-3)
