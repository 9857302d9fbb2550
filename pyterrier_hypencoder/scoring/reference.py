"""The reference back-end: :meth:`QNets.score` as it stands, in blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..qnet import QNets, QNetSpec

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Documents that one q-net evaluates at a time. On a CPU the activations of a layer then stay in the cache (1.5 times the
# speed of one large block for 6 layers of 768, see benchmarks/); a GPU wants enough rows to fill it.
_BLOCK = {"cpu": 1024, "cuda": 16_384}


class Reference:
    """Plain torch, any architecture, any device."""

    name = "reference"

    def is_available(self) -> bool:
        """Always."""
        return True

    def supports(self, spec: QNetSpec, device: torch.device, precision: str) -> bool:
        """Everything, in fp32 and bf16."""
        return precision in _DTYPES

    def prepare(self, qnets: QNets, device: torch.device, precision: str) -> ReferenceScorer:
        """See :class:`pyterrier_hypencoder.scoring.Backend`."""
        return ReferenceScorer(qnets.to(device, _DTYPES[precision]))


class ReferenceScorer:
    """Scores documents with q-nets that are where, and in the dtype in which, they are evaluated.

    Args:
        qnets: the q-nets of Q queries.
    """

    def __init__(self, qnets: QNets) -> None:
        self._nets = qnets
        self._single = [qnets.select(slice(q, q + 1)) for q in range(len(qnets))]
        self._block = _BLOCK[qnets.device.type]

    @torch.inference_mode()
    def __call__(self, vectors: Tensor) -> Tensor:
        """See :class:`pyterrier_hypencoder.scoring.Scorer`."""
        scores = torch.empty(len(self._single), len(vectors), device=self._nets.device)
        for start in range(0, len(vectors), self._block):
            block = self._moved(vectors[start : start + self._block])
            if self._nets.spec.is_linear:  # one matrix product for all queries
                scores[:, start : start + len(block)] = self._nets.score(block)
                continue
            for q, net in enumerate(self._single):
                scores[q, start : start + len(block)] = net.score(block)[0]
        return scores

    @torch.inference_mode()
    def each(self, vectors: Tensor, counts: Sequence[int]) -> Tensor:
        """See :class:`pyterrier_hypencoder.scoring.Scorer`."""
        parts = self._moved(vectors).split(list(counts))
        if self._nets.device.type == "cpu":
            blocks = [
                net.score(block)[0]
                for net, part in zip(self._single, parts, strict=True)
                for block in part.split(self._block)
                if len(block)
            ]
            return torch.cat([vectors.new_empty(0, dtype=torch.float32), *(block.float() for block in blocks)])
        # Many small products would leave a GPU idle: the queries' documents go through side by side.
        padded = pad_sequence(list(parts), batch_first=True)
        width = max(1, 4 * self._block // max(1, len(parts)))
        blocks = [self._nets.score(block).float() for block in padded.split(width, dim=1)]
        real = torch.arange(padded.shape[1], device=padded.device) < torch.as_tensor(counts, device=padded.device).unsqueeze(1)
        return torch.cat(blocks, dim=1)[real]

    def select(self, queries: Sequence[int]) -> ReferenceScorer:
        """See :class:`pyterrier_hypencoder.scoring.Scorer`."""
        return ReferenceScorer(self._nets.select(queries))

    def _moved(self, vectors: Tensor) -> Tensor:
        return vectors.to(self._nets.device, self._nets.dtype)
