"""The scorer protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..qnet import QNets, QNetSpec


class Scorer(Protocol):
    """Evaluates the q-nets of Q queries; scores are float32 and on the back-end's device."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """Scores (Q, N) of documents (N, D) that the queries share."""
        ...

    def each(self, vectors: Tensor, counts: Sequence[int]) -> Tensor:
        """Scores (M,) of documents (M, D) of the queries' own: those of the first one come first, ``counts`` of each."""
        ...

    def select(self, queries: Sequence[int]) -> Scorer:
        """What evaluates the q-nets of some of the queries."""
        ...


class Backend(Protocol):
    """A way of evaluating q-nets."""

    name: str

    def is_available(self) -> bool:
        """Whether what it needs is installed."""
        ...

    def supports(self, spec: QNetSpec, device: torch.device, precision: str) -> bool:
        """Whether it can evaluate such q-nets on such a device in such a precision."""
        ...

    def prepare(self, qnets: QNets, device: torch.device, precision: str) -> Scorer:
        """Prepares q-nets once (moves, converts, packs them) and returns what scores documents with them."""
        ...
