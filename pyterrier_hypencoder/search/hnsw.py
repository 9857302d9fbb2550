"""HNSW search: approximate maximum inner product search for q-nets that are single vectors (not in the paper).

An HNSW index finds documents by inner products with rounded vectors. Their scores are then computed from the stored vectors,
so they equal those of exhaustive search.

A filter makes HNSW visit more documents, because it passes through documents that it must not return. If scoring all allowed
documents should take less time, they are all scored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..scoring import Scorer
from ..scoring.rows import Rows, take_rows
from .exhaustive import exhaustive_search
from .finite import NonFiniteScoreError, check_finite
from .results import Results

EF_SEARCH = 128
"""Default number of candidates that HNSW keeps."""
VECTORS_PER_VISIT = 32
"""A product with 32 vectors takes as long as one visit of HNSW (two cores, 384 dimensions)."""

Find = Callable[[Tensor, int, int, "np.ndarray | None"], list[np.ndarray]]
"""Finds documents for query vectors (Q, D), a number of results, a number of candidates and the allowed docids (or None)."""


@torch.inference_mode()
def hnsw_search(
    find: Find,
    score: Scorer,
    vectors: Rows,
    query_vectors: Tensor,
    k: int,
    *,
    ef_search: int = EF_SEARCH,
    allowed: Sequence[np.ndarray | None] | None = None,
    max_scored: int | None = None,
) -> Results:
    """Search with a batch of query vectors.

    Args:
        find: The HNSW index.
        score: Scorer of the same Q queries.
        vectors: Vectors of all documents, (N, D), usually a memory map.
        query_vectors: (Q, D).
        k: Number of results per query.
        ef_search: Number of candidates that HNSW keeps, at least k.
        allowed: For every query the docids that may be returned, or None for all documents.
        max_scored: Maximum number of documents that a query scores; None for no limit.

    Returns:
        The k best documents found per query. ``n_scored`` counts documents whose score was computed from the stored vectors,
        not those that HNSW visited.
    """
    _check_queries(query_vectors)
    filters = [None] * len(query_vectors) if allowed is None else list(allowed)
    n_docs = len(vectors)
    limit = n_docs if max_scored is None else max_scored
    k = int(min(k, limit))
    ef_search = int(max(ef_search, k))
    groups: dict[int, list[int]] = {}  # queries that share a filter, or have none, are searched together
    for q, ids in enumerate(filters):
        groups.setdefault(id(ids), []).append(q)
    parts = []
    for queries in groups.values():
        ids = filters[queries[0]]
        n_visits = ef_search if ids is None else -(-ef_search * n_docs // max(1, len(ids)))
        try:
            n_allowed = n_docs if ids is None else len(ids)
            if n_allowed <= limit and (VECTORS_PER_VISIT if ids is not None else 1) * n_visits >= n_allowed:
                found = exhaustive_search(score.select(queries), vectors, len(queries), k, allowed=[ids] * len(queries))
            else:
                part = query_vectors[queries]
                found = _rescore(part.float().cpu(), vectors, find(part, k, n_visits, ids))
        except NonFiniteScoreError as err:
            raise NonFiniteScoreError(queries[err.query], err.docid, err.vector_is_finite) from err
        parts.append(found)
    if len(parts) == 1:
        return parts[0]
    order = [q for queries in groups.values() for q in queries]
    return functools.reduce(Results.concat, parts, Results([], [])).select(np.argsort(order).tolist())


def _check_queries(query_vectors: Tensor) -> None:
    """Raise the error of exhaustive search for a query vector that is not finite, because HNSW finds anything for it."""
    damaged = (~query_vectors.isfinite().all(dim=1)).nonzero()
    if len(damaged):
        raise NonFiniteScoreError(int(damaged[0]), 0, vector_is_finite=True)


def _rescore(query_vectors: Tensor, vectors: Rows, found: Sequence[np.ndarray]) -> Results:
    """Score the found documents of every query by query vectors (Q, D), and sort them.

    A scorer of q-nets would take longer than HNSW for small numbers of results.
    """
    counts = np.array([len(docids) for docids in found])
    docids = torch.from_numpy(np.concatenate(found))  # (M,)
    rows = take_rows(vectors, docids).cpu()
    parts = rows.float().split(counts.tolist())
    values = torch.cat([part @ vector for part, vector in zip(parts, query_vectors, strict=True)])
    check_finite(values, rows, docids, torch.arange(len(found)).repeat_interleave(torch.from_numpy(counts)))
    pairs = zip(found, np.split(values.numpy(), counts.cumsum()[:-1]), strict=True)
    results = Results([], [], {"n_scored": counts, "n_rounds": np.ones_like(counts)})
    for ids, scores in pairs:
        order = np.lexsort((ids, -scores))
        results.docids.append(ids[order])
        results.scores.append(scores[order])
    return results
