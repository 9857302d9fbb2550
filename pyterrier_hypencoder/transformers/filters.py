"""Filters: the documents that each query may return, given as options, as columns, or both.

This module translates docnos, masks and metadata into docids. :mod:`pyterrier_hypencoder.search.allowed` applies them to
scores, and :mod:`pyterrier_hypencoder.search.hnsw` passes them to HNSW.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..encoders.columns import is_missing, read_docnos
from ..index.reader import IndexReader
from ..options import list_items
from ..search.results import Results

FILTER_COLUMN = "allowed_docnos"
EXCLUDED_COLUMN = "excluded_docnos"
FILTER_COLUMNS = (FILTER_COLUMN, EXCLUDED_COLUMN)

DROP_UP_TO = 1000
"""Number of excluded documents per query up to which a search finds as many more results and drops the excluded ones."""

_NO_DOCIDS: np.ndarray = np.empty(0, dtype=np.int64)


class Filter(NamedTuple):
    """The documents that a query may return.

    Attributes:
        allowed: Docids in ascending order; None for all documents.
        excluded: Docids in ascending order that must not be returned although they are allowed.
    """

    allowed: np.ndarray | None = None
    excluded: np.ndarray = _NO_DOCIDS

    def narrow(self, other: Filter) -> Filter:
        """Return the filter that a document passes if it passes both."""
        if self.allowed is None or other.allowed is None:
            allowed = self.allowed if other.allowed is None else other.allowed
        else:
            allowed = np.intersect1d(self.allowed, other.allowed, assume_unique=True)
        return Filter(allowed, np.union1d(self.excluded, other.excluded))

    def resolve(self, doc_count: int) -> Filter:
        """Return an equal filter that excludes few documents beyond those that are not allowed."""
        if not len(self.excluded) or (self.allowed is None and len(self.excluded) <= DROP_UP_TO):
            return self
        allowed = np.arange(doc_count) if self.allowed is None else self.allowed
        return Filter(np.setdiff1d(allowed, self.excluded, assume_unique=True))


def find_allowed(reader: IndexReader, docnos: Collection[str], name: str = FILTER_COLUMN) -> np.ndarray:
    """Return the docids of the allowed documents.

    Args:
        reader: The index.
        docnos: Docnos of the allowed documents, as strings or integers. Docnos that the index does not contain are ignored.
        name: Name of the option, for error messages.

    Returns:
        Docids in ascending order, without repetitions.

    Raises:
        ValueError: If ``docnos`` is not a collection of docnos, for example a single string or an iterator.
    """
    names = list_items(name, docnos, str | int | np.integer, "docnos")
    docids = np.unique(reader.docnos.find([str(docno) for docno in names]))
    return docids[docids >= 0]


def check_mask(mask: Any) -> None:
    """Check an option that is a mask.

    Raises:
        ValueError: If it is not an array with one dimension and values True and False, or 1 and 0.
    """
    if isinstance(mask, pd.Series) and not mask.index.equals(pd.RangeIndex(len(mask))):
        raise ValueError(
            "mask must be in the order of docids, got a Series whose rows were selected or moved. Pass index.mask(metadata, "
            "'year >= 2020')."
        )
    values = np.asarray(mask)
    is_binary = values.dtype.kind == "b" or (values.dtype.kind in "iuf" and bool(np.isin(values, (0, 1)).all()))
    if values.ndim != 1 or not is_binary:
        raise ValueError(
            f"mask must be an array with True or False for every docid, got {mask!r:.80}. Docnos belong in allowed_docnos."
        )


def make_mask(reader: IndexReader, metadata: pd.DataFrame, where: str) -> np.ndarray:
    """Return the mask of the documents whose metadata satisfy an expression; see :meth:`HypencoderIndex.mask`."""
    if not isinstance(metadata, pd.DataFrame) or "docno" not in metadata.columns:
        found = list(metadata.columns) if isinstance(metadata, pd.DataFrame) else type(metadata).__name__
        raise ValueError(f"metadata must be a frame with a column docno, got {found}. Give one row per document.")
    mask = np.zeros(reader.doc_count, dtype=bool)
    docids = reader.docnos.find(read_docnos(metadata)[_evaluate(metadata, where)])
    mask[docids[docids >= 0]] = True
    return mask


def _evaluate(metadata: pd.DataFrame, where: str) -> np.ndarray:
    """Return for every row of a frame whether it satisfies an expression."""
    columns = ", ".join(map(str, metadata.columns))
    try:
        found = metadata.eval(where) if isinstance(where, str) else None
    except Exception as err:  # pandas raises errors of many kinds: names, syntax, types
        raise ValueError(f"where must be an expression over the columns {columns}, got {where!r}: {err}") from err
    if not isinstance(found, pd.Series) or not pd.api.types.is_bool_dtype(found):
        raise ValueError(f"where must be a condition over the columns {columns}, got {where!r}. An example is 'year >= 2020'.")
    return found.fillna(False).to_numpy(dtype=bool)


def make_filter_key(reader: IndexReader, *options: Any) -> Hashable:
    """Return a value that changes if the index is replaced or one of the options, which are collections, is changed."""
    return (
        reader.version,
        *(
            option.tobytes()
            if isinstance(option, np.ndarray) and option.dtype != object
            else tuple(option)
            if isinstance(option, Collection)
            else option
            for option in options
        ),
    )


def resolve_options(
    reader: IndexReader, allowed_docnos: Collection[str] | None, excluded_docnos: Collection[str] | None, mask: Any
) -> Filter:
    """Return the filter for all queries that a retriever's options describe.

    Raises:
        ValueError: If an option is not valid, or the mask has another length than the index.
    """
    allowed = None if allowed_docnos is None else find_allowed(reader, allowed_docnos)
    excluded = _NO_DOCIDS if excluded_docnos is None else find_allowed(reader, excluded_docnos, EXCLUDED_COLUMN)
    found = Filter(allowed, excluded)
    if mask is not None:
        check_mask(mask)
        if len(mask) != reader.doc_count:
            raise ValueError(
                f"mask must have one value for each of the {reader.doc_count} documents of {reader.path}, got {len(mask)}. "
                "Value i belongs to docid i."
            )
        found = found.narrow(Filter(np.flatnonzero(mask)))
    return found.resolve(reader.doc_count)


def read_filters(
    reader: IndexReader,
    topics: pd.DataFrame,
    for_all: Filter,
    *,
    ignore_same_id: bool = False,
) -> list[Filter]:
    """Return the filter of each query.

    Args:
        reader: The index.
        topics: One row per query. The columns ``allowed_docnos`` and ``excluded_docnos`` are optional; an empty cell (None,
            NaN) sets no limit.
        for_all: Filter for all queries. A document must pass it and the filter of its query.
        ignore_same_id: If True, exclude the document whose docno is the qid.
    """
    filters = [for_all] * len(topics)
    found: dict[int, tuple[Any, np.ndarray]] = {}  # by identity, because queries often share one collection
    for column in FILTER_COLUMNS:
        for q, docnos in enumerate(topics[column]) if column in topics.columns else ():
            if not is_missing(docnos):
                if id(docnos) not in found:
                    found[id(docnos)] = docnos, find_allowed(reader, docnos, column)
                docids = found[id(docnos)][1]
                filters[q] = filters[q].narrow(Filter(docids) if column == FILTER_COLUMN else Filter(None, docids))
    if ignore_same_id:
        own = reader.docnos.find(topics["qid"].astype(str).tolist())
        filters = [f.narrow(Filter(None, own[q : q + 1])) if own[q] >= 0 else f for q, f in enumerate(filters)]
    return [f if f is for_all else f.resolve(reader.doc_count) for f in filters]


def drop_excluded(results: Results, filters: Sequence[Filter], num_results: int) -> Results:
    """Return the results without excluded documents, at most ``num_results`` per query."""
    kept = [~np.isin(docids, f.excluded) for docids, f in zip(results.docids, filters, strict=True)]
    return Results(
        [docids[keep][:num_results] for docids, keep in zip(results.docids, kept, strict=True)],
        [scores[keep][:num_results] for scores, keep in zip(results.scores, kept, strict=True)],
        results.stats,
    )


def count_allowed(allowed: Sequence[np.ndarray | None], doc_count: int) -> int:
    """Return how many documents at least one query may return.

    Args:
        allowed: For each query the allowed docids, or None if all documents are allowed.
        doc_count: Number of documents in the index.
    """
    limits = {id(docids): docids for docids in allowed if docids is not None}
    if any(docids is None for docids in allowed):
        return doc_count
    if len(limits) == 1:
        return len(next(iter(limits.values())))
    is_allowed = np.zeros(doc_count, dtype=bool)
    for docids in limits.values():
        is_allowed[docids] = True
    return int(is_allowed.sum())
