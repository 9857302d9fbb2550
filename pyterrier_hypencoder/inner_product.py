"""The inner-product index of a large collection: what surrogate search scans where a matrix product takes too long.

An inverted file of FAISS inside the index directory: vectors in cells, in half precision.
"""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt
import torch
from filelock import FileLock
from torch import Tensor

from .storage import Reader, fsync, state_of, write_json

logger = logging.getLogger(__name__)

INDEX_FILE, FACTS_FILE = "inner_product.faiss", "inner_product.json"
_CELLS = 4  # times the square root of the number of documents, as FAISS advises
_TRAINED_ON = 64  # documents a cell
_PROBED = 4  # one cell in so many is looked at
_BLOCK = 65_536


class InnerProductIndex:
    """Maximum inner product over the vectors of an index, approximately; a scan for surrogate search.

    It is built when there is none of the index's present state, which takes about as long as a graph.

    Args:
        reader: the index.
        verbose: whether to show progress of building.
    """

    def __init__(self, reader: Reader, *, verbose: bool = False) -> None:
        import faiss

        self._count = reader.doc_count
        file = reader.path / INDEX_FILE
        if not is_built(reader):
            with FileLock(file.with_name(f".{file.name}.lock")):  # others wait, and find it built
                if not is_built(reader):
                    logger.info("building the inner-product index of %d documents in %s", reader.doc_count, reader.path)
                    (reader.path / FACTS_FILE).unlink(missing_ok=True)
                    _build(reader, file, verbose)
                    write_json(reader.path / FACTS_FILE, state_of(reader))
        self._index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
        if (self._index.ntotal, self._index.d) != (reader.doc_count, reader.vec_size):
            raise ValueError(
                f"expected {reader.doc_count} vectors of {reader.vec_size} in {file}, found {self._index.ntotal} of "
                f"{self._index.d}; remove the file to have it built again"
            )

    def __call__(self, queries: Tensor, k: int, met: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`pyterrier_hypencoder.search.surrogate.Scan`."""
        import faiss

        k = min(k, self._count)
        values, docids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for q, (query, own) in enumerate(zip(queries.float().cpu().numpy(), met.cpu().numpy(), strict=True)):
            wanted = np.packbits(~own, bitorder="little")
            selector = faiss.IDSelectorBitmap(self._count, faiss.swig_ptr(wanted))
            parameters: Any = faiss.SearchParametersIVF(  # type: ignore[call-arg]
                sel=selector, nprobe=max(1, self._index.nlist // _PROBED)
            )
            values[q : q + 1], docids[q : q + 1] = self._index.search(query[None], k, params=parameters)
        values[docids < 0] = -np.inf
        return torch.from_numpy(values).to(queries.device), torch.from_numpy(docids.clip(0)).to(queries.device)


def is_built(reader: Reader) -> bool:
    """Whether the index directory has an inner-product index of its present state."""
    try:
        facts = json.loads((reader.path / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (reader.path / INDEX_FILE).is_file() and facts == state_of(reader)


def _build(reader: Reader, file: Path, verbose: bool) -> None:
    import faiss

    cells = max(1, min(math.ceil(_CELLS * math.sqrt(reader.doc_count)), reader.doc_count // 39 or 1))
    index = faiss.index_factory(reader.vec_size, f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
    number = min(reader.doc_count, _TRAINED_ON * cells)
    sample = np.sort(np.random.default_rng(0).choice(reader.doc_count, number, replace=False))
    index.train(reader.vectors[sample].astype(np.float32))
    with pt.tqdm(total=reader.doc_count, desc=file.name, unit="doc", disable=not verbose) as progress:
        for start in range(0, reader.doc_count, _BLOCK):
            block = reader.vectors[start : start + _BLOCK].astype(np.float32)
            index.add(block)
            progress.update(len(block))
    part = file.with_name(f".{file.name}.part")
    faiss.write_index(index, str(part))
    fsync(part)
    os.replace(part, file)
