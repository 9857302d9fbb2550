"""Tests of making, ordering and writing training rows."""

from __future__ import annotations

import json

import pandas as pd
from shared.training_rows import make_judged_rows, order_in_blocks, write_rows


def test_judged_rows_contain_the_relevant_documents_of_each_topic(tmp_path):
    topics = pd.DataFrame({"qid": ["1", "2"], "query": ["soup", "courts"]})
    qrels = pd.DataFrame({"qid": ["1", "1", "1", "2"], "docno": ["a", "b", "c", "a"], "label": [1, 0, 2, 0]})
    expected = {
        "query": {"id": "kitchen/1", "content": "soup"},
        "items": [{"id": "kitchen/a", "type": "positive"}, {"id": "kitchen/c", "type": "positive"}],
    }
    rows = make_judged_rows("kitchen", topics, qrels)
    assert rows == [expected]
    assert [json.loads(line) for line in write_rows(rows, tmp_path / "rows.jsonl").read_text().splitlines()] == rows


def test_order_in_blocks_keeps_sources_together_and_every_row_once_per_epoch():
    sizes = {"a": 70, "b": 33, "c": 5}
    sources = {name: [{"name": name, "row": row} for row in range(size)] for name, size in sizes.items()}
    ordered = order_in_blocks(sources, seed=1, epochs=2, block_size=32)
    assert ordered == order_in_blocks(sources, seed=1, epochs=2, block_size=32)
    assert ordered != order_in_blocks(sources, seed=2, epochs=2, block_size=32)
    for epoch in (ordered[:108], ordered[108:]):
        assert sorted((row["name"], row["row"]) for row in epoch) == sorted(
            (name, row["row"]) for name, rows in sources.items() for row in rows
        )
    changes = sum(one["name"] != other["name"] for one, other in zip(ordered, ordered[1:], strict=False))
    assert changes + 1 <= 2 * 6  # 3 + 2 + 1 blocks per epoch
