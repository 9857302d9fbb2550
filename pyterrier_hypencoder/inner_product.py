"""The inner-product index: what surrogate search asks where a matrix product over all vectors takes longer.

A graph of FAISS (HNSW) over the vectors in the precision in which they are stored, inside the index directory and read as a
memory map. Bytes would take half the memory and a fifth less time, but one vector far from all others would leave them few
values for the rest. It has equal vectors once: many of them would have no neighbours but one another, and a search would not
get past them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt
import torch
from filelock import FileLock
from torch import Tensor

from .neighbours import Distinct
from .storage import Reader, fsync, state_of, write_json

logger = logging.getLogger(__name__)

INDEX_FILE, FACTS_FILE = "inner_product.faiss", "inner_product.json"
_DOCIDS_FILE = "inner_product.docids.npy"  # (N,), of all documents, those of one vector together
_STARTS_FILE = "inner_product.starts.npy"  # (U + 1,), where those of each distinct vector begin there
_FACTORY = "HNSW32"  # neighbours of each vector; twice as many in the lowest layer
_BEAM = 200  # of building; with FAISS's own 40 the same recall takes a third more time of every search
_BLOCK_BYTES = 2**25


class InnerProductIndex:
    """Maximum inner product over the vectors of an index, approximately; a scan for surrogate search.

    It is built when there is none of the index's present state. Building it again gives another one that finds nearly the
    same, as FAISS adds vectors in parallel.

    Args:
        reader: the index.
        verbose: whether to show progress of building.

    Raises:
        ValueError: where its files are damaged or not of this index.
    """

    def __init__(self, reader: Reader, *, verbose: bool = False) -> None:
        import faiss

        self._count = reader.doc_count
        if not is_built(reader):
            with FileLock(reader.path / f".{INDEX_FILE}.lock"):  # others wait, and find it built
                if not is_built(reader):
                    logger.info("building the inner-product index of %d documents in %s", reader.doc_count, reader.path)
                    (reader.path / FACTS_FILE).unlink(missing_ok=True)
                    _build(reader, verbose)
                    write_json(reader.path / FACTS_FILE, _facts_of(reader))
        try:
            self._docids, self._starts = (_array(reader.path / name) for name in (_DOCIDS_FILE, _STARTS_FILE))
            self._index: Any = faiss.read_index(str(reader.path / INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)
            found = f"{len(self._docids)} documents with {len(self._starts) - 1} vectors, and {self._index.ntotal} vectors"
        except (EOFError, OSError, RuntimeError, ValueError) as err:
            raise _damaged(reader, str(err)) from err
        expected = reader.doc_count, self._index.ntotal + 1, reader.vec_size
        if (len(self._docids), len(self._starts), self._index.d) != expected:
            raise _damaged(reader, found)

    def __call__(self, queries: Tensor, k: int, met: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`pyterrier_hypencoder.search.surrogate.Scan`; what was met may be among the best, so more are looked at."""
        import faiss

        k = min(k, self._count)
        width = min(k + int(met.sum(dim=1).max()), self._count)
        parameters: Any = faiss.SearchParametersHNSW(efSearch=width)  # type: ignore[attr-defined]
        found = self._index.search(queries.float().cpu().numpy(), min(width, self._index.ntotal), params=parameters)
        values, docids = np.full((len(queries), width), -np.inf, np.float32), np.zeros((len(queries), width), np.int64)
        for q, (products, rows) in enumerate(zip(*found, strict=True)):
            ids, places = self._documents(rows[rows >= 0], width)
            values[q, : len(ids)], docids[q, : len(ids)] = products[places], ids
        liked, all_docids = (torch.from_numpy(part).to(queries.device) for part in (values, docids))
        best = liked.masked_fill(met.gather(1, all_docids), -torch.inf).topk(k, dim=1)
        return best.values, all_docids.gather(1, best.indices)

    def _documents(self, rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The first documents that have some distinct vectors (n,), and the place of each one's vector among those."""
        sizes = (self._starts[rows + 1] - self._starts[rows]).clip(max=most)
        places = np.repeat(np.arange(len(rows)), sizes)[:most]
        within = np.arange(len(places)) - (sizes.cumsum() - sizes)[places]
        return self._docids[self._starts[rows][places] + within], places


def is_built(reader: Reader) -> bool:
    """Whether the index directory has an inner-product index of its present state."""
    try:
        facts = json.loads((reader.path / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = (reader.path / name for name in (INDEX_FILE, _DOCIDS_FILE, _STARTS_FILE))
    return all(file.is_file() for file in files) and facts == _facts_of(reader)


def _damaged(reader: Reader, found: str) -> ValueError:
    return ValueError(
        f"expected the inner-product index of {reader.doc_count} documents in {reader.path}, found {found}; remove "
        f"{FACTS_FILE} there to have it built again"
    )


def _facts_of(reader: Reader) -> dict[str, Any]:
    return {"factory": _FACTORY} | state_of(reader)


def _array(file: Path) -> np.ndarray:
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def _build(reader: Reader, verbose: bool) -> None:
    import faiss

    distinct = Distinct(reader.vectors)
    kind = "SQfp16" if distinct.dtype == np.float16 else "Flat"
    index: Any = faiss.index_factory(reader.vec_size, f"{_FACTORY},{kind}", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BEAM
    index.is_trained = True  # half precision has nothing to learn
    with pt.tqdm(total=len(distinct), desc=INDEX_FILE, unit="doc", disable=not verbose) as progress:
        for _, tile in distinct.tiles(_BLOCK_BYTES):
            index.add(tile)
            progress.update(len(tile))
    with _put(reader.path / INDEX_FILE) as part:
        faiss.write_index(index, str(part))
    with _put(reader.path / _DOCIDS_FILE) as part, open(part, "wb") as out:
        np.save(out, np.argsort(distinct.of, kind="stable"))
    with _put(reader.path / _STARTS_FILE) as part, open(part, "wb") as out:
        np.save(out, np.concatenate([[0], np.cumsum(distinct.sizes)]))


@contextmanager
def _put(file: Path) -> Iterator[Path]:
    """Where to write a file that then appears under its name, whole."""
    part = file.with_name(f".{file.name}.part")
    yield part
    fsync(part)
    os.replace(part, file)
