"""The neighbour graph of an index: opening and checking.

The graph is a directory inside the index directory, in the format of pyterrier_adaptive (``corpus_graph``, ``np_topk``). Its
metadata also contain the fingerprint of the index that it belongs to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..options import check_positive
from ..scoring.rows import Rows
from . import checksums
from .checksums import CheckedRows, check_file, check_meta, has_checksums, map_checked_rows
from .docnos import get_max_file_size
from .files import read_file_version, read_meta
from .layout import (
    DOCNOS_FILE,
    EDGE_DTYPE,
    EDGES_FILE,
    META_FILE,
    WEIGHT_DTYPE,
    WEIGHTS_FILE,
    get_graph_path,
    list_graph_sizes,
)
from .reader import IndexReader, fingerprint_index

DEFAULT_NEIGHBOURS = 100
"""Neighbours per document that the paper uses (section 3.6)."""


class NeighbourGraph:
    """Nearest other documents of every document, opened and checked.

    It can replace the graphs of pyterrier_adaptive's ``GAR`` and pyterrier_dr's LADR.

    Args:
        path: Directory of the graph.
        reader: Index that the graph belongs to.
        k: Number of neighbours per document to use; None for all that are stored.

    Raises:
        FileNotFoundError: If there is no graph.
        ValueError: If the graph is damaged, has fewer neighbours, or belongs to another index or an older state of it.

    Example:
        >>> from pyterrier_hypencoder import HypencoderIndex
        >>> graph = HypencoderIndex.example().corpus_graph(2)
        >>> graph.edges_data.shape
        (3, 2)
        >>> sorted(graph.neighbours("d1").tolist())
        ['d2', 'd3']
    """

    def __init__(self, path: Path, reader: IndexReader, k: int | None = None) -> None:
        self.path = path
        self.meta = _read_checked_meta(path, reader)
        """Content of ``pt_meta.json``."""
        stored: int = self.meta["k"]
        self.k = stored if k is None else k
        check_positive("k", self.k)
        if self.k > stored:
            raise ValueError(f"k must be at most {stored}, the number of neighbours in {path}, got {k}. Build a larger graph.")
        self._reader = reader
        shape = (reader.doc_count, stored)
        self.edges = self._map_edges(self.k)
        """Docids, (N, K), uint32, nearest first. A document with fewer neighbours has itself in their place."""
        self.weights = map_checked_rows(path, WEIGHTS_FILE, self.meta, shape, WEIGHT_DTYPE, self.k)
        """Negative L2 distances, (N, K), float16; 0 for a document in its own list."""

    def get_edges(self, device: torch.device) -> Rows:
        """Return the docids for a search on a device, (N, K).

        On a GPU they are copied on first use and stay there, if they fit into its free memory beside the vectors. They are
        then int32, because torch cannot index with uint32. Without a GPU, they are :attr:`edges`.

        Args:
            device: Device that searches.
        """
        if device.type != "cuda":
            return self.edges
        # All neighbours are copied, so that graphs with different limits share the copy.
        found = self._reader.resident.get(str(self.path), self._map_edges(), device, read_file_version(self.path))
        if not isinstance(found, Tensor):
            return self.edges
        return found if found.shape[1] == self.k else found[:, : self.k]

    def _map_edges(self, k: int | None = None) -> CheckedRows:
        shape = (self._reader.doc_count, self.meta["k"])
        edges = map_checked_rows(self.path, EDGES_FILE, self.meta, shape, EDGE_DTYPE, k)
        return edges if has_checksums(self.meta) else _UnsummedEdges(edges)

    @property
    def edges_data(self) -> np.ndarray:
        """The docids as a memory map, for pyterrier_adaptive and pyterrier_dr. All of it is checked on first use."""
        return self.edges.check()

    @property
    def weights_data(self) -> np.ndarray:
        """The negative distances as a memory map. All of it is checked on first use."""
        return self.weights.check()

    def verify(self) -> None:
        """Check the files of the graph completely.

        Raises:
            ValueError: If a file is damaged.
        """
        self.edges.check()
        self.weights.check()
        # A link to the file of the index, for pyterrier_adaptive.
        check_file(self.path, DOCNOS_FILE, self._reader.meta, get_max_file_size(len(self)))

    def __len__(self) -> int:
        return len(self.edges)

    def __repr__(self) -> str:
        return f"NeighbourGraph({self.path.name!r}, k={self.k})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NeighbourGraph) and (other.path, other.k) == (self.path, self.k)

    def __hash__(self) -> int:
        return hash(("NeighbourGraph", self.path, self.k))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._reader.path, self.k)

    def to_limit_k(self, k: int) -> NeighbourGraph:
        """Return the same graph with fewer neighbours per document, like ``CorpusGraph.to_limit_k`` of pyterrier_adaptive.

        Args:
            k: Number of neighbours, at most :attr:`k`.

        Raises:
            ValueError: If the graph has fewer neighbours.
        """
        check_positive("k", k)
        if k > self.k:
            raise ValueError(f"k must be at most {self.k}, the neighbours of this graph, got {k}. Build a larger graph.")
        return NeighbourGraph(self.path, self._reader, k)

    def neighbours(self, document: int | str, weights: bool = False) -> Any:
        """Return the neighbours of one document, nearest first, like ``CorpusGraph.neighbours`` of pyterrier_adaptive.

        Args:
            document: A docid (int) or a docno (str).
            weights: If True, return the weights too.

        Returns:
            Docids for a docid or docnos for a docno, shape (K,). With ``weights``, also the negative distances, shape (K,).

        Raises:
            ValueError: If the docno is unknown.
            IndexError: If the docid is out of range.
        """
        by_docno = isinstance(document, str)
        docid = int(self._reader.docnos.require([document])[0]) if isinstance(document, str) else int(document)
        if not 0 <= docid < len(self):
            raise IndexError(f"document must be a docid from 0 to {len(self) - 1}, got {document}.")
        found = np.array(self.edges[docid])
        found = self._reader.docnos.at(found) if by_docno else found
        return (found, np.array(self.weights[docid])) if weights else found


def _reopen(path: Path, index: Path, k: int) -> NeighbourGraph:
    return NeighbourGraph(path, IndexReader(index), k)


def open_graph(reader: IndexReader, k: int | None) -> NeighbourGraph:
    """Open the smallest graph of an index that has at least k neighbours per document.

    Args:
        reader: The index.
        k: Number of neighbours. If it is larger than the number of other documents, the graph of all of them is opened.
            None is 100, as in the paper, or the number of neighbours of the largest graph if that has fewer.

    Returns:
        The graph, limited to k neighbours.

    Raises:
        FileNotFoundError: If there is no such graph.
        ValueError: If the graph is damaged, or belongs to another index or an older state of it.
    """
    sizes = list_graph_sizes(reader.folder)
    k = min([DEFAULT_NEIGHBOURS, *sizes[-1:]]) if k is None else k
    check_positive("k", k)
    graph = find_graph(reader, k)
    if graph is None:
        found = f"only graphs with {', '.join(map(str, sizes))}" if sizes else "no graph"
        raise FileNotFoundError(
            f"{reader.path} must have a graph with at least {k} neighbours, got {found}. Build one with "
            f"index.corpus_graph({k}), or while indexing with HypencoderIndexer(..., graph_k={k})."
        )
    return graph


def find_graph(reader: IndexReader, k: int, builder: str = "auto") -> NeighbourGraph | None:
    """Open the smallest graph with at least k neighbours; return None if there is none.

    Args:
        reader: The index.
        k: Number of neighbours.
        builder: ``auto`` for any graph. Another name requires a graph of that builder or of ``exact``.
    """
    for size in list_graph_sizes(reader.folder):
        if size >= min(k, reader.doc_count - 1):
            graph = NeighbourGraph(get_graph_path(reader.folder, size), reader, min(k, size))
            if builder == "auto" or graph.meta.get("builder") in (builder, "exact"):
                return graph
    return None


def has_graph(reader: IndexReader, k: int | None) -> bool:
    """Return True if the index has a graph with at least k neighbours, without opening it. None stands for any graph."""
    return any(k is None or size >= min(k, reader.doc_count - 1) for size in list_graph_sizes(reader.folder))


def _read_checked_meta(path: Path, reader: IndexReader) -> dict[str, Any]:
    if not path.is_dir():
        raise FileNotFoundError(f"There is no graph at {path}. Build it with HypencoderIndex(path).corpus_graph(k).")
    rebuild = f"Delete {path} and build it again with index.corpus_graph(k)."
    if not (path / META_FILE).is_file():
        raise ValueError(f"Graph at {path} is damaged: it has no {META_FILE}. {rebuild}")
    meta = read_meta(path)
    if (meta.get("type"), meta.get("format")) != ("corpus_graph", "np_topk"):
        raise ValueError(
            f"Graph at {path} must have type corpus_graph and format np_topk, got {meta.get('type')} and "
            f"{meta.get('format')}. {rebuild}"
        )
    check_meta(path / META_FILE, meta)
    if not isinstance(meta.get("k"), int) or meta["k"] < 1:
        raise ValueError(f"k in {path / META_FILE} must be a positive integer, got {meta.get('k')!r}. {rebuild}")
    expected, found = fingerprint_index(reader), meta.get("index")
    if (meta.get("doc_count"), found) != (reader.doc_count, expected):
        raise ValueError(
            f"Graph at {path} belongs to another index or an older state of this one: it was built for "
            f"{found or 'an unknown index'}, this index is {expected}. {rebuild}"
        )
    return meta


class _UnsummedEdges(CheckedRows):
    """Edges of a graph of an earlier version, which has no checksums: all neighbours that are read must be docids.

    Args:
        edges: The memory-mapped edges.
    """

    def __init__(self, edges: CheckedRows) -> None:
        self.__dict__.update(edges.__dict__)
        self._is_whole = False

    def __getitem__(self, rows: checksums.Rows) -> np.ndarray:
        found = self.map[rows]
        if not self._is_whole:
            self._check(found)
        return found

    def check(self) -> np.ndarray:
        """Check all edges, and return the memory map."""
        step = max(1, 2**24 // self.shape[1])
        for start in range(0, 0 if self._is_whole else len(self), step):
            self._check(self.map[start : start + step])
        self._is_whole = True
        return self.map

    def _check(self, edges: np.ndarray) -> None:
        largest = int(edges.max(initial=0))
        if largest >= len(self):
            folder = self._file.parent
            raise ValueError(
                f"Graph at {folder} is damaged: {self._file.name} contains docid {largest}, expected docids below "
                f"{len(self)}. Delete {folder} and build it again."
            )
