"""Time searches and measure what they find."""

import functools
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from pyterrier.measures import nDCG
from search_settings import Setting

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.search.results import Results

BATCH_SIZE = 32
N_TRIALS = 3
#: Algorithms that find the best documents. Later settings are compared with the last of them.
EXACT_ALGORITHMS = ("exhaustive", "dense")
RECALL_CUTOFFS = (10, 100, 1000)


def time_calls(function: Callable[[slice], Any], n_queries: int, batch_size: int) -> tuple[list[Any], list[float]]:
    """Call a function for batches of queries.

    Returns:
        Its results, and the time of each call in milliseconds.
    """
    results, times = [], []
    for first in range(0, n_queries, batch_size):
        start = time.perf_counter()
        results.append(function(slice(first, min(first + batch_size, n_queries))))
        times.append(1000 * (time.perf_counter() - start))
    return results, times


@dataclass(frozen=True)
class Trial:
    """One pass of a setting over all queries.

    Attributes:
        results: Results of all queries, searched one at a time.
        single_ms: Milliseconds of each query.
        batch_ms: Mean milliseconds per query in batches, or NaN if the setting takes single queries only.
    """

    results: Results
    single_ms: list[float]
    batch_ms: float


def run_trial(setting: Setting, n_queries: int) -> Trial:
    """Search with all queries, one at a time and in batches."""
    results, single_ms = time_calls(setting.search, n_queries, 1)
    batch_ms = np.nan
    if setting.takes_batches:
        batch_ms = sum(time_calls(setting.search, n_queries, BATCH_SIZE)[1]) / n_queries
    return Trial(functools.reduce(Results.concat, results), single_ms, batch_ms)


def run_trials(settings: Sequence[Setting], n_queries: int) -> list[list[Trial]]:
    """Run the trials of all settings in turn, so a slow minute of the machine affects all of them.

    Returns:
        For each setting its trials.
    """
    for setting in settings:
        setting.search(slice(0, 1))  # warm up
    gc.freeze()  # otherwise every garbage collection would visit the many objects of the released search
    rounds = [
        [run_trial(setting, n_queries) for setting in pt.tqdm(settings, desc=f"trial {number} of {N_TRIALS}")]
        for number in range(1, N_TRIALS + 1)
    ]
    return [list(trials) for trials in zip(*rounds, strict=True)]


def make_table(
    settings: Sequence[Setting],
    k: int,
    index: HypencoderIndex,
    topics: pd.DataFrame,
    qrels: pd.DataFrame | None,
) -> pd.DataFrame:
    """Run all settings and measure time, costs and quality.

    Args:
        settings: Settings to compare. An exhaustive one comes before those that are compared with it.
        k: Results per query.
        index: Index that is searched.
        topics: Frame with the column ``qid``, one row per query.
        qrels: Relevance judgements for nDCG@10, or None.

    Returns:
        One row per setting: ``algorithm``, ``options``, ``ms_p50``, ``ms_p95``, ``ms_batch``, statistics of the search,
        R@n against the exhaustive search, and ``nDCG@10``.
    """
    rows, truth = [], None
    for setting, trials in zip(settings, run_trials(settings, len(topics)), strict=True):
        results = trials[0].results
        if truth is None or setting.algorithm in EXACT_ALGORITHMS:
            truth = results
        times = np.concatenate([trial.single_ms for trial in trials])
        row = {
            "algorithm": setting.algorithm,
            "options": setting.format_options(),
            "ms_p50": np.percentile(times, 50),
            "ms_p95": np.percentile(times, 95),
            "ms_batch": np.median([trial.batch_ms for trial in trials]),
        }
        row |= {name: float(np.mean(values)) for name, values in results.stats.items()}
        row |= {f"R@{cutoff}": measure_recall(results, truth, cutoff) for cutoff in RECALL_CUTOFFS if cutoff <= k}
        if qrels is not None and len(qrels):
            row["nDCG@10"] = measure_ndcg(results, topics, qrels, index)
        rows.append(row)
    return pd.DataFrame(rows)


def measure_recall(results: Results, truth: Results, cutoff: int) -> float:
    """Return the mean share of the best documents that were found."""
    pairs = zip(results.docids, truth.docids, strict=True)
    return float(np.mean([np.isin(best[:cutoff], found[:cutoff]).mean() for found, best in pairs]))


def measure_ndcg(results: Results, topics: pd.DataFrame, qrels: pd.DataFrame, index: HypencoderIndex) -> float:
    """Return nDCG@10."""
    parts = [
        pd.DataFrame({"qid": qid, "docno": index.docnos.at(docids[:10]), "score": scores[:10]})
        for qid, docids, scores in zip(topics["qid"], results.docids, results.scores, strict=True)
    ]
    run = pt.model.add_ranks(pd.concat(parts).assign(query=""))
    return pt.Evaluate(run, qrels[qrels["qid"].isin(topics["qid"])], [nDCG @ 10])["nDCG@10"]
