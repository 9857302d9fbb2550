"""Tests of opening collections by name."""

from __future__ import annotations

import gzip
import json

import pytest
from shared.datasets import open_collection

DOCS = [
    {"docno": "d1", "text": "The planet Mars has two moons."},
    {"docno": "d2", "title": "Courts", "text": "A judge decides a case."},
    {"docno": "d3", "title": "Soup", "text": "Boil the onions with salt."},
]


@pytest.mark.parametrize("file", ["docs.jsonl", "docs.jsonl.gz"])
def test_folder_is_read_without_changes(file, tmp_path):
    opener = gzip.open if file.endswith(".gz") else open
    with opener(tmp_path / file, "wt", encoding="utf-8") as out:
        out.write("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (tmp_path / "topics.tsv").write_text('1\tmoons of mars\n2\twho "decides\n3\tnull\n')
    (tmp_path / "qrels.txt").write_text("1 0 d1 1\n2 0 d2 1\n3 0 d3 1\n")
    collection = open_collection(str(tmp_path))
    assert list(collection.docs()) == DOCS == list(collection.docs())
    assert collection.topics["query"].tolist() == ["moons of mars", 'who "decides', "null"]
    assert collection.qrels["docno"].tolist() == ["d1", "d2", "d3"]
    assert collection.text_fields == ["title", "text"]


def test_split_names_other_topics_and_judgements(tmp_path):
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (tmp_path / "topics.train.tsv").write_text("7\tsoup\n")
    (tmp_path / "qrels.train.txt").write_text("7 0 d3 2\n")
    collection = open_collection(str(tmp_path), "train")
    assert collection.topics.values.tolist() == [["7", "soup"]]
    assert collection.qrels[["qid", "docno", "label"]].values.tolist() == [["7", "d3", 2]]


def test_unknown_dataset_exits_and_names_the_expected_files(tmp_path):
    with pytest.raises(SystemExit, match=r"docs.jsonl\[.gz\]"):
        open_collection(str(tmp_path))
