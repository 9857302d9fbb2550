"""The inner-product index: what surrogate search asks where a matrix product over all vectors takes longer.

A graph of FAISS (HNSW) over the vectors in half precision, inside the index directory and read as a memory map. Bytes would
take half the memory and a fifth less time, but one vector far from all others would leave them few values for the rest.
"""

from __future__ import annotations

import json
import logging
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
_FACTORY = "HNSW32,SQfp16"  # 32 neighbours of each vector, and twice as many in the lowest layer
_BEAM = 200  # of building; with FAISS's own 40 the same recall takes a third more time of every search
_BLOCK = 16_384


class InnerProductIndex:
    """Maximum inner product over the vectors of an index, approximately; a scan for surrogate search.

    It is built when there is none of the index's present state. Building it again gives another one that finds nearly the
    same, as FAISS adds vectors in parallel.

    Args:
        reader: the index.
        verbose: whether to show progress of building.

    Raises:
        ValueError: where the file is not of this index.
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
                    write_json(reader.path / FACTS_FILE, _facts_of(reader))
        self._index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        if (self._index.ntotal, self._index.d) != (reader.doc_count, reader.vec_size):
            raise ValueError(
                f"expected {reader.doc_count} vectors of {reader.vec_size} in {file}, found {self._index.ntotal} of "
                f"{self._index.d}; remove the file to have it built again"
            )

    def __call__(self, queries: Tensor, k: int, met: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`pyterrier_hypencoder.search.surrogate.Scan`; what was met may be among the best, so more are looked at."""
        import faiss

        k = min(k, self._count)
        width = min(k + int(met.sum(dim=1).max()), self._count)
        parameters: Any = faiss.SearchParametersHNSW(efSearch=width)  # type: ignore[call-arg]
        found = self._index.search(queries.float().cpu().numpy(), width, params=parameters)
        values, docids = (torch.from_numpy(part).to(queries.device) for part in found)
        known = met.gather(1, docids.clamp(min=0)) | (docids < 0)
        best = values.masked_fill(known, -torch.inf).topk(k, dim=1)
        return best.values, docids.gather(1, best.indices).clamp(min=0)


def is_built(reader: Reader) -> bool:
    """Whether the index directory has an inner-product index of its present state."""
    try:
        facts = json.loads((reader.path / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (reader.path / INDEX_FILE).is_file() and facts == _facts_of(reader)


def _facts_of(reader: Reader) -> dict[str, Any]:
    return {"factory": _FACTORY} | state_of(reader)


def _build(reader: Reader, file: Path, verbose: bool) -> None:
    import faiss

    index: Any = faiss.index_factory(reader.vec_size, _FACTORY, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BEAM
    index.train(np.zeros((1, reader.vec_size), np.float32))  # half precision has nothing to learn, but FAISS asks for it
    with pt.tqdm(total=reader.doc_count, desc=file.name, unit="doc", disable=not verbose) as progress:
        for start in range(0, reader.doc_count, _BLOCK):
            block = reader.vectors[start : start + _BLOCK].astype(np.float32)
            index.add(block)
            progress.update(len(block))
    part = file.with_name(f".{file.name}.part")
    faiss.write_index(index, str(part))
    fsync(part)
    os.replace(part, file)
