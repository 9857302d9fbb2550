"""Filters: the option and the column ``allowed_docnos``."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from result_checks import assert_same_ranking

from pyterrier_hypencoder import HypencoderIndexer, HypencoderRetriever
from pyterrier_hypencoder.transformers.filters import count_allowed, find_allowed, read_filters

EVERYTHING = {f"d{i:03}" for i in range(120)}
SOME = {f"d{i:03}" for i in range(0, 120, 3)}
PER_QUERY = [SOME, {"d007", "d040", "d041"}, set(), EVERYTHING, {"d017", "not a docno"}]


def filter_ranking(retriever: HypencoderRetriever, topics: pd.DataFrame, allowed: list[set[str]]) -> pd.DataFrame:
    """Return the full ranking, reduced to the documents that each topic allows."""
    limits = dict(zip(topics["qid"], allowed, strict=True))
    full = retriever(topics[["qid", "query"]])
    kept = full[[docno in limits[qid] for qid, docno in zip(full["qid"], full["docno"], strict=True)]]
    return kept.assign(rank=kept.groupby("qid").cumcount()).reset_index(drop=True)


@pytest.mark.parametrize("kind", [set, frozenset, list, tuple, dict.fromkeys, np.array, pd.Series, pd.Index])
def test_option_filters_all_queries(retriever, topics, kind):
    expected = filter_ranking(retriever, topics, [SOME] * 5)
    retriever.allowed_docnos = kind(sorted(SOME))
    assert_same_ranking(retriever(topics), expected)
    assert len(expected) == 200


@pytest.mark.parametrize("kind", [set, list, tuple, np.array, pd.Series])
def test_column_filters_each_query(retriever, topics, kind):
    expected = filter_ranking(retriever, topics, PER_QUERY)
    results = retriever(topics.assign(allowed_docnos=[kind(sorted(docnos)) for docnos in PER_QUERY]))
    assert_same_ranking(results.drop(columns="allowed_docnos"), expected)
    assert set(results["qid"]) == {"q0", "q1", "q3", "q4"}


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_missing_filter_allows_all_documents(retriever, topics, missing):
    expected = filter_ranking(retriever, topics, [SOME, EVERYTHING, {"d001"}, EVERYTHING, SOME])
    column = pd.Series([SOME, missing, {"d001"}, missing, SOME], dtype=object)
    assert_same_ranking(retriever(topics.assign(allowed_docnos=column)).drop(columns="allowed_docnos"), expected)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_option_and_column_must_both_be_passed(retriever, topics, batch_size):
    expected = filter_ranking(retriever, topics, [allowed & SOME for allowed in [*PER_QUERY[:4], EVERYTHING]])
    retriever.allowed_docnos = SOME
    retriever.batch_size = batch_size
    column = pd.Series([*PER_QUERY[:4], None], dtype=object)
    assert_same_ranking(retriever(topics.assign(allowed_docnos=column)).drop(columns="allowed_docnos"), expected)


def test_num_results_applies_after_the_filter(retriever, topics):
    expected = filter_ranking(retriever, topics, [SOME] * 5)
    retriever.allowed_docnos, retriever.num_results = SOME, 4
    assert_same_ranking(retriever(topics), expected[expected["rank"] < 4])


@pytest.mark.parametrize("allowed", [set(), [], {"unknown"}], ids=str)
def test_filter_without_documents_gives_an_empty_frame(retriever, topics, allowed):
    complete = retriever(topics)
    retriever.allowed_docnos = allowed
    found = retriever(topics)
    assert len(found) == 0 and list(found.dtypes) == list(complete.dtypes) and list(found.columns) == list(complete.columns)


@pytest.mark.parametrize("allowed", ["d001", 5, 1.5])
def test_single_docno_is_refused(retriever, topics, allowed):
    with pytest.raises(ValueError, match="allowed_docnos must be a collection"):
        retriever(topics.assign(allowed_docnos=allowed))
    retriever.allowed_docnos = allowed
    with pytest.raises(ValueError, match="allowed_docnos must be a collection"):
        retriever(topics)


def test_repeated_docnos_count_once(retriever, topics):
    retriever.allowed_docnos = ["d001", "d001", "d002"]
    assert len(retriever(topics)) == 10


def test_numeric_docnos_are_found(model, docs, topics, tmp_path):
    numbered = [{**doc, "docno": str(i)} for i, doc in enumerate(docs)]
    index = HypencoderIndexer(tmp_path / "n.hyp", model).index(numbered)
    assert set(index.retriever(model, allowed_docnos=["7", "11"])(topics)["docno"]) == {"7", "11"}


# Functions


@pytest.fixture
def reader(index):
    return index.reader


def test_find_allowed_returns_ascending_unique_docids(reader):
    assert find_allowed(reader, ["d007", "unknown", "d002", "d007"]).tolist() == [2, 7]
    assert find_allowed(reader, []).tolist() == []


def test_read_filters_returns_none_for_queries_without_filter(reader, topics):
    assert read_filters(reader, topics) == [None] * 5
    column = pd.Series([["d003", "d001"], None, [], ["unknown"], np.nan], dtype=object)
    found = read_filters(reader, topics.assign(allowed_docnos=column))
    assert [None if docids is None else docids.tolist() for docids in found] == [[1, 3], None, [], [], None]


def test_read_filters_intersects_column_and_option(reader, topics):
    column = pd.Series([["d003", "d001"], None, [], ["d002"], None], dtype=object)
    found = read_filters(reader, topics.assign(allowed_docnos=column), np.array([0, 1, 2]))
    assert [docids.tolist() for docids in found] == [[1], [0, 1, 2], [], [2], [0, 1, 2]]
    assert [docids.tolist() for docids in read_filters(reader, topics, np.array([5]))] == [[5]] * 5


@pytest.mark.parametrize(
    ("allowed", "expected"), [([[1, 2], [2, 3]], 3), ([[1, 2], None], 9), ([[], []], 0), ([None], 9)], ids=str
)
def test_count_allowed_counts_the_union(allowed, expected):
    assert count_allowed([None if docids is None else np.array(docids, dtype=int) for docids in allowed], 9) == expected


def read_one_by_one(docnos):
    yield from docnos


@pytest.mark.parametrize("once", [iter, read_one_by_one, lambda docnos: map(str, docnos), lambda docnos: (d for d in docnos)])
def test_option_that_can_be_read_once_filters_every_search(index, model, topics, once):
    expected = index.retriever(model, allowed_docnos=sorted(SOME))
    found = index.retriever(model, allowed_docnos=once(sorted(SOME)))
    assert found == expected and pickle.loads(pickle.dumps(found)) == expected
    for _ in range(2):
        assert_same_ranking(found(topics), expected(topics))
    found.set_parameter("allowed_docnos", once(["d001"]))
    assert set(found(topics)["docno"]) == set(found(topics)["docno"]) == {"d001"}


def test_cell_that_can_be_read_once_is_refused(retriever, topics):
    """A search would consume the cells of the user's frame."""
    with pytest.raises(ValueError, match="allowed_docnos must be a collection of docnos, got <list_iterator"):
        retriever(topics.assign(allowed_docnos=[iter(["d001"]) for _ in range(len(topics))]))


@pytest.mark.parametrize(
    "allowed",
    [
        b"d001",
        [b"d001"],
        [["d001", "d002"]],
        [None],
        [1.5],
        np.array("d001"),
        np.array([["d001"]]),
        pd.DataFrame({"docno": ["d1"]}),
    ],
    ids=str,
)
def test_items_that_are_no_docnos_are_refused(retriever, topics, allowed):
    retriever.allowed_docnos = allowed
    with pytest.raises(ValueError, match="allowed_docnos must be a collection of docnos, got"):
        retriever(topics)
