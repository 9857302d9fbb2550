"""Building the neighbour graph of an index."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyterrier as pt
import torch

from ..options import check_choice, check_positive
from ..scoring import resolve_device
from .distinct import DistinctVectors
from .files import fsync
from .layout import DOCNOS_FILE, EDGE_DTYPE, EDGES_FILE, WEIGHT_DTYPE, WEIGHTS_FILE, get_graph_path
from .nearest import NeighbourFinder
from .neighbour_graph import NeighbourGraph, find_graph
from .reader import IndexReader, fingerprint_index
from .staging import NEW, StagedDirectory, discard_leftovers

logger = logging.getLogger(__name__)


class Finder(Protocol):
    """Finds the nearest neighbours of documents; see :class:`~pyterrier_hypencoder.index.nearest.NeighbourFinder`."""

    k: int
    builder: str

    @property
    def options(self) -> dict[str, int]:
        """Parameters of the builder."""
        ...

    def prepare(self, folder: Path, *, verbose: bool = False) -> None:
        """Build what the search needs."""
        ...

    def find(self, docids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbours of documents (n,) and their distances, both (n, K); -1 for no neighbour."""
        ...


BUILDERS = ("auto", "exact", "hnsw", "nn_descent")
MAX_NEIGHBOURS = 10_000
_RECALL_DOCUMENTS = 1000
_LARGEST_WEIGHT = float(np.finfo(WEIGHT_DTYPE).max)


def open_or_build_graph(
    reader: IndexReader, k: int, *, builder: str = "auto", device: str = "auto", verbose: bool = False
) -> NeighbourGraph:
    """Open a neighbour graph with at least k neighbours per document, or build it.

    Args:
        reader: The index.
        k: Number of neighbours per document.
        builder: ``auto`` opens any graph. Another name opens only graphs of that builder or of ``exact``.
        device: Device of exact comparisons: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``.
        verbose: If True, show progress.

    Returns:
        The graph, limited to k neighbours.

    Raises:
        ValueError: If an option is invalid, or the graph is damaged or belongs to another index.
        FileExistsError: If another process or thread is building the same graph.
    """
    check_graph_options(k, builder)
    graph = find_graph(reader, k, builder)
    if graph is None:
        return build_graph(reader, k, builder=builder, device=device, verbose=verbose)
    discard_leftovers(graph.path)
    return graph


def check_graph_options(k: Any, builder: str = "auto") -> None:
    """Check the options of a neighbour graph.

    Raises:
        ValueError: If the number of neighbours or the builder is invalid.
    """
    check_positive("k", k)
    if k > MAX_NEIGHBOURS:
        raise ValueError(f"k must be at most {MAX_NEIGHBOURS:,} neighbours, got {k}.")
    check_choice("builder", builder, BUILDERS)


def build_graph(
    reader: IndexReader,
    k: int,
    *,
    builder: str = "auto",
    device: str = "auto",
    batch_size: int = 4096,
    verbose: bool = False,
) -> NeighbourGraph:
    """Build the neighbour graph ``corpusgraph_k{k}`` in an index directory.

    The graph has the k nearest other documents of each document by L2 distance, nearest first, with ties by docid. If there
    are fewer than k other documents, the document itself fills its row. A killed build continues when it is started again
    with the same options. The graph appears when it is complete.

    Args:
        reader: The index.
        k: Number of neighbours per document; the paper uses 100 (section 3.6).
        builder: ``exact`` compares all pairs, so its time grows with the square of the collection. ``hnsw`` and
            ``nn_descent`` are approximate; ``nn_descent`` is slower and needs all vectors in memory in float32. ``auto`` is
            ``exact`` for up to 200,000 documents (20 million on a GPU), else ``hnsw``. The recall of an approximate graph on
            1,000 documents is stored in its ``pt_meta.json``.
        device: Device of exact comparisons: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``.
        batch_size: Number of documents per stored batch; a killed build loses at most one batch.
        verbose: If True, show progress and the remaining time.

    Returns:
        The graph.

    Raises:
        ValueError: If an option is invalid.
        FileExistsError: If another process or thread is building the same graph.
    """
    check_graph_options(k, builder)
    check_positive("batch_size", batch_size)
    torch_device = resolve_device(device)
    vectors = DistinctVectors(reader.vectors.check())
    finder = NeighbourFinder(vectors, k, builder=builder, device=torch_device)

    def measure(staged: StagedDirectory) -> dict[str, Any]:
        return {} if finder.builder == "exact" else _measure_recall(staged, vectors, k, torch_device)

    return write_graph(reader, finder, measure, batch_size=batch_size, verbose=verbose)


def write_graph(
    reader: IndexReader,
    finder: Finder,
    measure: Callable[[StagedDirectory], dict[str, Any]],
    *,
    batch_size: int,
    verbose: bool = False,
) -> NeighbourGraph:
    """Write the neighbours that a finder finds as a graph of an index.

    Args:
        reader: The index.
        finder: Finds the neighbours.
        measure: Returns further entries of the graph's metadata, from the complete rows.
        batch_size: Number of documents per stored batch.
        verbose: If True, show progress.

    Returns:
        The graph.

    Raises:
        FileExistsError: If another process or thread is building the same graph.
    """
    facts = {
        "k": finder.k,
        "distance": "l2",
        "builder": finder.builder,
        "options": finder.options,
        "index": fingerprint_index(reader),
    }
    path = get_graph_path(reader.folder, finder.k)
    staged = _open_staged(path, facts)
    try:
        if staged.count < reader.doc_count:
            finder.prepare(staged.folder, verbose=verbose)
        _append_rows(staged, finder, reader.doc_count, max(1, min(batch_size, 2**22 // finder.k)), verbose)
        _finish(staged, measure(staged))
    except BaseException:
        staged.abandon()
        raise
    return NeighbourGraph(path, reader)


def _open_staged(path: Path, facts: dict[str, Any]) -> StagedDirectory:
    """Continue an interrupted build with the same facts, or start a new one."""
    files = (f"{NEW}/{EDGES_FILE}", f"{NEW}/{WEIGHTS_FILE}")
    try:
        return StagedDirectory(path, facts=facts, files=files)
    except ValueError as err:
        logger.info("Building %s from the start: %s", path, err)
        return StagedDirectory(path, facts=facts, files=files, resume=False)


def _append_rows(staged: StagedDirectory, finder: Finder, total: int, step: int, verbose: bool) -> None:
    """Find and store the neighbours of all documents that are not stored yet."""
    name = staged.path.name
    with pt.tqdm(total=total, initial=staged.count, desc=name, unit="doc", disable=not verbose) as progress:
        for start in range(staged.count, total, step):
            docids = np.arange(start, min(start + step, total))
            edges, weights = _encode_rows(docids, *finder.find(docids))
            staged.append(len(docids), {f"{NEW}/{EDGES_FILE}": edges, f"{NEW}/{WEIGHTS_FILE}": weights})
            progress.update(len(docids))


def _encode_rows(docids: np.ndarray, neighbours: np.ndarray, distances: np.ndarray) -> tuple[bytes, bytes]:
    """Return the bytes of edges and weights; the document itself, with weight 0, replaces missing neighbours."""
    missing = neighbours < 0
    edges = np.where(missing, docids[:, None], neighbours)
    weights = np.where(missing, 0, 0 - np.minimum(distances, _LARGEST_WEIGHT))  # 0 - x, because -x would store -0.0
    return edges.astype(EDGE_DTYPE).tobytes(), weights.astype(WEIGHT_DTYPE).tobytes()


def _measure_recall(staged: StagedDirectory, vectors: DistinctVectors, k: int, device: torch.device) -> dict[str, Any]:
    """Compare a sample of the stored rows with the exact neighbours."""
    edges = np.memmap(staged.new / EDGES_FILE, dtype=EDGE_DTYPE, mode="r", shape=(staged.count, k))
    sample = np.sort(np.random.default_rng(0).choice(len(edges), min(len(edges), _RECALL_DOCUMENTS), replace=False))
    exact = NeighbourFinder(vectors, k, builder="exact", device=device)
    exact.prepare(staged.folder)
    true = [row[row >= 0] for row in exact.find(sample)[0]]
    hits = sum(int(np.isin(row, edges[docid]).sum()) for row, docid in zip(true, sample.tolist(), strict=True))
    return {"recall": round(hits / sum(map(len, true)), 4), "recall_documents": len(sample)}


def _finish(staged: StagedDirectory, recall: dict[str, Any]) -> None:
    """Add the docnos and the metadata, and put the graph in place."""
    _link_docnos(staged.new / DOCNOS_FILE, staged.path.parent / DOCNOS_FILE)
    meta = {
        "type": "corpus_graph",
        "format": "np_topk",
        "package_hint": "pyterrier-adaptive",
        "doc_count": staged.count,
        **staged.facts,
        **recall,
    }
    staged.finish(meta, checked_rows=[EDGES_FILE, WEIGHTS_FILE])


def _link_docnos(link: Path, target: Path) -> None:
    """Make a relative link from a graph to the docnos of its index, or a copy if links are not supported."""
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(Path("..") / target.name)
    except OSError:
        shutil.copyfile(target, link)
        fsync(link)
