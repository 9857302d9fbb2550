"""Exhaustive search: score every document."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..scoring.rows import Rows, as_tensor, take_rows
from .allowed import make_allowed
from .finite import check_finite
from .results import Results, select_top_k

_CHUNK_BYTES = 64 * 2**20
"""Size of the vectors that are in memory at a time, as float32; the collection itself stays on disk."""


def exhaustive_search(
    score: Callable[[Tensor], Tensor],
    vectors: Rows,
    n_queries: int,
    k: int,
    *,
    allowed: Sequence[np.ndarray | None] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Results:
    """Score all documents for all queries and return the best ones (paper, section 4.1, exact retrieval).

    Args:
        score: Scores a block of documents (n, D) for Q queries, (Q, n); a :class:`~pyterrier_hypencoder.scoring.Scorer`.
        vectors: Vectors of all documents, (N, D), usually a memory map. They are read in order, block by block.
        n_queries: Number of queries, Q.
        k: Number of results per query; fewer if there are not as many documents.
        allowed: For every query the ascending docids that may be returned, or None for all documents.
        progress: Called with the number of documents of every finished block.

    Returns:
        The k best documents of every query.
    """
    filters = make_allowed(allowed)
    union = None if filters is None else filters.find_union()
    docids = None if union is None else union.numpy()  # None: all documents
    total = len(vectors) if docids is None else len(docids)
    step = max(1, _CHUNK_BYTES // (4 * vectors.shape[1]))
    best: tuple[Tensor, Tensor] | None = None
    for start in range(0, total, step):
        stop = min(start + step, total)
        ids = np.arange(start, stop) if docids is None else docids[start:stop]
        rows = as_tensor(vectors[start:stop]) if docids is None else take_rows(vectors, torch.from_numpy(ids))
        scores = score(rows)  # (Q, n)
        check_finite(scores, rows, torch.from_numpy(ids))
        if filters is not None and not filters.is_shared:
            scores = filters.apply_to(scores, torch.from_numpy(ids))
        block = scores, torch.from_numpy(ids).to(scores.device).expand(n_queries, -1)
        # The best documents so far come first: their docids are smaller, as select_top_k requires among equal scores.
        joined = block if best is None else (torch.cat([best[0], block[0]], 1), torch.cat([best[1], block[1]], 1))
        best = select_top_k(*joined, k)
        if progress is not None:
            progress(stop - start)
    if best is None:
        no_scores = torch.empty(n_queries, 0, dtype=torch.float32, device="cpu")
        best = no_scores, torch.empty_like(no_scores, dtype=torch.long)
    n_scored = torch.full((n_queries,), total, dtype=torch.long, device="cpu")
    return Results.from_tensors(*best, n_scored=n_scored, n_rounds=torch.ones_like(n_scored))
