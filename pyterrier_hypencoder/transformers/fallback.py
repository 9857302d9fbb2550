"""Search queries exhaustively whose q-nets are too far from linear for surrogate search, after all other queries."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from ..index.reader import IndexReader
from ..search.results import Results
from .batch_search import BatchSearch
from .filters import Filter, count_allowed, drop_excluded, read_filters

logger = logging.getLogger(__name__)


def fall_back(retriever: Any, reader: IndexReader, topics: pd.DataFrame, for_all: Filter, results: Results) -> Results:
    """Search the queries exhaustively that surrogate search has marked, and log one warning with what it costs.

    Args:
        retriever: A :class:`pyterrier_hypencoder.HypencoderRetriever`.
        reader: The index.
        topics: One row per query.
        for_all: Filter for all queries.
        results: The results of all queries.

    Returns:
        The results, in which those of the marked queries are replaced.
    """
    failed = np.flatnonzero(results.stats.get("fell_back", np.zeros(len(topics), dtype=bool)))
    if not len(failed):
        return results
    topics = topics.iloc[failed]
    filters = read_filters(reader, topics, for_all, ignore_same_id=retriever.ignore_same_id)
    n_docs = sum(count_allowed([f.allowed], reader.doc_count) for f in filters)
    logger.warning(
        "surrogate search: %d of %d q-nets are too far from linear, so all their documents are scored, %d in total. Set "
        "max_scored to forbid this, or algorithm='graph'.",
        len(failed),
        len(results.docids),
        n_docs,
    )
    # With a budget, queries are searched alone: a batch scores the documents that any of its queries may return.
    step = int(retriever.batch_size) if retriever.max_scored is None else 1
    found = Results([], [])
    with pt.tqdm(total=len(topics), desc="exhaustive", unit="query", disable=not retriever.verbose) as progress:
        for start in range(0, len(topics), step):
            part = filters[start : start + step]
            n_dropped = max(len(f.excluded) for f in part)
            search = BatchSearch(retriever, reader, int(retriever.num_results) + n_dropped, "exhaustive")
            batch = topics.iloc[start : start + step]
            again = search.search(batch, [f.allowed for f in part], None, progress.update)
            found = found.concat(drop_excluded(again, part, retriever.num_results) if n_dropped else again)
    return results.replace(failed.tolist(), found)
