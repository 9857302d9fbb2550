"""Print and plot the table of ``search.py``."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from pyterrier_hypencoder.plots import plot_tradeoff

#: Algorithms that are compared with surrogate search by one setting each. For "graph" the best settings are chosen.
ONE_SETTING = ["released", "exhaustive", "dense", "flat", "hnsw"]
#: A setting of graph search is a rival if its recall reaches that of surrogate search or one of these values.
RIVAL_RECALLS = (0.99, 0.95)


def get_recall_column(table: pd.DataFrame) -> str:
    """Return the column by which settings are compared."""
    return "R@100" if "R@100" in table else "R@10"


def format_table(table: pd.DataFrame) -> str:
    """Format the table for printing."""
    return table.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.3f}" if value < 10 else f"{value:.1f}")


def summarize(table: pd.DataFrame) -> Iterator[str]:
    """Yield lines that compare surrogate search, by both scans, with the other algorithms."""
    for _, surrogate in table[table["algorithm"] == "surrogate"].head(2).iterrows():
        yield from compare_with_rivals(table, surrogate)


def compare_with_rivals(table: pd.DataFrame, surrogate: pd.Series) -> Iterator[str]:
    """Yield lines that compare one setting of surrogate search with the best settings of the other algorithms.

    For graph search these are the setting with the highest recall, and those with the fewest documents or the lowest time
    for several values of recall.
    """
    recall = get_recall_column(table)
    graph = table[table["algorithm"] == "graph"]
    rivals = [graph.sort_values([recall, "n_scored"], ascending=[False, True]).head(1)]
    for enough in (surrogate[recall], *RIVAL_RECALLS):
        good = graph[graph[recall] >= enough]
        rivals += [good.nsmallest(1, column) for column in ("n_scored", "ms_p50")]
    rivals.append(table[table["algorithm"].isin(ONE_SETTING)].drop_duplicates("algorithm"))
    yield (
        f"surrogate {surrogate['options']}: {recall} {surrogate[recall]:.3f}, {surrogate['n_scored']:.0f} scored, "
        f"{surrogate['ms_p50']:.1f} ms"
    )
    for _, rival in pd.concat(rivals).drop_duplicates(["algorithm", "options"]).iterrows():
        ratios = [f"{rival['ms_p50'] / surrogate['ms_p50']:.2f}x its time"]
        if not np.isnan(rival["n_scored"]):
            ratios.insert(0, f"{rival['n_scored'] / surrogate['n_scored']:.1f}x its documents")
        if not np.isnan(rival["ms_batch"]):
            ratios.append(f"{rival['ms_batch'] / surrogate['ms_batch']:.2f}x in batches")
        yield f"{rival['algorithm']} {rival['options']}".rstrip() + f": {recall} {rival[recall]:.3f}, {', '.join(ratios)}"


def plot(table: pd.DataFrame, folder: Path) -> None:
    """Plot recall against time and against scored documents, into two files in a folder."""
    recall = get_recall_column(table)
    for column in ("ms_p50", "n_scored"):
        plot_tradeoff(table, column, recall).figure.savefig(folder / f"search_{column}.png", dpi=150)
