"""The protocols of back-ends and scorers: a back-end prepares q-nets and returns a scorer, which scores documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..qnet import QNets, QNetSpec


class Scorer(Protocol):
    """Score documents with the q-nets of Q queries.

    Scores are float32 tensors on the device of the back-end.
    """

    def __call__(self, vectors: Tensor) -> Tensor:
        """Score the same documents for all queries.

        Args:
            vectors: Document vectors, (N, D).

        Returns:
            Scores, (Q, N).
        """
        ...

    def each(self, vectors: Tensor, counts: Sequence[int]) -> Tensor:
        """Score different documents for every query.

        Args:
            vectors: Document vectors, (M, D). The documents of the first query come first, then those of the second.
            counts: Number of documents of every query, Q numbers with the sum M.

        Returns:
            Scores, (M,).
        """
        ...

    def select(self, queries: Sequence[int]) -> Scorer:
        """Return a scorer for some of the queries, in the given order."""
        ...


class Backend(Protocol):
    """Evaluate q-nets in one particular way, for example in plain torch or with a GPU kernel."""

    name: str

    def is_available(self) -> bool:
        """Return True if everything that the back-end requires is installed."""
        ...

    def supports(self, spec: QNetSpec, device: torch.device, precision: str) -> bool:
        """Return True if the back-end can evaluate q-nets of this architecture on this device in this precision."""
        ...

    def prepare(self, qnets: QNets, device: torch.device, precision: str) -> Scorer:
        """Move, convert and pack q-nets once, and return a scorer that uses them.

        Args:
            qnets: The q-nets of Q queries.
            device: Device on which to compute.
            precision: One of :data:`pyterrier_hypencoder.scoring.PRECISIONS` except ``auto``.
        """
        ...
