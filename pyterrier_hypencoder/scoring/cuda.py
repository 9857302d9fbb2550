"""The back-end for GPUs: many documents per kernel, and one fused kernel between two matrix products."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from ..qnet import QNets, QNetSpec

logger = logging.getLogger(__name__)

_ACTIVATIONS_PER_BLOCK = 2**26
"""Activations of a layer that are in memory at a time, for all q-nets together: 87,000 documents of 768 dimensions."""

Network = Callable[[QNets, Tensor], Tensor]


class Cuda:
    """All architectures on a GPU of CUDA.

    Without Triton, or for other architectures than the released one, the q-nets are evaluated by :meth:`QNets.score` in
    larger blocks.
    """

    name = "cuda"

    def is_available(self) -> bool:
        """Return True if there is a GPU."""
        return torch.cuda.is_available()

    def supports(self, spec: QNetSpec, device: torch.device, precision: str) -> bool:
        """Return True for fp32 and bf16 on a GPU, whatever the architecture."""
        return device.type == "cuda" and precision in ("fp32", "bf16")

    def prepare(self, qnets: QNets, device: torch.device, precision: str) -> CudaScorer:
        """Move and convert q-nets once; see :class:`pyterrier_hypencoder.scoring.Backend`.

        fp32 scores are computed in float64 if the user has allowed TF32, because TF32 has the precision of fp16.
        """
        exact = torch.float64 if _allows_tf32() else torch.float32
        qnets = qnets.to(device).to(dtype=exact)
        if precision == "fp32":
            return CudaScorer(qnets)
        *hidden, output = qnets.weights  # the output layer and the skip stay as they are
        hidden, biases = ([t.to(torch.bfloat16) for t in tensors] for tensors in (hidden, qnets.biases))
        return CudaScorer(QNets(qnets.spec, [*hidden, output], biases, qnets.query_vectors))


def _allows_tf32() -> bool:
    try:
        return torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # set by a newer option of torch, so it cannot be read here
        return True


class CudaScorer:
    """Score documents with q-nets on a GPU; implements :class:`pyterrier_hypencoder.scoring.Scorer`.

    Nothing in it waits for the GPU, except for copying lists of numbers to it.

    Args:
        qnets: The q-nets of Q queries on the GPU. Every layer is computed in the dtype of its weights.
    """

    def __init__(self, qnets: QNets) -> None:
        self._nets = qnets
        widest = max(qnets.spec.vector_dimensions)
        self._rows = max(1, _ACTIVATIONS_PER_BLOCK // widest)  # of all queries together
        can_fuse = can_fuse_layers(qnets.spec) and qnets.dtype != torch.float64
        self._network = find_fused_network(str(qnets.device)) if can_fuse else None

    def __call__(self, vectors: Tensor) -> Tensor:
        """Score the same documents (N, D) for all queries, (Q, N)."""
        scores = self._make_empty(len(self._nets), len(vectors))
        step = max(1, self._rows // max(1, len(self._nets)))
        with torch.inference_mode():
            for start in range(0, len(vectors), step):
                block = vectors[start : start + step].to(self._nets.device)
                scores[:, start : start + step] = self._score(self._nets, block.unsqueeze(0))
        return scores

    def each(self, vectors: Tensor, counts: Sequence[int]) -> Tensor:
        """Score different documents (M, D) for every query, ``counts`` of each, (M,).

        Queries with similar counts are evaluated side by side. Shorter lists are padded with their last document. Q-nets
        without documents are left out.
        """
        scores = self._make_empty(len(vectors))
        device = self._nets.device
        vectors = vectors.to(device)
        ends = torch.tensor(counts, dtype=torch.long, device="cpu").cumsum(0)
        limits = torch.stack([ends - torch.tensor(counts, dtype=torch.long, device="cpu"), ends - 1]).to(device)  # (2, Q)
        with torch.inference_mode():
            for queries in group_by_count(counts):
                nets, first, last = self._nets, *limits.unsqueeze(-1)  # (Q, 1)
                if len(queries) < len(counts):
                    chosen = torch.tensor(queries, device=device)
                    nets, first, last = self._nets.select(chosen), first[chosen], last[chosen]
                width, step = max(counts[q] for q in queries), max(1, self._rows // len(queries))
                for start in range(0, width, step):
                    places = torch.arange(start, min(start + step, width), device=device)
                    places = (first + places).minimum(last)  # (q, n)
                    scores[places] = self._score(nets, vectors[places])
        return scores

    def select(self, queries: Sequence[int]) -> CudaScorer:
        """Return a scorer for some of the queries, in the given order."""
        return CudaScorer(self._nets.select(queries))

    def _make_empty(self, *shape: int) -> Tensor:
        # Made outside inference mode, so callers may use scores in computations with gradients.
        return torch.empty(shape, dtype=torch.float32, device=self._nets.device)

    def _score(self, nets: QNets, vectors: Tensor) -> Tensor:
        """Return the scores (Q, n) of documents (Q, n, D), or (1, n, D) for all queries."""
        spec = nets.spec
        if self._network is None:
            precise = spec.inner_product_skip or spec.hidden_layers == 0  # needs the vectors as they are
            vectors = vectors.to(nets.weights[-1].dtype if precise else nets.dtype)
            return nets.score(vectors[0] if len(vectors) == 1 else vectors).float()
        x, overflow = vectors, None
        if spec.normalize_input:
            x = x.float()
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            x, overflow = math.sqrt(spec.input_dim) * (x / norm.clamp(min=1e-12)), 0 * norm.squeeze(-1)  # NaN for infinity
        score = self._network(nets, x.to(nets.dtype))
        score = score if overflow is None else score + overflow
        if nets.query_vectors is None:
            return score
        inner = torch.matmul(vectors.to(nets.query_vectors.dtype), nets.query_vectors.unsqueeze(-1)).squeeze(-1)  # (Q, n)
        return (spec.skip_scale * inner + spec.skip_gate * score).float()


def group_by_count(counts: Sequence[int]) -> list[list[int]]:
    """Return the queries with documents in groups, in which the largest count is less than twice the smallest.

    Args:
        counts: Number of documents of every query.

    Example:
        >>> group_by_count([5, 0, 100, 7, 120])
        [[0, 3], [2, 4]]
    """
    groups: dict[int, list[int]] = {}
    for query, count in enumerate(counts):
        if count:
            groups.setdefault(int(count).bit_length(), []).append(query)
    return list(groups.values())


def can_fuse_layers(spec: QNetSpec) -> bool:
    """Return True for the released architecture: ReLU, then layer norm, then a residual in some layers."""
    is_released = spec.activation_type == "relu" and spec.do_layer_norm and spec.layer_norm_before_residual
    return is_released and spec.hidden_layers > 0 and not spec.narrowed


@cache  # once per device and process
def find_fused_network(device: str) -> Network | None:
    """Return the function that evaluates q-nets with the fused kernel; None if it does not run here.

    It is tried on a small q-net. A machine may lack Triton, or the C compiler that Triton needs.
    """
    try:
        from .triton_kernels import run_network

        spec = QNetSpec((16, 16, 16, 1))
        generator = torch.Generator("cpu").manual_seed(0)
        nets = QNets.unflatten(torch.randn(2, spec.size, generator=generator), spec).to(device)
        vectors = torch.randn(1, 3, 16, generator=generator).to(device)
        if torch.allclose(run_network(nets, vectors), nets.score(vectors[0]), rtol=1e-3, atol=1e-3):
            return run_network
        reason: object = "its scores are wrong"
    except Exception as err:  # Triton raises nearly every type of exception for what it cannot compile
        reason = err
    logger.warning("The fused kernel does not run on %s, so q-nets are evaluated in plain torch: %.300s", device, reason)
    return None
