"""The documents that a search looks at: their vectors, which of them a query has met, and their scores."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Rows = np.ndarray | Tensor
"""An array by docid: a memory map, or a tensor that lies where scores are computed."""
_EVALUATED_BYTES = 2**26  # vectors of queries' own that are in memory at a time, in float32


class Score(Protocol):
    """What a search asks of the evaluation of q-nets; see :class:`pyterrier_hypencoder.scoring.Scorer`."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """Scores (Q, N) of documents (N, D) that the queries share."""
        ...

    def each(self, vectors: Tensor, counts: Sequence[int]) -> Tensor:
        """Scores (M,) of documents (M, D) of the queries' own, one query after the other."""
        ...

    def select(self, queries: Sequence[int]) -> Score:
        """What evaluates the q-nets of some of the queries."""
        ...


def as_tensor(rows: Rows) -> Tensor:
    """Rows as a tensor that shares their memory; those of a read-only memory map must not be written to."""
    if isinstance(rows, Tensor):
        return rows
    with warnings.catch_warnings():  # of just that
        warnings.simplefilter("ignore")
        return torch.from_numpy(rows)


def take(rows: Rows, docids: Tensor) -> Tensor:
    """The rows of some documents; those of a memory map are read in the order in which they are asked for."""
    if isinstance(rows, Tensor):
        return rows[docids]
    found = rows[docids.cpu().numpy()]
    return torch.from_numpy(found.astype(np.int64) if found.dtype.kind == "u" else np.ascontiguousarray(found))


class Documents:
    """A collection as the queries of one batch see it: each document is evaluated once at most for a query.

    Args:
        score: evaluates the q-nets of Q queries.
        vectors: (N, D).
        n_queries: Q.
        device: where scores are computed.
        allowed: for every query the docids that may be returned, or None for all.
    """

    def __init__(
        self,
        score: Score,
        vectors: Rows,
        n_queries: int,
        device: torch.device,
        allowed: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        self._score = score
        self.vectors = vectors
        self.device = device
        self.met = torch.zeros(n_queries, len(vectors), dtype=torch.bool, device=device)
        self.n_scored = torch.zeros(n_queries, dtype=torch.long, device=device)
        self.hidden: Tensor | None = None
        if allowed is not None and any(ids is not None for ids in allowed):
            self.hidden = torch.zeros_like(self.met)
            for q, ids in enumerate(allowed):
                if ids is not None:
                    self.hidden[q] = True
                    self.hidden[q, torch.from_numpy(ids).to(device)] = False

    def __len__(self) -> int:
        return len(self.vectors)

    def meet(self, queries: Tensor, docids: Tensor) -> tuple[Tensor, Tensor]:
        """Marks documents as met, and leaves out those that were.

        Args:
            queries: (M,), whose they are.
            docids: (M,).

        Returns:
            The same for the new ones, each once, by query and docid.
        """
        keys = torch.unique((queries * len(self) + docids)[~self.met[queries, docids]])
        queries, docids = keys // len(self), keys % len(self)
        self.met[queries, docids] = True
        return queries, docids

    def evaluate(self, queries: Tensor, docids: Tensor) -> tuple[Tensor, Tensor]:
        """Scores documents of the queries' own.

        Args:
            queries: (M,), ascending.
            docids: (M,).

        Returns:
            Scores and docids, (Q, n) with n the most that a query has, at least 1; -inf where a query has fewer.
        """
        counts = self._counts(queries)
        self.n_scored += counts
        first = counts.cumsum(0) - counts
        place = queries, torch.arange(len(queries), device=self.device) - first[queries]
        width = max(1, int(counts.max()))
        scores = torch.full((len(self.met), width), -torch.inf, device=self.device)
        rows = torch.zeros(len(self.met), width, dtype=torch.long, device=self.device)
        step = max(1, _EVALUATED_BYTES // (4 * self.vectors.shape[1]))
        parts = zip(queries.split(step), docids.split(step), strict=True)
        found = [self._score.each(take(self.vectors, ids), self._counts(own).tolist()) for own, ids in parts]
        scores[place] = torch.cat(found).to(self.device) if found else scores.new_empty(0)
        rows[place] = docids
        return scores, rows

    def _counts(self, queries: Tensor) -> Tensor:
        return torch.bincount(queries, minlength=len(self.met))

    def evaluate_shared(self, docids: Tensor) -> tuple[Tensor, Tensor]:
        """Scores documents that all queries share, (n,); as :meth:`evaluate`, and marks them as met."""
        self.met[:, docids] = True
        self.n_scored += len(docids)
        return self._score(take(self.vectors, docids)).to(self.device), docids.expand(len(self.met), -1)

    def enter(self, entries: np.ndarray | Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Scores documents to begin with: docids that all queries share, or an array for each query.

        Returns:
            As :meth:`evaluate`.
        """
        if isinstance(entries, np.ndarray):
            return self.evaluate_shared(torch.from_numpy(np.unique(entries)).to(self.device))
        queries = torch.from_numpy(np.repeat(np.arange(len(entries)), [len(ids) for ids in entries]))
        docids = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *entries]))
        return self.evaluate(*self.meet(queries.to(self.device), docids.to(self.device)))

    def returnable(self, scores: Tensor, docids: Tensor) -> Tensor:
        """The scores, -inf for documents that a query may not return."""
        return scores if self.hidden is None else scores.masked_fill(self.hidden.gather(1, docids), -torch.inf)
