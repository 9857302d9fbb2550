"""The cost of a search as measures for :func:`pyterrier.Experiment`.

Use them with retrievers that have ``return_stats=True``. Costs are stored on result rows, so a query without results counts
as 0. Systems without these columns, such as BM25, get NaN and a warning. ``validate="ignore"`` keeps PyTerrier from its own.

Example:
    >>> import pandas as pd
    >>> import pyterrier as pt
    >>> from pyterrier_hypencoder import HypencoderIndex, NumRounds, NumScored
    >>> retriever = HypencoderIndex.example().retriever(return_stats=True)
    >>> topics = pd.DataFrame({"qid": ["q1"], "query_vec": [[1.0, 0.0, 0.0, 0.0]]})
    >>> qrels = pd.DataFrame({"qid": ["q1"], "docno": ["d1"], "label": [1]})
    >>> table = pt.Experiment([retriever], topics, qrels, [NumScored, NumRounds], names=["exhaustive"])
    >>> table[["name", "NumScored", "NumRounds"]]
             name  NumScored  NumRounds
    0  exhaustive        3.0        1.0
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import ir_measures
import pandas as pd


def _make_reader(name: str, column: str) -> Callable[[pd.DataFrame, pd.DataFrame], float]:
    """Return a function that reads the value that all rows of a query share, NaN if there is no such column."""

    def read(qrels: pd.DataFrame, run: pd.DataFrame) -> float:
        if len(run) and column not in run:
            warnings.warn(
                f"{name} is NaN for a system without the column {column}. Retrievers of this package add it with "
                "return_stats=True.",
                stacklevel=2,
            )
        return float(run[column].iloc[0]) if len(run) and column in run else float("nan")

    return read


def _define_measure(name: str, column: str, description: str) -> Any:
    return ir_measures.define_byquery(
        _make_reader(name, column),
        name=name,
        support_cutoff=False,
        run_inputs=["query_id", "doc_id", "score", column],
        pretty_name=name,
        short_desc=description,
    )


NumScored = _define_measure("NumScored", "n_scored", "Number of documents scored for a query.")
"""Number of documents that were scored for a query."""
NumRounds = _define_measure("NumRounds", "n_rounds", "Number of rounds of the search for a query.")
"""Number of rounds of the search for a query."""
