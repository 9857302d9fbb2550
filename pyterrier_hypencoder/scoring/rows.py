"""Rows of arrays with one row per document: vectors or neighbours, on disk, in memory or on a device."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class RowArray(Protocol):
    """Rows on disk that are checked when they are read; see :class:`pyterrier_hypencoder.index.checksums.CheckedRows`."""

    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return rows by a slice or an array of docids."""
        ...


Rows = np.ndarray | Tensor | RowArray
"""An array with one row per document: on disk, in memory, or on the device that computes the scores."""


def as_tensor(rows: np.ndarray | Tensor) -> Tensor:
    """Return a tensor that shares the memory of an array.

    Read-only memory maps are supported. Never write to the tensor: a write to a read-only memory map crashes the process.
    """
    if isinstance(rows, Tensor):
        return rows
    return torch.from_numpy(rows if rows.flags.writeable else np.asarray(_WritableView(rows)))


class _WritableView:
    """The memory of a read-only array, without the flag for which ``torch.from_numpy`` prints a warning.

    Args:
        rows: The array. The view keeps a reference to it, so a memory map stays open.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows
        interface = rows.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def take_rows(rows: Rows, docids: Tensor) -> Tensor:
    """Return the rows of some documents, in the given order; integers become int64.

    Args:
        rows: The rows, (N, D).
        docids: Docids, of any shape and on any device.

    Returns:
        The rows, (..., D), on the device of a tensor, else on the CPU.
    """
    if isinstance(rows, Tensor):
        taken = rows[docids.to(rows.device)]
        return taken if taken.is_floating_point() else taken.long()
    found = rows[docids.cpu().numpy()]
    return torch.from_numpy(found.astype(np.int64) if found.dtype.kind == "u" else np.ascontiguousarray(found))
