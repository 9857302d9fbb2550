"""The documents that a surrogate search has scored so far, for every query of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..scoring.rows import take_rows
from .allowed import Allowed
from .documents import Documents
from .fit import correlate_ranks, fit_linear, fit_parts
from .scan import Scan

TRUST_FROM_CORRELATION = 0.97
"""Smallest rank correlation on the entry points at which the search can stop after the first round."""
_FITTED_BYTES = 2**26
"""Size of the vectors, as float32, that a GPU fits functions to at a time. A CPU fits query by query."""


class Pool:
    """The documents scored so far, for every query.

    Vectors are read again when they are needed, except those of shared entry points. On a CPU, everything that rounds
    numbers works on one query at a time, so the results of a query do not depend on the others in its batch.

    Args:
        documents: The collection.
        scores: Scores of the entry points, (Q, n); -inf marks a place without a document.
        docids: Docids of the entry points, (Q, n).
        scan: Finds the documents with the largest values of a linear function.
        depth: Number of best documents that the yield looks at.
        ridge: Strength of the regularisation of the fits.
        is_shared: True if all queries have the same entry points.
        allowed: The documents that each query may return; None for all documents.
        max_scored: Maximum number of documents that a query scores; None for no limit.

    Attributes:
        scores: (Q, n); -inf marks a place without a document.
        docids: (Q, n).
        last_yield: (Q,), the yield of the last round.
        n_rounds: (Q,), number of rounds that found new documents, the entry points included.
        was_cut: (Q,), True if ``max_scored`` kept a round from scoring documents that it found.
    """

    def __init__(
        self,
        documents: Documents,
        scores: Tensor,
        docids: Tensor,
        scan: Scan,
        *,
        depth: int,
        ridge: float,
        is_shared: bool,
        allowed: Allowed | None = None,
        max_scored: int | None = None,
    ) -> None:
        self.documents, self.device = documents, documents.device
        self.scores, self.docids = scores, docids
        self.last_yield = torch.ones(len(scores), dtype=torch.float32, device=self.device)
        self.n_rounds = torch.ones(len(scores), dtype=torch.long, device=self.device)
        self.was_cut = torch.zeros(len(scores), dtype=torch.bool, device=self.device)
        self.depth = depth
        self._n_initial = scores.shape[1]
        self._scan, self._ridge, self._allowed = scan, ridge, allowed
        self._max_scored = len(documents) if max_scored is None else min(max_scored, len(documents))
        self._shared: Tensor | None = None  # vectors of shared entry points, (1, n, D)
        if is_shared:
            self._shared = take_rows(documents.vectors, docids[0]).to(self.device).float().unsqueeze(0)

    @property
    def budget(self) -> Tensor:
        """The number of documents that every query may still score, (Q,)."""
        return (self._max_scored - self.documents.n_scored).clamp(min=0)

    def fit(self, queries: Tensor, *, parts: bool) -> list[Tensor]:
        """Fit the linear functions of some queries (q,): one, or several if ``parts`` is True; each (q, D)."""
        fitted = []
        for group in self._split(queries):
            vectors, scores, _ = self._take(group)
            fitted.append(fit_parts(vectors, scores, self._ridge) if parts else [fit_linear(vectors, scores, self._ridge)])
        return [torch.cat(functions) for functions in zip(*fitted, strict=True)]

    def run_round(self, queries: Tensor, functions: Sequence[Tensor], number: int) -> None:
        """Score the unseen documents that the linear functions rank first, and measure the yield.

        Args:
            queries: The queries that take part, (q,).
            functions: Their linear functions, each (q, D).
            number: Number of documents per query.
        """
        before = self.scores.shape[1]
        self.score_best(queries, functions, number)
        new = torch.arange(self.scores.shape[1], device=self.device) >= before
        self.last_yield[queries] = _share_of_best(self._get_allowed_scores(), new, self.depth)[queries]

    def finish_complete(self) -> None:
        """Set the yield of queries that have scored all documents to 0."""
        self.last_yield.masked_fill_(self.documents.n_scored >= len(self.documents), 0.0)

    def check_query_vectors(self, queries: Tensor, functions: Tensor, number: int) -> None:
        """Lower the yield of queries whose query vector ranks the documents like the q-net does.

        If both rank the entry points alike, the yield becomes the share of the best documents that are not among the
        first ``number`` documents of the query vector. The round has scored more documents than that. The others and the
        entry points serve as held-out data.

        Args:
            queries: The queries that took part in the round, (q,).
            functions: Their query vectors, (q, D).
            number: Number of first documents of the query vector.
        """
        allowed_scores, products = self._get_allowed_scores(), torch.full_like(self.scores, -torch.inf)
        groups = list(self._split(queries))
        for group, own in zip(groups, functions.split([len(group) for group in groups]), strict=True):
            vectors, _, columns = self._take(group)
            products[group.unsqueeze(1), columns] = (vectors * own.unsqueeze(1)).sum(dim=-1)
        n_initial = self._n_initial
        alike = correlate_ranks(self.scores[:, :n_initial], products[:, :n_initial]) >= TRUST_FROM_CORRELATION
        products = products.masked_fill(allowed_scores == -torch.inf, -torch.inf)
        last = products.topk(min(number, products.shape[1]), dim=1).values[:, -1:]
        alike &= torch.zeros_like(alike).index_fill_(0, queries, True)
        self.last_yield = torch.where(alike, _share_of_best(allowed_scores, products < last, self.depth), self.last_yield)

    def score_best(self, queries: Tensor, functions: Sequence[Tensor], number: int) -> None:
        """Score the ``number`` unseen documents of some queries (q,) that their functions, each (q, D), rank first."""
        if not len(queries):
            return
        docids = self._find_best(queries, functions, min(int(number), len(self.documents)))  # a small numpy integer overflows
        docids = docids.sort(dim=1).values
        self.n_rounds[queries] += (docids >= 0).any(dim=1)
        real = docids >= 0
        scores, ids = self.documents.score(queries.unsqueeze(1).expand_as(docids)[real], docids[real])
        self.scores, self.docids = torch.cat([self.scores, scores], 1), torch.cat([self.docids, ids], 1)

    def get_results(self) -> tuple[Tensor, Tensor]:
        """Return the scores and the docids of all documents scored, (Q, n); -inf marks those that must not be returned."""
        return self._get_allowed_scores(), self.docids

    def _find_best(self, queries: Tensor, functions: Sequence[Tensor], number: int) -> Tensor:
        """Return the docids of unseen documents, (q, n); -1 marks a place without a document."""
        allowed = None if self._allowed is None else self._allowed.select(queries)
        budget = self.budget[queries].unsqueeze(1)
        seen = self.docids.masked_fill(self.scores == -torch.inf, -1)[queries]
        first_new = seen.shape[1]
        for function in functions:
            values, docids = self._scan(function, -(-number // len(functions)), seen, allowed)
            found = values != -torch.inf  # includes NaN, so a damaged vector is scored and reported
            real = found & (found.cumsum(dim=1) <= budget)
            self.was_cut[queries] |= (found & ~real).any(dim=1)
            budget = budget - real.sum(dim=1, keepdim=True)
            seen = torch.cat([seen, docids.masked_fill(~real, -1)], dim=1)
        return seen[:, first_new:]

    def _get_allowed_scores(self) -> Tensor:
        return self.scores if self._allowed is None else self._allowed.apply_to(self.scores, self.docids)

    def _split(self, queries: Tensor) -> Iterator[Tensor]:
        """Yield the queries in groups whose vectors are in memory together."""
        bytes_per_query = 4 * self.scores.shape[1] * self.documents.vectors.shape[1]
        yield from queries.split(1 if self.device.type == "cpu" else max(1, _FITTED_BYTES // bytes_per_query))

    def _take(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the vectors (q, n, D), the scores (q, n) and the columns (n,) of the documents of some queries (q,)."""
        columns = (self.scores[queries] > -torch.inf).any(dim=0).nonzero()[:, 0]
        scores, docids = (part[queries.unsqueeze(1), columns] for part in (self.scores, self.docids))
        first = 0 if self._shared is None else self._shared.shape[1]
        vectors = torch.empty(*docids.shape, self.documents.vectors.shape[1], dtype=torch.float32, device=self.device)
        if self._shared is not None:
            vectors[:, :first] = self._shared
        vectors[:, first:] = take_rows(self.documents.vectors, docids[:, first:])
        return vectors, scores, columns


def _share_of_best(scores: Tensor, marked: Tensor, depth: int) -> Tensor:
    """Return the share of the best documents by scores (Q, n) that is marked (Q, n) or (n,), as (Q,).

    Among equal scores, the documents in the first columns come first.
    """
    best = scores.sort(dim=1, descending=True, stable=True)
    real = best.values[:, :depth] > -torch.inf
    found = (marked.expand_as(scores).gather(1, best.indices[:, :depth]) & real).sum(dim=1)
    return found.float() / real.sum(dim=1).clamp(min=1)  # a quotient of integers has the user's default dtype
