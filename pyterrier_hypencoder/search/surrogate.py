"""Surrogate search: linear approximations of the q-nets choose which documents to score (not in the paper).

The search scores some random documents first, then works in rounds. Each round

1. fits a linear function to the ranks of all documents scored so far (:mod:`~pyterrier_hypencoder.search.fit`),
2. finds the unseen documents with the largest values of that function (:mod:`~pyterrier_hypencoder.search.scan`),
3. scores them with the q-net.

The **yield** of a round is the share of the best :data:`N_BEST` documents so far that the round has found. It decides
about the next step of the query:

==================================================  ===================================================
Condition                                           Next step
==================================================  ===================================================
yield below :data:`CONVERGED_BELOW`                 stop
yield above :data:`FALLBACK_ABOVE` from round 4 on  exhaustive search, because the q-net is too far
                                                    from linear
otherwise                                           another round, up to ``max_rounds``
==================================================  ===================================================

Q-nets with an inner-product skip have a query vector, which is the linear function of the first round. The search stops
after that round if the query vector already ranks the documents like the q-net does. From the third round on, several
functions are fitted, each to the neighbourhood of some of the best documents.

The yield only sees documents that were scored. A separate cluster of relevant documents can be missed. More entry points
make this less likely.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..scoring import Scorer, choose_search_device
from ..scoring.rows import Rows, take_rows
from .documents import Documents
from .exhaustive import exhaustive_search
from .finite import NonFiniteScoreError
from .fit import correlate_ranks, fit_linear, fit_parts
from .results import Results, sort_by_score
from .scan import Scan, make_exact_scan

logger = logging.getLogger(__name__)

N_BEST = 100
"""Number of best documents that the yield looks at."""
CONVERGED_BELOW = 0.02
"""Yield below which the best documents count as found."""
FALLBACK_ABOVE = 0.05
"""Yield above which a q-net counts as too far from linear, from round :data:`FALLBACK_FROM_ROUND` on."""
FALLBACK_FROM_ROUND = 4
"""First round in which q-nets can count as too far from linear."""
TRUST_FROM_CORRELATION = 0.97
"""Smallest rank correlation on the entry points at which the search can stop after the first round."""
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
) -> Results:
    """Search with a batch of queries, which share each scan of the collection.

    A q-net that is too far from linear is searched exhaustively. A warning with the number of these queries is logged.

    Args:
        score: Scorer of the q-nets of Q queries.
        vectors: Vectors of all documents, (N, D), usually a memory map.
        entry_points: Docids to score first, which all queries share, or one array of docids per query.
        n_queries: Number of queries, Q.
        k: Number of results per query. If k is larger than :data:`N_BEST`, a last round scores k more documents.
        scan: Finds the documents with the largest values of a linear function; None for the exact scan.
        device: Device that computes the scores; None for the CPU.
        query_vectors: Linear functions of the first round, (Q, D); None to fit them to the entry points.
        max_rounds: Maximum number of rounds. With fewer than :data:`FALLBACK_FROM_ROUND` rounds, no q-net counts as too
            far from linear.
        n_per_round: Number of documents that a round scores per query.
        ridge: Strength of the regularisation; see :func:`~pyterrier_hypencoder.search.fit.fit_linear`.
        allowed: For every query the docids that may be returned, or None for all documents. Rounds score no others.

    Returns:
        The k best documents found per query. The statistics contain ``last_yield`` and ``fell_back``, which is True if
        the query was searched exhaustively.
    """
    documents = Documents(score, vectors, n_queries, choose_search_device(device), allowed)
    first = documents.score_entry_points(entry_points)
    pool = _Pool(documents, *first, make_exact_scan(vectors) if scan is None else scan, ridge)
    _run_rounds(pool, query_vectors, k, max_rounds, n_per_round)
    results = pool.make_results(k)
    failed = pool.failed.nonzero()[:, 0].tolist()
    if not failed:
        return results
    logger.warning(
        "surrogate search: %d of %d q-nets are too far from linear, so they score all documents", len(failed), n_queries
    )
    filters = None if allowed is None else [allowed[q] for q in failed]
    try:
        exact = exhaustive_search(score.select(failed), vectors, len(failed), k, allowed=filters)
    except NonFiniteScoreError as err:
        raise NonFiniteScoreError(failed[err.query], err.docid, err.vector_is_finite) from err
    return results.replace(failed, exact)


def _run_rounds(pool: _Pool, query_vectors: Tensor | None, k: int, max_rounds: int, n_per_round: int) -> None:
    """Run the rounds of all queries until each one has converged or failed."""
    for number in range(max_rounds):
        active = (~pool.failed & (pool.last_yield >= CONVERGED_BELOW)).nonzero()[:, 0]
        if not len(active):
            break
        if query_vectors is not None and number == 0:
            functions = [query_vectors.to(pool.device)]
        else:
            functions = pool.fit(active, parts=number >= _ROUNDS_WITH_ONE_FUNCTION)
        pool.run_round(active, functions, n_per_round)
        if query_vectors is not None and number == 0 and k <= N_BEST:
            pool.check_query_vectors(functions[0], n_per_round // 2)
        if number + 1 >= FALLBACK_FROM_ROUND:
            pool.failed |= pool.last_yield > FALLBACK_ABOVE
    if k > N_BEST:  # the yield says nothing about the documents after the first 100
        pool.fill_results(k)


class _Pool:
    """The documents scored so far, for every query.

    Args:
        documents: The collection.
        scores: Scores of the entry points, (Q, n).
        docids: Docids of the entry points, (Q, n).
        scan: Finds the documents with the largest values of a linear function.
        ridge: Strength of the regularisation of the fits.

    Attributes:
        scores: (Q, n); -inf marks a place without a document.
        docids: (Q, n).
        last_yield: (Q,), the yield of the last round.
        n_rounds: (Q,), number of rounds that found new documents, the entry points included.
        failed: (Q,), True for q-nets that are too far from linear.
    """

    def __init__(self, documents: Documents, scores: Tensor, docids: Tensor, scan: Scan, ridge: float) -> None:
        self.documents = documents
        self.device = documents.device
        self.scores, self.docids = scores, docids
        self.last_yield = torch.ones(len(scores), dtype=torch.float32, device=self.device)
        self.n_rounds = torch.ones(len(scores), dtype=torch.long, device=self.device)
        self.failed = torch.zeros(len(scores), dtype=torch.bool, device=self.device)
        self._n_initial = scores.shape[1]
        self._scan = scan
        self._ridge = ridge

    def add(self, scores: Tensor, docids: Tensor) -> None:
        """Add scored documents, (Q, n)."""
        self.scores, self.docids = torch.cat([self.scores, scores], 1), torch.cat([self.docids, docids], 1)

    def fit(self, queries: Tensor, *, parts: bool) -> list[Tensor]:
        """Fit the linear functions of some queries (q,): one, or several if ``parts`` is True; each (q, D)."""
        vectors, scores = self._take_vectors(queries), self.scores[queries]
        return fit_parts(vectors, scores, self._ridge) if parts else [fit_linear(vectors, scores, self._ridge)]

    def run_round(self, queries: Tensor, functions: Sequence[Tensor], number: int) -> None:
        """Score the unseen documents that the linear functions rank first, and measure the yield.

        Args:
            queries: The queries that take part, (q,).
            functions: Their linear functions, each (q, D).
            number: Number of documents per query.
        """
        scores, docids = self._score_best(queries, functions, number)
        before = self.documents.apply_filter(self.scores, self.docids)
        joined = torch.cat([before, self.documents.apply_filter(scores, docids)], dim=1)
        new = torch.arange(joined.shape[1], device=self.device) >= before.shape[1]
        self.last_yield[queries] = _share_of_best(joined, new.expand_as(joined))[queries]
        self.add(scores, docids)

    def check_query_vectors(self, functions: Tensor, number: int) -> None:
        """Lower the yield of queries whose query vector ranks the documents like the q-net does.

        If both rank the entry points alike, the yield becomes the share of the best documents that are not among the
        first ``number`` documents of the query vector. The round has scored more documents than that. The others and the
        entry points serve as held-out data.

        Args:
            functions: The query vectors, (Q, D).
            number: Number of first documents of the query vector.
        """
        queries = torch.arange(len(functions), device=self.device)
        products = torch.einsum("qnd,qd->qn", self._take_vectors(queries), functions)
        n_initial = self._n_initial
        alike = correlate_ranks(self.scores[:, :n_initial], products[:, :n_initial]) >= TRUST_FROM_CORRELATION
        scores = self.documents.apply_filter(self.scores, self.docids)
        products = products.masked_fill(scores == -torch.inf, -torch.inf)
        last = products.topk(min(number, products.shape[1]), dim=1).values[:, -1:]
        self.last_yield = torch.where(alike, _share_of_best(scores, products < last), self.last_yield)

    def fill_results(self, number: int) -> None:
        """Score ``number`` more documents of every query that has not failed."""
        used_parts = self.n_rounds > 1 + _ROUNDS_WITH_ONE_FUNCTION
        groups = [((~self.failed & (used_parts == parts)).nonzero()[:, 0], parts) for parts in (False, True)]
        functions = [(queries, self.fit(queries, parts=parts)) for queries, parts in groups if len(queries)]
        for queries, fitted in functions:
            self.add(*self._score_best(queries, fitted, number))

    def make_results(self, k: int) -> Results:
        """Return the k best documents per query."""
        scores, docids = sort_by_score(self.documents.apply_filter(self.scores, self.docids), self.docids)
        return Results.from_tensors(
            scores[:, :k],
            docids[:, :k],
            n_scored=self.documents.n_scored,
            n_rounds=self.n_rounds,
            last_yield=self.last_yield,
            fell_back=self.failed,
        )

    def _score_best(self, queries: Tensor, functions: Sequence[Tensor], number: int) -> tuple[Tensor, Tensor]:
        documents, found = self.documents, []
        number = min(int(number), len(documents))  # a small numpy integer would overflow
        for function in functions:
            unwanted = documents.seen if documents.excluded is None else documents.seen | documents.excluded
            unwanted = unwanted if len(queries) == len(unwanted) else unwanted[queries]
            values, docids = self._scan(function, -(-number // len(functions)), unwanted)
            real = values != -torch.inf  # includes NaN, so a damaged vector is scored and reported
            found.append(documents.mark_seen(queries.unsqueeze(1).expand_as(docids)[real], docids[real]))
        owners, docids = (torch.cat(part) for part in zip(*found, strict=True))
        order = (owners * len(documents) + docids).argsort()
        self.n_rounds += torch.bincount(owners, minlength=len(self.n_rounds)) > 0
        return documents.score(owners[order], docids[order])

    def _take_vectors(self, queries: Tensor) -> Tensor:
        return take_rows(self.documents.vectors, self.docids[queries]).to(self.device, torch.float32)


def _share_of_best(scores: Tensor, marked: Tensor) -> Tensor:
    """Return the share of the best documents by scores (Q, n) that is marked (Q, n), as (Q,)."""
    best = scores.topk(min(N_BEST, scores.shape[1]), dim=1)
    real = best.values > -torch.inf
    found = (marked.gather(1, best.indices) & real).sum(dim=1)
    return found.float() / real.sum(dim=1).clamp(min=1)  # a quotient of integers has the user's default dtype
