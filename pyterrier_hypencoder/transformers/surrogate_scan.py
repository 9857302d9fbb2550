"""The scan of surrogate search on a CPU: the inner-product index of an index if that saves time, else the exact scan."""

from __future__ import annotations

from torch import Tensor

from ..index.inner_product import open_inner_product_index
from ..index.reader import IndexReader
from ..search.scan import Scan, make_exact_scan


def make_index_scan(reader: IndexReader) -> Scan:
    """Return a scan over the vectors of an index.

    Args:
        reader: The index. Its inner-product index is opened if it has been built; it is never built here.

    Returns:
        A scan that decides on each call. The inner-product index is used if it should take less time than a product with
        all vectors.
    """
    exact = make_exact_scan(reader.vectors)
    index = open_inner_product_index(reader)
    if index is None:
        return exact

    def scan(queries: Tensor, k: int, seen: Tensor) -> tuple[Tensor, Tensor]:
        return (index if index.is_worth_it(len(queries), k, seen) else exact)(queries, k, seen)

    return scan
