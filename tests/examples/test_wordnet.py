"""Tests of WordNet as a test collection."""

from __future__ import annotations

import pytest
from shared import wordnet
from shared.datasets import open_collection

LINES = {
    "noun": [
        "  1 This software and database is being provided to you",
        '00006269 03 n 01 life 0 001 @ 00004258 n 0000 | living things collectively; "the oceans are teeming with life"  ',
    ],
    "verb": ["00001740 29 v 02 breathe 0 take_a_breath 0 000 | draw air into, and expel out of, the lungs  "],
    "adj": ['00009046 00 a 01 galore(ip) 0 000 | in great numbers; "daffodils galore"; "whisky galore for all"'],
    "adv": ['00001740 02 r 01 a_cappella 0 000 | without accompaniment; "they performed a cappella every day"  '],
}


@pytest.fixture
def folder(tmp_path):
    for part, lines in LINES.items():
        (tmp_path / f"data.{part}").write_text("".join(line + "\n" for line in lines))
    return tmp_path


def test_documents_contain_words_and_definition(folder):
    docs = {doc["docno"]: doc["text"] for doc in wordnet.read_docs(folder)}
    assert docs == {
        "n00006269": "life: living things collectively",
        "v00001740": "breathe, take a breath: draw air into, and expel out of, the lungs",
        "a00009046": "galore: in great numbers",
        "r00001740": "a cappella: without accompaniment",
    }


def test_topics_are_the_longest_example_sentences(folder, monkeypatch):
    monkeypatch.setattr(wordnet, "NUM_TOPICS", 3)
    collection = open_collection(str(folder))
    assert dict(collection.topics[["qid", "query"]].itertuples(index=False)) == {
        "a00009046": "whisky galore for all",
        "n00006269": "the oceans are teeming with life",
        "r00001740": "they performed a cappella every day",
    }
    assert (collection.qrels["qid"] == collection.qrels["docno"]).all() and collection.text_fields == ["text"]


def test_empty_folder_is_not_wordnet(tmp_path):
    assert not wordnet.is_wordnet(tmp_path)
