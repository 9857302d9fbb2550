"""Algorithm 1 of the paper (section 3.6): a greedy walk over the graph of nearest neighbours.

Every round expands the best of the newly found documents by their neighbours in the graph, whatever the query. The paper and
the released code differ in how many documents a round offers to the result; see :data:`VARIANTS`.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .documents import Documents, Rows, Score, take
from .results import Results, by_docid, top_k

VARIANTS = ("released", "paper")
"""The released code offers the best max(n_candidates, k) documents of a round to the result and stops when none got in; the
paper offers the best n_candidates and stops when the best one scores below the last result."""

SEED = 43  # the released code's

PRESETS = {
    "efficient_1": {"algorithm": "graph", "initial_candidates": 10_000, "n_candidates": 64, "max_iter": 16},
    "efficient_2": {"algorithm": "graph", "initial_candidates": 100_000, "n_candidates": 328, "max_iter": 20},
}
"""The paper's two settings (section 4.2), as options of the retriever."""


def draw_entry_points(n_docs: int, number: int, seed: int = SEED) -> np.ndarray:
    """Random documents to begin with, the same as the released code draws with its seed.

    Args:
        n_docs: documents in the collection, N.
        number: how many; at most N.
        seed: of the draw.

    Returns:
        docids, ascending.
    """
    return np.sort(np.asarray(random.Random(seed).sample(range(n_docs), min(number, n_docs)), dtype=np.int64))


def reference_graph_search(
    score: Callable[[Tensor], Tensor],
    vectors: np.ndarray,
    neighbours: np.ndarray,
    entries: Sequence[int],
    k: int,
    *,
    n_candidates: int = 64,
    max_iter: int = 16,
    early_stop: bool = True,
    variant: str = "released",
) -> list[tuple[float, int]]:
    """Algorithm 1 for one query, written as the paper writes it: what :func:`graph_search` must agree with.

    Args:
        score: gives the scores (1, n) of documents (n, D).
        vectors: (N, D).
        neighbours: (N, g) docids.
        entries: docids of the entry points.
        k: results.
        n_candidates: documents that a round expands.
        max_iter: rounds at most.
        early_stop: whether to stop when a round brings nothing.
        variant: see :data:`VARIANTS`.

    Returns:
        (score, docid), best first.
    """
    candidates, seen = sorted(set(entries)), set(entries)
    top: list[tuple[float, int]] = []  # a heap of (score, -docid), the worst first
    for _ in range(max_iter):
        if not candidates:
            break
        scores = score(torch.from_numpy(np.array(vectors[candidates], dtype=np.float32)))[0].tolist()
        order = sorted(zip(scores, candidates, strict=True), key=lambda pair: (-pair[0], pair[1]))
        offered = order[: max(n_candidates, k) if variant == "released" else n_candidates]
        full = len(top) == k
        if variant == "paper" and early_stop and full and offered[0][0] < top[0][0]:
            break
        added = 0
        for value, docid in offered:
            if len(top) < k:
                heapq.heappush(top, (value, -docid))
            elif value > top[0][0]:
                heapq.heapreplace(top, (value, -docid))
            else:
                break
            added += 1
        if variant == "released" and early_stop and not added:
            break
        candidates = []
        for _, docid in order[:n_candidates]:
            for neighbour in neighbours[docid].tolist():
                if neighbour not in seen:
                    seen.add(neighbour)
                    candidates.append(neighbour)
        candidates.sort()
    return sorted(((value, -minus) for value, minus in top), key=lambda pair: (-pair[0], pair[1]))


def graph_search(
    score: Score,
    vectors: Rows,
    neighbours: Rows,
    entries: np.ndarray | Sequence[np.ndarray],
    n_queries: int,
    k: int,
    *,
    device: torch.device | None = None,
    n_candidates: int = 64,
    max_iter: int = 16,
    early_stop: bool = True,
    variant: str = "released",
    allowed: Sequence[np.ndarray | None] | None = None,
) -> Results:
    """Algorithm 1 for a batch of queries, whose rounds go in lockstep.

    Args:
        score: evaluates the q-nets of Q queries.
        vectors: (N, D), usually a memory map.
        neighbours: (N, g) docids; a document may name itself, which adds nothing.
        entries: docids of the entry points, which queries share, or an array for each query.
        n_queries: Q.
        k: results per query; fewer where the walk met fewer.
        device: where scores are computed; None for the CPU.
        n_candidates: documents that a round expands, nCandidates in the paper.
        max_iter: rounds at most.
        early_stop: whether a query stops when a round brings nothing.
        variant: see :data:`VARIANTS`.
        allowed: for every query the docids that may be returned, or None for all; the walk goes over the others too, and
            stops where it would without.

    Returns:
        The results.
    """
    documents = Documents(score, vectors, n_queries, device or torch.device("cpu"), allowed)
    return walk(
        documents,
        neighbours,
        *documents.enter(entries),
        k,
        n_candidates=n_candidates,
        max_iter=max_iter,
        early_stop=early_stop,
        variant=variant,
    )


def walk(
    documents: Documents,
    neighbours: Rows,
    scores: Tensor,
    docids: Tensor,
    k: int,
    *,
    n_candidates: int,
    max_iter: int,
    early_stop: bool = True,
    variant: str = "released",
) -> Results:
    """The rounds of Algorithm 1 from documents that were scored; see :func:`graph_search`.

    Args:
        documents: the collection, in which those documents have been met.
        neighbours: (N, g).
        scores: (Q, n), of the candidates of the first round; -inf where there is none.
        docids: (Q, n), ascending among equal scores.
        k: results per query.
        n_candidates: see :func:`graph_search`.
        max_iter: see :func:`graph_search`.
        early_stop: see :func:`graph_search`.
        variant: see :data:`VARIANTS`.
    """
    n_queries, device = len(scores), documents.device
    best = torch.full((n_queries, k), -torch.inf, device=device), torch.zeros(n_queries, k, dtype=torch.long, device=device)
    returned = best  # of those that may be; the walk itself goes by all
    walking = torch.ones(n_queries, dtype=torch.bool, device=device)
    n_rounds = torch.zeros(n_queries, dtype=torch.long, device=device)
    for remaining in reversed(range(max_iter)):
        walking &= (scores > -torch.inf).any(dim=1)
        n_rounds += walking
        width = max(n_candidates, k) if variant == "released" else n_candidates
        ranked, ranked_ids = top_k(scores, docids, width)
        worst = best[0][:, -1]
        best = _merge_best(best, (ranked, ranked_ids), k)
        if documents.hidden is not None:
            returned = _merge_best(returned, top_k(documents.returnable(scores, docids), docids, width), k)
        if early_stop:
            walking &= ranked[:, 0] > worst if variant == "released" else ranked[:, 0] >= worst
        if not remaining or not bool(walking.any()):
            break
        found = (ranked[:, :n_candidates] > -torch.inf) & walking.unsqueeze(1)
        queries = found.nonzero()[:, 0]
        reached = take(neighbours, ranked_ids[:, :n_candidates][found]).to(device, torch.long)
        new = documents.meet(queries.repeat_interleave(reached.shape[1]), reached.flatten())
        scores, docids = documents.evaluate(*new)
    return Results.of(*(best if documents.hidden is None else returned), n_scored=documents.n_scored, n_rounds=n_rounds)


def _merge_best(best: tuple[Tensor, Tensor], offered: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k best of scores and docids, of which those that are in already stay among equal scores."""
    return by_docid(*top_k(torch.cat([best[0], offered[0]], 1), torch.cat([best[1], offered[1]], 1), k))


def count_entry_points(initial_candidates: float, n_docs: int) -> int:
    """The number of entry points that ``initial_candidates`` asks for: a count, or a fraction of the collection."""
    if isinstance(initial_candidates, float | np.floating):
        return min(math.ceil(initial_candidates * n_docs), n_docs)
    return min(int(initial_candidates), n_docs)
