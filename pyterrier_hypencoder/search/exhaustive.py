"""Exhaustive search: score every document.

:mod:`pyterrier_hypencoder.search.passes` says how much memory it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..scoring import Scorer, choose_search_device
from ..scoring.rows import Rows
from .allowed import make_allowed
from .passes import Collection, Score, find_best
from .rescoring import find_best_by_two_passes
from .results import Results


def exhaustive_search(
    score: Score,
    vectors: Rows,
    n_queries: int,
    k: int,
    *,
    first_pass: Scorer | None = None,
    device: torch.device | None = None,
    allowed: Sequence[np.ndarray | None] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Results:
    """Score all documents for all queries and return the best ones (paper, section 4.1, exact retrieval).

    Args:
        score: Scores a block of documents (n, D) for Q queries, (Q, n); a :class:`~pyterrier_hypencoder.scoring.Scorer`.
        vectors: Vectors of all documents, (N, D), usually a memory map. They are read in order, block by block.
        n_queries: Number of queries, Q.
        k: Number of results per query; fewer if there are not as many documents.
        first_pass: Faster scorer of the same q-nets, which only finds the documents that ``score`` scores again; see
            :mod:`pyterrier_hypencoder.search.rescoring`. It requires a ``score`` with the other methods of a scorer.
        device: Device that computes the scores; None for the CPU, or for the device of ``vectors`` if they are a tensor.
        allowed: For every query the docids that may be returned, or None for all documents.
        progress: Called with the number of documents of every finished block.

    Returns:
        The k best documents of every query.

    Raises:
        NonFiniteScoreError: If a score is NaN or infinite.
    """
    if device is None and isinstance(vectors, Tensor):
        device = vectors.device
    device = choose_search_device(device)
    collection = Collection.make(vectors, make_allowed(allowed, device), device)
    if first_pass is None:
        best = find_best(score, collection, n_queries, k, progress)
    else:
        best = find_best_by_two_passes(first_pass, cast(Scorer, score), collection, n_queries, k, progress)
    n_scored = torch.full((n_queries,), len(collection), dtype=torch.long, device="cpu")
    return Results.from_tensors(*best, n_scored=n_scored, n_rounds=torch.ones_like(n_scored))
