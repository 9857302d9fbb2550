"""The back-end for GPUs, on a pretend GPU: scores, groups of queries, TF32, and the fused kernel in Triton's interpreter."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import subprocess
import sys

import pytest
import torch
from pretend_cuda import CUDA, pretend_cuda

from pyterrier_hypencoder import QNets, QNetSpec
from pyterrier_hypencoder.scoring import cuda, select_backend
from pyterrier_hypencoder.scoring.cuda import Cuda, can_fuse_layers, find_fused_network, group_by_count

SPECS = [
    QNetSpec((24, 1)),
    QNetSpec((24, 24, 24, 1)),
    QNetSpec((24, 12, 1), do_residual=False, inner_product_skip=True, skip_scale=3.0, skip_gate=0.5, normalize_input=True),
    QNetSpec((24, 24, 24, 1), activation_type="gelu", layer_norm_before_residual=False),
]
CPU = torch.device("cpu")


def make_case(spec: QNetSpec, n_queries: int, n_docs: int) -> tuple[QNets, torch.Tensor]:
    generator = torch.Generator().manual_seed(n_docs)
    flat = torch.randn(n_queries, spec.size, generator=generator) / 5
    return QNets.unflatten(flat, spec), torch.randn(n_docs, 24, generator=generator).half()


@pytest.fixture(params=[1, 2**26], ids=["small blocks", "large blocks"])
def blocks(request, monkeypatch):
    """Evaluate few or many documents at a time."""
    monkeypatch.setattr(cuda, "_ACTIVATIONS_PER_BLOCK", request.param * 24 * 7)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_on_a_gpu_equal_the_reference(spec, precision, blocks):
    qnets, vectors = make_case(spec, 3, 41)
    counts = [5, 0, 36]
    with pretend_cuda():
        score = Cuda().prepare(qnets, CUDA, precision)
        shared, each = score(vectors.to(CUDA)), score.each(vectors.to(CUDA), counts)
        assert shared.device == each.device == CUDA and shared.dtype == each.dtype == torch.float32
        shared, each, selected = shared.cpu(), each.cpu(), score.select([2, 0])(vectors).cpu()
    expected = qnets.score(vectors)
    exact = precision == "fp32" or spec.hidden_layers == 0
    tolerance = 1e-4 if exact else 0.05 * float(expected.std())
    torch.testing.assert_close(shared, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(selected, expected[[2, 0]], rtol=0, atol=tolerance)
    torch.testing.assert_close(each, torch.cat([expected[0, :5], expected[2, 5:]]), rtol=0, atol=tolerance)


def test_each_of_no_documents_is_empty():
    qnets, vectors = make_case(SPECS[1], 2, 0)
    with pretend_cuda():
        score = Cuda().prepare(qnets, CUDA, "fp32")
        assert score.each(vectors, [0, 0]).shape == (0,) and score(vectors).shape == (2, 0)


def test_each_evaluates_only_q_nets_with_documents_and_pads_less_than_twice(monkeypatch):
    qnets, vectors = make_case(SPECS[1], 5, 100)
    evaluated = []
    original = QNets.score
    monkeypatch.setattr(QNets, "score", lambda nets, rows: evaluated.append((len(nets), rows.shape)) or original(nets, rows))
    with pretend_cuda():
        Cuda().prepare(qnets, CUDA, "fp32").each(vectors.to(CUDA), [40, 0, 3, 55, 2])
    assert sorted(evaluated) == [(2, (2, 3, 24)), (2, (2, 55, 24))]


def test_groups_have_similar_counts():
    groups = group_by_count([1, 9, 0, 15, 16, 1, 8])
    assert groups == [[0, 5], [1, 3, 6], [4]]


def test_scoring_waits_for_the_gpu_only_to_receive_counts():
    qnets, vectors = make_case(SPECS[1], 4, 100)
    with pretend_cuda() as seen:
        score, vectors = Cuda().prepare(qnets, CUDA, "fp32"), vectors.to(CUDA)
        seen.clear()
        score(vectors)
        assert seen.synchronisations == 0
        score.each(vectors, [25, 25, 25, 25])
        assert dict(seen.waits) == {"to cuda": 1}


@pytest.fixture
def tf32():
    """Allow TF32, as a user may do."""
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


def test_fp32_scores_do_not_use_tf32(tf32):
    qnets, vectors = make_case(SPECS[1], 2, 50)
    exact = qnets.to(dtype=torch.float64).score(vectors).float()
    with pretend_cuda():
        found = Cuda().prepare(qnets, CUDA, "fp32")(vectors).cpu()
    assert torch.equal(found, exact)
    assert torch.backends.cuda.matmul.allow_tf32


def test_bf16_scores_with_a_skip_are_float32_if_tf32_is_allowed(tf32, monkeypatch):
    """The fused network is replaced by plain torch, because there is no kernel on a CPU."""
    spec = QNetSpec((24, 6, 1), do_residual=False, inner_product_skip=True, normalize_input=True)
    qnets, vectors = make_case(spec, 2, 20)
    plain = dataclasses.replace(spec, inner_product_skip=False, normalize_input=False)

    def run(nets, x):
        return QNets(plain, nets.weights, nets.biases).score(x.expand(len(nets), -1, -1)).float()

    monkeypatch.setattr(cuda, "find_fused_network", lambda device: run)
    vectors[3] = 1e20
    found = Cuda().prepare(qnets, torch.device("cpu"), "bf16")(vectors)
    expected = qnets.score(vectors)
    assert found.dtype == torch.float32 and torch.equal(found.isnan(), expected.isnan())
    assert found[:, 3].isnan().all()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05, equal_nan=True)


def test_damaged_vectors_have_the_score_nan():
    qnets, vectors = make_case(SPECS[1], 2, 5)
    vectors[3, 4] = torch.nan
    with pretend_cuda():
        found = Cuda().prepare(qnets, CUDA, "fp32")(vectors).cpu()
    assert found.isnan().tolist() == [[False, False, False, True, False]] * 2


def test_backend_is_chosen_on_gpus_only():
    assert [Cuda().supports(SPECS[0], CUDA, name) for name in ("fp32", "bf16", "int8")] == [True, True, False]
    assert not Cuda().supports(SPECS[0], CPU, "fp32")
    assert select_backend(SPECS[0], CPU, "fp32").name != "cuda"
    with pretend_cuda():
        assert select_backend(SPECS[0], CUDA, "bf16").name == "cuda"


# The fused kernel


def test_released_architectures_can_be_fused():
    assert [can_fuse_layers(spec) for spec in SPECS] == [False, True, True, False]
    assert not can_fuse_layers(QNetSpec((24, 24, 1), do_layer_norm=False))
    assert not can_fuse_layers(QNetSpec((24, 8, 8, 1), narrowed=True))


def test_without_the_fused_kernel_a_warning_says_why(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pyterrier_hypencoder.scoring.triton_kernels", None)
    find_fused_network.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert find_fused_network("cpu") is None and find_fused_network("cpu") is None
    find_fused_network.cache_clear()
    assert [record.message.split(",")[0] for record in caplog.records] == ["The fused kernel does not run on cpu"]


INTERPRETED = """
import torch
from pyterrier_hypencoder import QNets, QNetSpec
from pyterrier_hypencoder.scoring.cuda import CudaScorer

specs = [
    QNetSpec((24, 24, 24, 1)),
    QNetSpec((40, 40, 40, 1), do_residual_on_last=True),
    QNetSpec((16, 5, 1), do_residual=False, inner_product_skip=True, skip_gate=0.5, normalize_input=True),
]
generator = torch.Generator().manual_seed(0)
for spec in specs:
    nets = QNets.unflatten(torch.randn(3, spec.size, generator=generator) / 5, spec)
    vectors = torch.randn(9, spec.input_dim, generator=generator)
    expected = nets.score(vectors)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        hidden = [weight.to(dtype) for weight in nets.weights[:-1]]
        biases = [bias.to(dtype) for bias in nets.biases]
        score = CudaScorer(QNets(spec, [*hidden, nets.weights[-1]], biases, nets.query_vectors))
        assert score._network is not None, "the fused kernel does not run"
        torch.testing.assert_close(score(vectors), expected, rtol=0, atol=tolerance)
        each = torch.cat([expected[0, :2], expected[2, 2:]])
        torch.testing.assert_close(score.each(vectors, [2, 0, 7]), each, rtol=0, atol=tolerance)
nets = QNets.unflatten(torch.randn(1, specs[0].size, generator=generator), specs[0])
vectors = torch.randn(4, 24, generator=generator)
vectors[1] *= 1e25  # its variance overflows
vectors[2, 0] = torch.nan
assert CudaScorer(nets)(vectors).isnan().tolist() == [[False, True, True, False]]
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton")
def test_fused_kernel_in_the_interpreter_equals_the_reference():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
