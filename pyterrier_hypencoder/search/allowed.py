"""The documents that each query may return, in the form that the searches apply.

A filter is an ascending array of docids. Nothing here takes memory for every pair of a query and a document.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Allowed:
    """The documents that each query of a batch may return.

    Queries often share one filter, which is then stored once.

    Args:
        docids: For every query the ascending docids that may be returned, or None for all documents. At least one query must
            have a filter.
        device: Device of the scores that are filtered.

    Example:
        >>> import numpy as np, torch
        >>> allowed = Allowed([np.array([1, 2]), None])
        >>> allowed.contains(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 0])).tolist()
        [False, True, True]
        >>> allowed.apply(torch.zeros(2, 3), 0)
        tensor([[-inf, 0., 0.],
                [0., 0., 0.]])
    """

    def __init__(self, docids: Sequence[np.ndarray | None], device: torch.device | str = "cpu") -> None:
        groups: dict[int, tuple[np.ndarray, list[int]]] = {}
        for q, ids in enumerate(docids):
            if ids is not None:
                groups.setdefault(id(ids), (ids, []))[1].append(q)
        self._n_queries = len(docids)
        self._filters = [
            (torch.from_numpy(ids.astype(np.int64)).to(device), torch.tensor(queries, device=device))
            for ids, queries in groups.values()
        ]
        limited = sum(len(queries) for _, queries in self._filters)
        self.is_shared = len(self._filters) == 1 and limited == len(docids)
        """True if all queries have the same filter."""
        self._all_limited = limited == len(docids)

    def select(self, queries: Tensor) -> Allowed:
        """Return the filters of some queries (q,), in the given order."""
        selected = copy.copy(self)
        places = [(ids, (queries == owners.unsqueeze(1)).nonzero()[:, 1]) for ids, owners in self._filters]
        selected._filters = [(ids, owners) for ids, owners in places if len(owners)]
        selected._n_queries = len(queries)
        limited = sum(len(owners) for _, owners in selected._filters)
        selected._all_limited = limited == len(queries)
        selected.is_shared = len(selected._filters) == 1 and selected._all_limited
        return selected

    def find_union(self) -> Tensor | None:
        """Return the ascending docids that at least one query may return, (n,); None if a query has no filter."""
        if not self._all_limited:
            return None
        return self._filters[0][0] if self.is_shared else torch.unique(torch.cat([ids for ids, _ in self._filters]))

    def count(self, doc_count: int) -> Tensor:
        """Return how many of ``doc_count`` documents every query may return, (Q,) on the CPU."""
        counts = torch.full((self._n_queries,), doc_count, dtype=torch.long, device="cpu")
        for ids, queries in self._filters:
            counts[queries.cpu()] = len(ids)
        return counts

    def contains(self, queries: Tensor, docids: Tensor) -> Tensor:
        """Return for every pair of a query (M,) and a docid (M,) whether the query may return the document, (M,)."""
        found = torch.ones(len(docids), dtype=torch.bool, device=docids.device)
        for ids, owners in self._filters:
            of_group = torch.zeros(self._n_queries, dtype=torch.bool, device=docids.device)
            of_group[owners] = True
            found &= ~of_group[queries] | _is_among(docids, ids)
        return found

    def apply(self, scores: Tensor, start: int) -> Tensor:
        """Set the scores (Q, n) of documents that a query must not return to -inf, in place.

        Args:
            scores: Scores of the documents ``start`` to ``start + n - 1``.
            start: Docid of the first document.

        Returns:
            The same tensor.
        """
        for ids, queries in self._filters:
            first, last = torch.searchsorted(ids, torch.tensor([start, start + scores.shape[1]], device=ids.device)).tolist()
            excluded = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
            excluded[ids[first:last] - start] = False
            scores[queries] = scores[queries].masked_fill(excluded, -torch.inf)
        return scores

    def apply_to(self, scores: Tensor, docids: Tensor) -> Tensor:
        """Return the scores (Q, n) with -inf for documents (Q, n) or (n,) that a query must not return."""
        scores = scores.clone()
        for ids, queries in self._filters:
            own = docids if docids.ndim == 1 else docids[queries]
            scores[queries] = scores[queries].masked_fill(~_is_among(own, ids), -torch.inf)
        return scores


def make_allowed(docids: Sequence[np.ndarray | None] | None, device: torch.device | str = "cpu") -> Allowed | None:
    """Return the filters of a batch; None if no query has one.

    Args:
        docids: For every query the ascending docids that may be returned, or None for all documents.
        device: Device of the scores that are filtered.
    """
    return None if docids is None or all(ids is None for ids in docids) else Allowed(docids, device)


def _is_among(docids: Tensor, ids: Tensor) -> Tensor:
    """Return which docids, of any shape, are among ascending ids (n,)."""
    if not len(ids):
        return torch.zeros(docids.shape, dtype=torch.bool, device=docids.device)
    places = torch.searchsorted(ids, docids.contiguous()).clamp_(max=len(ids) - 1)
    return ids[places] == docids
