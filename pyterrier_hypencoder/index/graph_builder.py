"""Build the neighbour graph of an index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyterrier as pt

from ..options import check_choice, check_positive
from ..scoring import resolve_device
from .neighbour_graph import NeighbourGraph, _path, find_graph
from .reader import IndexReader, fingerprint_index
from .staging import Staging, staging_path

BUILDERS = ("auto", "exact", "hnsw", "nn_descent")


MOST = 10_000
"""Neighbours that a graph may have."""


_SAMPLE = 1000  # documents on which the recall of an approximate graph is measured


def corpus_graph(
    reader: IndexReader, k: int, *, builder: str = "auto", device: str = "auto", verbose: bool = False
) -> NeighbourGraph:
    """Opens the graph of an index, as :func:`open_graph` does, or builds it; see :func:`build`.

    Args:
        reader: the index.
        k: neighbours of each document.
        builder: ``auto`` opens whatever there is; a name opens what that builder or an exact one has made.
        device: where exact comparisons are made: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda[:n]``.
        verbose: whether to show progress.
    """
    check_options(k, builder)
    return find_graph(reader, k, builder) or build(reader, k, builder=builder, device=device, verbose=verbose)


def check_options(k: Any, builder: str = "auto") -> None:
    """Checks what can be asked of a graph.

    Raises:
        ValueError: for a number of neighbours or a builder that cannot be.
    """
    check_positive("k", k)
    if k > MOST:
        raise ValueError(f"k: expected at most {MOST:,} neighbours, found {k}; use fewer")
    check_choice("builder", builder, BUILDERS)


def build(
    reader: IndexReader,
    k: int,
    *,
    builder: str = "auto",
    device: str = "auto",
    batch_size: int = 4096,
    verbose: bool = False,
) -> NeighbourGraph:
    """Builds ``corpusgraph_k{k}`` in an index directory: the k nearest other documents of each, by L2 distance.

    Nearest first, equal distances by docid. Where there are not k other documents, the document itself fills its row. A
    build that was killed goes on where it was, when begun again with the same options; the graph appears when complete.

    Args:
        reader: the index.
        k: neighbours of each document; the paper has 100 (section 3.6).
        builder: ``exact`` (time grows with the square of the collection), ``hnsw`` or ``nn_descent`` (approximate; slower
            and better candidates, needs all vectors in memory in float32). ``auto`` is exact for up to 200,000 documents,
            or 20 million on a GPU, and ``hnsw`` above. The recall of an approximate graph is measured on up to 1,000
            documents and stored in its ``pt_meta.json``.
        device: where exact comparisons are made: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda[:n]``.
        batch_size: documents whose neighbours are stored together; what a killed build loses at most.
        verbose: whether to show progress, with an estimate of the time left.

    Returns:
        The graph.

    Raises:
        ValueError: for bad options.
        RuntimeError: while another process builds the same graph.
    """
    from .nearest import EXACT_UP_TO, Finder  # loads faiss, which reading a graph does not need

    check_options(k, builder)
    check_positive("batch_size", batch_size)
    where = resolve_device(device)
    if builder == "auto":
        builder = "exact" if reader.doc_count <= EXACT_UP_TO[where.type] else "hnsw"
    path = _path(reader.path, k)
    finder = Finder(reader.vectors, k, builder=builder, device=where, kept=staging_path(path), verbose=verbose)
    facts = {
        "k": k,
        "distance": "l2",
        "builder": finder.builder,
        "options": finder.options,
        "index": fingerprint_index(reader),
    }
    with Staging(path, facts) as staging:
        _fill(staging, finder, reader.doc_count, max(1, min(batch_size, 2**22 // k)), path.name if verbose else None)
        staging.finish({} if finder.builder == "exact" else _recall(staging.edges(), finder.exact()))
    return NeighbourGraph(path, reader)


def _fill(staging: Staging, finder: Any, total: int, step: int, shown: str | None) -> None:
    if staging.count < total:
        finder.prepare()
    with pt.tqdm(total=total, initial=staging.count, desc=shown, unit="doc", disable=shown is None) as progress:
        for start in range(staging.count, total, step):
            docids = np.arange(start, min(start + step, total))
            staging.add(docids, *finder.find(docids))
            progress.update(len(docids))


def _recall(edges: np.ndarray, exact: Any) -> dict[str, Any]:
    """The share of the true neighbours that a graph has, over some of its documents."""
    documents = np.sort(np.random.default_rng(0).choice(len(edges), min(len(edges), _SAMPLE), replace=False))
    found = [row[row >= 0] for row in exact.find(documents)[0]]
    hits = sum(int(np.isin(row, edges[docid]).sum()) for row, docid in zip(found, documents.tolist(), strict=True))
    return {"recall": round(hits / sum(map(len, found)), 4), "recall_documents": len(documents)}
