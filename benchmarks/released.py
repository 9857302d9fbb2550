"""The approximate search of the released code as it was published: what this package's searches are measured against.

Rewritten from a description of what it does, and kept as it is: one query at a time, documents known by their docnos in
dictionaries and sets, the best results in a locking queue, and each document that is offered to them read from the device by
itself. It evaluates in float32, all candidates of a round at once. Three defects that make the published code fail are
repaired, and nothing else:

- it copies the entry points with ``copy.deepcopy`` where ``copy`` is NumPy's function: AttributeError with the first query;
- its command line passes ``ignore_same_id``, which the search does not take: TypeError (there is no such option here);
- where one candidate is left, its score loses the dimension of the candidates: IndexError.
"""

import copy
import queue
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def draw_entries(docnos: Sequence[str], number: int = 10_000) -> list[str]:
    """The entry points, which all queries share.

    Args:
        docnos: of all documents.
        number: how many; the published code fails where there are fewer documents.
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
    """Searches with one query.

    Args:
        qnet_score: gives the scores (1, n) of documents (n, D).
        docnos: the row of each document.
        vectors: (N, D), float32, where scores are computed.
        neighbours: the docnos of each document's neighbours.
        entry_ids: docnos of the entry points.
        top_k: results.
        ncandidates: documents that a round expands.
        max_iter: rounds at most.
        early_stop: whether to stop when a round brings nothing; without it, rounds without candidates go on.

    Returns:
        docnos with their scores, best first, equal scores by docno; and the number of documents that were scored.
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
