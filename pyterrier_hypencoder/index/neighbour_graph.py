"""The neighbour graph of an index: built once, resumable, and opened as a memory map.

It is a graph of pyterrier_adaptive (``corpus_graph`` in format ``np_topk``) inside the index directory, which further says
what index it belongs to.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ..options import check_positive
from .files import META_FILE, read_meta
from .reader import IndexReader, fingerprint_index
from .staging import EDGE, EDGES_FILE, WEIGHT, WEIGHTS_FILE


class NeighbourGraph:
    """The nearest other documents of every document, opened for reading and checked.

    It can be handed to pyterrier_adaptive's ``GAR`` and pyterrier_dr's LADR in place of their own graphs.

    Args:
        path: the graph's directory.
        reader: the index that it belongs to.
        k: neighbours wanted of those that it has; None for all.

    Raises:
        FileNotFoundError: where there is no graph.
        ValueError: where it is damaged, has fewer neighbours, or belongs to another index or an older state of this one.
    """

    def __init__(self, path: Path, reader: IndexReader, k: int | None = None) -> None:
        self.path = path
        self.meta = _checked_meta(path, reader)
        stored: int = self.meta["k"]
        self.k = stored if k is None else k
        check_positive("k", self.k)
        if self.k > stored:
            raise ValueError(f"k: expected at most the {stored} neighbours of {path}, found {k}; build a graph with more")
        self._reader = reader
        shape = (reader.doc_count, stored)
        edges = _mapped(path / EDGES_FILE, EDGE, shape)
        _check_edges(path / EDGES_FILE, edges)
        self.edges_data: np.ndarray = edges[:, : self.k]
        """docids, (N, k) uint32, nearest first; a document with fewer neighbours has itself in their place."""
        self.weights_data: np.ndarray = _mapped(path / WEIGHTS_FILE, WEIGHT, shape)[:, : self.k]
        """Minus the L2 distances, (N, k) float16; 0 for a document in its own list."""

    def __len__(self) -> int:
        return len(self.edges_data)

    def __repr__(self) -> str:
        return f"NeighbourGraph({self.path.name!r}, k={self.k})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NeighbourGraph) and (other.path, other.k) == (self.path, self.k)

    def __hash__(self) -> int:
        return hash(("NeighbourGraph", self.path, self.k))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self._reader.path, self.k)

    def neighbours(self, document: int | str, weights: bool = False) -> Any:
        """The neighbours of one document, nearest first; as pyterrier_adaptive's ``CorpusGraph.neighbours``.

        Args:
            document: a docid, or a docno.
            weights: whether to return the weights as well: minus the distances.

        Returns:
            docids (k,) for a docid, docnos (k,) for a docno; with weights (k,) float16.

        Raises:
            ValueError: for an unknown docno.
            IndexError: for a docid that is none.
        """
        by_docno = isinstance(document, str)
        docid = int(self._reader.docnos.require([document])[0]) if isinstance(document, str) else int(document)
        if not 0 <= docid < len(self):
            raise IndexError(f"expected a docid from 0 to {len(self) - 1}, found {document}")
        found = np.array(self.edges_data[docid])
        found = self._reader.docnos.at(found) if by_docno else found
        return (found, np.array(self.weights_data[docid])) if weights else found


def _reopened(path: Path, index: Path, k: int) -> NeighbourGraph:
    return NeighbourGraph(path, IndexReader(index), k)


def open_graph(reader: IndexReader, k: int) -> NeighbourGraph:
    """Opens the graph of an index: the smallest with enough neighbours, or one that has all there are.

    Args:
        reader: the index.
        k: neighbours wanted; more than a complete graph has give all of them.

    Raises:
        FileNotFoundError: where there is no such graph.
        ValueError: where it is damaged or belongs to another index or an older state of this one.
    """
    check_positive("k", k)
    graph = find_graph(reader, k, "auto")
    if graph is None:
        have = sorted(_sizes(reader.path))
        raise FileNotFoundError(
            f"expected a graph of at least {k} neighbours in {reader.path}, found "
            f"{'only those of ' + ', '.join(map(str, have)) if have else 'none'}; build one with "
            f"index.corpus_graph({k}), or while indexing with HypencoderIndexer(..., graph_k={k})"
        )
    return graph


# Finding and checking


def _path(index: Path, k: int) -> Path:
    return index / f"corpusgraph_k{k}"


def _sizes(index: Path) -> list[int]:
    """The numbers of neighbours that the graphs of an index have, ascending, by their names."""
    names = (re.fullmatch(r"corpusgraph_k([1-9][0-9]*)", path.name) for path in index.iterdir())
    return sorted(int(name[1]) for name in names if name)


def find_graph(reader: IndexReader, k: int, builder: str = "auto") -> NeighbourGraph | None:
    """The smallest graph that has enough neighbours, or all there are, and was made by the builder or an exact one."""
    for size in _sizes(reader.path):
        if size >= min(k, reader.doc_count - 1):
            graph = NeighbourGraph(_path(reader.path, size), reader, min(k, size))
            if builder == "auto" or graph.meta.get("builder") in (builder, "exact"):
                return graph
    return None


def has_graph(reader: IndexReader, k: int) -> bool:
    """Whether the index directory has a graph with enough neighbours, or all there are."""
    return any(size >= min(k, reader.doc_count - 1) for size in _sizes(reader.path))


def _checked_meta(path: Path, reader: IndexReader) -> dict[str, Any]:
    if not path.is_dir():
        raise FileNotFoundError(
            f"expected a graph at {path}, found nothing; build it with HypencoderIndex(path).corpus_graph(k)"
        )
    again = f"remove {path} and build it again with index.corpus_graph(k)"
    if not (path / META_FILE).is_file():
        raise ValueError(f"expected a graph at {path}, found no {META_FILE} there; {again}")
    meta = read_meta(path)
    if (meta.get("type"), meta.get("format")) != ("corpus_graph", "np_topk"):
        raise ValueError(
            f"expected a graph of type corpus_graph and format np_topk at {path}, found {meta.get('type')} and "
            f"{meta.get('format')}; {again}"
        )
    if not isinstance(meta.get("k"), int) or meta["k"] < 1:
        raise ValueError(f"expected k (above 0) in {path / META_FILE}, found {meta.get('k')!r}; {again}")
    state, found = fingerprint_index(reader), meta.get("index")
    if (meta.get("doc_count"), found) != (reader.doc_count, state):
        raise ValueError(
            f"expected the graph {path} to be of this index, {state}, found it to be of {found or 'an unknown one'}: of "
            f"another index, or an older state of this one; {again}"
        )
    return meta


def _mapped(file: Path, dtype: np.dtype[Any], shape: tuple[int, int]) -> np.ndarray:
    expected, found = shape[0] * shape[1] * dtype.itemsize, file.stat().st_size if file.is_file() else None
    if found != expected:
        raise ValueError(
            f"expected {file} to have {expected} bytes ({shape[1]} neighbours of {shape[0]} documents), found "
            f"{'no such file' if found is None else found}; the graph is damaged: remove {file.parent} and build it again"
        )
    return np.memmap(file, dtype=dtype, mode="r", shape=shape)


def _check_edges(file: Path, edges: np.ndarray) -> None:
    """Checks that all neighbours are documents: a second or so for a billion of them, and searches may trust them."""
    step = max(1, 2**24 // edges.shape[1])
    for start in range(0, len(edges), step):
        largest = int(edges[start : start + step].max())
        if largest >= len(edges):
            raise ValueError(
                f"expected docids below {len(edges)} in {file}, found {largest}; the graph is damaged: remove "
                f"{file.parent} and build it again"
            )
