"""The inner-product index: what surrogate search asks where a matrix product over all vectors takes longer.

A graph of FAISS (HNSW) over the vectors in the precision in which they are stored, inside the index directory and mostly read
as a memory map. Bytes would take half the memory and a fifth less time, but one vector far from all others would leave them
few values for the rest. Two things would hide documents from a search: many equal vectors have no neighbours but one another,
so that it has them once; and what all vectors share makes a few of them everybody's neighbours, so that it has the rest, the
vectors less their mean, which leaves the order of inner products as it is.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt
import torch
from filelock import FileLock
from torch import Tensor

from .files import put, write_json
from .nearest import Distinct
from .reader import IndexReader, fingerprint_index

logger = logging.getLogger(__name__)

INDEX_FILE, FACTS_FILE = "inner_product.faiss", "inner_product.json"
_DOCIDS_FILE = "inner_product.docids.npy"  # (N,), of all documents, those of one vector together
_STARTS_FILE = "inner_product.starts.npy"  # (U + 1,), where those of each distinct vector begin there
_MEAN_FILE = "inner_product.mean.npy"  # (D,)
_FILES = (INDEX_FILE, _DOCIDS_FILE, _STARTS_FILE, _MEAN_FILE)
_FACTORY = "HNSW32"  # neighbours of each vector; twice as many in the lowest layer
_BEAM = 200  # of building; with FAISS's own 40 the same recall takes a third more time of every search
_BLOCK_BYTES = 2**25
_WORTH = 32  # a product with so many vectors takes as long as to walk past one, or longer: two cores, 384 dimensions


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

    def __init__(self, reader: IndexReader, *, verbose: bool = False) -> None:
        import faiss

        self._count = reader.doc_count
        if not is_built(reader):
            with FileLock(reader.path / f".{INDEX_FILE}.lock"):  # others wait, and find it built
                if not is_built(reader):
                    logger.info("building the inner-product index of %d documents in %s", reader.doc_count, reader.path)
                    (reader.path / FACTS_FILE).unlink(missing_ok=True)
                    facts = _describe(reader)  # of what is built, whatever replaces it meanwhile
                    _build(reader, verbose)
                    write_json(reader.path / FACTS_FILE, facts)
        try:
            self._docids, self._starts, self._mean = (_array(reader.path / name) for name in _FILES[1:])
            mapped = faiss.IO_FLAG_MMAP_IFC if sys.platform in ("linux", "win32") else 0  # FAISS knows no other
            self._index: Any = faiss.read_index(str(reader.path / INDEX_FILE), mapped)
            found = f"{len(self._docids)} documents with {len(self._starts) - 1} vectors, and {self._index.ntotal} vectors"
        except (EOFError, OSError, RuntimeError, ValueError) as err:
            raise _damaged(reader, str(err)) from err
        expected = reader.doc_count, self._index.ntotal + 1, reader.vec_size, reader.vec_size
        if (len(self._docids), len(self._starts), self._index.d, len(self._mean)) != expected:
            raise _damaged(reader, found)

    def is_worth_it(self, n_queries: int, k: int, met: Tensor) -> bool:
        """Whether asking costs less than a product with all vectors, which queries share; not where much has been met."""
        return _WORTH * n_queries * self._width(k, met) <= self._count

    def _width(self, k: int, met: Tensor) -> int:
        """Documents to look at: what was met may be among the best."""
        return min(k + int(met.sum(dim=1).max()), self._count)

    def __call__(self, queries: Tensor, k: int, met: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`pyterrier_hypencoder.search.surrogate.Scan`."""
        import faiss

        k, width = min(k, self._count), self._width(k, met)
        parameters: Any = faiss.SearchParametersHNSW(efSearch=width)  # type: ignore[attr-defined]
        functions = queries.float().cpu().numpy()
        products, rows = self._index.search(functions, min(width, self._index.ntotal), params=parameters)
        products += functions @ self._mean[:, None]
        values, docids = np.full((len(queries), width), -np.inf, np.float32), np.zeros((len(queries), width), np.int64)
        for q, (own, groups) in enumerate(zip(products, rows, strict=True)):
            ids, places = self._documents(groups[groups >= 0], width)
            values[q, : len(ids)], docids[q, : len(ids)] = own[places], ids
        liked, all_docids = (torch.from_numpy(part).to(queries.device) for part in (values, docids))
        best = liked.masked_fill(met.gather(1, all_docids), -torch.inf).topk(k, dim=1)
        return best.values, all_docids.gather(1, best.indices)

    def _documents(self, rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The first documents that have some distinct vectors (n,), and the place of each one's vector among those."""
        sizes = (self._starts[rows + 1] - self._starts[rows]).clip(max=most)
        places = np.repeat(np.arange(len(rows)), sizes)[:most]
        within = np.arange(len(places)) - (sizes.cumsum() - sizes)[places]
        return self._docids[self._starts[rows][places] + within], places


def is_built(reader: IndexReader) -> bool:
    """Whether the index directory has an inner-product index of its present state."""
    try:
        facts = json.loads((reader.path / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((reader.path / name).is_file() for name in _FILES) and facts == _describe(reader)


def _damaged(reader: IndexReader, found: str) -> ValueError:
    return ValueError(
        f"expected the inner-product index of {reader.doc_count} documents in {reader.path}, found {found}; remove "
        f"{FACTS_FILE} there to have it built again"
    )


def _describe(reader: IndexReader) -> dict[str, Any]:
    return {"factory": f"{_FACTORY}, centred"} | fingerprint_index(reader)


def _array(file: Path) -> np.ndarray:
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def _build(reader: IndexReader, verbose: bool) -> None:
    import faiss

    distinct = Distinct(reader.vectors)
    kind = "SQfp16" if distinct.dtype == np.float16 else "Flat"
    index: Any = faiss.index_factory(reader.vec_size, f"{_FACTORY},{kind}", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BEAM
    index.is_trained = True  # half precision has nothing to learn
    total = np.zeros(reader.vec_size)
    for _, tile in distinct.tiles(_BLOCK_BYTES):
        total += tile.sum(axis=0, dtype=np.float64)
    mean = (total / len(distinct)).astype(np.float32)
    with pt.tqdm(total=len(distinct), desc=INDEX_FILE, unit="doc", disable=not verbose) as progress:
        for _, tile in distinct.tiles(_BLOCK_BYTES):
            index.add(tile - mean)
            progress.update(len(tile))
    with _put(reader.path / INDEX_FILE) as part:
        faiss.write_index(index, str(part))
    for name, array in zip(_FILES[1:], (distinct.order, distinct.starts, mean), strict=True):
        with _put(reader.path / name) as part, open(part, "wb") as out:
            np.save(out, array)


@contextmanager
def _put(file: Path) -> Iterator[Path]:
    """Where to write a file that then appears under its name, whole."""
    part = file.with_name(f".{file.name}.part")
    yield part
    put(part, file)
