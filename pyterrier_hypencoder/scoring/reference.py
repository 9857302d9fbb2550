"""The reference back-end: :meth:`QNets.score` in plain torch, in blocks that fit into the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..qnet import QNets, QNetSpec

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Documents that one q-net evaluates at a time. On a CPU the activations of a layer then fit into the cache: 1.5 times the
# speed of a single block of 32,768 documents for 6 layers of 768. A GPU needs more rows to be busy.
_DOCS_PER_BLOCK = {"cpu": 1024, "gpu": 16_384}


class Reference:
    """Plain torch for every architecture and device."""

    name = "reference"

    def is_available(self) -> bool:
        """Return True: torch is always installed."""
        return True

    def supports(self, spec: QNetSpec, device: torch.device, precision: str) -> bool:
        """Return True for fp32 and bf16, whatever the architecture and the device."""
        return precision in _DTYPES

    def prepare(self, qnets: QNets, device: torch.device, precision: str) -> ReferenceScorer:
        """Move and convert q-nets once; see :class:`pyterrier_hypencoder.scoring.Backend`."""
        qnets = qnets.to(device, torch.float32)
        return ReferenceScorer(qnets if precision == "fp32" else _round_hidden_layers(qnets, _DTYPES[precision]))


def _round_hidden_layers(qnets: QNets, dtype: torch.dtype) -> QNets:
    """Return q-nets whose hidden layers have another dtype.

    The output layer and the inner-product skip stay in float32. In bf16, many of the best documents would share a score.
    The last bias stays in float32 too, so nothing after the product with the last hidden weights is rounded.
    """
    weights = [*(weight.to(dtype) for weight in qnets.weights[:-1]), qnets.weights[-1]]
    biases = [*(bias.to(dtype) for bias in qnets.biases[:-1]), *qnets.biases[-1:]]
    return QNets(qnets.spec, weights, biases, qnets.query_vectors)


class ReferenceScorer:
    """Score documents with q-nets in plain torch; implements :class:`pyterrier_hypencoder.scoring.Scorer`.

    Args:
        qnets: The q-nets of Q queries. Scores are computed on their device, every layer in the dtype of its weights.
    """

    def __init__(self, qnets: QNets) -> None:
        self._nets = qnets
        self._single = [qnets.select(slice(q, q + 1)) for q in range(len(qnets))]
        self._block = _DOCS_PER_BLOCK["cpu" if qnets.device.type == "cpu" else "gpu"]

    def __call__(self, vectors: Tensor) -> Tensor:
        """Score the same documents (N, D) for all queries, (Q, N)."""
        scores = self._make_empty(len(self._single), len(vectors))
        self._fill(scores, vectors)
        return scores

    def each(self, vectors: Tensor, counts: Sequence[int]) -> Tensor:
        """Score different documents (M, D) for every query, ``counts`` of each, (M,)."""
        scores = self._make_empty(len(vectors))
        with torch.inference_mode():
            parts = self._convert(vectors).split(list(counts))
            on_cpu = self._nets.device.type == "cpu"
            scores.copy_(self._each_by_query(parts) if on_cpu else self._each_padded(parts))
        return scores

    def select(self, queries: Sequence[int]) -> ReferenceScorer:
        """Return a scorer for some of the queries, in the given order."""
        return ReferenceScorer(self._nets.select(queries))

    def _make_empty(self, *shape: int) -> Tensor:
        # Made outside inference mode, which is faster than no_grad, so callers may use scores in computations with gradients.
        return torch.empty(shape, dtype=torch.float32, device=self._nets.device)

    @torch.inference_mode()
    def _fill(self, scores: Tensor, vectors: Tensor) -> None:
        for start in range(0, len(vectors), self._block):
            block = self._convert(vectors[start : start + self._block])
            if self._nets.spec.is_linear:  # one matrix product for all queries
                scores[:, start : start + len(block)] = self._nets.score(block)
                continue
            for q, net in enumerate(self._single):
                scores[q, start : start + len(block)] = net.score(block)[0]

    def _each_by_query(self, parts: Sequence[Tensor]) -> Tensor:
        blocks = [
            net.score(block)[0]
            for net, part in zip(self._single, parts, strict=True)
            for block in part.split(self._block)
            if len(block)
        ]
        return torch.cat([torch.empty(0, dtype=torch.float32, device=self._nets.device), *blocks])

    def _each_padded(self, parts: Sequence[Tensor]) -> Tensor:
        """Score the queries side by side, because many small products would leave a GPU idle.

        Q-nets before the first and after the last query with documents are not evaluated: a part of a long list of documents
        belongs to a few neighbouring queries.
        """
        used = [q for q, part in enumerate(parts) if len(part)]
        if not used:
            return torch.empty(0, dtype=torch.float32, device=self._nets.device)
        queries = slice(used[0], used[-1] + 1)
        nets, parts = self._nets.select(queries), parts[queries]
        padded = pad_sequence(list(parts), batch_first=True)  # (Q, N, D)
        width = max(1, 4 * self._block // len(parts))
        scores = torch.cat([nets.score(block).float() for block in padded.split(width, dim=1)], dim=1)  # (Q, N)
        return torch.cat([row[: len(part)] for row, part in zip(scores, parts, strict=True)])  # a mask would synchronise

    def _convert(self, vectors: Tensor) -> Tensor:
        # The skip needs the vectors as they are; QNets.score rounds them for the hidden layers.
        dtype = torch.float32 if self._nets.spec.inner_product_skip else self._nets.dtype
        return vectors.to(self._nets.device, dtype)
