"""Scans: find the documents with the largest values of linear functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..scoring.rows import Rows, as_tensor, take_rows

_PRODUCTS_IN_MEMORY = 2**25
_DEVICE_BYTES = 2**30
"""Size of the vectors on the device at a time, if the collection is stored elsewhere."""
_MARGIN = 64
"""Further documents, besides a quarter more than requested, whose products are computed in float32."""
_CACHE_BYTES = 4 * 2**20
"""Size of the vectors that are converted to float32 at a time, so they stay in the cache."""


class Scan(Protocol):
    """Maximum inner product search over the collection."""

    def __call__(self, queries: Tensor, k: int, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the documents with the largest inner products that a query has not seen.

        Args:
            queries: Linear functions, (Q, D).
            k: Number of documents per query.
            seen: Documents to leave out, (Q, N).

        Returns:
            Inner products and docids in any order, (Q, k), or fewer columns if the collection is smaller. An inner
            product of -inf marks a place without a document.
        """
        ...


def make_exact_scan(vectors: Rows) -> Scan:
    """Return a scan that multiplies all vectors (N, D) with the linear functions.

    A single query is multiplied with half-precision vectors in half precision, because that takes three quarters of the
    time. The best products are then computed again in float32, so the documents are those that a batch of queries gets.
    """
    is_half = as_tensor(vectors[:1]).dtype == torch.float16

    def scan(queries: Tensor, k: int, seen: Tensor) -> tuple[Tensor, Tensor]:
        rounded = is_half and (queries.device.type != "cpu" or len(queries) == 1)
        if not rounded:
            return _scan_blocks(queries, vectors, k, seen, _multiply)
        values, docids = _scan_blocks(queries, vectors, k + k // 4 + _MARGIN, seen, _multiply_in_half)
        if bool((values == torch.inf).any()):  # too large for half precision
            return _scan_blocks(queries, vectors, k, seen, _multiply)
        exact = torch.stack([_recompute(*row, vectors) for row in zip(queries, values, docids, strict=True)])
        return _take_best(exact, docids, k)

    return scan


def _scan_blocks(
    queries: Tensor, vectors: Rows, k: int, seen: Tensor, multiply: Callable[[Tensor, Rows, range], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the documents with the largest products, block by block; see :class:`Scan`."""
    step = max(1, min(_PRODUCTS_IN_MEMORY // len(queries), _DEVICE_BYTES // as_tensor(vectors[:1]).nbytes))
    parts: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(vectors), step):
        products = multiply(queries, vectors, range(start, min(start + step, len(vectors))))
        products.masked_fill_(seen[:, start : start + step], -torch.inf)
        values, places = products.topk(min(k, products.shape[1]), dim=1, sorted=False)
        parts.append((values, places + start))
    values, docids = (torch.cat(found, dim=1) for found in zip(*parts, strict=True))
    return _take_best(values, docids, k)


def _take_best(values: Tensor, docids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = values.topk(min(k, values.shape[1]), dim=1, sorted=False)
    return best.values, docids.gather(1, best.indices)


def _recompute(query: Tensor, values: Tensor, docids: Tensor, vectors: Rows) -> Tensor:
    """Return inner products (k,) in float32 instead of half precision; -inf, which marks no document, stays."""
    rows = take_rows(vectors, docids).to(query.device, torch.float32)
    return (rows @ query).masked_fill(values == -torch.inf, -torch.inf)


def _read(vectors: Rows, docids: range, device: torch.device) -> Tensor:
    return as_tensor(vectors[docids.start : docids.stop]).to(device)


def _multiply_in_half(queries: Tensor, vectors: Rows, docids: range) -> Tensor:
    """Return the inner products (Q, n) with some documents as float32, computed in half precision.

    Memory bandwidth limits a single query. Half precision reads half as many bytes and converts nothing.
    """
    rows = _read(vectors, docids, queries.device)
    scale = queries.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    return (rows @ (queries / scale).to(rows.dtype).T).T.float() * scale


def _multiply(queries: Tensor, vectors: Rows, docids: range) -> Tensor:
    """Return the inner products (Q, n) with some documents in float32."""
    if queries.device.type != "cpu":
        return queries @ _read(vectors, docids, queries.device).float().T
    products = torch.empty(len(queries), len(docids), dtype=torch.float32, device=queries.device)
    step = max(1, _CACHE_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(docids), step):  # int8 vectors become float32 when they are read
        rows = _read(vectors, docids[start : start + step], queries.device).float()
        torch.mm(queries, rows.T, out=products[:, start : start + step])
    return products
