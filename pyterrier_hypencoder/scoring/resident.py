"""Rows on a GPU: copied there once and shared, or streamed block by block if they do not fit.

Vectors of millions of documents take gigabytes, so they must not travel to the GPU for every batch of queries.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from .rows import RowArray, Rows, as_tensor, take_rows

logger = logging.getLogger(__name__)

RESERVE_BYTES = 4 * 2**30
"""Memory of a GPU that resident rows leave free, for the activations of q-nets and for other programs."""

_LOADED_BYTES = 2**28  # rows that are copied at a time


@runtime_checkable
class QuantizedRows(Protocol):
    """Rows that are stored as integers, with the values ``levels * scales[0] + scales[1]``.

    See :class:`pyterrier_hypencoder.index.quantization.ScaledRows`.
    """

    levels: RowArray
    scales: np.ndarray


def iter_blocks(vectors: Rows, step: int, device: torch.device, docids: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield rows in order, block by block, on the device that uses them.

    - On the CPU, blocks share the memory of the rows. Blocks of some docids are copies.
    - On a GPU, blocks of a resident tensor share its memory, and nothing waits for the GPU.
    - Other rows are streamed to a GPU: a block is read and copied while the GPU still works on the one before it. Two blocks
      are in pinned memory, and at most two are on the GPU unless the caller keeps more. The values of int8 rows are computed
      there in float32.

    Args:
        vectors: The rows, (N, D).
        step: Number of rows per block.
        device: Device that uses the blocks.
        docids: Ascending docids to yield, (n,), on any device; None for all rows.

    Yields:
        The position of the first row of a block among all rows, or among ``docids``, and the rows in their stored dtype.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0], [2.0], [3.0]])
        >>> [(start, block.flatten().tolist()) for start, block in iter_blocks(rows, 2, torch.device("cpu"))]
        [(0, [1.0, 2.0]), (2, [3.0])]
    """
    total = len(vectors) if docids is None else len(docids)
    is_resident = isinstance(vectors, Tensor) and vectors.device.type == device.type
    if docids is not None:
        docids = docids.to(vectors.device if isinstance(vectors, Tensor) else "cpu")
    if device.type == "cuda" and not is_resident and total:
        yield from _stream(vectors, min(step, total), total, device, docids)
        return
    for start in range(0, total, step):
        yield start, _read(vectors, start, min(start + step, total), docids).to(device)


def _stream(vectors: Rows, step: int, total: int, device: torch.device, docids: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks that are copied by a stream of their own, through two pinned buffers."""
    source = vectors.levels if isinstance(vectors, QuantizedRows) else vectors
    scales = as_tensor(vectors.scales).to(device) if isinstance(vectors, QuantizedRows) else None
    copying, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    like = _read(source, 0, 1, docids)
    shape = (step, like.shape[1])
    buffers = [torch.empty(shape, dtype=like.dtype, device="cpu", pin_memory=True) for _ in range(2)]
    is_done = [torch.cuda.Event() for _ in range(2)]
    for number, start in enumerate(range(0, total, step)):
        buffer, event = buffers[number % 2], is_done[number % 2]
        event.synchronize()  # the GPU is done with the last block of this buffer
        rows = _read(source, start, min(start + step, total), docids)
        pinned = buffer[: len(rows)].copy_(rows)
        with torch.cuda.stream(copying):
            block = pinned.to(device, non_blocking=True)
        computing.wait_stream(copying)
        block.record_stream(computing)
        yield start, block if scales is None else block.float().mul_(scales[0]).add_(scales[1])
        event.record(computing)


def _read(rows: Rows, start: int, stop: int, docids: Tensor | None) -> Tensor:
    """Return rows by position, or those of the docids at these positions."""
    if docids is not None:
        return take_rows(rows, docids[start:stop])
    block = as_tensor(rows[start:stop])
    return block.view(torch.int32) if block.dtype == torch.uint32 else block  # torch cannot index with uint32


def load_resident(vectors: Rows, device: torch.device) -> Tensor | None:
    """Copy all rows to a GPU, if they fit into its free memory beside :data:`RESERVE_BYTES`.

    Args:
        vectors: The rows, (N, D). Rows on disk are checked as they are read.
        device: The GPU.

    Returns:
        The rows in their stored dtype, but int8 vectors as float32, which keeps the ranking, and uint32 as int32. None if
        they do not fit, or if the device is no GPU of CUDA.
    """
    if device.type != "cuda":
        return None
    if isinstance(vectors, Tensor) and vectors.device.type == "cuda":
        return vectors
    dtype = torch.float32 if isinstance(vectors, QuantizedRows) else _read(vectors, 0, 1, None).dtype
    row_bytes = math.prod(vectors.shape[1:]) * dtype.itemsize
    if len(vectors) * row_bytes + RESERVE_BYTES > _count_free_bytes(device):
        return None
    try:
        with torch.inference_mode(False), torch.no_grad():  # so that searches with and without gradients can share the rows
            resident = torch.empty(vectors.shape, dtype=dtype, device=device)
            for start, block in iter_blocks(vectors, max(1, _LOADED_BYTES // row_bytes), device):
                resident[start : start + len(block)] = block
            return resident
    except torch.cuda.OutOfMemoryError:  # another program was faster
        return None


def _count_free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU, including the memory that torch has cached."""
    number = _get_number(device)
    unused = torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)
    return torch.cuda.mem_get_info(number)[0] + unused


def _get_number(device: torch.device) -> int:
    """Return the number of a GPU; ``cuda`` without a number is the current one."""
    return torch.cuda.current_device() if device.index is None else device.index


class ResidentRows:
    """The arrays of one state of an index on GPUs, which all its readers in this process share.

    Args:
        path: Directory of the index.
        version: Value that changes if the index is replaced.
    """

    def __init__(self, path: Path, version: Hashable) -> None:
        self.path, self.version = path, version
        self._copies: dict[tuple[str, int], tuple[Hashable, Tensor]] = {}
        self._loading = threading.Lock()
        self._has_warned = False

    def get(self, name: str, rows: Rows, device: torch.device, version: Hashable = None) -> Rows:
        """Return the copy of an array on a GPU, which is made on first use; the array itself if there cannot be one.

        Args:
            name: Name of the array.
            rows: The array on disk, (N, D).
            device: Device on which it is used.
            version: Changes if the array is replaced, which frees the copy.
        """
        if device.type != "cuda":
            return rows
        key = name, _get_number(device)
        with self._loading:  # threads wait instead of copying it again
            known = self._copies.get(key)
            if known is not None and known[0] == version:
                return known[1]
            self._copies.pop(key, None)
            found = load_resident(rows, device)
            if found is None:
                self._warn(rows, device)
                return rows
            self._copies[key] = version, found
        return found

    def clear(self) -> None:
        """Free the memory. A later search copies the arrays again."""
        with self._loading:
            self._copies.clear()

    def _warn(self, rows: Rows, device: torch.device) -> None:
        if not self._has_warned:
            message = "%s: an array of shape %s does not fit into the free memory of %s, so each batch of queries reads it"
            logger.warning(message, self.path, tuple(rows.shape), device)
        self._has_warned = True


_SHARED: WeakValueDictionary[str, ResidentRows] = WeakValueDictionary()
_SHARING = threading.Lock()


def share_resident_rows(path: Path, version: Hashable) -> ResidentRows:
    """Return the arrays of an index on GPUs, the same object for all its readers.

    The arrays are freed when the last reader is gone, or when the index has been replaced.

    Args:
        path: Directory of the index.
        version: Value that changes if the index is replaced.
    """
    key = os.path.realpath(path)
    with _SHARING:
        found = _SHARED.get(key)
        if found is None or found.version != version:
            if found is not None:
                found.clear()
            found = _SHARED[key] = ResidentRows(path, version)
        return found
