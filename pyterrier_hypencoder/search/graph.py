"""Graph search: Algorithm 1 of the paper (section 3.6), a greedy search of the neighbour graph.

The search starts from random entry points. Each round scores the candidates with the q-net, offers the best ones to the
results, and takes the unseen neighbours of the best ``n_candidates`` as the next candidates. The graph connects each
document with its nearest documents by L2 distance, independent of the query.

:func:`reference_graph_search` follows the paper line by line, for one query. :func:`graph_search` does the same for a batch.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..scoring import Scorer, choose_search_device
from ..scoring.rows import Rows, take_rows
from .documents import Documents
from .results import Results, select_top_k, sort_by_score

VARIANTS = ("released", "paper")
"""The two variants of Algorithm 1:

============  ===================================  =============================================
variant       a round offers to the results        the search stops early if
============  ===================================  =============================================
``released``  the best max(n_candidates, k)        no offered document entered the results
``paper``     the best n_candidates                the best one scores below the last result
============  ===================================  =============================================
"""

PRESETS = {
    "efficient_1": {"algorithm": "graph", "initial_candidates": 10_000, "n_candidates": 64, "max_iter": 16},
    "efficient_2": {"algorithm": "graph", "initial_candidates": 100_000, "n_candidates": 328, "max_iter": 20},
}
"""The paper's two settings (section 4.2), as options of the retriever."""


def reference_graph_search(
    score: Callable[[Tensor], Tensor],
    vectors: np.ndarray,
    neighbours: np.ndarray,
    entry_points: Sequence[int],
    k: int,
    *,
    n_candidates: int = 64,
    max_iter: int = 16,
    early_stop: bool = True,
    variant: str = "released",
) -> list[tuple[float, int]]:
    """Search with one query, written like Algorithm 1 in the paper.

    :func:`graph_search` must return the same documents.

    Args:
        score: Scores documents (n, D) with one q-net, (1, n).
        vectors: Vectors of all documents, (N, D).
        neighbours: Docids of the g nearest documents of each document, (N, g).
        entry_points: Docids of the first candidates.
        k: Number of results.
        n_candidates: Number of documents that a round expands (nCandidates in the paper).
        max_iter: Maximum number of rounds (maxIter in the paper).
        early_stop: If True, stop when a round no longer improves the results.
        variant: See :data:`VARIANTS`.

    Returns:
        Scores and docids, best first.
    """
    candidates, seen = sorted(set(entry_points)), set(entry_points)  # line 1
    top: list[tuple[float, int]] = []  # line 2; a heap of (score, -docid), the worst first
    for _ in range(max_iter):  # line 4
        if not candidates:
            break
        scores = score(torch.from_numpy(np.array(vectors[candidates], dtype=np.float32)))[0].tolist()
        order = sorted(zip(scores, candidates, strict=True), key=lambda pair: (-pair[0], pair[1]))  # line 5
        offered = order[: max(n_candidates, k) if variant == "released" else n_candidates]
        if variant == "paper" and early_stop and len(top) == k and offered[0][0] < top[0][0]:  # lines 6 to 8
            break
        added = 0
        for value, docid in offered:  # lines 10 to 15
            if len(top) < k:
                heapq.heappush(top, (value, -docid))
            elif value > top[0][0]:
                heapq.heapreplace(top, (value, -docid))
            else:
                break
            added += 1
        if variant == "released" and early_stop and not added:
            break
        candidates = []  # line 9
        for _, docid in order[:n_candidates]:  # lines 16 to 19
            for neighbour in neighbours[docid].tolist():
                if neighbour not in seen:
                    seen.add(neighbour)
                    candidates.append(neighbour)
        candidates.sort()
    return sorted(((value, -minus) for value, minus in top), key=lambda pair: (-pair[0], pair[1]))


def graph_search(
    score: Scorer,
    vectors: Rows,
    neighbours: Rows,
    entry_points: np.ndarray | Sequence[np.ndarray],
    n_queries: int,
    k: int,
    *,
    device: torch.device | None = None,
    n_candidates: int = 64,
    max_iter: int = 16,
    early_stop: bool = True,
    variant: str = "released",
    allowed: Sequence[np.ndarray | None] | None = None,
    max_scored: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Results:
    """Search with a batch of queries, round by round for all of them.

    Args:
        score: Scorer of the q-nets of Q queries.
        vectors: Vectors of all documents, (N, D), usually a memory map.
        neighbours: Docids of the g nearest documents of each document, (N, g). A document may be its own neighbour.
        entry_points: Docids of the first candidates, which all queries share, or one array of docids per query.
        n_queries: Number of queries, Q.
        k: Number of results per query; fewer if the search has seen fewer documents.
        device: Device that computes the scores; None for the CPU.
        n_candidates: Number of documents that a round expands (nCandidates in the paper).
        max_iter: Maximum number of rounds (maxIter in the paper).
        early_stop: If True, a query stops when a round no longer improves its results.
        variant: See :data:`VARIANTS`.
        allowed: For every query the docids that may be returned, or None for all documents. The search still passes
            through the other documents, and stops when it would stop without a filter.
        max_scored: Maximum number of documents that a query scores, which the entry points must not exceed; None for no
            limit.
        progress: Called after each round with the number of queries that it finished.

    Returns:
        The k best documents found per query. The statistic ``converged`` is False if ``max_iter`` or ``max_scored`` ended the
        search.
    """
    documents = Documents(score, vectors, n_queries, choose_search_device(device), allowed)
    first = documents.score_entry_points(entry_points)
    k, n_candidates = min(k, len(documents)), min(n_candidates, len(documents))
    return _walk(documents, neighbours, *first, k, n_candidates, max_iter, early_stop, variant, max_scored, progress)


def _walk(
    documents: Documents,
    neighbours: Rows,
    scores: Tensor,
    docids: Tensor,
    k: int,
    n_candidates: int,
    max_iter: int,
    early_stop: bool,
    variant: str,
    max_scored: int | None,
    progress: Callable[[int], object] | None,
) -> Results:
    """Walk over the graph from scored entry points (Q, n); the other arguments are those of :func:`graph_search`."""
    n_queries = len(scores)
    width = max(n_candidates, k) if variant == "released" else n_candidates
    best = _make_empty(n_queries, k, documents.device)  # of all documents, which decide when to stop
    returned = _make_empty(n_queries, _count_returnable(documents, k), documents.device)  # of the allowed documents
    active = torch.ones(n_queries, dtype=torch.bool, device=documents.device)
    n_rounds = torch.zeros(n_queries, dtype=torch.long, device=documents.device)
    over_budget = torch.zeros_like(active)
    n_active = n_queries
    for number in range(max_iter):
        active &= (scores > -torch.inf).any(dim=1)
        n_rounds += active
        offered = select_top_k(scores, docids, width)
        worst = best[0][:, -1]
        best = _merge(best, offered, k)
        if documents.allowed is not None:
            allowed_only = select_top_k(documents.apply_filter(scores, docids), docids, width)
            returned = _merge(returned, allowed_only, returned[0].shape[1])
        if early_stop:
            active &= offered[0][:, 0] > worst if variant == "released" else offered[0][:, 0] >= worst
        n_left = int(active.sum())  # the only wait for a GPU here
        if progress is not None:
            progress(n_active - n_left)
        n_active = n_left
        if number + 1 == max_iter or not n_left:
            break
        new = _find_unseen(documents, neighbours, active, *(rows[:, :n_candidates] for rows in offered))
        if max_scored is not None:
            new, is_over = _cut_to_budget(documents, *new, max_scored)
            over_budget |= is_over
        scores, docids = documents.score(*new)
    return Results.from_tensors(
        *(best if documents.allowed is None else returned),
        n_scored=documents.n_scored,
        n_rounds=n_rounds,
        converged=~active & ~over_budget,
    )


def _make_empty(n_queries: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return scores and docids (Q, k) without documents."""
    docids = torch.zeros(n_queries, k, dtype=torch.long, device=device)
    return torch.full(docids.shape, -torch.inf, dtype=torch.float32, device=device), docids


def _count_returnable(documents: Documents, k: int) -> int:
    """Return how many of k documents the query with the weakest filter may return."""
    return k if documents.allowed is None else min(k, int(documents.allowed.count(len(documents)).max()))


def _find_unseen(
    documents: Documents, neighbours: Rows, active: Tensor, scores: Tensor, docids: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the unseen neighbours of documents (Q, n) of the active queries (Q,): queries and docids, (M,)."""
    queries, columns = ((scores > -torch.inf) & active.unsqueeze(1)).nonzero(as_tuple=True)
    found = take_rows(neighbours, docids[queries, columns]).to(documents.device, torch.long)  # (M, g)
    return documents.mark_seen(queries.repeat_interleave(found.shape[1]), found.flatten())


def _cut_to_budget(
    documents: Documents, queries: Tensor, docids: Tensor, max_scored: int
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return the first documents (M,) of every query that it may still score, and which queries had more, (Q,)."""
    counts = torch.bincount(queries, minlength=len(documents.n_scored))
    budget = (max_scored - documents.n_scored).clamp(min=0)
    places = torch.arange(len(queries), device=queries.device) - (counts.cumsum(0) - counts)[queries]
    kept = places < budget[queries]
    return (queries[kept], docids[kept]), counts > budget


def _merge(best: tuple[Tensor, Tensor], offered: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return the k best documents of two sets; among equal scores, those that are already in the results stay."""
    scores, docids = torch.cat([best[0], offered[0]], 1), torch.cat([best[1], offered[1]], 1)
    return sort_by_score(*select_top_k(scores, docids, k))
