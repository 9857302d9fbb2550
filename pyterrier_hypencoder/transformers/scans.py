"""Choose the scan of surrogate search: the inner-product index if it has been built, or else the exact product."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..index.files import read_file_version
from ..index.inner_product import FACTS_FILE, InnerProductIndex, open_inner_product_index
from ..index.reader import IndexReader
from ..search.allowed import Allowed
from ..search.scan import Scan, make_exact_scan


class IndexedScan:
    """Search the inner-product index while that costs less than the exact product, which all queries of a batch share.

    The inner-product index is approximate, so with it the results of surrogate search can depend on the size of the batch.

    Args:
        index: The inner-product index.
        exact: The exact scan of the same vectors.
    """

    def __init__(self, index: InnerProductIndex, exact: Scan) -> None:
        self._index = index
        self._exact = exact

    def __call__(self, functions: Tensor, k: int, seen: Tensor, allowed: Allowed | None = None) -> tuple[Tensor, Tensor]:
        """Return the documents with the largest inner products; see :class:`pyterrier_hypencoder.search.scan.Scan`."""
        scan = self._index if self._index.is_worth_it(len(functions), k, seen, allowed) else self._exact
        return scan(functions, k, seen, allowed)


def open_scan(reader: IndexReader) -> Scan | None:
    """Open the scan of an index on a CPU; return None for the exact scan. Nothing is ever built here."""
    index = open_inner_product_index(reader)
    return None if index is None else IndexedScan(index, make_exact_scan(reader.vectors))


def read_inner_product_version(reader: IndexReader) -> tuple[Any, ...]:
    """Return a value that changes if the index or its inner-product index is replaced."""
    return reader.version, read_file_version(reader.folder, FACTS_FILE)
