"""Every back-end agrees with the reference score; the choice of a back-end is explained if it fails."""

from __future__ import annotations

import pytest
import torch

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.scoring import backends

SPECS = [
    QNetSpec((24, 1)),
    QNetSpec((24, 24, 24, 1)),
    QNetSpec((24, 24, 1), inner_product_skip=True, skip_scale=3.0),
    QNetSpec((24, 7, 7, 1), "tanh", do_residual=False, inner_product_skip=True, skip_gate=0.3, normalize_input=True),
    QNetSpec((24, 24, 24, 1), "gelu", layer_norm_before_residual=False, do_residual_on_last=True),
    QNetSpec((24, 24, 24, 1), "leaky_relu", do_layer_norm=False, do_residual_on_last=True),
    QNetSpec((24, 1), inner_product_skip=True, normalize_input=True),
    QNetSpec((24, 10, 10, 5, 1), "sigmoid", narrowed=True),
]
AVAILABLE = [backend for backend in scoring.BACKENDS if backend.is_available()]
CPU = torch.device("cpu")


def make_case(spec: QNetSpec, n_queries: int, n_docs: int) -> tuple[QNets, torch.Tensor]:
    generator = torch.Generator().manual_seed(n_docs)
    flat = torch.randn(n_queries, spec.size, generator=generator) / 5
    return QNets.unflatten(flat, spec), torch.randn(n_docs, 24, generator=generator)


def kendall(a: torch.Tensor, b: torch.Tensor) -> float:
    pairs = torch.combinations(torch.arange(len(a)))
    return float(((a[pairs[:, 0]] - a[pairs[:, 1]]).sign() == (b[pairs[:, 0]] - b[pairs[:, 1]]).sign()).float().mean())


@pytest.mark.parametrize("backend", AVAILABLE, ids=lambda backend: backend.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("n_queries", "n_docs"), [(1, 1), (3, 1023), (2, 1024), (2, 1025), (5, 0)])
def test_fp32_scores_equal_the_reference(backend, spec, n_queries, n_docs):
    if not backend.supports(spec, CPU, "fp32"):
        pytest.skip(f"{backend.name} does not support these q-nets")
    qnets, vectors = make_case(spec, n_queries, n_docs)
    found = backend.prepare(qnets, CPU, "fp32")(vectors)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, qnets.score(vectors), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", AVAILABLE, ids=lambda backend: backend.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_each_scores_the_documents_of_every_query(backend, spec):
    if not backend.supports(spec, CPU, "fp32"):
        pytest.skip(f"{backend.name} does not support these q-nets")
    qnets, vectors = make_case(spec, 4, 1100)
    counts = [1, 0, 1030, 69]
    found = backend.prepare(qnets, CPU, "fp32").each(vectors, counts)
    expected = [qnets.select([q]).score(part)[0] for q, part in enumerate(vectors.split(counts))]
    shared = backend.prepare(qnets, CPU, "fp32")(vectors).split(counts, dim=1)
    torch.testing.assert_close(found, torch.cat([scores[q] for q, scores in enumerate(shared)]), rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32 and found.shape == (1100,)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert backend.prepare(qnets, CPU, "fp32").each(vectors[:0], [0] * 4).shape == (0,)


@pytest.mark.parametrize("backend", AVAILABLE, ids=lambda backend: backend.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_select_scores_some_queries_in_the_given_order(backend, spec):
    if not backend.supports(spec, CPU, "fp32"):
        pytest.skip(f"{backend.name} does not support these q-nets")
    qnets, vectors = make_case(spec, 4, 30)
    score = backend.prepare(qnets, CPU, "fp32")
    torch.testing.assert_close(score.select([2, 0])(vectors), score(vectors)[[2, 0]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backend", AVAILABLE, ids=lambda backend: backend.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_scores_of_a_slice_are_those_of_the_whole(backend, spec, precision):
    if not backend.supports(spec, CPU, precision):
        pytest.skip(f"{backend.name} does not support these q-nets")
    qnets, vectors = make_case(spec, 2, 1500)
    score = backend.prepare(qnets, CPU, precision)
    tolerance = {"fp32": 1e-5, "bf16": 0.1}[precision]  # in bf16, another order of additions may round to the other side
    torch.testing.assert_close(score(vectors[700:1100]), score(vectors)[:, 700:1100], rtol=0, atol=tolerance)
    assert torch.equal(vectors, make_case(spec, 2, 1500)[1])  # the vectors of the caller stay as they are


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backend", AVAILABLE, ids=lambda backend: backend.name)
@pytest.mark.parametrize("spec", SPECS[1:], ids=str)
def test_scores_are_nan_where_a_normalisation_overflows(backend, spec, precision):
    if not backend.supports(spec, CPU, precision):
        pytest.skip(f"{backend.name} does not support these q-nets")
    qnets, vectors = make_case(spec, 2, 20)
    vectors[3] *= 1e30
    expected = qnets.score(vectors)
    found = backend.prepare(qnets, CPU, precision)(vectors)
    assert torch.equal(found.isnan(), expected.isnan())
    assert bool(expected[:, 3].isnan().all()) == (
        spec.normalize_input or (spec.do_layer_norm and spec.activation_type != "sigmoid")
    )


@pytest.mark.parametrize("backend", AVAILABLE, ids=lambda backend: backend.name)
def test_vectors_of_another_size_raise_value_error(backend):
    qnets, vectors = make_case(SPECS[1], 2, 5)
    with pytest.raises(ValueError, match=r"Document vectors must have shape \(N, 24\)"):
        backend.prepare(qnets, CPU, "fp32")(vectors[:, :23])


@pytest.mark.parametrize("backend", AVAILABLE, ids=lambda backend: backend.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_bf16_error_is_at_most_twice_that_of_plain_torch(backend, spec):
    if not backend.supports(spec, CPU, "bf16"):
        pytest.skip(f"{backend.name} does not support bf16")
    qnets, vectors = make_case(spec, 2, 200)
    exact = qnets.to(dtype=torch.float64).score(vectors)
    plain = qnets.to(dtype=torch.bfloat16).score(vectors).double()
    found = backend.prepare(qnets, CPU, "bf16")(vectors).double()
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-5
    assert all(kendall(found[q], exact[q]) > 0.95 for q in range(2))


@pytest.mark.parametrize("backend", AVAILABLE, ids=lambda backend: backend.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_fp32_error_is_at_most_twice_that_of_plain_torch(backend, spec):
    if not backend.supports(spec, CPU, "fp32"):
        pytest.skip(f"{backend.name} does not support these q-nets")
    qnets, vectors = make_case(spec, 2, 200)
    exact = qnets.to(dtype=torch.float64).score(vectors)
    plain = qnets.score(vectors).double()
    found = backend.prepare(qnets, CPU, "fp32")(vectors).double()
    assert (found - exact).abs().mean() <= 2 * (plain - exact).abs().mean()
    assert all(kendall(found[q], exact[q]) > 0.999 for q in range(2))


def test_environment_variable_forces_a_backend(monkeypatch):
    qnets, vectors = make_case(SPECS[1], 2, 5)
    monkeypatch.setenv("HYPENCODER_BACKEND", "reference")
    torch.testing.assert_close(scoring.make_scorer(qnets, device="cpu")(vectors), qnets.score(vectors), rtol=1e-5, atol=1e-5)
    monkeypatch.setenv("HYPENCODER_BACKEND", "abacus")
    with pytest.raises(ValueError, match=r"HYPENCODER_BACKEND must be one of \['cuda', 'cpu', 'reference'\], got 'abacus'"):
        scoring.make_scorer(qnets, device="cpu")


class FakeBackend:
    name = "fake"
    available, supported = True, False

    def is_available(self):
        return self.available

    def supports(self, spec, device, precision):
        return self.supported

    def prepare(self, qnets, device, precision):
        return lambda vectors: torch.zeros(len(qnets), len(vectors))


def test_first_backend_that_supports_the_qnets_is_selected(monkeypatch):
    fake = FakeBackend()
    monkeypatch.setattr(backends, "BACKENDS", (fake, *scoring.BACKENDS))
    assert [scoring.select_backend(spec, CPU, "fp32").name for spec in SPECS[:2]] == ["reference", "cpu"]
    fake.supported = True
    assert scoring.select_backend(SPECS[0], CPU, "fp32").name == "fake"
    qnets, vectors = make_case(SPECS[0], 2, 3)
    assert scoring.make_scorer(qnets, device="cpu")(vectors).tolist() == [[0.0] * 3] * 2
    fake.available = False
    assert scoring.select_backend(SPECS[0], CPU, "fp32").name == "reference"
    monkeypatch.setenv("HYPENCODER_BACKEND", "fake")
    with pytest.raises(ValueError, match="'fake' cannot evaluate .* unset HYPENCODER_BACKEND"):
        scoring.select_backend(SPECS[0], CPU, "fp32")


def test_missing_backend_raises_value_error(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", (FakeBackend(),))
    with pytest.raises(ValueError, match=r"No back-end can evaluate .* precision 'fp32' on cpu, tried \['fake'\]"):
        scoring.select_backend(SPECS[0], CPU, "fp32")


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_first_pass_is_bf16_only_for_auto_and_native_bf16(native, precision, monkeypatch):
    monkeypatch.setattr(backends, "has_native_bf16", lambda device: native)
    qnets, vectors = make_case(SPECS[1], 2, 50)
    found = scoring.make_first_pass(qnets, device="cpu", precision=precision)
    assert (found is not None) == (native and precision == "auto")
    if found is not None:
        assert torch.equal(found(vectors), scoring.make_scorer(qnets, device="cpu", precision="bf16")(vectors))
    assert scoring.make_first_pass(QNets.linear(torch.randn(2, 24)), device="cpu") is None


def test_first_pass_checks_its_options():
    qnets, _ = make_case(SPECS[0], 1, 1)
    with pytest.raises(ValueError, match=r"precision must be one of .*bf16.*, got 'fp8'"):
        scoring.make_first_pass(qnets, precision="fp8")
    with pytest.raises(ValueError, match="device must be"):
        scoring.make_first_pass(qnets, device="tpu")


def test_unknown_precision_or_device_raises_value_error():
    qnets, _ = make_case(SPECS[0], 1, 1)
    with pytest.raises(ValueError, match=r"precision must be one of .*bf16.*, got 'fp8'"):
        scoring.make_scorer(qnets, precision="fp8")
    with pytest.raises(ValueError, match="device must be"):
        scoring.make_scorer(qnets, device="tpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_cuda_scores_equal_the_reference(spec):
    qnets, vectors = make_case(spec, 3, 1000)
    found = scoring.make_scorer(qnets, device="cuda", precision="fp32")(vectors).cpu()
    torch.testing.assert_close(found, qnets.score(vectors), rtol=1e-3, atol=1e-3)
