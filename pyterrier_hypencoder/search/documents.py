"""The documents of a collection during a search: their vectors, scores, and which of them each query has seen.

Memory: one bit per query and document if documents are marked as seen, and 64 MiB for the vectors that are scored at a time
(256 MiB on a GPU), as float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..scoring import Scorer
from ..scoring.rows import Rows, take_rows
from .allowed import make_allowed
from .bitset import BitSets
from .finite import check_finite

_SCORED_BYTES = 2**26
"""Size of the vectors that are scored at a time, as float32, if every query scores different documents."""
_MORE_ON_GPU = 4
"""A GPU scores this many times more at a time."""


def score_pairs(score: Scorer, vectors: Rows, queries: Tensor, docids: Tensor, n_queries: int, device: torch.device) -> Tensor:
    """Score different documents for every query.

    Args:
        score: Scorer of the q-nets of Q queries.
        vectors: Vectors of all documents, (N, D).
        queries: (M,), the query of every document, ascending.
        docids: (M,).
        n_queries: Number of queries, Q.
        device: Device of the scores.

    Returns:
        Scores, (M,).

    Raises:
        NonFiniteScoreError: If a score is NaN or infinite.
    """
    return _score_counted(score, vectors, queries, docids, _count(queries, n_queries), device)


def _score_counted(
    score: Scorer, vectors: Rows, queries: Tensor, docids: Tensor, counts: list[int], device: torch.device
) -> Tensor:
    """Score documents as in :func:`score_pairs`, with the number of documents of each query."""
    step = _count_rows(vectors, device)
    ends = np.cumsum([0, *counts])
    scores = torch.empty(len(docids), dtype=torch.float32, device=device)
    for start in range(0, len(docids), step):
        stop = min(start + step, len(docids))
        part = np.diff(ends.clip(start, stop)).tolist()
        scores[start:stop] = score.each(take_rows(vectors, docids[start:stop]), part)
    if not bool(scores.sum().isfinite()):  # one look for all, because it waits for a GPU
        for start in range(0, len(docids), step):
            rows = slice(start, start + step)
            check_finite(scores[rows], take_rows(vectors, docids[rows]), docids[rows], queries[rows])
    return scores


def _count_rows(vectors: Rows, device: torch.device) -> int:
    """Return how many vectors are scored at a time."""
    return max(1, (_SCORED_BYTES if device.type == "cpu" else _MORE_ON_GPU * _SCORED_BYTES) // (4 * vectors.shape[1]))


def _count(queries: Tensor, n_queries: int) -> list[int]:
    """Return how often each query occurs among ascending queries (M,)."""
    ends = torch.searchsorted(queries, torch.arange(n_queries + 1, device=queries.device))
    return ends.diff().tolist()


class Documents:
    """The collection as the queries of a batch see it: no query scores a document twice.

    Args:
        score: Scorer of the q-nets of Q queries.
        vectors: Vectors of all documents, (N, D).
        n_queries: Number of queries, Q.
        device: Device that computes the scores.
        allowed: For every query the docids that may be returned, or None for all documents.

    Attributes:
        allowed: The documents that each query may return; None if there is no filter.
        n_scored: (Q,), number of documents scored.
    """

    def __init__(
        self,
        score: Scorer,
        vectors: Rows,
        n_queries: int,
        device: torch.device,
        allowed: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        self._score = score
        self.vectors = vectors
        self.device = device
        self.allowed = make_allowed(allowed, device)
        self.n_scored = torch.zeros(n_queries, dtype=torch.long, device=device)
        self._seen = BitSets(n_queries, len(vectors), device)

    def __len__(self) -> int:
        return len(self.vectors)

    def mark_seen(self, queries: Tensor, docids: Tensor) -> tuple[Tensor, Tensor]:
        """Mark documents as seen and return those that are new.

        Args:
            queries: (M,), the query of every document.
            docids: (M,), may contain duplicates.

        Returns:
            Queries and docids of the new documents, each pair once, sorted by query and docid.
        """
        keys = torch.unique((queries * len(self) + docids)[~self._seen.contains(queries, docids)])
        queries, docids = keys // len(self), keys % len(self)
        self._seen.add(queries, docids)
        return queries, docids

    def score(self, queries: Tensor, docids: Tensor) -> tuple[Tensor, Tensor]:
        """Score different documents for every query.

        Args:
            queries: (M,), the query of every document, ascending.
            docids: (M,).

        Returns:
            Scores and docids, (Q, n), where n is the largest number of documents of a query and at least 1. A score of
            -inf marks a place without a document.
        """
        numbers = _count(queries, len(self.n_scored))
        counts = torch.tensor(numbers, device=self.device)
        self.n_scored += counts
        place = queries, torch.arange(len(queries), device=self.device) - (counts.cumsum(0) - counts)[queries]
        shape = len(numbers), max(1, *numbers)
        scores = torch.full(shape, -torch.inf, dtype=torch.float32, device=self.device)
        rows = torch.zeros(shape, dtype=torch.long, device=self.device)
        scores[place] = _score_counted(self._score, self.vectors, queries, docids, numbers, self.device)
        rows[place] = docids
        return scores, rows

    def score_shared(self, docids: Tensor) -> tuple[Tensor, Tensor]:
        """Mark the same documents (n,) as seen by all queries and score them; returns scores and docids, (Q, n)."""
        self._seen.add_to_all(docids)
        self.n_scored += len(docids)
        scores = torch.empty(len(self.n_scored), len(docids), dtype=torch.float32, device=self.device)
        step = _count_rows(self.vectors, self.device)
        for start in range(0, len(docids), step):
            scores[:, start : start + step] = self._score(take_rows(self.vectors, docids[start : start + step]))
        if not bool(scores.sum().isfinite()):
            check_finite(scores, take_rows(self.vectors, docids), docids)
        return scores, docids.expand(len(self.n_scored), -1)

    def score_entry_points(self, entry_points: np.ndarray | Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Score the first documents of a search.

        Args:
            entry_points: Docids that all queries share, or one array of docids per query.

        Returns:
            Scores and docids as from :meth:`score`.
        """
        if isinstance(entry_points, np.ndarray):
            return self.score_shared(torch.from_numpy(np.unique(entry_points)).to(self.device))
        queries = torch.from_numpy(np.repeat(np.arange(len(entry_points)), [len(ids) for ids in entry_points]))
        docids = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *entry_points]))
        return self.score(*self.mark_seen(queries.to(self.device), docids.to(self.device)))

    def apply_filter(self, scores: Tensor, docids: Tensor) -> Tensor:
        """Return the scores (Q, n) with -inf for documents (Q, n) that a query must not return."""
        return scores if self.allowed is None else self.allowed.apply_to(scores, docids)
