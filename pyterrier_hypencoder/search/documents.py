"""The documents of a collection during a search: their vectors, scores, and which of them each query has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..scoring import Scorer
from ..scoring.rows import Rows, take_rows
from .finite import check_finite

_SCORED_BYTES = 2**26
"""Size of the vectors that are scored at a time, as float32, if every query scores different documents."""


class Documents:
    """The collection as the queries of a batch see it: no query scores a document twice.

    Args:
        score: Scorer of the q-nets of Q queries.
        vectors: Vectors of all documents, (N, D).
        n_queries: Number of queries, Q.
        device: Device that computes the scores.
        allowed: For every query the docids that may be returned, or None for all documents.

    Attributes:
        seen: (Q, N), True for documents that a query has seen.
        excluded: (Q, N), True for documents that a query must not return; None if there is no filter.
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
        self.seen = torch.zeros(n_queries, len(vectors), dtype=torch.bool, device=device)
        self.n_scored = torch.zeros(n_queries, dtype=torch.long, device=device)
        self.excluded: Tensor | None = None
        if allowed is not None and any(ids is not None for ids in allowed):
            self.excluded = torch.zeros_like(self.seen)
            for q, ids in enumerate(allowed):
                if ids is not None:
                    self.excluded[q] = True
                    self.excluded[q, torch.from_numpy(ids).to(device)] = False

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
        keys = torch.unique((queries * len(self) + docids)[~self.seen[queries, docids]])
        queries, docids = keys // len(self), keys % len(self)
        self.seen[queries, docids] = True
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
        counts = self._count(queries)
        self.n_scored += counts
        first = counts.cumsum(0) - counts
        place = queries, torch.arange(len(queries), device=self.device) - first[queries]
        width = max(1, int(counts.max()))
        scores = torch.full((len(self.seen), width), -torch.inf, dtype=torch.float32, device=self.device)
        rows = torch.zeros(len(self.seen), width, dtype=torch.long, device=self.device)
        step = max(1, _SCORED_BYTES // (4 * self.vectors.shape[1]))
        parts = zip(queries.split(step), docids.split(step), strict=True)
        found = [self._score_each(part, ids) for part, ids in parts]
        scores[place] = torch.cat(found) if found else scores.new_empty(0)
        rows[place] = docids
        return scores, rows

    def _score_each(self, queries: Tensor, docids: Tensor) -> Tensor:
        vectors = take_rows(self.vectors, docids)
        scores = self._score.each(vectors, self._count(queries).tolist()).to(self.device)
        check_finite(scores, vectors, docids, queries)
        return scores

    def _count(self, queries: Tensor) -> Tensor:
        return torch.bincount(queries, minlength=len(self.seen))

    def score_shared(self, docids: Tensor) -> tuple[Tensor, Tensor]:
        """Mark the same documents (n,) as seen by all queries and score them; returns scores and docids, (Q, n)."""
        self.seen[:, docids] = True
        self.n_scored += len(docids)
        vectors = take_rows(self.vectors, docids)
        scores = self._score(vectors).to(self.device)
        check_finite(scores, vectors, docids)
        return scores, docids.expand(len(self.seen), -1)

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
        return scores if self.excluded is None else scores.masked_fill(self.excluded.gather(1, docids), -torch.inf)
