"""Frames of the retriever: checks, candidates, results and statistics."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from result_checks import ADDED

from pyterrier_hypencoder.search.results import Results
from pyterrier_hypencoder.transformers.result_frames import (
    build_result_frame,
    check_topics,
    list_statistics,
    split_candidates,
)

ALGORITHMS = ("exhaustive", "graph", "surrogate")


TOPICS = pd.DataFrame({"qid": ["a", "b"], "query": ["one", "two"]})

# Checks


@pytest.mark.parametrize("columns", [["qid", "query"], ["qid", "query_vec"], ["qid", "query", "query_vec", "more"]])
@pytest.mark.parametrize("allow", [True, False])
def test_check_topics_accepts_queries(columns, allow):
    check_topics(pd.DataFrame([["x"] * len(columns)], columns=columns), allow_candidates=allow)


def test_check_topics_accepts_candidates_only_if_allowed():
    frame = TOPICS.assign(docno="d")
    check_topics(frame, allow_candidates=True)
    with pytest.raises(pt.validate.InputValidationError, match=r"use index\.scorer\(model\).*algorithm='graph'"):
        check_topics(frame, allow_candidates=False)


@pytest.mark.parametrize("qid", [None, np.nan])
def test_check_topics_refuses_missing_qids(qid):
    with pytest.raises(ValueError, match="qid is missing in some rows"):
        check_topics(TOPICS.assign(qid=pd.Series(["a", qid], dtype=object)), allow_candidates=False)


# Candidates


def test_split_candidates_returns_topics_unchanged_if_there_are_none():
    topics, candidates = split_candidates(TOPICS.assign(more=1).set_axis([7, 7]))
    assert candidates is None
    pd.testing.assert_frame_equal(topics, TOPICS.assign(more=1))


def test_split_candidates_groups_rows_by_query():
    rows = [["b", "two", "d1", 3.0], ["a", "one", "d2", 2.0], ["b", "two", "d3", 1.0]]
    frame = pd.DataFrame(rows, columns=["qid", "query", "docno", "score"]).assign(allowed_docnos=[["d1"], None, ["d1"]])
    topics, candidates = split_candidates(frame)
    assert topics.to_dict("list") == {"qid": ["b", "a"], "query": ["two", "one"], "allowed_docnos": [["d1"], None]}
    assert candidates == [["d1", "d3"], ["d2"]]


def test_split_candidates_of_an_empty_frame():
    topics, candidates = split_candidates(pd.DataFrame(columns=["qid", "query", "docno"]))
    assert list(topics.columns) == ["qid", "query"] and len(topics) == 0 and candidates == []


# Results


DOCNOS = np.array([f"d{i}" for i in range(5)], object)


def make_results(**stats: np.ndarray) -> Results:
    """Return two documents for the first query and none for the second one."""
    docids = [np.array([4, 2]), np.empty(0, np.int64)]
    scores = [np.array([2.0, 1.0], np.float32), np.empty(0, np.float32)]
    return Results(docids, scores, stats)


def test_result_frame_repeats_topics_and_replaces_old_results():
    topics = TOPICS.assign(weight=[1, 2], score=9, rank=9, docno="old", docid=9)
    frame = build_result_frame(topics, make_results(), DOCNOS.take, {})
    assert list(frame.columns) == ["qid", "query", "weight", *ADDED]
    assert frame.to_dict("list") == {
        "qid": ["a", "a"],
        "query": ["one", "one"],
        "weight": [1, 1],
        "docno": ["d4", "d2"],
        "docid": [4, 2],
        "score": [2.0, 1.0],
        "rank": [0, 1],
    }


def test_result_frame_of_no_topics_has_all_columns_and_dtypes():
    full = build_result_frame(TOPICS, make_results(n_scored=np.array([5, 6])), DOCNOS.take, list_statistics("auto"))
    empty = build_result_frame(TOPICS.iloc[:0], Results([], []), DOCNOS.take, list_statistics("auto"))
    assert list(empty.columns) == list(full.columns)
    assert list(empty.dtypes)[2:] == list(full.dtypes)[2:]


def test_statistics_that_a_search_does_not_report_have_defaults():
    results = make_results(n_scored=np.array([5, 6]), n_rounds=np.array([1, 1]))
    frame = build_result_frame(TOPICS, results, DOCNOS.take, list_statistics("surrogate"))
    assert frame["n_scored"].tolist() == [5, 5] and frame["n_scored"].dtype.kind == "i"
    assert frame["last_yield"].isna().all() and frame["fell_back"].tolist() == [False, False]


@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate", "auto"])
def test_list_statistics_depends_on_the_algorithm(algorithm):
    costs = ["n_scored", "n_rounds", "converged"]
    assert list(list_statistics(algorithm)) == [
        *costs,
        *(["last_yield", "fell_back"] if algorithm in ("surrogate", "auto") else []),
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_return_stats_adds_the_costs_of_a_search(index_with_graph, model, topics, algorithm):
    options = {"graph_k": 10, "initial_candidates": 12, "n_initial": 16, "n_per_round": 16, "num_results": 5}
    plain = index_with_graph.retriever(model, algorithm=algorithm, **options)
    found = plain(topics)
    counted = index_with_graph.retriever(model, algorithm=algorithm, return_stats=True, **options)
    with_stats = counted(topics)
    added = ["n_scored", "n_rounds", "converged", *(["last_yield", "fell_back"] if algorithm == "surrogate" else [])]
    assert list(with_stats.columns) == [*found.columns, *added]
    pd.testing.assert_frame_equal(with_stats[found.columns], found)
    assert with_stats["n_scored"].dtype.kind == "i" and (with_stats.groupby("qid")["n_scored"].nunique() == 1).all()
    assert list(counted(topics.iloc[:0]).columns) == list(with_stats.columns)
    assert pt.inspect.transformer_outputs(counted, ["qid", "query"]) == list(with_stats.columns)
    if algorithm == "exhaustive":
        assert set(with_stats["n_scored"]) == {120} and set(with_stats["n_rounds"]) == {1}


def test_batches_of_different_searches_keep_the_meaning_of_statistics(index, model, topics, monkeypatch):
    """``auto`` searches the second batch, whose filter leaves few documents, exhaustively; it does not fall back."""
    monkeypatch.setattr("pyterrier_hypencoder.search.choose.EXHAUSTIVE_UP_TO", 10)
    options = {"algorithm": "auto", "num_results": 2, "n_initial": 16, "n_per_round": 16, "max_rounds": 3}
    retriever = index.retriever(model, return_stats=True, batch_size=1, **options)
    column = pd.Series([None, ["d001", "d002"], None, ["d003"], None], dtype=object)
    for frame in (topics.assign(allowed_docnos=column), topics.assign(allowed_docnos=column).iloc[::-1]):
        stats = retriever(frame).groupby("qid").first()
        assert stats["fell_back"].dtype == bool and not stats["fell_back"].any()
        assert stats["converged"].dtype == bool and stats["converged"][["q1", "q3"]].all()
        assert stats["last_yield"].isna().tolist() == [False, True, False, True, False]
        assert stats["n_scored"][["q1", "q3"]].tolist() == [2, 1] and (stats["n_scored"] > 0).all()
