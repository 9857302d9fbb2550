"""Exhaustive search: every document is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .documents import Rows, as_tensor
from .results import Results, top_k

_CHUNK_BYTES = 64 * 2**20
"""Vectors that are in memory at a time, in float32; the collection itself stays on disk."""


def exhaustive_search(
    score: Callable[[Tensor], Tensor],
    vectors: Rows,
    n_queries: int,
    k: int,
    *,
    allowed: Sequence[np.ndarray | None] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Results:
    """Scores every document with every query and keeps the best (the paper's exact retrieval, section 4.1).

    Args:
        score: gives the scores (Q, n) of a block of documents (n, D).
        vectors: (N, D), usually a memory map; read in order, in blocks.
        n_queries: Q.
        k: results per query; fewer where there are not as many documents.
        allowed: for every query the docids that may be returned, ascending, or None for all.
        progress: called with the number of documents done.

    Returns:
        The results.
    """
    mask = _Allowed(allowed) if allowed is not None and any(a is not None for a in allowed) else None
    docids = mask.candidates if mask is not None else None  # None: all
    total = len(vectors) if docids is None else len(docids)
    vectors = as_tensor(vectors)
    step = max(1, _CHUNK_BYTES // (4 * vectors.shape[1]))
    best: tuple[Tensor, Tensor] | None = None
    for start in range(0, total, step):
        stop = min(start + step, total)
        ids = np.arange(start, stop) if docids is None else docids[start:stop]
        scores = score(vectors[start:stop] if docids is None else vectors[torch.from_numpy(ids)])
        if mask is not None:
            scores = mask.hide(scores, ids)
        found = scores, torch.from_numpy(ids).to(scores.device).expand(n_queries, -1)
        # The best so far come first: their docids are the smaller ones, as top_k wants them among equal scores.
        joined = found if best is None else (torch.cat([best[0], found[0]], 1), torch.cat([best[1], found[1]], 1))
        best = top_k(*joined, k)
        if progress is not None:
            progress(stop - start)
    if best is None:
        best = torch.empty(n_queries, 0), torch.empty(n_queries, 0, dtype=torch.long)
    scored = torch.full((n_queries,), total)
    return Results.of(*best, n_scored=scored, n_rounds=torch.ones_like(scored))


class _Allowed:
    """Which documents each query may return, as a search by chunks needs it."""

    def __init__(self, allowed: Sequence[np.ndarray | None]) -> None:
        self._per_query = allowed
        limited = [ids for ids in allowed if ids is not None]
        # Where every query is limited, no other document need be scored at all.
        everyone = len(limited) == len(allowed)
        self.candidates = np.unique(np.concatenate(limited)).astype(np.int64) if everyone else None

    def hide(self, scores: Tensor, ids: np.ndarray) -> Tensor:
        """Sets the scores of documents that a query may not return to -inf."""
        hidden = np.zeros(scores.shape, dtype=bool)
        for q, allowed in enumerate(self._per_query):
            if allowed is not None:
                hidden[q] = ~np.isin(ids, allowed, assume_unique=True)
        return scores.masked_fill(torch.from_numpy(hidden).to(scores.device), -torch.inf)
