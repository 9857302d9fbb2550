"""Scans: find the documents with the largest values of linear functions."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .documents import Rows, as_tensor

_PRODUCTS_IN_MEMORY = 2**25
_DEVICE_BYTES = 2**30
"""Size of the vectors on the device at a time, if the collection is stored elsewhere."""
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

    A single query of half-precision vectors is multiplied in half precision; everything else is multiplied in float32.
    """
    bytes_per_row = as_tensor(vectors[:1]).nbytes

    def scan(queries: Tensor, k: int, seen: Tensor) -> tuple[Tensor, Tensor]:
        step = max(1, min(_PRODUCTS_IN_MEMORY // len(queries), _DEVICE_BYTES // bytes_per_row))
        parts: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(vectors), step):
            products = _multiply(queries, as_tensor(vectors[start : start + step]).to(queries.device))
            products.masked_fill_(seen[:, start : start + step], -torch.inf)
            values, places = products.topk(min(k, products.shape[1]), dim=1, sorted=False)
            parts.append((values, places + start))
        values, docids = (torch.cat(found, dim=1) for found in zip(*parts, strict=True))
        best = values.topk(min(k, values.shape[1]), dim=1, sorted=False)
        return best.values, docids.gather(1, best.indices)

    return scan


def _multiply(queries: Tensor, rows: Tensor) -> Tensor:
    """Return the inner products (Q, n) as float32."""
    if rows.device.type != "cpu" or (len(queries) == 1 and rows.dtype == torch.float16):
        # Memory bandwidth limits a single query. Half precision reads half as many bytes and converts nothing.
        scale = queries.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
        return (rows @ (queries / scale).to(rows.dtype).T).T.float() * scale
    products = torch.empty(len(queries), len(rows), dtype=torch.float32, device=rows.device)
    step = max(1, _CACHE_BYTES // (4 * rows.shape[1]))
    for start in range(0, len(rows), step):
        torch.mm(queries, rows[start : start + step].float().T, out=products[:, start : start + step])
    return products
