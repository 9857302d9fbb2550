"""Find the nearest neighbours of documents by L2 distance: exactly, or approximately for large collections.

All builders work in two steps. A search in float32 finds a few more candidates than needed. Then the distances of the
candidates are computed as norms of differences, and sorted with ties by docid. These distances do not depend on the batch
or the device, so neither do the results, except for near-ties at the end of the candidate list.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from .approximate_neighbours import HnswSearch, NNDescentSearch
from .distinct import DistinctVectors
from .exact_neighbours import CpuExactSearch, GpuExactSearch

EXACT_UP_TO = {"cpu": 200_000, "cuda": 20_000_000}
"""Number of documents up to which ``builder="auto"`` compares all pairs; the time grows with its square."""

_PIECE_BYTES = 2 * 2**20  # differences that are computed at once: few enough to stay in the cache


class Search(Protocol):
    """Nearest-neighbour search over distinct vectors."""

    def search(self, groups: np.ndarray, k: int) -> np.ndarray:
        """Return the k nearest groups of some groups (Q,), shape (Q, K); -1 for none."""
        ...


class NeighbourFinder:
    """Find the nearest neighbours of documents by L2 distance. Ties are broken by docid.

    Args:
        vectors: Distinct vectors of the collection.
        k: Number of neighbours per document.
        builder: ``auto``, ``exact``, ``hnsw`` or ``nn_descent``. A few thousand vectors are always compared exactly, because
            approximate builders are no faster there and have poor recall.
        device: Device of exact comparisons.
    """

    def __init__(self, vectors: DistinctVectors, k: int, *, builder: str, device: torch.device) -> None:
        self._vectors, self._device = vectors, device
        self.k = k
        self._n_candidates = min(len(vectors), k + 1 + max(16, k // 4))  # with the document itself
        if builder == "auto":
            builder = "exact" if len(vectors.groups) <= EXACT_UP_TO[device.type] else "hnsw"
        self.builder = builder if len(vectors) > max(1000, 10 * self._n_candidates) else "exact"
        """The builder that is used: ``exact``, ``hnsw`` or ``nn_descent``."""
        self._search: Search | None = None

    @property
    def options(self) -> dict[str, int]:
        """Parameters of the builder, named as in faiss."""
        if self.builder == "hnsw":
            return {"M": 32, "efConstruction": 100, "efSearch": 2 * self._n_candidates}
        if self.builder == "nn_descent":
            return {"K": self._n_candidates, "L": self._n_candidates + 50, "iter": 10}
        return {}

    def prepare(self, folder: Path, *, verbose: bool = False) -> None:
        """Build the index of an approximate builder, or read it if it is there. Call this before :meth:`find`.

        Args:
            folder: Directory that holds the index.
            verbose: If True, show progress.
        """
        if self.builder == "exact":
            self._search = self._exact_search
        else:
            make = HnswSearch if self.builder == "hnsw" else NNDescentSearch
            self._search = make(self._vectors, self.options, folder, verbose)

    @cached_property
    def _exact_search(self) -> CpuExactSearch:
        cpu = self._device.type == "cpu"
        return CpuExactSearch(self._vectors) if cpu else GpuExactSearch(self._vectors, self._device)

    def find(self, docids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the neighbours of documents.

        Args:
            docids: Documents, shape (N,).

        Returns:
            Docids (N, K), nearest first, -1 if there are fewer than K other documents; and distances (N, K), float32.
        """
        groups, back = np.unique(self._vectors.groups[docids], return_inverse=True)
        neighbours, distances = self._find_groups(groups)
        return self._list_documents(docids, neighbours[back], distances[back])

    def _find_groups(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest other groups, shape (N, K or all there are), and their distances; -1 for none."""
        candidates = self._find_candidates(groups)
        candidates = np.where(candidates == groups[:, None], -1, candidates)
        distances = self._measure(groups, candidates)
        ranked = np.where(candidates < 0, len(self._vectors), candidates)  # missing ones last, even if distances overflow
        order = np.lexsort((ranked, distances))[:, : min(self.k, len(self._vectors) - 1)]
        return np.take_along_axis(candidates, order, 1), np.take_along_axis(distances, order, 1)

    def _find_candidates(self, groups: np.ndarray) -> np.ndarray:
        if self._search is None:
            raise RuntimeError("call prepare() first")
        candidates = self._search.search(groups, self._n_candidates)
        if self.builder != "exact":
            # HNSW can miss parts of a collection that are far from the rest.
            few = (candidates >= 0).sum(1) < min(self.k + 1, len(self._vectors))
            if few.any():
                candidates[few] = self._exact_search.search(groups[few], self._n_candidates)
        return candidates

    def _measure(self, groups: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Return the distances of candidates (N, C); infinite for -1."""
        n, c = candidates.shape
        distances = np.empty((n, c), dtype=np.float32)
        step = max(1, _PIECE_BYTES // (4 * self._vectors.size * c))

        def measure(start: int) -> None:
            rows = slice(start, start + step)
            queries = self._vectors.take(groups[rows]).astype(np.float32)  # (n, D)
            differences = self._vectors.take(np.maximum(candidates[rows], 0)).astype(np.float32)  # (n, C, D)
            differences -= queries[:, None]
            distances[rows] = np.sqrt(np.einsum("ncd,ncd->nc", differences, differences))

        # Threads of torch wait for each other after every small step, which is slow on a busy machine.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            deque(threads.map(measure, range(0, n, step)), maxlen=0)
        distances[candidates < 0] = np.inf
        return distances

    def _list_documents(self, docids: np.ndarray, groups: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Replace groups by their documents, without the document itself.

        Args:
            docids: Documents, shape (N,).
            groups: Nearest other groups of each document's group, at most K.
            distances: Distances of these groups.
        """
        vectors, found = self._vectors, groups >= 0
        neighbours = np.full((len(docids), self.k), -1, dtype=np.int64)
        away = np.full((len(docids), self.k), np.inf, dtype=np.float32)
        width = groups.shape[1]
        neighbours[:, :width], away[:, :width] = np.where(found, vectors.docids[groups], -1), distances
        own = vectors.groups[docids]
        copied = (vectors.sizes[own] > 1) | (found & (vectors.sizes[groups] > 1)).any(axis=1)
        for i in np.flatnonzero(copied).tolist():
            members = [vectors.list_members(g, self.k + 1) for g in (own[i], *groups[i][found[i]])]
            ids = np.concatenate(members)
            far = np.repeat(np.append(np.float32(0), distances[i][found[i]]), [len(part) for part in members])
            other = ids != docids[i]
            order = np.lexsort((ids[other], far[other]))[: self.k]
            neighbours[i] = -1
            away[i] = np.inf
            neighbours[i, : len(order)], away[i, : len(order)] = ids[other][order], far[other][order]
        return neighbours, away
