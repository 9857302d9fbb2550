"""The approximate search of the released code as it was published, for comparison.

It is rewritten from a description of the published code and keeps its design. It searches with one query at a time, keeps
documents by docno in dictionaries and sets, and collects the best results in a locking queue. It reads each score that is
offered to the results from the device separately. It scores all candidates of a round at once in float32.

Only three defects are repaired, because the published code fails with them:

- It copies the entry points by ``copy.deepcopy``, although ``copy`` is NumPy's function there. The first query raises
  AttributeError.
- Its command line passes the option ``ignore_same_id``, which the search does not accept. It raises TypeError. This module
  has no such option.
- If a single candidate is left, its scores lose the dimension of the candidates. It raises IndexError.
"""

import copy
import queue
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def draw_entry_points(docnos: Sequence[str], number: int = 10_000) -> list[str]:
    """Draw the entry points, which all queries share.

    Args:
        docnos: Docnos of all documents.
        number: Number of entry points. The published code fails if there are fewer documents.
    """
    random.seed(43)
    return [docnos[row] for row in random.sample(range(len(docnos)), number)]


def search(
    qnet_score: Callable[[Tensor], Tensor],
    docnos: dict[str, int],
    vectors: Tensor,
    neighbours: dict[str, list[str]],
    entry_ids: list[str],
    top_k: int = 1000,
    ncandidates: int = 50,
    max_iter: int = 16,
    early_stop: bool = True,
) -> tuple[list[tuple[str, float]], int]:
    """Search with one query.

    Args:
        qnet_score: Function that returns the scores (1, n) of document vectors (n, D).
        docnos: Row of each document by docno.
        vectors: Document vectors, (N, D), float32, on the device that computes the scores.
        neighbours: Docnos of each document's neighbours, by docno.
        entry_ids: Docnos of the entry points.
        top_k: Number of results.
        ncandidates: Number of documents that a round expands.
        max_iter: Maximum number of rounds.
        early_stop: If True, stop after a round that does not change the results. If False, rounds without candidates run
            too.

    Returns:
        Docnos with scores, the best first and equal scores by docno, and the number of scored documents.
    """
    candidates = copy.deepcopy(entry_ids)
    seen = set(candidates)
    top: queue.PriorityQueue[tuple[float, str]] = queue.PriorityQueue(maxsize=top_k)
    n_scored = 0
    for _ in range(max_iter):
        rows = torch.tensor([docnos[docno] for docno in candidates], dtype=torch.long, device=vectors.device)
        scores = qnet_score(vectors[rows]).reshape(-1)
        n_scored += len(candidates)
        best = scores.topk(min(max(ncandidates, top_k), len(candidates)))
        following, added = [], False
        for rank, (value, place) in enumerate(zip(best.values, best.indices.tolist(), strict=True)):
            score, docno = value.item(), candidates[place]
            if not top.full():
                top.put((score, docno))
                added = True
            elif score > top.queue[0][0]:
                top.get()
                top.put((score, docno))
                added = True
            if rank < ncandidates:
                for neighbour in neighbours[docno]:
                    if neighbour not in seen:
                        seen.add(neighbour)
                        following.append(neighbour)
        if early_stop and not added:
            break
        candidates = following
    results = []
    while not top.empty():
        score, docno = top.get()
        results.append((docno, score))
    return sorted(results, key=lambda result: (-result[1], result[0])), n_scored
