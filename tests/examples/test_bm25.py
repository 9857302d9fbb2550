"""Tests of the BM25 transformer, which needs neither Java nor a network."""

from __future__ import annotations

import pickle

import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import nDCG

pytest.importorskip("bm25s")
pytest.importorskip("Stemmer")

from shared.bm25 import BM25  # noqa: E402

DOCS = [
    {"docno": "none", "title": "", "text": ""},
    {"docno": "stop", "title": "the", "text": "of and"},
    {"docno": "one", "title": "Zebras", "text": "a cat"},
    {"docno": "two", "title": "Birds", "text": "cats"},
    {"docno": "three", "title": "", "text": "a cat meets a dog"},
]


def queries(*texts):
    return pd.DataFrame({"qid": [f"q{i}" for i in range(len(texts))], "query": pd.Series(texts, dtype=str)})


def test_bm25_ndcg_on_apidocs_is_in_the_expected_range(apidocs_collection):
    retriever = BM25(num_results=100).index(apidocs_collection.docs())
    result = pt.Experiment([retriever], apidocs_collection.topics, apidocs_collection.qrels, [nDCG @ 10], names=["BM25"])
    assert 0.40 < result["nDCG@10"].item() < 0.65


def test_bm25_ranks_by_score_and_keeps_order_of_ties():
    results = BM25().index(DOCS)(queries("cats", "dogs and"))
    assert list(results.columns) == ["qid", "query", "docno", "score", "rank"]
    # "one" and "two" have the same score and keep the order of indexing.
    assert results["docno"].tolist()[:3] == ["one", "two", "three"]
    assert results["rank"].tolist()[:3] == [0, 1, 2]
    assert results["score"].gt(0).all()
    assert set(results.loc[results["qid"] == "q1", "docno"]) == {"three"}


def test_bm25_joins_text_fields():
    retriever = BM25(text_field=["title", "text"]).index(iter(DOCS))
    assert set(retriever.search("zebra dog")["docno"]) == {"one", "three"}


def test_bm25_parameters_change_scores():
    scores = [BM25(**kw).index(DOCS).search("cat")["score"].tolist() for kw in ({}, {"k1": 2.0}, {"b": 1.0})]
    assert scores[0] != scores[1] != scores[2] != scores[0]


@pytest.mark.parametrize("query", ["", "  ", "the and of", "unknownword", "?!"])
def test_bm25_query_without_known_words_has_no_results(query):
    results = BM25().index(DOCS)(queries(query, "dog"))
    assert results["qid"].tolist() == ["q1"]


@pytest.mark.parametrize("docs", [[], DOCS[:1], DOCS[:2]])
def test_bm25_indexes_documents_without_words(docs):
    assert len(BM25().index(docs)(queries("", "cat"))) == 0


@pytest.mark.parametrize("inputs", [queries(), queries(""), pd.DataFrame(columns=["qid", "query"])])
def test_bm25_empty_results_are_typed(inputs):
    retriever = BM25().index(DOCS)
    expected = retriever(queries("cat")).dtypes[["docno", "score", "rank"]]
    results = retriever(inputs)
    assert len(results) == 0
    assert results.dtypes[["docno", "score", "rank"]].equals(expected)


def test_bm25_keeps_query_columns():
    inputs = queries("cat", "dog").assign(extra=[1, 2], rank=7)
    results = BM25().index(DOCS)(inputs)
    assert results["extra"].tolist() == [1, 1, 1, 2]
    assert results["rank"].tolist() == [0, 1, 2, 0]
    assert inputs["rank"].tolist() == [7, 7]


def test_bm25_fuses_rank_cutoff():
    retriever = BM25().index(DOCS)
    pipeline = (retriever % 2).compile()
    assert isinstance(pipeline, BM25) and pipeline.num_results == 2 and retriever.num_results == 1000
    pd.testing.assert_frame_equal(pipeline.search("cat"), retriever.search("cat")[:2])
    assert pipeline.fuse_rank_cutoff(5) is pipeline


def test_bm25_gives_same_results_after_pickling():
    retriever = BM25(num_results=2).index(DOCS)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(retriever)).search("cat"), retriever.search("cat"))


def test_bm25_can_be_inspected(monkeypatch):
    monkeypatch.setattr("pyterrier.documentation._cached_objects_inv", {})  # otherwise it would be downloaded
    retriever = BM25(5, k1=1.2)
    assert pt.inspect.transformer_inputs(retriever) == [["qid", "query"]]
    assert pt.inspect.transformer_outputs(retriever, ["qid", "query"]) == ["qid", "query", "docno", "score", "rank"]
    attributes = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(retriever)}
    assert attributes == {"num_results": 5, "k1": 1.2, "b": 0.4, "text_field": "text", "verbose": False}
    assert pt.schematic.transformer_schematic(retriever)["label"] == "BM25"
    assert "BM25" in pt.schematic.draw(retriever)


def test_bm25_raises_without_index_or_query_column():
    with pytest.raises(RuntimeError, match="index"):
        BM25()(queries("cat"))
    with pytest.raises(pt.validate.InputValidationError):
        BM25().index(DOCS)(queries("cat")[["qid"]])


def test_bm25_prints_and_logs_nothing(capfd, caplog):
    BM25().index(DOCS).search("cat")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
