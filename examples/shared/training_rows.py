"""Make, order and write training rows."""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd


def make_judged_rows(name: str, topics: pd.DataFrame, qrels: pd.DataFrame) -> list[dict[str, Any]]:
    """Make one row per topic, with all relevant documents as positive items.

    Args:
        name: Name of the collection. Identifiers in the rows start with it, as in :func:`shared.indexes.join_indexes`.
        topics: Frame with ``qid`` and ``query``. Topics without relevant documents are left out.
        qrels: Frame with ``qid``, ``docno`` and ``label``.
    """
    relevant = qrels[qrels["label"] > 0].groupby("qid")["docno"].agg(list)
    return [
        {
            "query": {"id": f"{name}/{topic.qid}", "content": topic.query},
            "items": [{"id": f"{name}/{docno}", "type": "positive"} for docno in relevant[topic.qid]],
        }
        for topic in topics.itertuples()
        if topic.qid in relevant.index
    ]


def order_in_blocks(
    sources: Mapping[str, list[dict[str, Any]]], seed: int, epochs: int, block_size: int = 32
) -> list[dict[str, Any]]:
    """Order rows in blocks of one source each, and the blocks at random.

    The documents of the other queries in a batch serve as negatives. Documents of the same source are harder to tell apart
    than documents of other sources, so the model learns more from them.

    Args:
        sources: Rows by source.
        seed: Random seed of the order.
        epochs: Number of times that each row occurs, each time in another block.
        block_size: Rows per block.
    """
    rng, ordered = random.Random(seed), []
    for _ in range(epochs):
        blocks = []
        for rows in sources.values():
            shuffled = rng.sample(rows, len(rows))
            blocks += [shuffled[start : start + block_size] for start in range(0, len(rows), block_size)]
        rng.shuffle(blocks)
        ordered += [row for block in blocks for row in block]
    return ordered


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Write rows to a JSONL file and return its path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
