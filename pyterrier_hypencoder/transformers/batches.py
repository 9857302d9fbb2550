"""Search for all topics, batch by batch, with the filters of each query."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyterrier as pt

from ..index.reader import IndexReader
from ..search.results import Results
from .batch_search import BatchSearch
from .fallback import fall_back
from .filters import drop_excluded, make_filter_key, read_filters, resolve_options


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
        for start in range(0, len(topics), retriever.batch_size):
            rows = slice(start, start + int(retriever.batch_size))
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
