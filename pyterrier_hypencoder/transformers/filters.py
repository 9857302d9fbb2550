"""Filters: the documents that each query may return, given as an option, as a column, or both.

This module translates docnos into docids. The searches apply the filters: exhaustive search in
:mod:`pyterrier_hypencoder.search.exhaustive`, graph and surrogate search in :mod:`pyterrier_hypencoder.search.documents`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from ..encoders.columns import is_missing
from ..index.reader import IndexReader
from ..options import list_items

FILTER_COLUMN = "allowed_docnos"


def find_allowed(reader: IndexReader, docnos: Collection[str]) -> np.ndarray:
    """Return the docids of the allowed documents.

    Args:
        reader: The index.
        docnos: Docnos of the allowed documents, as strings or integers. Docnos that the index does not contain are ignored.

    Returns:
        Docids in ascending order, without repetitions.

    Raises:
        ValueError: If ``docnos`` is not a collection of docnos, for example a single string or an iterator.
    """
    names = list_items(FILTER_COLUMN, docnos, str | int | np.integer, "docnos")
    docids = np.unique(reader.docnos.find([str(docno) for docno in names]))
    return docids[docids >= 0]


def read_filters(
    reader: IndexReader, topics: pd.DataFrame, allowed_for_all: np.ndarray | None = None
) -> list[np.ndarray | None]:
    """Return the docids that each query may return.

    Args:
        reader: The index.
        topics: One row per query. The column ``allowed_docnos`` is optional; an empty cell (None, NaN) sets no limit.
        allowed_for_all: Docids that are allowed for all queries, ascending. None sets no limit. A document must pass this
            filter and the filter of its query.

    Returns:
        For each query the allowed docids in ascending order, or None if all documents are allowed.
    """
    if FILTER_COLUMN not in topics.columns:
        return [allowed_for_all] * len(topics)
    allowed = [None if is_missing(docnos) else find_allowed(reader, docnos) for docnos in topics[FILTER_COLUMN]]
    if allowed_for_all is None:
        return allowed
    return [
        allowed_for_all if docids is None else np.intersect1d(docids, allowed_for_all, assume_unique=True)
        for docids in allowed
    ]


def count_allowed(allowed: Sequence[np.ndarray | None], doc_count: int) -> int:
    """Return how many documents at least one query may return.

    Args:
        allowed: For each query the allowed docids, or None if all documents are allowed.
        doc_count: Number of documents in the index.
    """
    limits = [docids for docids in allowed if docids is not None]
    return len(np.unique(np.concatenate(limits))) if len(limits) == len(allowed) else doc_count
