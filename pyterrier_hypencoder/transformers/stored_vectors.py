"""The vectors and docnos of an index, as users see them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt
import torch
from torch import Tensor

from ..index.docnos import Docnos
from ..index.inner_product import open_inner_product_index
from ..index.layout import get_graph_path, list_graph_sizes
from ..index.neighbour_graph import NeighbourGraph
from ..index.quantization import ScaledRows
from ..index.reader import IndexReader
from ..index.staging import find_folder
from ..index.writer import is_index
from ..scoring import resolve_device
from ..scoring.rows import as_tensor

_BLOCK = 4096  # documents that are converted together


class StoredVectors:
    """The part of :class:`pyterrier_hypencoder.HypencoderIndex` that reads vectors and docnos."""

    path: Any
    _reader: IndexReader | None = None
    _tensors: tuple[tuple[Any, ...], Tensor] | None = None

    @property
    def reader(self) -> IndexReader:
        """The opened directory. It is opened again when the index has been replaced.

        Raises:
            FileNotFoundError: If the index is not built yet.
        """
        reader = self._reader
        if reader is None or not reader.is_current():
            self._reader = reader = IndexReader(Path(str(self.path)))
        return reader

    def built(self) -> bool:
        """Return True if the index exists. An interrupted build does not count."""
        return is_index(find_folder(Path(str(self.path))))

    def verify(self) -> None:
        """Check all files of the index, its neighbour graphs and its inner-product index against their checksums.

        Opening an index checks the metadata, the docnos and the sizes of all files. Searches check each block of 64 KiB
        when they read it for the first time. This method checks everything, at the speed of the disk: 13 GB in the page
        cache take about two seconds.

        Raises:
            ValueError: If a file is damaged. The message names it.
        """
        reader = self.reader
        reader.vectors.check()
        for size in list_graph_sizes(reader.folder):
            NeighbourGraph(get_graph_path(reader.folder, size), reader).verify()
        open_inner_product_index(reader)

    def __len__(self) -> int:
        return self.reader.doc_count

    @property
    def meta(self) -> dict[str, Any]:
        """A copy of the metadata in ``pt_meta.json``."""
        return dict(self.reader.meta)

    @property
    def vec_size(self) -> int:
        """Dimensions of the document vectors, D."""
        return self.reader.vec_size

    @property
    def vectors(self) -> np.ndarray | ScaledRows:
        """The document vectors, (N, D), as a read-only memory map. Row i is the document with docid i.

        All blocks are checked on first use, which reads the whole file. The vectors of an index with ``dtype="int8"`` become
        float32 when rows are read: ``vectors[docids]`` or ``vectors[start:stop]``.
        """
        return self.reader.vectors.check()

    def np_vecs(self) -> np.ndarray:
        """Return :attr:`vectors` as an array, under the name that pyterrier_dr uses.

        For an index with ``dtype="int8"``, the array is in memory and in float32, four times as large as the file.
        """
        return np.asanyarray(self.vectors)

    def torch_vecs(self, device: str | None = "auto", *, fp16: bool = False) -> Tensor:
        """Return all document vectors as a tensor, which takes the memory of the whole index on the device.

        Args:
            device: ``auto`` or None (a GPU if there is one), ``cpu`` or ``cuda[:n]``.
            fp16: If True, in half precision, else in float32.

        Returns:
            (N, D). Later calls return the same tensor. Do not change it: on a GPU, searches use it too.
        """
        target, reader = resolve_device(device or "auto"), self.reader
        resident = reader.get_vectors(target) if fp16 else None
        if isinstance(resident, Tensor) and resident.dtype == torch.float16:
            return resident
        key = (reader.version, str(target), fp16)
        if self._tensors is None or self._tensors[0] != key:
            dtype = torch.float16 if fp16 else torch.float32
            tensor = torch.empty(reader.vectors.shape, dtype=dtype, device=target)
            for start in range(0, len(tensor), _BLOCK):
                rows = as_tensor(reader.vectors[start : start + _BLOCK])
                tensor[start : start + len(rows)] = rows.to(target)  # converted there, because that moves fewer bytes
            self._tensors = key, tensor
        return self._tensors[1]

    def close(self) -> None:
        """Free the memory that the index takes on GPUs, and the tensor of :meth:`torch_vecs`.

        On a GPU, the first search copies the vectors there, and all retrievers and scorers of the index share them. Without
        this method they stay until the last of these objects is gone. The index can still be used: the next search opens it
        again.
        """
        reader, self._reader, self._tensors = self._reader, None, None
        if reader is not None:
            reader.resident.clear()

    @property
    def docnos(self) -> Docnos:
        """The lookup between docnos and docids; see :class:`pyterrier_hypencoder.index.docnos.Docnos`."""
        return self.reader.docnos

    def get_corpus_iter(
        self, start: int | None = None, stop: int | None = None, *, verbose: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield the documents in the order of their docids.

        Args:
            start: First docid, as in a slice. None starts at 0.
            stop: Docid at which to stop, as in a slice. None stops at the end.
            verbose: If True, show a progress bar.

        Yields:
            Dictionaries with ``docno`` and ``doc_vec`` (D,) float32.
        """
        reader = self.reader
        docids = range(reader.doc_count)[start:stop]
        with pt.tqdm(total=len(docids), desc=str(self.path), unit="doc", disable=not verbose) as progress:
            for first in range(docids.start, docids.stop, _BLOCK):
                block = np.arange(first, min(first + _BLOCK, docids.stop))
                vectors = reader.vectors[block[0] : block[-1] + 1].astype(np.float32)
                for docno, vector in zip(reader.docnos.at(block), vectors, strict=True):
                    yield {"docno": docno, "doc_vec": vector}
                progress.update(len(block))
