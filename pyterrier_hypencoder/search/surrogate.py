"""Surrogate search: linear approximations of the q-nets choose which documents to score (not in the paper).

The search scores some random documents first, then works in rounds. Each round

1. fits a linear function to the ranks of all documents scored so far (:mod:`~pyterrier_hypencoder.search.fit`),
2. finds the unseen documents with the largest values of that function (:mod:`~pyterrier_hypencoder.search.scan`),
3. scores them with the q-net.

The **yield** of a round is the share of the best documents so far that the round has found. It looks at as many documents
as are requested, but at least :data:`MIN_DEPTH`, and at most :data:`MAX_DEPTH` and as many as a round scores. If more are
requested, they are scored after the last round. The yield decides about the next step of the query:

=========================================================  ============================================================
Condition                                                  Next step
=========================================================  ============================================================
yield below :data:`CONVERGED_BELOW`                        stop; the query has converged
yield above :data:`FALLBACK_ABOVE` from round 4 on, and    exhaustive search, because the q-net is too far from linear
more than half of that of the round before
no rounds left, and yield above :data:`FALLBACK_ABOVE`     exhaustive search
no rounds left otherwise, or ``max_scored`` reached        stop; the query has not converged
otherwise                                                  another round
=========================================================  ============================================================

If exhaustive search would exceed ``max_scored``, the query stops instead, and has not converged.

Q-nets with an inner-product skip have a query vector, which is the linear function of the first round. The search stops
after that round if the query vector already ranks the documents like the q-net does. From the third round on, several
functions are fitted, each to the neighbourhood of some of the best documents.

**Limits of the check.** The yield only sees documents that were scored: random ones, and those that a linear function ranks
high. The check of the first round compares ranks of the random documents. If they contain nothing of a separate cluster of
relevant documents, the cluster can be missed, and the query still counts as converged. An example is a q-net that is linear
except for a large bonus in a small region that the query vector points away from. More entry points make this less likely:
``n_initial`` random documents miss a region with a share p of the collection with probability (1 - p) ** n_initial.

**Memory.** A scan and the vectors that are scored at a time take 64 MiB each. The vectors of one query are in memory as
float32, three times; on a GPU those of several queries, in 64 MiB. A batch also holds the scores and docids of all documents
that its queries have scored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..scoring import Scorer, choose_search_device
from ..scoring.rows import Rows
from .allowed import Allowed, make_allowed
from .documents import Documents
from .exhaustive import exhaustive_search
from .finite import NonFiniteScoreError
from .pool import Pool
from .results import Results, sort_by_score
from .scan import Scan, make_exact_scan

logger = logging.getLogger(__name__)

MIN_DEPTH, MAX_DEPTH = 100, 1000
"""Smallest and largest number of best documents that the yield looks at."""
CONVERGED_BELOW = 0.02
"""Yield below which the best documents count as found."""
FALLBACK_ABOVE = 0.05
"""Yield above which a q-net counts as too far from linear, from round :data:`FALLBACK_FROM_ROUND` on."""
FALLBACK_FROM_ROUND = 4
"""First round in which q-nets can count as too far from linear."""
FALLING_BELOW = 0.5
"""Share of the yield of the round before, up to which a yield counts as falling."""
_ROUNDS_WITH_ONE_FUNCTION = 2


@torch.inference_mode()  # the results are arrays
def surrogate_search(
    score: Scorer,
    vectors: Rows,
    entry_points: np.ndarray | Sequence[np.ndarray],
    n_queries: int,
    k: int,
    *,
    scan: Scan | None = None,
    device: torch.device | None = None,
    query_vectors: Tensor | None = None,
    max_rounds: int = 8,
    n_per_round: int = 500,
    ridge: float = 0.05,
    allowed: Sequence[np.ndarray | None] | None = None,
    max_scored: int | None = None,
    defer_fallback: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Results:
    """Search with a batch of queries, which share each scan of the collection.

    Args:
        score: Scorer of the q-nets of Q queries.
        vectors: Vectors of all documents, (N, D), usually a memory map.
        entry_points: Docids to score first, which all queries share, or one array of docids per query.
        n_queries: Number of queries, Q.
        k: Number of results per query.
        scan: Finds the documents with the largest values of a linear function; None for the exact scan.
        device: Device that computes the scores; None for the CPU.
        query_vectors: Linear functions of the first round, (Q, D); None to fit them to the entry points.
        max_rounds: Maximum number of rounds. With fewer than :data:`FALLBACK_FROM_ROUND`, no query is searched exhaustively.
        n_per_round: Number of documents that a round scores per query.
        ridge: Strength of the regularisation; see :func:`~pyterrier_hypencoder.search.fit.fit_linear`.
        allowed: For every query the docids that may be returned, or None for all documents. Rounds score no others.
        max_scored: Maximum number of documents that a query scores, the entry points included; None for no limit.
        defer_fallback: If True, only mark queries in ``fell_back`` whose q-nets are too far from linear. If False, search them
            exhaustively and log a warning with their number.
        progress: Called after each round with the number of queries that it finished.

    Returns:
        The k best documents found per query. The statistics contain ``last_yield``, ``fell_back``, which is True if the query
        was searched exhaustively, and ``converged``, which is False if it ran out of rounds or of documents to score.
    """
    documents = Documents(score, vectors, n_queries, choose_search_device(device))
    filters = make_allowed(allowed, documents.device)
    pool = Pool(
        documents,
        *documents.score_entry_points(entry_points),
        make_exact_scan(vectors) if scan is None else scan,
        depth=max(MIN_DEPTH, min(k, MAX_DEPTH, n_per_round)),
        ridge=ridge,
        is_shared=isinstance(entry_points, np.ndarray),
        allowed=filters,
        max_scored=max_scored,
    )
    failed = _run_rounds(pool, query_vectors, max_rounds, n_per_round, progress)
    failed &= _can_fall_back(documents, filters, max_scored)
    _fill_results(pool, ~failed, k)
    results = _make_results(pool, failed, k)
    return results if defer_fallback else _fall_back(results, score, vectors, k, allowed)


def _run_rounds(
    pool: Pool,
    query_vectors: Tensor | None,
    max_rounds: int,
    n_per_round: int,
    progress: Callable[[int], object] | None,
) -> Tensor:
    """Run the rounds of all queries, and return which ones are too far from linear, (Q,)."""
    failed = torch.zeros(len(pool.scores), dtype=torch.bool, device=pool.device)
    n_finished = 0
    pool.finish_complete()
    for number in range(max_rounds):
        active = (~failed & (pool.last_yield >= CONVERGED_BELOW) & (pool.budget > 0)).nonzero()[:, 0]
        if progress is not None:
            progress(len(failed) - len(active) - n_finished)
            n_finished = len(failed) - len(active)
        if not len(active):
            break
        if query_vectors is not None and number == 0:
            functions = [query_vectors.to(pool.device)[active]]
        else:
            functions = pool.fit(active, parts=number >= _ROUNDS_WITH_ONE_FUNCTION)
        previous = pool.last_yield.clone()
        pool.run_round(active, functions, n_per_round)
        if query_vectors is not None and number == 0:
            pool.check_query_vectors(active, functions[0], n_per_round // 2)
        pool.finish_complete()
        if number + 1 >= FALLBACK_FROM_ROUND:
            is_last = bool(number + 1 == max_rounds)
            failed |= (pool.last_yield > FALLBACK_ABOVE) & ((pool.last_yield > FALLING_BELOW * previous) | is_last)
    return failed


def _fill_results(pool: Pool, queries: Tensor, k: int) -> None:
    """Score k more documents of some queries (Q,) if k exceeds the depth, beyond which the yield says nothing."""
    if k <= pool.depth:
        return
    used_parts = pool.n_rounds > 1 + _ROUNDS_WITH_ONE_FUNCTION
    for parts in (False, True):
        group = (queries & (used_parts == parts)).nonzero()[:, 0]
        if len(group):
            pool.score_best(group, pool.fit(group, parts=parts), k)


def _can_fall_back(documents: Documents, filters: Allowed | None, max_scored: int | None) -> Tensor:
    """Return which queries may score all their documents, (Q,)."""
    if max_scored is None:
        return torch.ones_like(documents.n_scored, dtype=torch.bool)
    counts = len(documents) if filters is None else filters.count(len(documents)).to(documents.device)
    return documents.n_scored + counts <= max_scored


def _make_results(pool: Pool, failed: Tensor, k: int) -> Results:
    scores, docids = sort_by_score(*pool.get_results())
    return Results.from_tensors(
        scores[:, :k],
        docids[:, :k],
        n_scored=pool.documents.n_scored,
        n_rounds=pool.n_rounds,
        last_yield=pool.last_yield,
        fell_back=failed,
        converged=failed | ((pool.last_yield < CONVERGED_BELOW) & ~pool.was_cut),
    )


def _fall_back(results: Results, score: Scorer, vectors: Rows, k: int, allowed: Sequence[np.ndarray | None] | None) -> Results:
    """Search the queries exhaustively that are marked in ``fell_back``."""
    failed = np.flatnonzero(results.stats["fell_back"]).tolist()
    if not failed:
        return results
    message = "surrogate search: %d of %d q-nets are too far from linear, so they score all documents"
    logger.warning(message, len(failed), len(results.docids))
    filters = None if allowed is None else [allowed[q] for q in failed]
    try:
        exact = exhaustive_search(score.select(failed), vectors, len(failed), k, allowed=filters)
    except NonFiniteScoreError as err:
        raise NonFiniteScoreError(failed[err.query], err.docid, err.vector_is_finite) from err
    return results.replace(failed, exact)
