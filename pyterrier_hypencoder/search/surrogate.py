"""Surrogate search: a linear function of the vector, fitted to the scores seen so far, says what to evaluate next.

Not in the paper. A round fits the function by weighted ridge regression to the ranks of all documents evaluated, takes the
documents that it likes best and that were not evaluated yet (maximum inner product over the collection), and evaluates
them. The **yield** of a round is the share of its documents in the best :data:`TOP` so far: the search ends when it is small,
and where it stays large the q-net is too far from linear for this search. A small yield says that what was found is what the
fits can find: where the best documents lie in several places, one that no document evaluated was near is not noticed, which
more seeds make less likely.

A query vector that the encoder gives is the first round's function. Where it ranks the documents as the q-net does, the seeds,
which are any documents, as well as the best ones, that round is the last.

Where one linear function is not enough after two rounds, as for a need that is one of several things, each round fits
several, each to the neighbourhood of some of the best documents.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .documents import Documents, Rows, Score, as_tensor, take
from .exhaustive import exhaustive_search
from .graph import walk
from .results import Results, by_docid

logger = logging.getLogger(__name__)

TOP = 100
SETTLED = 0.02
"""The yield below which the best documents are taken to be found."""
FAILED = 0.05
"""The yield above which, from round :data:`GUARDED` on, a q-net is taken to be too far from linear."""
GUARDED = 4
"""The round from which on q-nets are given up."""
AGREED = 0.97
"""The correlation of ranks over the seeds from which on a query vector is taken to stand for its q-net."""
_WHOLE_ROUNDS = 2  # with one function for all documents
_SEEDS = 1024
_PARTS = 4  # functions of each later round
_SHARPNESS = 20.0  # of the neighbourhoods, by cosine
_PRODUCTS = 2**25  # inner products in memory at a time
_SCANNED_BYTES = 2**30  # vectors on the device at a time, where they lie elsewhere
_BLOCK_BYTES = 4 * 2**20  # vectors converted to float32 at a time, which stay in the cache


class Scan(Protocol):
    """Maximum inner product over the collection."""

    def __call__(self, queries: Tensor, k: int, met: Tensor) -> tuple[Tensor, Tensor]:
        """The best documents of linear functions.

        Args:
            queries: (Q, D).
            k: documents per query.
            met: (Q, N), documents that are left out.

        Returns:
            Inner products (-inf where there was no other document) and docids, (Q, k).
        """
        ...


def make_exact_scan(vectors: Rows) -> Scan:
    """A scan that is a matrix product over all vectors (N, D), in the precision in which they are stored or a better one."""
    rows = as_tensor(vectors)

    def scan(queries: Tensor, k: int, met: Tensor) -> tuple[Tensor, Tensor]:
        step = max(1, min(_PRODUCTS // len(queries), _SCANNED_BYTES // rows[:1].nbytes))
        parts: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(rows), step):
            products = _products(queries, rows[start : start + step].to(queries.device))
            products.masked_fill_(met[:, start : start + step], -torch.inf)
            values, places = products.topk(min(k, products.shape[1]), dim=1, sorted=False)
            parts.append((values, places + start))
        values, docids = (torch.cat(found, dim=1) for found in zip(*parts, strict=True))
        best = values.topk(min(k, values.shape[1]), dim=1, sorted=False)
        return best.values, docids.gather(1, best.indices)

    return scan


def _products(queries: Tensor, rows: Tensor) -> Tensor:
    """Inner products (Q, n), float32."""
    if rows.device.type != "cpu" or (len(queries) == 1 and rows.dtype == torch.float16):
        # One query is bound by memory: its product in half precision reads half as much and converts nothing.
        scale = queries.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
        return (rows @ (queries / scale).to(rows.dtype).T).T.float() * scale
    products = torch.empty(len(queries), len(rows))
    step = max(1, _BLOCK_BYTES // (4 * rows.shape[1]))
    for start in range(0, len(rows), step):
        torch.mm(queries, rows[start : start + step].float().T, out=products[:, start : start + step])
    return products


@torch.inference_mode()
def surrogate_search(
    score: Score,
    vectors: Rows,
    seeds: np.ndarray | Sequence[np.ndarray],
    n_queries: int,
    k: int,
    *,
    scan: Scan | None = None,
    device: torch.device | None = None,
    start: Tensor | None = None,
    max_rounds: int = 8,
    n_per_round: int = 500,
    ridge: float = 0.05,
    fallback: str = "exhaustive",
    polish: bool = False,
    neighbours: Rows | None = None,
    n_candidates: int = 64,
    max_iter: int = 16,
    allowed: Sequence[np.ndarray | None] | None = None,
) -> Results:
    """Surrogate search for a batch of queries, which share each scan.

    Args:
        score: evaluates the q-nets of Q queries.
        vectors: (N, D), usually a memory map.
        seeds: docids that are evaluated first, which queries share, or an array for each query.
        n_queries: Q.
        k: results per query. Where that is more than :data:`TOP`, a last round evaluates k documents more.
        scan: finds what a linear function likes best; None for the exact one.
        device: where scores are computed; None for the CPU.
        start: (Q, D), the first round's linear functions, where something better than a fit to the seeds is known. Of up to
            :data:`TOP` results no more is evaluated where these turn out to be as good as the q-nets (:meth:`_Pool.trust`).
        max_rounds: at most, until the yield falls below :data:`SETTLED`; fewer than :data:`GUARDED` leave the guard out.
        n_per_round: documents that a round evaluates.
        ridge: see :func:`fit`.
        fallback: what follows where the yield is above :data:`FAILED` in round :data:`GUARDED` or later: ``exhaustive``
            search, or a walk over the ``graph`` from the best documents found.
        polish: whether other queries end with such a walk.
        neighbours: (N, g), for walks.
        n_candidates: of that walk; see :func:`pyterrier_hypencoder.search.graph.graph_search`.
        max_iter: of that walk.
        allowed: for every query the docids that may be returned, or None for all; rounds take no others.

    Returns:
        The results, with ``last_yield`` and ``fell_back`` (whether the query went on in another way) among the statistics.
    """
    device = device or torch.device("cpu")
    documents = Documents(score, vectors, n_queries, device, allowed)
    pool = _Pool(documents, make_exact_scan(vectors) if scan is None else scan, seeds, ridge)
    for number in range(max_rounds):
        going = (~pool.failed & (pool.last_yield >= SETTLED)).nonzero()[:, 0]
        if not len(going):
            break
        if start is not None and number == 0:
            functions = [start.to(device)]
        else:
            functions = pool.fit(going, parts=number >= _WHOLE_ROUNDS)
        pool.grow(going, functions, n_per_round)
        if start is not None and number == 0 and k <= TOP:
            pool.trust(functions[0], n_per_round // 2)
        if number + 1 >= GUARDED:
            pool.failed |= pool.last_yield > FAILED
    if k > TOP:  # whose best documents have settled
        pool.finish(k)
    results = pool.results(k)
    failed = pool.failed.nonzero()[:, 0].tolist()
    if failed:
        logger.info("surrogate search: %d of %d q-nets are too far from linear for it", len(failed), n_queries)
    if failed and fallback == "exhaustive":
        limits = None if allowed is None else [allowed[q] for q in failed]
        results = results.extended(failed, exhaustive_search(score.select(failed), vectors, len(failed), k, allowed=limits))
    walking = (pool.failed & (fallback == "graph")) | (~pool.failed & polish)
    if bool(walking.any()):
        if neighbours is None:
            raise ValueError("polish, fallback='graph': expected the neighbours of documents, found none")
        documents.n_scored.zero_()  # of the walk alone, as that of any other search
        begin = pool.scores.masked_fill(~walking.unsqueeze(1), -torch.inf), pool.docids
        walked = walk(documents, neighbours, *by_docid(*begin), k, n_candidates=n_candidates, max_iter=max_iter)
        queries = walking.nonzero()[:, 0].tolist()
        results = results.extended(queries, walked.select(queries))
    return results


def default_n_initial(vec_size: int, *, started: bool) -> int:
    """Documents to begin with, enough for a fit and for needs of several kinds; fewer where the first round needs no fit."""
    return _SEEDS // 4 if started else max(_SEEDS, 2 * vec_size)


class _Pool:
    """The documents evaluated so far: scores (Q, n), -inf where a query has fewer, and docids (Q, n)."""

    def __init__(self, documents: Documents, scan: Scan, seeds: np.ndarray | Sequence[np.ndarray], ridge: float) -> None:
        self.documents = documents
        self.scan = scan
        self.ridge = ridge
        self.scores, self.docids = documents.enter(seeds)
        self.n_initial = self.scores.shape[1]
        self.last_yield = torch.ones(len(self.scores), device=documents.device)
        self.n_rounds = torch.ones(len(self.scores), dtype=torch.long, device=documents.device)
        self.failed = torch.zeros(len(self.scores), dtype=torch.bool, device=documents.device)

    def fit(self, queries: Tensor, *, parts: bool) -> list[Tensor]:
        """The linear functions of some queries: one for all documents, or one for each of a few parts; each (q, D)."""
        vectors, scores = self._vectors(queries), self.scores[queries]
        return _fit_parts(vectors, scores, self.ridge) if parts else [fit(vectors, scores, self.ridge)]

    def grow(self, queries: Tensor, functions: Sequence[Tensor], number: int) -> None:
        """A round of some queries: evaluates what their functions like best of what they have not met.

        Args:
            queries: (q,).
            functions: each (q, D).
            number: documents per query.
        """
        scores, docids = self._evaluate(queries, functions, number)
        self.last_yield[queries] = self._measure_yield(scores, docids)[queries]
        self._add(scores, docids)

    def trust(self, functions: Tensor, number: int) -> None:
        """Ends the search of queries for which the functions of the first round turn out to rank as the q-nets do.

        Where they rank the seeds alike, the yield is the share of the best documents that is not among those that the
        function likes best, fewer than the round has evaluated: what the seeds and what it likes next have brought.

        Args:
            functions: (Q, D).
            number: documents that it likes best.
        """
        queries = torch.arange(len(functions), device=functions.device)
        products = torch.einsum("qnd,qd->qn", self._vectors(queries), functions)
        alike = _rank_correlation(self.scores[:, : self.n_initial], products[:, : self.n_initial]) >= AGREED
        scores = self.documents.returnable(self.scores, self.docids)
        products = products.masked_fill(scores == -torch.inf, -torch.inf)
        last = products.topk(min(number, products.shape[1]), dim=1).values[:, -1:]
        self.last_yield = torch.where(alike, _share_of_best(scores, products < last), self.last_yield)

    def finish(self, number: int) -> None:
        """The last round of the queries that have not failed, which fills their results."""
        spread = self.n_rounds > 1 + _WHOLE_ROUNDS
        groups = [((~self.failed & (spread == parts)).nonzero()[:, 0], parts) for parts in (False, True)]
        functions = [(queries, self.fit(queries, parts=parts)) for queries, parts in groups if len(queries)]
        for queries, liked in functions:
            self._add(*self._evaluate(queries, liked, number))

    def _evaluate(self, queries: Tensor, functions: Sequence[Tensor], number: int) -> tuple[Tensor, Tensor]:
        documents, found = self.documents, []
        for function in functions:
            met = documents.met if documents.hidden is None else documents.met | documents.hidden
            met = met if len(queries) == len(met) else met[queries]
            values, docids = self.scan(function, -(-number // len(functions)), met)
            new = values > -torch.inf
            found.append(documents.meet(queries.unsqueeze(1).expand_as(docids)[new], docids[new]))
        owners, docids = (torch.cat(part) for part in zip(*found, strict=True))
        order = (owners * len(documents) + docids).argsort()
        self.n_rounds += torch.bincount(owners, minlength=len(self.n_rounds)) > 0
        return documents.evaluate(owners[order], docids[order])

    def _add(self, scores: Tensor, docids: Tensor) -> None:
        self.scores, self.docids = torch.cat([self.scores, scores], 1), torch.cat([self.docids, docids], 1)

    def results(self, k: int) -> Results:
        """The best documents of all that were evaluated."""
        scores, docids = by_docid(self.documents.returnable(self.scores, self.docids), self.docids)
        return Results.of(
            scores[:, :k],
            docids[:, :k],
            n_scored=self.documents.n_scored,
            n_rounds=self.n_rounds,
            last_yield=self.last_yield,
            fell_back=self.failed,
        )

    def _measure_yield(self, scores: Tensor, docids: Tensor) -> Tensor:
        """The share of a round's documents in the best ones so far, (Q,)."""
        before = self.documents.returnable(self.scores, self.docids)
        joined = torch.cat([before, self.documents.returnable(scores, docids)], dim=1)
        new = torch.arange(joined.shape[1], device=joined.device) >= before.shape[1]
        return _share_of_best(joined, new.expand_as(joined))

    def _vectors(self, queries: Tensor) -> Tensor:
        return take(self.documents.vectors, self.docids[queries]).to(self.documents.device, torch.float32)


def _share_of_best(scores: Tensor, marked: Tensor) -> Tensor:
    """How much (Q,) of the best :data:`TOP` of scores (Q, n) is marked (Q, n)."""
    best = scores.topk(min(TOP, scores.shape[1]), dim=1)
    real = best.values > -torch.inf
    return (marked.gather(1, best.indices) & real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def _rank_correlation(scores: Tensor, others: Tensor) -> Tensor:
    """Spearman's correlation (Q,) of scores (Q, n), where there is one, with others."""
    real = scores > -torch.inf
    mean = (real.sum(dim=1, keepdim=True) - 1) / 2
    ranks, other_ranks = ((_ranks(part.masked_fill(~real, -torch.inf)) - mean) * real for part in (scores, others))
    return F.cosine_similarity(ranks, other_ranks, dim=1)


def _ranks(scores: Tensor) -> Tensor:
    """The place (Q, n) of every score in its row (Q, n), from 0 for the best."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.empty_like(order).scatter_(1, order, torch.arange(scores.shape[1], device=scores.device).expand_as(order))


def _fit_parts(vectors: Tensor, scores: Tensor, ridge: float) -> list[Tensor]:
    """A linear function for the neighbourhood of each of a few of the best documents, far from one another."""
    directions = F.normalize(vectors, dim=-1)
    best = scores.topk(min(TOP, scores.shape[1]), dim=1).indices
    leaders = directions.gather(1, best.unsqueeze(-1).expand(-1, -1, vectors.shape[-1]))  # (Q, TOP, D)
    centres = leaders[:, :1]
    for _ in range(_PARTS - 1):
        farthest = (leaders @ centres.transpose(1, 2)).amax(dim=2).argmin(dim=1)
        centres = torch.cat([centres, leaders[torch.arange(len(leaders)), farthest].unsqueeze(1)], dim=1)
    for _ in range(3):  # k-means
        nearest = F.one_hot((leaders @ centres.transpose(1, 2)).argmax(dim=2), _PARTS).to(leaders.dtype)
        centres = F.normalize(nearest.transpose(1, 2) @ leaders + 1e-6 * centres, dim=-1)
    share = (_SHARPNESS * directions @ centres.transpose(1, 2)).softmax(dim=2)
    return [fit(vectors, scores, ridge, share[:, :, part]) for part in range(_PARTS)]


def fit(vectors: Tensor, scores: Tensor, ridge: float, emphasis: Tensor | None = None) -> Tensor:
    """The linear functions of the vectors that rank best as the scores do.

    Least squares over normal scores of the ranks, which any monotone bend of the q-net leaves as they are, with weights that
    fall with the rank.

    Args:
        vectors: (Q, n, D), of the documents evaluated.
        scores: (Q, n); -inf where there is none.
        ridge: as a part of the mean variance of a dimension.
        emphasis: (Q, n), factors of the weights.

    Returns:
        (Q, D).
    """
    real = scores > -torch.inf
    counts = real.sum(dim=1, keepdim=True).clamp(min=1)
    ranks = _ranks(scores)
    target = -torch.special.ndtri(((ranks + 0.5) / counts).clamp(max=1 - 1e-6))
    weight = torch.exp(-4 * ranks / counts) * real
    weight = weight if emphasis is None else weight * emphasis
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-12)
    target = (target - (weight * target).sum(dim=1, keepdim=True)).masked_fill(~real, 0.0)
    centre = torch.einsum("qn,qnd->qd", weight, vectors).unsqueeze(1)
    rows = (vectors - centre) * weight.sqrt().unsqueeze(-1)
    gram = rows.transpose(1, 2) @ rows
    moment = torch.einsum("qnd,qn->qd", rows, weight.sqrt() * target)
    variance = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-12)
    gram.diagonal(dim1=1, dim2=2).add_(ridge * variance.unsqueeze(1))
    return torch.cholesky_solve(moment.unsqueeze(-1), torch.linalg.cholesky(gram)).squeeze(-1)
