"""Exact nearest-neighbour search over distinct vectors, tile by tile: with faiss on a CPU, with torch on a GPU.

Both compute squared distances as ``|x|^2 + |y|^2 - 2 <x, y>`` in float32. If all vectors have a large part in common, little
is left of the difference. So a typical vector is subtracted from all of them first, which does not change distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .distinct import DistinctVectors

_CPU_TILE_BYTES = 512 * 2**20
_GPU_TILE_VECTORS = 65_536  # with 4,096 queries, 1 GiB of distances


class CpuExactSearch:
    """Compare queries with all vectors, with faiss.

    Args:
        vectors: Distinct vectors to search. Up to 512 MiB of them (in float32) are kept in memory.
    """

    def __init__(self, vectors: DistinctVectors) -> None:
        self._vectors, self._device = vectors, torch.device("cpu")
        self._origin = _find_typical_vector(vectors)
        fits = len(vectors) * vectors.size * 4 <= _CPU_TILE_BYTES
        self._tiles = list(self._iter_tiles()) if fits else None

    def search(self, groups: np.ndarray, k: int) -> np.ndarray:
        """Return the nearest groups of some groups; in general, the group itself is among them.

        Args:
            groups: Groups whose vectors are the queries, shape (Q,).
            k: Number of results.

        Returns:
            Groups, shape (Q, K), nearest first; -1 if distances overflow float32.
        """
        queries = torch.from_numpy(self._vectors.take(groups).astype(np.float32) - self._origin).to(self._device)  # (Q, D)
        distances = torch.empty(len(groups), 0, device=self._device)
        found = torch.empty(len(groups), 0, dtype=torch.long, device=self._device)
        for start, tile in self._tiles or self._iter_tiles():
            tile_distances, ids = self._search_tile(queries, tile, min(k, len(tile)))
            distances, order = torch.cat([distances, tile_distances], 1).sort(dim=1, stable=True)
            found = torch.cat([found, torch.where(ids < 0, -1, ids + start)], 1).gather(1, order)[:, :k]
            distances = distances[:, :k]
        return found.cpu().numpy()

    def _iter_tiles(self) -> Iterator[tuple[int, Any]]:
        for start, tile in self._vectors.iter_tiles(_CPU_TILE_BYTES):
            tile -= self._origin
            yield start, tile

    def _search_tile(self, queries: Tensor, tile: Any, k: int) -> tuple[Tensor, Tensor]:
        """Return the squared distances and positions of the nearest vectors of a tile, each (Q, K)."""
        import faiss

        distances, ids = faiss.knn(queries.numpy(), tile, k)
        return torch.from_numpy(distances), torch.from_numpy(ids)


class GpuExactSearch(CpuExactSearch):
    """Compare queries with all vectors, with torch in float32.

    The matrix product does not use TF32, which torch can only switch on for the whole process. Vectors stay on the GPU in
    their stored type if they fill at most half of its free memory.

    Args:
        vectors: Distinct vectors to search.
        device: The GPU.
    """

    def __init__(self, vectors: DistinctVectors, device: torch.device) -> None:
        self._vectors, self._device = vectors, device
        self._origin = _find_typical_vector(vectors)
        needed = len(vectors) * vectors.size * vectors.dtype.itemsize
        fits = needed <= torch.cuda.mem_get_info(device)[0] // 2
        self._tiles = list(self._iter_tiles()) if fits else None

    def _iter_tiles(self) -> Iterator[tuple[int, Tensor]]:
        stored = self._vectors.dtype
        for start, tile in self._vectors.iter_tiles(_GPU_TILE_VECTORS * self._vectors.size * stored.itemsize, stored):
            yield start, torch.from_numpy(tile).to(self._device)

    def _search_tile(self, queries: Tensor, tile: Tensor, k: int) -> tuple[Tensor, Tensor]:
        vectors = tile.float() - torch.from_numpy(self._origin).to(self._device)  # (N, D)
        # The squared norm of a query is the same for all vectors, so it is left out.
        distances = torch.addmm(vectors.square().sum(1), queries, vectors.T, alpha=-2)  # (Q, N)
        nearest = distances.topk(k, dim=1, largest=False)
        return nearest.values, nearest.indices


def _find_typical_vector(vectors: DistinctVectors) -> np.ndarray:
    """Return the median of each dimension over up to 1,001 vectors, (D,) float32.

    Outliers do not change it. Each number occurs in the data, so subtracting it keeps integers integers, and ties ties.
    """
    number = min(len(vectors), 1001)
    number -= 1 - number % 2  # the median of an even number of values can be one that does not occur
    sample = np.linspace(0, len(vectors) - 1, number, dtype=int)
    return np.median(vectors.take(sample).astype(np.float32), axis=0)
