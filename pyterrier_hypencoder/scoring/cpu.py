"""The CPU back-end: every layer writes into memory that is in the cache already."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..qnet import QNets, QNetSpec

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Documents that one q-net evaluates at a time. The activations of a layer then fit into the cache, and the weights are read
# often enough: for 6 layers of 768, blocks of 512 to 2048 documents are equally fast, and smaller ones are slower.
_DOCS_PER_BLOCK = 1024
_ACTIVATE_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "gelu": lambda y: y.copy_(F.gelu(y)),
    "leaky_relu": partial(F.leaky_relu_, negative_slope=0.01),
}


class Cpu:
    """Plain torch without new memory for every step, for q-nets with hidden layers on a CPU."""

    name = "cpu"

    def is_available(self) -> bool:
        """Return True: torch is always installed."""
        return True

    def supports(self, spec: QNetSpec, device: torch.device, precision: str) -> bool:
        """Return True for q-nets with hidden layers on a CPU, in fp32 and bf16."""
        return device.type == "cpu" and precision in _DTYPES and spec.hidden_layers > 0

    def prepare(self, qnets: QNets, device: torch.device, precision: str) -> CpuScorer:
        """Move and convert q-nets once; see :class:`pyterrier_hypencoder.scoring.Backend`."""
        qnets = qnets.to(device, torch.float32)
        single = [qnets.select(slice(q, q + 1)) for q in range(len(qnets))]
        return CpuScorer([_Network(qnet, _DTYPES[precision]) for qnet in single])


class CpuScorer:
    """Score documents with q-nets on a CPU; implements :class:`pyterrier_hypencoder.scoring.Scorer`.

    Args:
        networks: The q-net of every query.
    """

    def __init__(self, networks: Sequence[_Network]) -> None:
        self._networks = networks

    def __call__(self, vectors: Tensor) -> Tensor:
        """Score the same documents (N, D) for all queries, (Q, N)."""
        scores = _make_empty(len(self._networks), len(vectors))
        with torch.inference_mode():
            _fill(scores, self._networks, vectors)
        return scores

    def each(self, vectors: Tensor, counts: Sequence[int]) -> Tensor:
        """Score different documents (M, D) for every query, ``counts`` of each, (M,)."""
        scores = _make_empty(len(vectors))
        parts = zip(self._networks, scores.split(list(counts)), vectors.split(list(counts)), strict=True)
        with torch.inference_mode():
            for network, own_scores, own_vectors in parts:
                _fill(own_scores.unsqueeze(0), [network], own_vectors)
        return scores

    def select(self, queries: Sequence[int]) -> CpuScorer:
        """Return a scorer for some of the queries, in the given order. It shares their weights."""
        return CpuScorer([self._networks[q] for q in queries])


def _make_empty(*shape: int) -> Tensor:
    # Scores are made outside inference mode, so callers may use them in computations with gradients.
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _fill(scores: Tensor, networks: Sequence[_Network], vectors: Tensor) -> None:
    """Write the scores (Q, N) of vectors (N, D), block by block."""
    if not len(vectors) or not networks:
        return
    networks[0].qnet.check_vectors(vectors)
    spec, n_rows = networks[0].qnet.spec, min(len(vectors), _DOCS_PER_BLOCK)
    buffer = _make_empty(n_rows, spec.input_dim)
    outputs = [torch.empty(n_rows * max(spec.bias_sizes), dtype=networks[0].dtype, device="cpu") for _ in range(2)]
    for start in range(0, len(vectors), n_rows):
        block = vectors[start : start + n_rows]
        # Converted once for all queries. A buffer, because the pages of new memory would cost as much as the conversion.
        rows = block if block.dtype == torch.float32 else buffer[: len(block)].copy_(block)
        inputs, overflow = _normalise_inputs(rows, spec)
        inputs = inputs.to(networks[0].dtype)
        for network, row in zip(networks, scores[:, start : start + n_rows], strict=True):
            network.fill(row, rows, inputs, overflow, outputs)


def _normalise_inputs(rows: Tensor, spec: QNetSpec) -> tuple[Tensor, Tensor]:
    """Return the inputs (n, D) of the networks, and (n, 1) zeros with NaN for documents whose norm overflows."""
    if not spec.normalize_input:
        return rows, rows.new_zeros(())
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return math.sqrt(spec.input_dim) * (rows / norm.clamp(min=1e-12)), 0 * norm


class _Network:
    """The q-net of one query with hidden layers in another dtype. The output layer and the skip stay in float32.

    Args:
        qnet: Q-net of one query, in float32.
        dtype: Dtype of the hidden layers.
    """

    def __init__(self, qnet: QNets, dtype: torch.dtype) -> None:
        self.qnet = qnet
        self.dtype = dtype
        self._weights = [weight[0].to(dtype) for weight in qnet.weights[:-1]]  # (I, O)
        self._biases = [bias[0].to(dtype) for bias in qnet.biases]
        self._output = qnet.weights[-1][0]  # (H, 1)
        self._activate = _ACTIVATE_IN_PLACE[qnet.spec.activation_type]

    def fill(self, scores: Tensor, rows: Tensor, x: Tensor, overflow: Tensor, outputs: list[Tensor]) -> None:
        """Write the scores (n,) of documents.

        Args:
            scores: The scores to write, (n,).
            rows: Document vectors, (n, D), float32.
            x: Inputs of the first layer, (n, D).
            overflow: Added to the scores, (n, 1) or a single number.
            outputs: Two buffers for the outputs of layers, at least n x H numbers each.
        """
        spec = self.qnet.spec
        for layer, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            y = outputs[layer % 2][: len(x) * len(bias)].view(len(x), len(bias))
            y = self._activate(torch.addmm(bias, x, weight, out=y))
            if layer == spec.hidden_layers - 1:
                y = y.float()  # nothing after the last product is rounded to bf16
            if spec.do_layer_norm and spec.layer_norm_before_residual:
                y, overflow = _normalise_outputs(y, overflow)
            if spec.has_residual(layer):
                y.add_(x[:, : y.shape[1]])  # x is wider than y only for narrowed q-nets
            if spec.do_layer_norm and not spec.layer_norm_before_residual:
                y, overflow = _normalise_outputs(y, overflow)
            x = y
        torch.add(x @ self._output, overflow, out=scores.unsqueeze(1))
        if self.qnet.query_vectors is not None:
            scores.mul_(spec.skip_gate).add_(rows @ self.qnet.query_vectors[0], alpha=spec.skip_scale)


def _normalise_outputs(x: Tensor, overflow: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer norm of x, and ``overflow`` with NaN where the variance of x is too large for its dtype."""
    y, _, factor = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
    return y, overflow + 0 / factor  # 0 / 0 is NaN
