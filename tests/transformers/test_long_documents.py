"""Long documents: passages are indexed and searched, and the best passage scores its document."""

from __future__ import annotations

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_hypencoder import HypencoderIndex


@pytest.fixture(scope="module")
def long_docs(docs) -> list[dict[str, str]]:
    """Return 12 documents, each with the words of ten."""
    return [{"docno": f"L{i}", "text": " ".join(doc["text"] for doc in docs[10 * i : 10 * i + 10])} for i in range(12)]


@pytest.fixture(scope="module")
def passages() -> pt.Transformer:
    return pt.text.sliding(text_attr="text", length=20, stride=10, prepend_attr=None)


@pytest.fixture(scope="module")
def passage_index(model, long_docs, passages, tmp_path_factory) -> HypencoderIndex:
    index = HypencoderIndex(tmp_path_factory.mktemp("long") / "passages.hyp")
    return (passages >> index.indexer(model, dtype="fp32")).index(long_docs)


def test_sliding_windows_are_indexed_as_passages(passage_index, model, long_docs, passages):
    split = passages(pd.DataFrame(long_docs))
    assert len(passage_index) == len(split) > 3 * len(long_docs)
    assert list(passage_index.docnos) == split["docno"].tolist() and "L0%p0" in set(split["docno"])
    assert passage_index.meta["text_field"] == "text" and passage_index.model(device="cpu") == model


def test_max_passage_returns_each_document_once_with_its_best_score(passage_index, model, topics):
    found = passage_index.retriever(model)(topics)
    documents = (passage_index.retriever(model) >> pt.text.max_passage())(topics)
    assert len(documents) == 5 * 12
    best = found.assign(docno=found["docno"].str.split("%p").str[0]).groupby(["qid", "docno"])["score"].max()
    scores = documents.set_index(["qid", "docno"])["score"]
    pd.testing.assert_series_equal(scores.sort_index(), best.sort_index(), check_dtype=False)
    assert documents[documents["rank"] == 0].groupby("qid").size().eq(1).all()


def test_documents_split_after_a_first_stage_are_re_ranked_by_passage(passage_index, model, topics, long_docs, passages):
    candidates = topics.merge(pd.DataFrame(long_docs[:5]), how="cross").assign(score=1.0, rank=0)
    fresh = (passages >> model.text_scorer() >> pt.text.max_passage())(candidates)
    stored = (passages >> passage_index.scorer(model) >> pt.text.max_passage())(candidates)
    assert len(fresh) == len(stored) == 25
    both = fresh.merge(stored, on=["qid", "docno"])
    assert (both["score_x"] - both["score_y"]).abs().max() < 3e-3
