"""Frames of the retriever: check its input, split candidates from topics, and build the result frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from ..encoders.columns import group_rows, pick_queries, read_docnos
from ..search.results import Results
from .filters import FILTER_COLUMNS

RESULT_COLUMNS = ("docno", "docid", "score", "rank")
# Columns of return_stats=True, with the value that stands for "not reported"; it also sets the dtype.
_COSTS = {"n_scored": 0, "n_rounds": 0, "converged": True}
_SURROGATE_STATISTICS = {"last_yield": np.nan, "fell_back": False}


def check_topics(frame: pd.DataFrame, *, allow_candidates: bool) -> None:
    """Check the input of a retriever.

    Args:
        frame: Topics, or a result frame whose documents are candidates.
        allow_candidates: If False, refuse a frame with documents.

    Raises:
        pt.validate.InputValidationError: If columns are missing, or the frame has documents that are not allowed.
        ValueError: If a qid is missing.
    """
    try:
        with pt.validate.any(frame) as modes:
            for column in ("query", "query_vec"):
                modes.query_frame(extra_columns=[column])
                if allow_candidates:
                    modes.columns(includes=["qid", column, "docno"])
    except pt.validate.InputValidationError as err:
        if "docno" in frame.columns:
            err.args = (
                f"{err.args[0]} The frame contains documents. To re-rank them, use index.scorer(model). To use them as entry "
                "points, set algorithm='graph' or algorithm='surrogate'.",
            )
        raise
    if frame["qid"].isna().any():
        raise ValueError("qid is missing in some rows. Give every row a query id.")


def split_candidates(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[list[str]] | None]:
    """Split a frame into its topics and their candidate documents.

    Args:
        frame: Topics (one row per query), or a result frame (several rows per query, with ``docno``).

    Returns:
        The topics, one row per query, and for each query the docnos of its candidates. The candidates are None if the frame
        has no column ``docno``.
    """
    frame = frame.reset_index(drop=True)
    if "docno" not in frame.columns:
        return frame, None
    groups = group_rows(frame) if len(frame) else []
    docnos = read_docnos(frame)
    columns = [*pt.model.query_columns(frame), *(column for column in frame.columns if column in FILTER_COLUMNS)]
    topics = pick_queries(frame[columns], groups).reset_index(drop=True)
    return topics, [docnos[rows].tolist() for rows in groups]


def list_statistics(algorithm: str) -> dict[str, Any]:
    """Return the names of the statistics that an algorithm reports, each with its value for "not reported"."""
    return _COSTS | (_SURROGATE_STATISTICS if algorithm in ("auto", "surrogate") else {})


def build_result_frame(
    topics: pd.DataFrame, results: Results, get_docnos: Callable[[np.ndarray], np.ndarray], statistics: dict[str, Any]
) -> pd.DataFrame:
    """Build the result frame of a search.

    Args:
        topics: One row per query.
        results: The results of these queries.
        get_docnos: Returns the docnos of docids. It is called once, because a call per query would cost more than a search.
        statistics: Statistics to add as columns; see :func:`list_statistics`.

    Returns:
        The columns of the topics, repeated for every result, then ``docno``, ``docid``, ``score``, ``rank`` and the
        statistics. Columns of these names in the topics are replaced.
    """
    counts = np.array([len(docids) for docids in results.docids], dtype=np.int64)
    rows = np.repeat(np.arange(len(topics)), counts)
    docids = _concatenate(results.docids, np.int64)
    # One frame from arrays: selecting rows of a frame and assigning columns takes three times as long for one query.
    columns = {name: topics[name].array.take(rows) for name in topics.columns if name not in RESULT_COLUMNS}
    columns |= {
        "docno": pd.Series(get_docnos(docids) if len(docids) else [], dtype=str),
        "docid": docids,
        "score": _concatenate(results.scores, np.float32),
        "rank": np.arange(len(docids)) - np.repeat(counts.cumsum() - counts, counts),
    }
    for name, default in statistics.items():
        values = results.stats.get(name, np.full(len(counts), default))
        columns[name] = np.repeat(values, counts).astype(type(default))
    return pd.DataFrame(columns, copy=False)


def _concatenate(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)
