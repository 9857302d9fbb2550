"""The reference back-end: :meth:`QNets.score` as it stands, in blocks that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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

    def scorer(self, qnets: QNets, device: torch.device, precision: str) -> Callable[[Tensor], Tensor]:
        """See :class:`pyterrier_hypencoder.scoring.Backend`."""
        dtype = _DTYPES[precision]
        nets = qnets.to(device, dtype)
        if nets.spec.is_linear:  # one matrix product for all queries
            return lambda vectors: nets.score(vectors.to(device, dtype)).float()
        single = [nets.select(slice(q, q + 1)) for q in range(len(nets))]

        @torch.inference_mode()
        def score(vectors: Tensor) -> Tensor:
            scores = torch.empty(len(single), len(vectors), device=device)
            for start in range(0, len(vectors), _BLOCK[device.type]):
                block = vectors[start : start + _BLOCK[device.type]].to(device, dtype)
                for q, net in enumerate(single):
                    scores[q, start : start + len(block)] = net.score(block)[0]
            return scores

        return score
