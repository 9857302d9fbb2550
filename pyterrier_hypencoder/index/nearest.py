"""Which documents are nearest to which, by L2 distance: exactly, or approximately for large collections. Arrays only.

All builders end alike: a few candidates more than wanted are measured again in float64, as differences, so that neither the
order nor ties depend on how faiss or a GPU rounds. Equal vectors are searched once, however many documents have them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyterrier as pt
import torch
from torch import Tensor

from ..options import check_choice
from .files import put

BUILDERS = ("exact", "hnsw", "nn_descent")
EXACT_UP_TO = {"cpu": 200_000, "cuda": 20_000_000}
"""Documents up to which ``auto`` compares all pairs; the time grows with their square."""

_TILE_BYTES = 512 * 2**20  # float32 vectors that are compared with at a time
_PIECE_BYTES = 4 * 2**20  # differences in float64: few enough to stay in the cache, which makes them three times faster
_ROUNDING = 2.0**-23  # of float32; twice what rounding to nearest needs, for tensor cores cut off
_FINITE = 1e37  # squares above overflow float32, or nearly


class Finder:
    """Finds the nearest other documents of documents; equal distances by docid.

    Args:
        vectors: (N, D), usually a memory map; float16 or float32, finite.
        k: neighbours wanted.
        builder: ``exact``, ``hnsw`` or ``nn_descent``. A few thousand vectors are always compared exactly: see
            :attr:`builder`.
        device: where exact comparisons are made.
        kept: a folder for what the approximate builders make first; found there, it is used again.
        verbose: whether to show the progress of that.

    Raises:
        ValueError: for an unknown builder.
    """

    def __init__(
        self, vectors: np.ndarray, k: int, *, builder: str, device: torch.device, kept: Path, verbose: bool = False
    ) -> None:
        check_choice("builder", builder, BUILDERS)
        self.k = k
        self.distinct = Distinct(vectors)
        self._device, self._kept, self._verbose = device, kept, verbose
        n = len(self.distinct)
        self._wanted = min(k + 1, n)  # with the document's own vector
        self._candidates = min(n, k + 1 + max(16, k // 4))
        # What the approximate ones find among so few is poor, and no faster.
        self.builder = builder if n > max(1000, 10 * self._candidates) else "exact"

    @property
    def options(self) -> dict[str, int]:
        """What the builder is told."""
        if self.builder == "hnsw":
            return {"M": 32, "efConstruction": 100, "efSearch": 2 * self._candidates}
        return {"K": self._candidates, "L": self._candidates + 50, "iter": 10} if self.builder == "nn_descent" else {}

    @cached_property
    def _source(self) -> Any:
        if self.builder == "exact":
            return _Exact(self.distinct) if self._device.type == "cpu" else _ExactOnGpu(self.distinct, self._device)
        make = _Hnsw if self.builder == "hnsw" else _NNDescent
        return make(self.distinct, self.options, self._kept, self._verbose)

    def prepare(self) -> None:
        """Makes what candidates are looked up in, or finds it in the folder; :meth:`find` does it where this has not."""
        _ = self._source

    def exact(self) -> Finder:
        """One that compares all, over the same vectors."""
        other = copy(self)
        other.builder = "exact"
        other.__dict__.pop("_source", None)
        return other

    def find(self, docids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The neighbours of some documents.

        Args:
            docids: (n,).

        Returns:
            docids (n, k), nearest first, -1 where there are no more documents, and distances (n, k) in float64.
        """
        rows, back = np.unique(self.distinct.of[docids], return_inverse=True)
        groups, distances = self._nearest(rows)
        return self._documents(docids, groups[back.ravel()], distances[back.ravel()])

    def _nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest distinct vectors (n, k + 1 or all), the vector itself first, and their distances."""
        candidates, cut = self._source.candidates(rows, self._candidates)
        candidates = np.column_stack([rows, np.where(candidates == rows[:, None], -1, candidates)])
        groups, distances = self._sorted(candidates, self._measured(rows, candidates))
        groups, distances = groups[:, : self._wanted].copy(), distances[:, : self._wanted].copy()
        # What is no candidate is no nearer than the cut, to the rounding of float32: enough, or look at everything.
        last = distances[:, -1]
        doubtful = np.flatnonzero(~(last**2 + self._slack(rows, last) < cut))
        for some in np.array_split(doubtful, len(doubtful) // 64 + 1):
            for i, candidates in zip(some.tolist(), self._within(rows[some], last[some]), strict=True):
                found = self._sorted(candidates[None], self._measured(rows[i : i + 1], candidates[None]))
                groups[i], distances[i] = found[0][0, : self._wanted], found[1][0, : self._wanted]
        return groups, distances

    def _slack(self, rows: np.ndarray, last: np.ndarray) -> np.ndarray:
        """How wrong the square of a distance up to the last one can be, computed in float32 as |x|² + |y|² - 2xy."""
        vectors = self.distinct.vectors(rows).astype(np.float64)
        reach = 2 * np.linalg.norm(vectors, axis=1) + last  # |x| + |y|
        bound = _ROUNDING * (vectors.shape[1] + 3) * reach**2 + 2.0**-100
        return np.where(reach**2 < _FINITE, bound, np.inf)

    def _within(self, rows: np.ndarray, bounds: np.ndarray) -> list[np.ndarray]:
        """All distinct vectors at most so far from some, and perhaps a few more: |x|² + |y|² - 2xy in float64."""
        x = self.distinct.vectors(rows).astype(np.float64)
        found: list[list[np.ndarray]] = [[np.empty(0, dtype=np.int64)] for _ in rows]
        for start, tile in self.distinct.tiles(_TILE_BYTES // 8):
            y = tile.astype(np.float64)
            squares = np.einsum("nd,nd->n", x, x)[:, None] + np.einsum("nd,nd->n", y, y)
            near = ~(squares - 2 * x @ y.T > bounds[:, None] ** 2 + 1e-11 * squares)
            for ids, row in zip(found, near, strict=True):
                ids.append(start + np.flatnonzero(row))
        return [np.concatenate(ids) for ids in found]

    def _measured(self, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Distances of candidates (n, c) in float64; infinite for -1."""
        n, c = candidates.shape
        distances = np.empty((n, c))
        columns = max(1, min(c, _PIECE_BYTES // (8 * self.distinct.size)))
        step = max(1, _PIECE_BYTES // (8 * self.distinct.size * columns))

        def measure(corner: tuple[int, int]) -> None:
            some = slice(corner[0], corner[0] + step), slice(corner[1], corner[1] + columns)
            x = self.distinct.vectors(rows[some[0]]).astype(np.float64)
            y = self.distinct.vectors(np.maximum(candidates[some], 0)).astype(np.float64)
            y -= x[:, None]
            distances[some] = np.sqrt(np.einsum("ncd,ncd->nc", y, y))

        # Threads of our own: those of torch wait for each other after every small step, which is slow on a busy machine.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            deque(threads.map(measure, product(range(0, n, step), range(0, c, columns))), maxlen=0)
        distances[candidates < 0] = np.inf
        return distances

    @staticmethod
    def _sorted(candidates: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = np.lexsort((candidates, distances))
        return np.take_along_axis(candidates, order, 1), np.take_along_axis(distances, order, 1)

    def _documents(self, docids: np.ndarray, groups: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From distinct vectors to the documents that have them, each document without itself."""
        neighbours = np.full((len(docids), self.k), -1, dtype=np.int64)
        away = np.full((len(docids), self.k), np.inf)
        others = groups.shape[1] - 1
        neighbours[:, :others], away[:, :others] = self.distinct.docids[groups[:, 1:]], distances[:, 1:]
        for i in np.flatnonzero((self.distinct.sizes[groups] > 1).any(axis=1)).tolist():
            # The first k + 1 of each group are enough, for one of them may be the document itself.
            members = [self.distinct.members(group, self.k + 1) for group in groups[i].tolist()]
            ids, far = np.concatenate(members), np.repeat(distances[i], [len(ids) for ids in members])
            ids, far = ids[ids != docids[i]], far[ids != docids[i]]
            order = np.lexsort((ids, far))[: self.k]
            neighbours[i, : len(order)], away[i, : len(order)] = ids[order], far[order]
        return neighbours, away


class Distinct:
    """The different vectors of a collection, in the order in which they first come.

    Args:
        vectors: (N, D).
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = np.asarray(vectors)  # still the memory map, without its class
        self.size: int = vectors.shape[1]
        n = len(vectors)
        hashes = np.concatenate([_hashes(self._vectors[start : start + 4096]) for start in range(0, n, 4096)])
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]) + 1  # positions in order; nearly always equal vectors
        new = np.ones(n, dtype=bool)
        for part in np.array_split(same, len(same) // 4096 + 1):
            new[part] = (self._vectors[order[part]] != self._vectors[order[part - 1]]).any(axis=1)
        first = order[new]  # the lowest docid of each group, groups by hash
        rank = np.argsort(np.argsort(first))  # and by lowest docid
        self.docids = np.sort(first)
        """The lowest docid of each distinct vector, (U,)."""
        self.of = np.empty(n, dtype=np.int64)
        """For each document its distinct vector, (N,)."""
        self.of[order] = rank[np.cumsum(new) - 1]
        self.sizes = np.bincount(self.of)
        """How many documents have each distinct vector, (U,)."""
        self.order = np.argsort(self.of, kind="stable")
        """The docids, those of one distinct vector together, (N,)."""
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        """Where those of each distinct vector begin there, and the end, (U + 1,)."""

    def __len__(self) -> int:
        return len(self.docids)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the vectors as they are stored."""
        return self._vectors.dtype

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Some distinct vectors, (..., D), as they are stored."""
        return self._vectors.take(self.docids[rows], axis=0)

    def members(self, row: int, most: int) -> np.ndarray:
        """The first documents that have a distinct vector."""
        start = self.starts[row]
        return self.order[start : start + min(most, self.sizes[row])]

    def tiles(self, most_bytes: int, dtype: Any = np.float32) -> Iterator[tuple[int, np.ndarray]]:
        """All distinct vectors in pieces: where one begins, and its vectors (n, D); a copy."""
        step = max(1, most_bytes // (self.size * np.dtype(dtype).itemsize))
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            unbroken = self.docids[stop - 1] - self.docids[start] == stop - 1 - start
            piece = slice(self.docids[start], self.docids[start] + stop - start) if unbroken else self.docids[start:stop]
            yield start, np.array(self._vectors[piece], dtype=dtype)


def _hashes(block: np.ndarray) -> np.ndarray:
    """Equal for equal vectors; adding 0 makes them equal for 0 and -0 as well."""
    return np.fromiter((hash(row.tobytes()) for row in block + block.dtype.type(0)), dtype=np.int64, count=len(block))


class _Exact:
    """The nearest of all, by tiles, with faiss."""

    def __init__(self, distinct: Distinct) -> None:
        self._distinct = distinct
        fits = len(distinct) * distinct.size * 4 <= _TILE_BYTES
        self._held = list(distinct.tiles(_TILE_BYTES)) if fits else None

    def candidates(self, rows: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
        """The c nearest of some distinct vectors, (n, c), -1 for none, and the squares below which there are no others."""
        queries = self._distinct.vectors(rows).astype(np.float32)
        squares, ids = self._nearest(queries, c)
        cut = squares.max(axis=1) if c < len(self._distinct) else np.full(len(rows), np.inf)
        return ids, cut.astype(np.float64)

    def _nearest(self, queries: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
        best = _Best(c)
        for start, tile in self._held or self._distinct.tiles(_TILE_BYTES):
            squares, ids = faiss.knn(queries, tile, min(c, len(tile)))
            best.add(torch.from_numpy(squares), torch.from_numpy(np.where(ids < 0, -1, ids + start)))
        return best.squares.numpy(), best.ids.numpy()


class _ExactOnGpu(_Exact):
    """The same with torch; the vectors stay on the GPU where they fill at most half of what is free."""

    _TILE = 65_536  # vectors; with 4,096 queries, squares of 1 GiB

    def __init__(self, distinct: Distinct, device: torch.device) -> None:
        self._distinct, self._device = distinct, device
        needed = len(distinct) * distinct.size * distinct.dtype.itemsize
        fits = needed <= torch.cuda.mem_get_info(device)[0] // 2
        self._on_gpu = list(self._tiles()) if fits else None

    def _tiles(self) -> Iterator[tuple[int, Tensor]]:
        stored = self._distinct.dtype
        for start, tile in self._distinct.tiles(self._TILE * self._distinct.size * stored.itemsize, stored):
            yield start, torch.from_numpy(tile).to(self._device)

    def _nearest(self, queries: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
        best = _Best(c)
        x = torch.from_numpy(queries).to(self._device)
        # TF32 holds float16 without rounding, and sums in float32: the same result, several times faster.
        with torch.inference_mode(), _tf32(self._distinct.dtype == np.float16):
            for start, tile in self._on_gpu or self._tiles():
                y = tile.float()
                squares = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)  # |x|² changes nothing in the order
                found = squares.topk(min(c, len(y)), dim=1, largest=False)
                best.add(found.values, found.indices + start)
            return (best.squares + x.square().sum(1, keepdim=True)).cpu().numpy(), best.ids.cpu().numpy()


class _Best:
    """The c nearest so far, in no order."""

    def __init__(self, c: int) -> None:
        self._c = c
        self.squares = self.ids = torch.empty(0)

    def add(self, squares: Tensor, ids: Tensor) -> None:
        if len(self.ids):
            squares, ids = torch.cat([self.squares, squares], 1), torch.cat([self.ids, ids], 1)
        if squares.shape[1] > self._c:
            squares, kept = squares.topk(self._c, dim=1, largest=False)
            ids = ids.gather(1, kept)
        self.squares, self.ids = squares, ids


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class _Hnsw:
    """Candidates from faiss's HNSW, made once; vectors stored as float16 stay so."""

    def __init__(self, distinct: Distinct, options: dict[str, int], kept: Path, verbose: bool) -> None:
        self._distinct = distinct
        file = kept / "hnsw.faiss"
        if not file.exists():
            part = file.with_suffix(".part")
            faiss.write_index(self._made(options, verbose), str(part))
            put(part, file)
        self._index = faiss.read_index(str(file))

    def _made(self, options: dict[str, int], verbose: bool) -> Any:
        kind = "SQfp16" if self._distinct.dtype == np.float16 else "Flat"
        index: Any = faiss.index_factory(self._distinct.size, f"HNSW{options['M']},{kind}")
        index.is_trained = True  # float16 has nothing to learn
        index.hnsw.efConstruction, index.hnsw.efSearch = options["efConstruction"], options["efSearch"]
        with pt.tqdm(total=len(self._distinct), desc="HNSW", unit="doc", disable=not verbose) as progress:
            for _, tile in self._distinct.tiles(_TILE_BYTES // 16):
                index.add(tile)
                progress.update(len(tile))
        return index

    def candidates(self, rows: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
        queries = self._distinct.vectors(rows).astype(np.float32)
        _, ids = self._index.search(queries, c)
        return ids, np.full(len(rows), np.inf)


class _NNDescent:
    """Candidates from faiss's NN-descent, made once; it needs all vectors in memory, in float32."""

    def __init__(self, distinct: Distinct, options: dict[str, int], kept: Path, verbose: bool) -> None:
        file = kept / "nn_descent.npy"
        if not file.exists():
            with pt.tqdm(total=len(distinct), desc="NN-descent", unit="doc", disable=not verbose) as progress:
                index = faiss.IndexNNDescentFlat(distinct.size, options["K"])
                index.nndescent.L, index.nndescent.iter = options["L"], options["iter"]
                index.add(np.concatenate([tile for _, tile in distinct.tiles(_TILE_BYTES)]))
                progress.update(len(distinct))
            part = file.with_suffix(".part.npy")
            np.save(part, faiss.vector_to_array(index.nndescent.final_graph).reshape(len(distinct), -1))
            put(part, file)
        self._graph = np.load(file, mmap_mode="r", allow_pickle=False)

    def candidates(self, rows: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self._graph[rows], dtype=np.int64), np.full(len(rows), np.inf)
