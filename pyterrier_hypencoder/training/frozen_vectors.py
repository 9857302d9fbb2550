"""Vectors of frozen documents: read from an index, so that training need not encode them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..identity import shorten


def make_vector_lookup(source: Any, docnos: Sequence[str] | None = None) -> Callable[[list[str]], np.ndarray]:
    """What a collator finds the vectors of documents by.

    Args:
        source: a ``HypencoderIndex``, a ``FlexIndex`` of pyterrier_dr, or an array (N, D).
        docnos: the N docnos of an array.

    Returns:
        A function that turns n docnos into their vectors, (n, D); it raises ValueError where it does not know one.

    Raises:
        ValueError: where the source is nothing of the kind, or docnos and rows are not equally many.
    """
    if hasattr(source, "payload"):  # FlexIndex
        lookup, array, _ = source.payload()
        return _reader(source, array, lambda wanted: [int(i) for i in lookup.inv[wanted]])
    if hasattr(source, "vectors") and hasattr(source, "docnos"):
        return _reader(source, source.vectors, source.docnos.find)
    if not isinstance(source, np.ndarray) or source.ndim != 2 or docnos is None or len(docnos) != len(source):
        raise ValueError(
            "expected a HypencoderIndex, a FlexIndex, or an array (N, D) with its N docnos, found "
            f"{getattr(source, 'shape', shorten(source))} and {'no' if docnos is None else len(docnos)} docnos"
        )
    rows = {docno: row for row, docno in enumerate(docnos)}
    return _reader("the array", source, lambda wanted: [rows.get(docno, -1) for docno in wanted])


def _reader(name: Any, array: np.ndarray, find: Callable[[list[str]], Sequence[int]]) -> Callable[[list[str]], np.ndarray]:
    def read(wanted: list[str]) -> np.ndarray:
        rows = np.asarray(find(wanted), dtype=np.int64)
        if (rows < 0).any():
            unknown = [docno for docno, row in zip(wanted, rows, strict=True) if row < 0]
            raise ValueError(
                f"expected vectors of all documents of the training rows in {name}, found none of {len(unknown)}, such "
                f"as {unknown[:3]}; index them, or leave their rows out"
            )
        return np.asarray(array[rows], dtype=np.float32)

    return read
