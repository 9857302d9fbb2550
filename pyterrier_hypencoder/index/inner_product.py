"""The inner-product index: an HNSW index of faiss, for HNSW search and in place of the products of surrogate search.

It is built only on request, because building takes long: 16 minutes for 1,000,000 vectors of 384 dimensions on two
cores. There, a surrogate search with the bundled model takes 26 ms with it and 75 ms without, at a recall of 0.9995.

The HNSW graph has each distinct vector once, because many copies have only each other as neighbours. The mean is subtracted
from all vectors: a large common part makes a few vectors the neighbours of all, and does not change the order of inner
products. The vectors keep their stored precision, and int8 becomes fp16: with 8 bits in faiss, one outlier would leave few
values for the rest.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt
import torch
from filelock import FileLock
from torch import Tensor

from ..search.allowed import Allowed
from ..search.hnsw import VECTORS_PER_VISIT
from .checksums import TABLE_KEY, check_file, has_checksums, make_table
from .distinct import DistinctVectors
from .files import replace_file, write_json
from .reader import IndexReader, fingerprint_index
from .reading import parse_json

logger = logging.getLogger(__name__)

INDEX_FILE, FACTS_FILE = "inner_product.faiss", "inner_product.json"
_DOCIDS_FILE = "inner_product.docids.npy"  # (N,), docids sorted by distinct vector
_STARTS_FILE = "inner_product.starts.npy"  # (U + 1,), position where the docids of each distinct vector start
_MEAN_FILE = "inner_product.mean.npy"  # (D,)
_FILES = (INDEX_FILE, _DOCIDS_FILE, _STARTS_FILE, _MEAN_FILE)
_FACTORY = "HNSW32"  # 32 neighbours per vector, twice as many in the lowest layer
_EF_CONSTRUCTION = 200  # with 40, the default of faiss, searches take a third longer for the same recall
_MAX_HNSW_BYTES = 2048  # per document, beside its vector; about 280 in fact
_TILE_BYTES = 2**25


class InnerProductIndex:
    """Approximate maximum inner product search over an index, for HNSW search and as a scan of surrogate search.

    Opens the files that :func:`build_inner_product_index` has written, as a memory map on Linux and Windows. Their checksums
    are compared first, which reads them completely.

    Args:
        reader: The index.

    Raises:
        ValueError: If the files are damaged or do not belong to the index.
    """

    def __init__(self, reader: IndexReader) -> None:
        import faiss

        self._doc_count = reader.doc_count
        facts = parse_json(reader.folder / FACTS_FILE)
        try:
            for name in _FILES:  # first: faiss can crash on damaged files
                check_file(reader.folder, name, facts, reader.doc_count * (4 * reader.vec_size + _MAX_HNSW_BYTES) + 2**20)
            self._docids, self._starts, self._mean = (_load_array(reader.folder / name) for name in _FILES[1:])
            flags = faiss.IO_FLAG_MMAP_IFC if sys.platform in ("linux", "win32") else 0  # faiss maps nowhere else
            self._index: Any = faiss.read_index(str(reader.folder / INDEX_FILE), flags)
        except (EOFError, RuntimeError, ValueError) as err:
            raise _make_damage_error(reader, str(err)) from err
        found = len(self._docids), len(self._starts) - 1, self._index.d, len(self._mean)
        if found != (reader.doc_count, self._index.ntotal, reader.vec_size, reader.vec_size):
            problem = f"{found[0]} documents and {found[1]} distinct vectors for {self._index.ntotal} stored vectors"
            raise _make_damage_error(reader, problem)
        self._is_distinct = self._index.ntotal == reader.doc_count  # then the groups are the documents, in their order

    def __repr__(self) -> str:
        return f"InnerProductIndex({self._doc_count:,} documents, {_FACTORY})"

    def is_worth_it(self, n_queries: int, k: int, seen: Tensor, allowed: Allowed | None = None) -> bool:
        """Return True if a search should take less time than a product with all vectors.

        A product is shared by all queries of a batch. A search visits documents per query, and more of them if many were
        seen or are not allowed.

        Args:
            n_queries: Number of queries in the batch.
            k: Number of documents per query.
            seen: Docids to leave out, (Q, n); -1 marks a place without a document.
            allowed: The documents that each query may return; None for all documents.
        """
        return VECTORS_PER_VISIT * n_queries * self._count_visits(k, seen, allowed) <= self._doc_count

    def _count_visits(self, k: int, seen: Tensor, allowed: Allowed | None) -> int:
        """Return the number of documents to look at, because all that are left out may be among the best."""
        left_out = (seen >= 0).sum(dim=1).cpu()
        if allowed is not None:
            left_out += self._doc_count - allowed.count(self._doc_count)
        return min(k + int(left_out.max()), self._doc_count)

    def __call__(self, functions: Tensor, k: int, seen: Tensor, allowed: Allowed | None = None) -> tuple[Tensor, Tensor]:
        """Return the documents with the largest inner products; see :class:`pyterrier_hypencoder.search.scan.Scan`."""
        import faiss

        k, width = min(k, self._doc_count), self._count_visits(k, seen, allowed)
        arrays = functions.float().cpu().numpy()  # (Q, D)
        parameters: Any = faiss.SearchParametersHNSW(efSearch=width)  # type: ignore[attr-defined]
        products, groups = self._index.search(arrays, min(width, self._index.ntotal), params=parameters)
        products += arrays @ self._mean[:, None]
        values = np.full((len(arrays), width), -np.inf, np.float32)
        docids = np.zeros((len(arrays), width), np.int64)
        for q in range(len(arrays)):
            ids, places = self._list_documents(groups[q][groups[q] >= 0], width)
            values[q, : len(ids)], docids[q, : len(ids)] = products[q][places], ids
            values[q, np.isin(docids[q], seen[q].cpu().numpy())] = -np.inf
        all_values, all_docids = (torch.from_numpy(part).to(functions.device) for part in (values, docids))
        if allowed is not None:
            all_values = allowed.apply_to(all_values, all_docids)
        best = all_values.topk(k, dim=1)
        return best.values, all_docids.gather(1, best.indices)

    def find(self, queries: Tensor, k: int, ef_search: int, allowed: np.ndarray | None = None) -> list[np.ndarray]:
        """Return the documents with the largest inner products, for :func:`pyterrier_hypencoder.search.hnsw.hnsw_search`.

        Args:
            queries: Query vectors, (Q, D).
            k: Number of documents per query.
            ef_search: Number of candidates that HNSW keeps. More candidates find more of the best documents.
            allowed: Docids that may be returned, for all queries; None for all documents.

        Returns:
            At most k docids per query.
        """
        import faiss

        options: dict[str, Any] = {"efSearch": max(ef_search, k)}
        limit, is_allowed = k, np.ones(0, dtype=bool)
        if allowed is not None:
            limit, is_allowed = self._doc_count, np.zeros(self._doc_count, dtype=bool)
            is_allowed[allowed] = True
            has_allowed = np.logical_or.reduceat(is_allowed[self._docids], self._starts[:-1])
            bitmap = np.packbits(has_allowed, bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(bitmap)  # type: ignore[arg-type, call-arg]
        parameters: Any = faiss.SearchParametersHNSW(**options)  # type: ignore[attr-defined]
        functions = queries.float().cpu().numpy()
        found = self._index.search(functions, min(k, self._index.ntotal), params=parameters)[1]
        groups = [row[row >= 0] for row in found]
        documents = groups if self._is_distinct else [self._list_documents(row, limit)[0] for row in groups]
        return documents if allowed is None else [docids[is_allowed[docids]][:k] for docids in documents]

    def _list_documents(self, groups: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first documents of some groups of equal vectors (G,), and the place of each one's group."""
        sizes = (self._starts[groups + 1] - self._starts[groups]).clip(max=limit)
        places = np.repeat(np.arange(len(groups)), sizes)[:limit]
        offsets = np.arange(len(places)) - (sizes.cumsum() - sizes)[places]
        return self._docids[self._starts[groups][places] + offsets], places


def open_inner_product_index(reader: IndexReader) -> InnerProductIndex | None:
    """Open the inner-product index; return None if there is none for the present state of the index.

    Args:
        reader: The index.

    Raises:
        ValueError: If its files are damaged.
    """
    return InnerProductIndex(reader) if is_built(reader) else None


def require_inner_product_index(reader: IndexReader) -> InnerProductIndex:
    """Open the inner-product index.

    Args:
        reader: The index.

    Raises:
        FileNotFoundError: If there is none for the present state of the index.
        ValueError: If its files are damaged.
    """
    index = open_inner_product_index(reader)
    if index is None:
        raise FileNotFoundError(
            f"algorithm='hnsw' must have an inner-product index in {reader.path}, got none for the present state of the "
            "index. Build it once with index.inner_product_index()."
        )
    return index


def build_inner_product_index(reader: IndexReader, *, verbose: bool = False) -> InnerProductIndex:
    """Build the inner-product index, or open it if there is one for the present state of the index.

    If another process is building it, wait for it. Building it again gives slightly different results, because faiss adds
    vectors in parallel.

    Args:
        reader: The index.
        verbose: If True, show progress.

    Returns:
        The opened inner-product index.

    Raises:
        ValueError: If its files are damaged.
    """
    if not is_built(reader):
        with FileLock(reader.folder / f".{INDEX_FILE}.lock"):
            if not is_built(reader):
                _build(reader, verbose)
    return InnerProductIndex(reader)


def is_built(reader: IndexReader) -> bool:
    """Return True if there is an inner-product index for the present state of the index."""
    try:
        facts = parse_json(reader.folder / FACTS_FILE)
    except (OSError, ValueError):
        return False
    return has_checksums(facts) and {key: facts[key] for key in facts if key != TABLE_KEY} == _describe(reader)


def _describe(reader: IndexReader) -> dict[str, Any]:
    return {"factory": f"{_FACTORY}, centred"} | fingerprint_index(reader)


def _make_damage_error(reader: IndexReader, problem: str) -> ValueError:
    return ValueError(
        f"Inner-product index of {reader.doc_count} documents in {reader.path} is damaged: {problem}. Delete {FACTS_FILE} "
        "there and build it again with index.inner_product_index()."
    )


def _load_array(file: Path) -> np.ndarray:
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def _build(reader: IndexReader, verbose: bool) -> None:
    """Write all files; the facts come last, so an interrupted build counts as none."""
    logger.info("building the inner-product index of %d documents in %s", reader.doc_count, reader.path)
    (reader.folder / FACTS_FILE).unlink(missing_ok=True)
    facts = _describe(reader)  # first: the index may be replaced while this builds
    _write_files(reader, verbose)
    write_json(reader.folder / FACTS_FILE, facts | {TABLE_KEY: make_table(reader.folder, _FILES)})


def _write_files(reader: IndexReader, verbose: bool) -> None:
    import faiss

    vectors = DistinctVectors(reader.vectors.check())
    mean = _compute_mean(vectors)
    index: Any = faiss.index_factory(vectors.size, f"{_FACTORY},{vectors.faiss_storage}", faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _EF_CONSTRUCTION
    index.is_trained = True  # SQfp16 has no parameters to train
    with pt.tqdm(total=len(vectors), desc=INDEX_FILE, unit="doc", disable=not verbose) as progress:
        for _, tile in vectors.iter_tiles(_TILE_BYTES):
            index.add(tile - mean)
            progress.update(len(tile))
    with replace_file(reader.folder / INDEX_FILE) as part:  # names the file if the disk is full, which faiss does not
        faiss.write_index(index, str(part))
    for name, array in zip(_FILES[1:], (vectors.order, vectors.starts, mean), strict=True):
        with replace_file(reader.folder / name) as part, open(part, "wb") as out:
            np.save(out, array)


def _compute_mean(vectors: DistinctVectors) -> np.ndarray:
    """Return the mean of the distinct vectors, (D,) float32."""
    total = np.zeros(vectors.size)
    for _, tile in vectors.iter_tiles(_TILE_BYTES):
        total += tile.sum(axis=0, dtype=np.float64)
    return (total / len(vectors)).astype(np.float32)
