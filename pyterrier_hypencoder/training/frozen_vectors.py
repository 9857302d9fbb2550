"""Stored vectors of frozen documents, so training does not encode them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..identity import shorten


def make_vector_lookup(source: Any, docnos: Sequence[str] | None = None) -> Callable[[list[str]], np.ndarray]:
    """Build a function that finds stored document vectors by docno, for the option ``vectors`` of the collator.

    Args:
        source: ``HypencoderIndex``, ``FlexIndex`` of pyterrier_dr, or array (N, D).
        docnos: Docnos of the rows of an array, N of them.

    Returns:
        Function from n docnos to float32 vectors (n, D). It raises ValueError for unknown docnos.

    Raises:
        ValueError: If the source is something else, or if the numbers of docnos and vectors differ.

    Example:
        >>> lookup = make_vector_lookup(np.eye(2), ["d1", "d2"])
        >>> lookup(["d2"])
        array([[0., 1.]], dtype=float32)
    """
    if hasattr(source, "payload"):  # FlexIndex
        lookup, array, _ = source.payload()
        return _make_reader(source, array, lambda wanted: [int(i) for i in lookup.inv[wanted]])
    if hasattr(source, "vectors") and hasattr(source, "docnos"):
        return _make_reader(source, source.vectors, source.docnos.find)
    if not isinstance(source, np.ndarray) or source.ndim != 2 or docnos is None or len(docnos) != len(source):
        raise ValueError(
            "source must be a HypencoderIndex, a FlexIndex, or an array (N, D) with N docnos, got "
            f"{getattr(source, 'shape', shorten(source))} and {'no' if docnos is None else len(docnos)} docnos."
        )
    rows = {docno: row for row, docno in enumerate(docnos)}
    return _make_reader("the array", source, lambda wanted: [rows.get(docno, -1) for docno in wanted])


def _make_reader(
    name: Any, array: np.ndarray, find: Callable[[list[str]], Sequence[int]]
) -> Callable[[list[str]], np.ndarray]:
    """Build the lookup from a function that returns the row of each docno, or a negative number if it is unknown."""

    def read_vectors(wanted: list[str]) -> np.ndarray:
        rows = np.asarray(find(wanted), dtype=np.int64)
        if (rows < 0).any():
            unknown = [docno for docno, row in zip(wanted, rows, strict=True) if row < 0]
            raise ValueError(
                f"{name} has no vectors of {len(unknown)} documents of the training rows, such as {unknown[:3]}. Index these "
                "documents, or leave out their rows."
            )
        return np.asarray(array[rows], dtype=np.float32)

    return read_vectors
