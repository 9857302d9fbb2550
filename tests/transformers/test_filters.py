"""Filters: the option and the column ``allowed_docnos``."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from result_checks import assert_same_ranking, count_calls, list_runs

from pyterrier_hypencoder import HypencoderIndexer, HypencoderRetriever
from pyterrier_hypencoder.index.docnos import Docnos
from pyterrier_hypencoder.transformers.filters import Filter, count_allowed, find_allowed, read_filters

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


# Exclude lists, masks, metadata


@pytest.mark.parametrize("drop_up_to", [1000, 0], ids=["few are dropped", "many become a filter"])
@pytest.mark.parametrize("algorithm", ["exhaustive", "surrogate", "graph"])
def test_excluded_documents_are_replaced_by_the_next_ones(
    index_with_graph, model, topics, full, monkeypatch, algorithm, drop_up_to
):
    monkeypatch.setattr("pyterrier_hypencoder.transformers.filters.DROP_UP_TO", drop_up_to)
    excluded = set(full[full["rank"] < 3]["docno"])
    allowed = filter_ranking(index_with_graph.retriever(model), topics, [EVERYTHING - excluded] * 5)
    mixed = pd.concat([allowed[allowed["qid"] != "q4"], full[full["qid"] == "q4"]])
    per_query = topics.assign(excluded_docnos=[excluded] * 4 + [None])
    for options, frame, expected in (({"excluded_docnos": excluded}, topics, allowed), ({}, per_query, mixed)):
        # All documents are entry points, so every algorithm finds the best ones.
        search = index_with_graph.retriever(model, algorithm=algorithm, num_results=7, n_initial=120, **options)
        found = search(frame).drop(columns="excluded_docnos", errors="ignore")
        assert_same_ranking(found, expected[expected["rank"] < 7])


def test_exclude_list_and_allowed_docnos_must_both_be_passed(retriever, topics):
    retriever.allowed_docnos, retriever.excluded_docnos = ["d001", "d002", "d003"], ["d002", "d050", "not a docno"]
    assert set(retriever(topics)["docno"]) == {"d001", "d003"}


def test_ignore_same_id_drops_the_document_that_is_the_query(index, model, topics, full):
    best = full[full["rank"] == 0].set_index("qid")["docno"]
    named = topics.assign(qid=[f"q{i}" for i in range(5)])
    named["qid"] = [*best.loc[topics["qid"]].tolist()[:1], *topics["qid"][1:]]
    found = index.retriever(model, num_results=5, ignore_same_id=True)(named)
    plain = index.retriever(model, num_results=6)(named)
    own = plain["qid"] == plain["docno"]
    assert own.sum() == 1
    expected = plain[~own & ((plain["rank"] < 5) | (plain["qid"] == named["qid"][0]))]
    assert list_runs(found) == list_runs(expected)
    assert found.groupby("qid")["rank"].apply(list).tolist() == [list(range(5))] * 5


@pytest.mark.parametrize("kind", [np.array, list, pd.Series, lambda mask: np.array(mask, np.int8)])
def test_mask_keeps_the_documents_with_true(retriever, topics, kind):
    expected = filter_ranking(retriever, topics, [SOME] * 5)
    retriever.mask = kind([docid % 3 == 0 for docid in range(120)])
    assert_same_ranking(retriever(topics), expected)
    retriever.allowed_docnos = {"d000", "d001"}
    assert set(retriever(topics)["docno"]) == {"d000"}


@pytest.mark.parametrize(
    "mask", ["d001", [0.5] * 120, [2] * 120, [["d001"]], True, np.ones((2, 60), bool), ["d001"]], ids=repr
)
def test_mask_that_is_not_binary_is_refused_by_the_constructor(index, mask):
    with pytest.raises(ValueError, match="mask must be an array with True or False for every docid, got"):
        index.retriever(mask=mask)


def test_mask_of_a_frame_in_another_order_is_refused(index):
    frame = pd.DataFrame({"kept": np.arange(120) % 3 == 0}).sample(frac=1, random_state=0)
    with pytest.raises(ValueError, match=r"mask must be in the order of docids, got a Series.*index\.mask"):
        index.retriever(mask=frame["kept"])


def test_mask_of_another_length_is_refused(retriever, topics):
    retriever.mask = [True] * 5
    with pytest.raises(ValueError, match=r"mask must have one value for each of the 120 documents of .*, got 5\."):
        retriever(topics)


def test_masks_with_as_many_documents_have_different_names(index):
    one, two = (index.retriever(mask=np.arange(120) % 3 == i) for i in (0, 1))
    assert one != two and repr(one) != repr(two) and "mask=<40 of 120, " in repr(one)
    assert one == index.retriever(mask=np.arange(120) % 3 == 0) and hash(one) != hash(two)


def test_metadata_and_an_expression_make_a_mask(index, model, topics):
    books = pd.DataFrame({"docno": [f"d{i:03}" for i in range(119, 60, -1)], "year": range(1961, 2020), "kind": "novel"})
    books = pd.concat([books, pd.DataFrame({"docno": ["elsewhere"], "year": [2019], "kind": [None]})], ignore_index=True)
    mask = index.mask(books, "year >= 2017 and kind == 'novel'")
    assert np.flatnonzero(mask).tolist() == [61, 62, 63]
    assert set(index.retriever(model, mask=mask)(topics)["docno"]) == {"d061", "d062", "d063"}
    assert np.flatnonzero(index.mask(books, "kind == 'novel' & year == 1961")).tolist() == [119]


@pytest.mark.parametrize("where", ["year > ", "yaer == 2000", "year + 1", "1 == 1", 5, "@x > 1", "kind > 3"])
def test_metadata_expression_that_is_no_condition_is_refused(index, where):
    books = pd.DataFrame({"docno": ["d001"], "year": [2000], "kind": ["novel"]})
    with pytest.raises(ValueError, match="where must be .* over the columns docno, year, kind, got"):
        index.mask(books, where)


@pytest.mark.parametrize("metadata", [pd.DataFrame({"id": ["d001"]}), [{"docno": "d001"}]], ids=["frame", "list"])
def test_metadata_without_docnos_are_refused(index, metadata):
    with pytest.raises(ValueError, match="metadata must be a frame with a column docno, got"):
        index.mask(metadata, "id == 'd001'")


def test_filters_are_resolved_once_per_index_and_filter(retriever, topics, monkeypatch):
    retriever.allowed_docnos, retriever.excluded_docnos = set(SOME), ["d003"]
    calls = count_calls(monkeypatch, Docnos, "find")
    first = retriever(topics)
    assert len(calls) == 2
    for _ in range(3):
        pd.testing.assert_frame_equal(retriever(topics), first)
    assert len(calls) == 2
    retriever.allowed_docnos.discard("d000")  # a change in place counts as another filter
    assert "d000" not in set(retriever(topics)["docno"]) and len(calls) == 4


# Functions


@pytest.fixture
def reader(index):
    return index.reader


def test_find_allowed_returns_ascending_unique_docids(reader):
    assert find_allowed(reader, ["d007", "unknown", "d002", "d007"]).tolist() == [2, 7]
    assert find_allowed(reader, []).tolist() == []


def show(filters: list[Filter]) -> list[tuple[list[int] | None, list[int]]]:
    return [(None if f.allowed is None else f.allowed.tolist(), f.excluded.tolist()) for f in filters]


def test_read_filters_sets_no_limit_for_empty_cells(reader, topics):
    assert show(read_filters(reader, topics, Filter())) == [(None, [])] * 5
    column = pd.Series([["d003", "d001"], None, [], ["unknown"], np.nan], dtype=object)
    found = show(read_filters(reader, topics.assign(allowed_docnos=column), Filter()))
    assert found == [([1, 3], []), (None, []), ([], []), ([], []), (None, [])]
    found = show(read_filters(reader, topics.assign(excluded_docnos=column), Filter()))
    assert found == [(None, [1, 3]), (None, []), (None, []), (None, []), (None, [])]


def test_read_filters_intersects_columns_and_options(reader, topics):
    column = pd.Series([["d003", "d001"], None, [], ["d002"], None], dtype=object)
    some = Filter(np.array([0, 1, 2]))
    found = read_filters(reader, topics.assign(allowed_docnos=column), some)
    assert [docids for docids, _ in show(found)] == [[1], [0, 1, 2], [], [2], [0, 1, 2]]
    found = read_filters(reader, topics.assign(excluded_docnos=column), some)
    assert show(found) == [([0, 2], []), ([0, 1, 2], []), ([0, 1, 2], []), ([0, 1], []), ([0, 1, 2], [])]
    assert show(read_filters(reader, topics, Filter(np.array([5])))) == [([5], [])] * 5


def test_long_exclude_list_becomes_the_other_documents(reader, topics, monkeypatch):
    monkeypatch.setattr("pyterrier_hypencoder.transformers.filters.DROP_UP_TO", 2)
    column = pd.Series([[f"d{i:03}" for i in range(117)], ["d001", "d002"], None, None, None], dtype=object)
    found = show(read_filters(reader, topics.assign(excluded_docnos=column), Filter()))
    assert found[:3] == [([117, 118, 119], []), (None, [1, 2]), (None, [])]


def test_queries_that_share_a_collection_resolve_it_once(reader, topics, monkeypatch):
    calls = count_calls(monkeypatch, Docnos, "find")
    read_filters(reader, topics.assign(allowed_docnos=[SOME] * 5), Filter())
    assert len(calls) == 1


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
