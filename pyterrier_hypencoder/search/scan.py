"""Scans: find the documents with the largest values of linear functions.

The exact scan works in two steps, so that the documents of a query do not depend on the other queries of its batch:

1. Multiply all vectors with the linear functions, and keep some more documents than requested. A single query is multiplied
   in half precision if the vectors are stored in it, because that takes three quarters of the time.
2. Compute the products of the kept documents again, one by one in float32, and choose the best ones. Equal products are
   ordered by docid.

If the errors of the first step could have hidden one of the best documents, the scan is repeated: first in float32, then with
16 times as many documents. Only among more equal products than that, which documents are found depends on the order of the
collection.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor

from ..scoring.resident import iter_blocks
from ..scoring.rows import Rows, as_tensor, take_rows
from .allowed import Allowed
from .results import sort_by_score

_BLOCK = 2**18
"""Number of documents whose products are in memory at a time."""
_PRODUCTS_IN_MEMORY = 2**25
_DEVICE_BYTES = 2**30
"""Size of the vectors on the device at a time, if the collection is stored elsewhere."""
_MARGIN, _MARGIN_IN_HALF = 16, 64
"""Further documents whose products are computed again. In half precision, a quarter of the requested number is added."""
_CACHE_BYTES = 4 * 2**20
"""Size of the vectors that are converted to float32 at a time, so they stay in the cache."""
_RECOMPUTED_BYTES = 2**26
"""Size of the vectors, as float32, whose products are computed again at a time."""
_MANY = 16
"""Factor of the number of documents in the last attempt."""
_FEW = 4
"""If filters leave at most this fraction of the collection, only the vectors of the allowed documents are multiplied."""
_VALUES_PER_GROUP = 16


class Scan(Protocol):
    """Maximum inner product search over the collection."""

    def __call__(self, functions: Tensor, k: int, seen: Tensor, allowed: Allowed | None = None) -> tuple[Tensor, Tensor]:
        """Return the allowed documents with the largest inner products that a query has not seen.

        Args:
            functions: Linear functions, (Q, D).
            k: Number of documents per query.
            seen: Docids to leave out, (Q, n); -1 marks a place without a document.
            allowed: The documents that each query may return; None for all documents.

        Returns:
            Inner products and docids, best first, (Q, k), or fewer columns if the collection is smaller. An inner
            product of -inf marks a place without a document.
        """
        ...


def make_exact_scan(vectors: Rows) -> Scan:
    """Return a scan that multiplies all vectors (N, D) with the linear functions.

    Documents with equal products are sorted by docid.
    """
    is_half = as_tensor(vectors[:1]).dtype == torch.float16

    def scan(functions: Tensor, k: int, seen: Tensor, allowed: Allowed | None = None) -> tuple[Tensor, Tensor]:
        docids = _list_few(allowed, len(vectors))
        total = len(vectors) if docids is None else len(docids)
        k = min(k, total)
        values, ids = functions.new_empty(len(functions), 0), seen[:, :0]
        for number, in_half in _list_attempts(k, is_half and (functions.device.type != "cpu" or len(functions) == 1)):
            if k == 0:
                break
            rough, found = _Products(functions, vectors, seen, allowed, docids, in_half).find_best(min(number, total))
            exact = _recompute(functions, rough, found, vectors)
            values, ids = (part[:, :k] for part in sort_by_score(exact, found))
            if _is_complete(rough, exact, values[:, -1:], has_all=number >= total, in_half=in_half):
                break
        return values, ids

    return scan


def _list_attempts(k: int, starts_in_half: bool) -> list[tuple[int, bool]]:
    """Return for each attempt the number of documents that it keeps, and whether it multiplies in half precision.

    The last attempt does not depend on the number of queries either, so a larger number of equal products is harmless.
    """
    wide = [(k + k // 4 + _MARGIN_IN_HALF, True)] if starts_in_half else []
    return [*wide, (k + _MARGIN, False), (_MANY * (k + _MARGIN), False)]


def _list_few(allowed: Allowed | None, doc_count: int) -> Tensor | None:
    """Return the ascending docids that at least one query may return, if they are few; None for all documents."""
    if allowed is None:
        return None
    counts = allowed.count(doc_count)
    upper_bound = int(counts[0]) if allowed.is_shared else int(counts.sum())
    return allowed.find_union() if _FEW * upper_bound <= doc_count else None


class _Products:
    """Inner products of linear functions with all documents, block by block.

    Args:
        functions: (Q, D).
        vectors: Vectors of all documents, (N, D).
        seen: Docids to leave out, (Q, n); -1 marks a place without a document.
        allowed: The documents that each query may return; None for all documents.
        docids: Ascending docids to which the products are limited; None for all documents.
        in_half: If True, multiply in half precision.
    """

    def __init__(
        self, functions: Tensor, vectors: Rows, seen: Tensor, allowed: Allowed | None, docids: Tensor | None, in_half: bool
    ) -> None:
        self._functions, self._vectors, self._seen = functions, vectors, seen
        self._allowed, self._docids = allowed, docids
        self._multiply = _multiply_in_half if in_half else _multiply

    def find_best(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the largest products and their docids in any order, (Q, number)."""
        values = self._functions.new_empty(len(self._functions), 0)
        docids = torch.empty_like(values, dtype=torch.long)
        for products, ids in self._iter_blocks():
            best, places = _find_largest(products, number)
            values, docids = torch.cat([values, best], 1), torch.cat([docids, ids[places]], 1)
            if values.shape[1] > number:
                values, places = values.topk(number, dim=1, sorted=False)
                docids = docids.gather(1, places)
        return values, docids

    def _iter_blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield products (Q, n) and docids (n,); -inf marks documents that a query has seen or must not return."""
        total = len(self._vectors) if self._docids is None else len(self._docids)
        row_bytes = as_tensor(self._vectors[:1]).nbytes
        step = max(1, min(_BLOCK, _PRODUCTS_IN_MEMORY // max(1, len(self._functions)), _DEVICE_BYTES // row_bytes))
        device = self._functions.device
        on_gpu = device.type != "cpu" and self._docids is None
        blocks = iter_blocks(self._vectors, step, device) if on_gpu else zip(range(0, total, step), repeat(None))
        for start, rows in blocks:
            stop = min(start + step, total)
            if self._docids is None:
                source = (self._vectors, range(start, stop)) if rows is None else (rows, range(len(rows)))
                products = self._multiply(self._functions, *source)
                _hide(products, self._seen - start, (self._seen >= start) & (self._seen < stop))
                if self._allowed is not None:
                    products = self._allowed.apply(products, start)
                yield products, torch.arange(start, stop, device=device)
            else:
                ids = self._docids[start:stop]
                products = self._multiply(self._functions, take_rows(self._vectors, ids), range(len(ids)))
                places = torch.searchsorted(ids, self._seen).clamp_(max=len(ids) - 1)
                _hide(products, places, ids[places] == self._seen)
                if self._allowed is not None and not self._allowed.is_shared:
                    products = self._allowed.apply_to(products, ids)
                yield products, ids


def _hide(products: Tensor, places: Tensor, inside: Tensor) -> None:
    """Set the products (Q, n) at some places (Q, m) to -inf, as far as they are inside (Q, m)."""
    queries, columns = inside.nonzero(as_tuple=True)
    products[queries, places[queries, columns]] = -torch.inf


def _find_largest(products: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return the largest products and their places, (Q, min(number, n)), in any order.

    The largest products are in the groups with the largest maxima. So most products are looked at once, by a vectorised
    maximum: for one million products this takes a quarter of the time of ``topk``.
    """
    n_groups = products.shape[1] // _VALUES_PER_GROUP
    if n_groups <= 2 * number:
        best = products.topk(min(number, products.shape[1]), dim=1, sorted=False)
        return best.values, best.indices
    grouped = products[:, : n_groups * _VALUES_PER_GROUP].unflatten(1, (_VALUES_PER_GROUP, n_groups))  # (Q, 16, n_groups)
    groups = grouped.amax(dim=1).topk(number, dim=1, sorted=False).indices.unsqueeze(1)  # (Q, 1, number)
    first = n_groups * torch.arange(_VALUES_PER_GROUP, device=products.device).unsqueeze(1)
    rest = torch.arange(n_groups * _VALUES_PER_GROUP, products.shape[1], device=products.device)
    places = torch.cat([(groups + first).flatten(1), rest.expand(len(products), -1)], dim=1)
    best = products.gather(1, places).topk(number, dim=1, sorted=False)
    return best.values, places.gather(1, best.indices)


def _recompute(functions: Tensor, rough: Tensor, docids: Tensor, vectors: Rows) -> Tensor:
    """Return the products of documents (Q, n) in float32, each computed by itself; -inf, which marks no document, stays."""
    n_rows = max(1, _RECOMPUTED_BYTES // (4 * vectors.shape[1]))
    step = 1 if functions.device.type == "cpu" else max(1, n_rows // max(1, docids.shape[1]))
    exact = torch.empty_like(rough)
    for start in range(0, len(functions), step):
        queries = slice(start, start + step)
        for first in range(0, docids.shape[1], n_rows):
            part = queries, slice(first, first + n_rows)
            rows = take_rows(vectors, docids[part]).to(functions.device).float()  # (q, n, D)
            exact[part] = (rows * functions[queries].unsqueeze(1)).sum(dim=-1)
    return exact.masked_fill(rough == -torch.inf, -torch.inf)


def _is_complete(rough: Tensor, exact: Tensor, last: Tensor, *, has_all: bool, in_half: bool) -> bool:
    """Return True if no document that was left out can be among the best ones.

    Args:
        rough: Products of the first step, (Q, n); -inf marks a place without a document.
        exact: The same products, computed again.
        last: The smallest product of the documents that are returned, (Q, 1).
        has_all: True if there are no other documents.
        in_half: If True, -inf can also be a product beyond half precision.
    """
    lowest = rough.amin(dim=1, keepdim=True)
    nothing_left = (lowest == -torch.inf) | has_all
    errors = (rough - exact).abs().nan_to_num(nan=0.0, posinf=torch.inf).amax(dim=1, keepdim=True)
    is_clear = ~(last <= lowest + 2 * errors)
    return bool((is_clear if in_half else is_clear | nothing_left).all())


def _read(vectors: Rows, places: range, device: torch.device) -> Tensor:
    return as_tensor(vectors[places.start : places.stop]).to(device)


def _multiply_in_half(functions: Tensor, vectors: Rows, places: range) -> Tensor:
    """Return the inner products (Q, n) with some documents as float32, computed in half precision.

    Memory bandwidth limits a single query. Half precision reads half as many bytes and converts nothing.
    """
    rows = _read(vectors, places, functions.device)
    scale = functions.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    return (rows @ (functions / scale).to(rows.dtype).T).T.float() * scale


def _multiply(functions: Tensor, vectors: Rows, places: range) -> Tensor:
    """Return the inner products (Q, n) with some documents in float32."""
    if functions.device.type != "cpu":
        return functions @ _read(vectors, places, functions.device).float().T
    products = torch.empty(len(functions), len(places), dtype=torch.float32, device=functions.device)
    step = max(1, _CACHE_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(places), step):  # int8 vectors become float32 when they are read
        rows = _read(vectors, places[start : start + step], functions.device).float()
        torch.mm(functions, rows.T, out=products[:, start : start + step])
    return products
