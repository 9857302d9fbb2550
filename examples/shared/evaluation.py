"""Compare models that search the same index."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyterrier as pt

from pyterrier_hypencoder import HypencoderIndex
from shared.collection import Collection


def compare_models(
    models: Mapping[str, Any], index: HypencoderIndex, collection: Collection, measures: list[Any]
) -> pd.DataFrame:
    """Search a collection with several models.

    Args:
        models: Models by name. The first one is the baseline.
        index: Index that all models search.
        collection: Collection with topics and relevance judgements.
        measures: Measures, including nDCG@10.

    Returns:
        Frame with ``name``, the measures, and the p-value of nDCG@10 against the baseline (paired t-test, not corrected).
    """
    retrievers = [index.retriever(model, num_results=100) for model in models.values()]
    table = pt.Experiment(
        retrievers, collection.topics, collection.qrels, measures, names=list(models), baseline=0, filter_by_qrels=True
    )
    return table[["name", *map(str, measures), "nDCG@10 p-value"]]


def summarize_seeds(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return mean and standard deviation over seeds, for systems whose names end with a space and the seed."""
    kinds = table["name"].str.replace(r" \d+$", "", regex=True)
    return table.groupby(kinds, sort=False)[columns].agg(["mean", "std"])


def format_table(table: pd.DataFrame, *, index: bool = True) -> str:
    """Format a table of measures with four decimals."""
    return table.to_string(index=index, float_format=lambda value: f"{value:.4f}", na_rep="")
