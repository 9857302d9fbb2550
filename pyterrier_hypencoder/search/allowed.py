"""The documents that each query may return, in the form that the searches apply.

A filter is an ascending array of docids. Nothing here takes memory for every pair of a query and a document.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..scoring.rows import as_tensor

_SORTED_UP_TO = 16
"""Docids are sorted to find a union if the filters have fewer of them than one per 16 documents."""


class Allowed:
    """The documents that each query of a batch may return.

    Queries often share one filter, which is then stored once.

    Args:
        docids: For every query the ascending docids that may be returned, or None for all documents.
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
        filters = [_Filter(ids.astype(np.int64, copy=False), queries, device) for ids, queries in groups.values()]
        self._set(filters, len(docids), device)

    def _set(self, filters: list[_Filter], n_queries: int, device: torch.device | str) -> None:
        self._filters, self._n_queries, self._device = filters, n_queries, device
        limited = sum(len(f.owners) for f in filters)
        self.is_shared = len(filters) == 1 and limited == n_queries
        """True if all queries have the same filter."""
        self._all_limited = limited == n_queries

    def find_union(self) -> Tensor | None:
        """Return the ascending docids that at least one query may return, (n,); None if a query has no filter."""
        if not self._all_limited:
            return None
        if self.is_shared:
            return self._filters[0].docids
        n_docs = max((int(f.ids[-1]) + 1 for f in self._filters if len(f.ids)), default=0)
        if _SORTED_UP_TO * sum(len(f.ids) for f in self._filters) < n_docs:
            return torch.from_numpy(np.unique(np.concatenate([f.ids for f in self._filters]))).to(self._device)
        is_allowed = np.zeros(n_docs, dtype=bool)
        for f in self._filters:
            is_allowed[f.ids] = True
        return torch.from_numpy(np.flatnonzero(is_allowed)).to(self._device)

    def relate_to(self, docids: Tensor) -> Allowed | None:
        """Return the filters for a collection that consists of some documents only.

        Args:
            docids: The ascending docids of these documents, (n,), as :meth:`find_union` returns them.

        Returns:
            The filters as positions among ``docids``; None if every query may return all of them.
        """
        if self.is_shared:
            return None
        places = docids.cpu().numpy()
        filters = [_Filter(np.searchsorted(places, f.ids), f.owners, self._device) for f in self._filters]
        return self._make(filters, self._n_queries)

    def select(self, queries: Tensor) -> Allowed:
        """Return the filters of some queries (q,), in the given order."""
        places: dict[int, list[int]] = {}
        for place, q in enumerate(queries.tolist()):
            places.setdefault(q, []).append(place)
        owners = [[place for q in f.owners for place in places.get(q, [])] for f in self._filters]
        pairs = zip(self._filters, owners, strict=True)
        return self._make([_Filter(f.ids, sorted(own), self._device, f.docids) for f, own in pairs if own], len(queries))

    def _make(self, filters: list[_Filter], n_queries: int) -> Allowed:
        made = Allowed.__new__(Allowed)
        made._set(filters, n_queries, self._device)
        return made

    def count(self, doc_count: int) -> Tensor:
        """Return how many of ``doc_count`` documents every query may return, (Q,) on the CPU."""
        counts = torch.full((self._n_queries,), doc_count, dtype=torch.long, device="cpu")
        for f in self._filters:
            counts[f.owners] = len(f.ids)
        return counts

    def contains(self, queries: Tensor, docids: Tensor) -> Tensor:
        """Return for every pair of a query (M,) and a docid (M,) whether the query may return the document, (M,)."""
        found = torch.ones(len(docids), dtype=torch.bool, device=docids.device)
        for f in self._filters:
            if self.is_shared:
                return _is_among(docids, f.docids)
            of_group = torch.zeros(self._n_queries, dtype=torch.bool, device=docids.device)
            of_group[f.queries] = True
            found &= ~of_group[queries] | _is_among(docids, f.docids)
        return found

    def apply(self, scores: Tensor, start: int) -> Tensor:
        """Set the scores (Q, n) of documents that a query must not return to -inf, in place.

        This needs time for the allowed documents among the n only, and waits for no device.

        Args:
            scores: Scores of the documents ``start`` to ``start + n - 1``.
            start: Docid of the first document.

        Returns:
            The same tensor.
        """
        for f in self._filters:
            first, last = np.searchsorted(f.ids, (start, start + scores.shape[1])).tolist()
            if last - first == scores.shape[1]:
                continue  # all of them are allowed
            excluded = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
            excluded.index_fill_(0, f.docids[first:last] - start, False)
            if self.is_shared:
                scores.masked_fill_(excluded, -torch.inf)
            else:
                scores[f.queries] = scores[f.queries].masked_fill(excluded, -torch.inf)
        return scores

    def apply_to(self, scores: Tensor, docids: Tensor) -> Tensor:
        """Return the scores (Q, n) with -inf for documents (Q, n) or (n,) that a query must not return."""
        scores = scores.clone()
        for f in self._filters:
            own = docids if docids.ndim == 1 else docids[f.queries]
            scores[f.queries] = scores[f.queries].masked_fill(~_is_among(own, f.docids), -torch.inf)
        return scores


class _Filter:
    """One filter and its queries, in memory and on the device."""

    def __init__(self, ids: np.ndarray, owners: list[int], device: torch.device | str, docids: Tensor | None = None) -> None:
        self.ids, self.owners = ids, owners
        self.docids = as_tensor(ids).to(device) if docids is None else docids
        self.queries = torch.tensor(owners, device=device)


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
