"""Search for all topics, batch by batch, with the filters of each query."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from ..index.reader import IndexReader
from ..search.results import Results
from .batch_search import BatchSearch
from .fallback import fall_back
from .filters import DROP_UP_TO, FILTER_COLUMNS, drop_excluded, make_filter_key, read_filters, resolve_options

VECTORS_PER_PASS = 4096
"""Largest number of query vectors that share a pass over the collection."""
_RESULTS_IN_MEMORY = 2**23
"""Number of results for which a pass with many query vectors keeps candidates, about 60 bytes each."""


def search_in_batches(
    retriever: Any, reader: IndexReader, topics: pd.DataFrame, candidates: list[list[str]] | None
) -> Results:
    """Search for all topics.

    Args:
        retriever: A :class:`pyterrier_hypencoder.HypencoderRetriever`. Its filters are resolved once per index.
        reader: The index.
        topics: One row per query.
        candidates: For each query docnos to start from, or None.
    """
    results = Results([], [])
    options = (retriever.allowed_docnos, retriever.excluded_docnos, retriever.mask)
    for_all = retriever._open("filter", make_filter_key(reader, *options), lambda: resolve_options(reader, *options))
    with pt.tqdm(total=len(topics), unit="query", disable=not retriever.verbose) as progress:
        size = choose_batch_size(retriever, reader, topics)
        for start in range(0, len(topics), size):
            rows = slice(start, start + size)
            batch = topics.iloc[rows]
            filters = read_filters(reader, batch, for_all, ignore_same_id=retriever.ignore_same_id)
            n_dropped = max(len(f.excluded) for f in filters)
            found = BatchSearch(retriever, reader, int(retriever.num_results) + n_dropped).search(
                batch,
                [f.allowed for f in filters],
                None if candidates is None else candidates[rows],
                progress.update,
            )
            results = results.concat(drop_excluded(found, filters, retriever.num_results) if n_dropped else found)
            progress.update(start + len(batch) - progress.n)
    return fall_back(retriever, reader, topics, for_all, results)


def choose_batch_size(retriever: Any, reader: IndexReader, topics: pd.DataFrame) -> int:
    """Return the number of queries that are searched together.

    Q-nets that are single vectors are small, and one matrix product scores a block of documents for all of them. So
    exhaustive search reads the collection once for up to :data:`VECTORS_PER_PASS` query vectors, whatever ``batch_size`` is.
    Filters of single queries may have as many docids as the collection, so queries with such filters stay in small batches.
    The same holds for ``max_scored``, which may exclude exhaustive search.

    Args:
        retriever: A :class:`pyterrier_hypencoder.HypencoderRetriever`.
        reader: The index.
        topics: One row per query.
    """
    size, has_filters = int(retriever.batch_size), not set(FILTER_COLUMNS).isdisjoint(topics.columns)
    if retriever.max_scored is not None:
        return 1 if has_filters else size  # a batch scores the documents that any of its queries may return
    if retriever.algorithm == "hnsw" or has_filters:
        return size
    if "query_vec" in topics.columns:
        is_linear = np.size(topics["query_vec"].iloc[0]) == reader.vec_size
    else:
        model = retriever._get_model()
        if model is not None:
            retriever._check_model_fits(reader, model)  # its errors name the index
        is_linear = model is not None and model.qnet_spec.is_linear
    fitting = min(VECTORS_PER_PASS, _RESULTS_IN_MEMORY // (int(retriever.num_results) + DROP_UP_TO))
    return max(size, fitting) if is_linear else size
