"""Stored vectors of frozen documents, so training does not encode them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..identity import shorten
from ..options import list_items


def make_vector_lookup(source: Any, docnos: Sequence[str] | None = None) -> Callable[[list[str]], np.ndarray]:
    """Build a function that finds stored document vectors by docno, for the option ``vectors`` of the collator.

    Args:
        source: ``HypencoderIndex``, ``FlexIndex`` of pyterrier_dr, or array (N, D).
        docnos: Docnos of the rows of an array, N of them.

    Returns:
        Function from n docnos to float32 vectors (n, D). It raises ValueError for unknown docnos, and can be pickled for
        worker processes.

    Raises:
        ValueError: If the source is something else, or if the numbers of docnos and vectors differ.

    Example:
        >>> lookup = make_vector_lookup(np.eye(2), ["d1", "d2"])
        >>> lookup(["d2"])
        array([[0., 1.]], dtype=float32)
    """
    if hasattr(source, "payload"):
        return _FlexVectors(source)
    if hasattr(source, "vectors") and hasattr(source, "docnos"):
        return _IndexVectors(source)
    names = None if docnos is None else list_items("docnos", docnos, str, "docnos")
    if not isinstance(source, np.ndarray) or source.ndim != 2 or names is None or len(names) != len(source):
        raise ValueError(
            "source must be a HypencoderIndex, a FlexIndex, or an array (N, D) with N docnos, got "
            f"{getattr(source, 'shape', shorten(source))} and {'no' if names is None else len(names)} docnos."
        )
    return _ArrayVectors(source, {docno: row for row, docno in enumerate(names)})


@dataclass(frozen=True)
class _IndexVectors:
    """Vectors of a ``HypencoderIndex``. Pickles hold its path, so worker processes map the same files."""

    source: Any

    def __call__(self, wanted: list[str]) -> np.ndarray:
        return _take_vectors(self.source, self.source.vectors, self.source.docnos.find(wanted), wanted)


@dataclass(frozen=True)
class _FlexVectors:
    """Vectors of a ``FlexIndex``."""

    source: Any

    def __call__(self, wanted: list[str]) -> np.ndarray:
        lookup, array, _ = self.source.payload()
        return _take_vectors(self.source, array, [int(row) for row in lookup.inv[wanted]], wanted)


@dataclass(frozen=True)
class _ArrayVectors:
    """Rows of an array. Pickles hold all of it."""

    array: np.ndarray
    rows: dict[str, int]

    def __call__(self, wanted: list[str]) -> np.ndarray:
        return _take_vectors("the array", self.array, [self.rows.get(docno, -1) for docno in wanted], wanted)


def _take_vectors(name: Any, array: np.ndarray, found: Sequence[int], wanted: list[str]) -> np.ndarray:
    """Return the rows of an array as float32, after checking that none is negative, which marks an unknown docno."""
    rows = np.asarray(found, dtype=np.int64)
    if (rows < 0).any():
        unknown = [docno for docno, row in zip(wanted, rows, strict=True) if row < 0]
        raise ValueError(
            f"{name} has no vectors of {len(unknown)} documents of the training rows, such as {unknown[:3]}. Index these "
            "documents, or leave out their rows."
        )
    return np.asarray(array[rows], dtype=np.float32)
