"""Re-scoring: a fast first pass finds candidates, and their exact scores make the ranking.

The first pass scores all documents in low precision. The best ``max(4 * k, 1000)`` of a query are then scored again in
float32. Documents, scores and order of the results are those of float32.

Let e be the largest difference between the two scores of the documents that were scored again. If no other document has a
difference above :data:`SAFETY` x e, its float32 score is at most b + ``SAFETY`` x e, with b the first-pass score of the last
document scored again. So the results are exact if the last of them scores above that. Otherwise twice as many documents are
scored again, and then four times as many. If that is not enough, all documents are scored in float32.

A document whose difference is more than ``SAFETY`` times the largest one among a thousand better documents would be missed.

Besides the memory of a pass (:mod:`~pyterrier_hypencoder.search.passes`), this takes 20 bytes for each of 16 k (at least
4,000) documents per query, and the vectors that are scored at a time (:mod:`~pyterrier_hypencoder.search.documents`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ..scoring import Scorer
from .documents import score_pairs
from .finite import NonFiniteScoreError
from .passes import Collection, find_best
from .results import sort_by_score

logger = logging.getLogger(__name__)

SAFETY = 2.0
"""Factor of the largest difference that was seen between the two scores of a document."""
_RESCORED_PER_RESULT = 4
_MIN_RESCORED = 1000
_STEPS = (1, 2, 4)
"""Numbers of documents that are scored again, relative to the first one."""
_MIN_COLLECTION = 2
"""A first pass pays off if there are at least twice as many documents as would be scored again."""


def find_best_by_two_passes(
    first_pass: Scorer,
    score: Scorer,
    collection: Collection,
    n_queries: int,
    k: int,
    progress: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the documents that :func:`~pyterrier_hypencoder.search.passes.find_best` returns for ``score``, in less time.

    Args:
        first_pass: Fast scorer of the q-nets of Q queries.
        score: Exact scorer of the same q-nets.
        collection: The documents.
        n_queries: Number of queries, Q.
        k: Number of documents per query.
        progress: Called with the number of documents of every finished block of the first pass.

    Returns:
        Scores and docids, (Q, min(k, n)); see :func:`~pyterrier_hypencoder.search.passes.find_best`.

    Raises:
        NonFiniteScoreError: If an exact score is NaN or infinite.
    """
    n_rescored = max(_RESCORED_PER_RESULT * k, _MIN_RESCORED)
    if len(collection) < _MIN_COLLECTION * n_rescored:
        return find_best(score, collection, n_queries, k, progress)
    try:
        rough, docids = find_best(first_pass, collection, n_queries, _STEPS[-1] * n_rescored, progress)
    except NonFiniteScoreError:  # the exact scores may be finite, or else their error names the same document
        return find_best(score, collection, n_queries, k)
    exact = torch.full_like(rough, -torch.inf)
    queries, start = torch.arange(n_queries, device=rough.device), 0
    for factor in _STEPS:
        stop = min(factor * n_rescored, rough.shape[1])
        _rescore(score, collection, queries, rough[:, start:stop], docids[:, start:stop], exact[:, start:stop])
        is_exact = _check_margin(rough[queries, :stop], exact[queries, :stop], k, len(collection))
        queries, start = queries[~is_exact], stop
        if not len(queries):
            break
    scores, docids = (part[:, :k] for part in sort_by_score(exact[:, :stop], docids[:, :stop]))
    if len(queries):
        logger.info("the first pass was too rough for %d of %d queries, which score all documents", len(queries), n_queries)
        scores[queries], docids[queries] = _search_again(score, collection, queries, k)
    return scores, docids


def _rescore(score: Scorer, collection: Collection, queries: Tensor, rough: Tensor, docids: Tensor, exact: Tensor) -> None:
    """Write the exact scores of some queries (q,) to ``exact``, (Q, n), for documents with first-pass scores (Q, n)."""
    rows, columns = (rough[queries] > -torch.inf).nonzero(as_tuple=True)
    owners = queries[rows]
    found = score_pairs(score, collection.vectors, owners, docids[owners, columns], len(rough), collection.device)
    exact[owners, columns] = found


def _check_margin(rough: Tensor, exact: Tensor, k: int, n_docs: int) -> Tensor:
    """Return for each query whether no document that was not scored again can be among its best k, (Q,).

    Args:
        rough: First-pass scores of the documents that were scored again, (Q, n), best first.
        exact: Their exact scores, (Q, n).
        k: Number of results.
        n_docs: Number of documents in the collection.
    """
    if rough.shape[1] >= n_docs:
        return torch.ones(len(rough), dtype=torch.bool, device=rough.device)
    last = rough[:, -1]
    error = (exact - rough).abs().masked_fill(rough == -torch.inf, 0.0).amax(dim=1)
    worst = exact.topk(k, dim=1).values[:, -1]
    return (worst > last + SAFETY * error) | (last == -torch.inf)


def _search_again(score: Scorer, collection: Collection, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    numbers = queries.tolist()
    try:
        return find_best(score.select(numbers), collection.select(queries), len(numbers), k)
    except NonFiniteScoreError as err:
        raise NonFiniteScoreError(numbers[err.query], err.docid, err.vector_is_finite) from err
