"""What a search costs, as measures for :func:`pyterrier.Experiment`; for retrievers with ``return_stats=True``.

Example::

    from pyterrier_hypencoder.measures import NumScored
    pt.Experiment([index.retriever(algorithm="surrogate", return_stats=True)], topics, qrels, [nDCG @ 10, NumScored])

Costs stand on result rows, so that a query without results counts as 0. A system without these columns, such as BM25, has
NaN there; ``validate="ignore"`` keeps PyTerrier from warning of it.
"""

from __future__ import annotations

from typing import Any

import ir_measures
import pandas as pd


def _read_cost(column: str) -> Any:
    """The value that a query's rows share; NaN where a system does not say."""

    def value(qrels: pd.DataFrame, run: pd.DataFrame) -> float:
        return float(run[column].iloc[0]) if len(run) and column in run else float("nan")

    return value


def _measure(name: str, column: str, description: str) -> Any:
    return ir_measures.define_byquery(
        _read_cost(column),
        name=name,
        support_cutoff=False,
        run_inputs=["query_id", "doc_id", "score", column],
        pretty_name=name,
        short_desc=description,
    )


NumScored = _measure("NumScored", "n_scored", "documents that were evaluated for a query")
NumRounds = _measure("NumRounds", "n_rounds", "rounds of evaluation for a query")
