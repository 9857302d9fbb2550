"""``max_scored``, ``converged``, the fallback of surrogate search with its warning, and progress."""

from __future__ import annotations

import logging
import re

import numpy as np
import pandas as pd
import pytest
import torch
from result_checks import assert_same_ranking

from pyterrier_hypencoder.search import surrogate
from pyterrier_hypencoder.transformers.batch_search import BatchSearch

SMALL = {"graph_k": 10, "initial_candidates": 60, "n_initial": 16, "n_per_round": 16, "num_results": 5}


def list_files(index) -> list[str]:
    return sorted(str(path) for path in index.path.rglob("*"))


@pytest.fixture
def always_fails(monkeypatch):
    """Let every query of a surrogate search count as too far from linear after its fourth round."""
    monkeypatch.setattr(surrogate, "CONVERGED_BELOW", -1.0)
    monkeypatch.setattr(surrogate, "FALLBACK_ABOVE", -0.5)
    monkeypatch.setattr(surrogate, "FALLING_BELOW", -1.0)


def test_max_scored_below_the_collection_is_an_error_for_exhaustive_search(index, model, topics):
    message = "max_scored must be at least 120 for exhaustive search, .*, got 119. Set algorithm='auto'"
    with pytest.raises(ValueError, match=message):
        index.retriever(model, max_scored=119)(topics)
    assert len(index.retriever(model, max_scored=120)(topics)) == 600
    allowed = index.retriever(model, max_scored=3, allowed_docnos=["d001", "d002", "d003"])
    assert len(allowed(topics)) == 15


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_max_scored_of_a_wrong_type_is_refused(index, model, value):
    with pytest.raises(ValueError, match="max_scored must be"):
        index.retriever(model, max_scored=value)


@pytest.mark.parametrize("algorithm", ["graph", "surrogate", "auto"])
@pytest.mark.parametrize("max_scored", [1, 20, 70, np.uint8(70)])
def test_max_scored_bounds_every_query(index_with_graph, model, topics, algorithm, max_scored):
    options = SMALL | {"num_results": 100, "n_initial": 64}
    retriever = index_with_graph.retriever(model, algorithm=algorithm, max_scored=max_scored, return_stats=True, **options)
    frames = [topics, topics.assign(allowed_docnos=[[f"d{i:03}" for i in range(100)]] * 5)]
    if algorithm != "auto":
        frames += [pd.concat([topics.assign(docno=f"d{i:03}", rank=i) for i in range(90)], ignore_index=True)]
    for frame in frames:
        found = retriever(frame)
        assert len(found) and (found["n_scored"] <= max_scored).all()


def test_graph_search_is_converged_if_it_ended_by_itself(index_with_graph, model, topics):
    options = SMALL | {"algorithm": "graph", "return_stats": True, "initial_candidates": 12}
    assert index_with_graph.retriever(model, **options)(topics)["converged"].all()
    assert not index_with_graph.retriever(model, max_iter=1, **options)(topics)["converged"].any()
    assert not index_with_graph.retriever(model, max_scored=14, **options)(topics)["converged"].all()


def test_query_vectors_with_a_budget_are_not_searched_exhaustively(index, topics):
    queries = np.random.default_rng(0).normal(size=(5, 24))
    frame = topics[["qid"]].assign(query_vec=list(queries))
    expected = index.retriever(num_results=5)(frame)
    for algorithm in ("auto", "surrogate"):
        options = {"algorithm": algorithm, "max_scored": 90, "num_results": 5, "n_per_round": 16, "return_stats": True}
        found = index.retriever(**options)(frame)
        assert (found["n_scored"] <= 90).all()
        assert list(found["docno"]) == list(expected["docno"])


def test_fallback_gives_exhaustive_results_and_one_warning_per_call(index, model, topics, caplog, always_fails):
    retriever = index.retriever(model, algorithm="surrogate", batch_size=2, return_stats=True, **SMALL)
    with caplog.at_level(logging.WARNING, logger="pyterrier_hypencoder"):
        found = retriever(topics)
    assert found["fell_back"].all() and found["converged"].all() and (found["n_scored"] > 120).all()
    assert_same_ranking(
        found[["qid", "query", "docno", "docid", "score", "rank"]], index.retriever(model, num_results=5)(topics)
    )
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and "5 of 5 q-nets" in warnings[0] and "600 in total" in warnings[0]


def test_fallback_keeps_the_filters_of_queries(index, model, topics, caplog, always_fails):
    column = pd.Series([[f"d{i:03}" for i in range(100)], None, [f"d{i:03}" for i in range(40)], None, None], dtype=object)
    frame = topics.assign(allowed_docnos=column, excluded_docnos=[["d001"]] * 5)
    retriever = index.retriever(model, algorithm="surrogate", batch_size=2, **SMALL)
    with caplog.at_level(logging.WARNING, logger="pyterrier_hypencoder"):
        found = retriever(frame)
    assert_same_ranking(found, index.retriever(model, num_results=5)(frame))
    assert len(caplog.records) == 1


def test_fallback_does_not_exceed_the_budget(index, model, topics, caplog, always_fails):
    options = {"algorithm": "surrogate", "return_stats": True, **SMALL}
    with caplog.at_level(logging.WARNING, logger="pyterrier_hypencoder"):
        found = index.retriever(model, max_scored=100, **options)(topics)
    assert not found["fell_back"].any() and (found["n_scored"] <= 100).all() and not caplog.records
    assert index.retriever(model, max_scored=300, **options)(topics)["fell_back"].all()


@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate"])
def test_verbose_shows_finished_queries(index_with_graph, model, topics, algorithm, capfd):
    index_with_graph.retriever(model, algorithm=algorithm, verbose=True, **SMALL)(topics)
    assert re.search(r"5(\.0)?/5", capfd.readouterr().err)


@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate", "auto"])
def test_search_builds_nothing(index_with_graph, model, topics, algorithm, monkeypatch):
    monkeypatch.setattr("pyterrier_hypencoder.search.choose.EXHAUSTIVE_UP_TO", 10)
    before = list_files(index_with_graph)
    index_with_graph.retriever(model, algorithm=algorithm, **SMALL)(topics)
    assert list_files(index_with_graph) == before


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_does_not_change_surrogate_results(index, model, topics, batch_size):
    """The index stores fp16, the default."""
    options = {"algorithm": "surrogate", "return_stats": True, **SMALL, "max_rounds": 3}
    expected = index.retriever(model, batch_size=32, **options)(topics)
    vectors = model.query_encoder()(topics)  # q-nets themselves can differ in the last bit between batches
    expected = index.retriever(model, batch_size=32, **options)(vectors)
    found = index.retriever(model, batch_size=batch_size, **options)(vectors)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert torch.get_default_dtype() == torch.float32


def test_query_that_has_scored_all_documents_has_converged(index, model, topics, always_fails):
    options = SMALL | {"algorithm": "surrogate", "n_per_round": 60, "max_rounds": 8, "num_results": 100}
    found = index.retriever(model, return_stats=True, **options)(topics)
    assert (found["n_scored"] == 120).all() and not found["fell_back"].any()


def test_forbidden_fallback_still_fills_the_results(index, model, topics, always_fails):
    options = SMALL | {"algorithm": "surrogate", "n_per_round": 16, "max_rounds": 4, "num_results": 110, "max_scored": 119}
    found = index.retriever(model, return_stats=True, **options)(topics)
    assert not found["fell_back"].any() and not found["converged"].any()
    assert (found.groupby("qid")["docno"].count() >= 60).all()


@pytest.mark.parametrize("number", [np.int64, np.uint8])
def test_numpy_integers_are_options_like_others(index_with_graph, model, topics, number):
    options = {
        "max_rounds": 8,
        "n_per_round": 16,
        "max_scored": 100,
        "n_initial": 16,
        "initial_candidates": 30,
        "n_candidates": 5,
    }
    options |= {"max_iter": 3, "num_results": 20, "graph_k": 10}
    for algorithm in ("surrogate", "graph"):
        expected = index_with_graph.retriever(model, algorithm=algorithm, **options)(topics)
        same = {name: number(value) for name, value in options.items()}
        pd.testing.assert_frame_equal(index_with_graph.retriever(model, algorithm=algorithm, **same)(topics), expected)


def test_budget_with_filters_of_queries_does_not_depend_on_the_batch(index, model, topics):
    filters = [[f"d{i:03}" for i in range(20 * q, 20 * q + 20)] for q in range(5)]
    options = {"max_scored": 20, "num_results": 10}
    found = [index.retriever(model, batch_size=size, **options)(topics.assign(allowed_docnos=filters)) for size in (1, 32)]
    pd.testing.assert_frame_equal(*found)
    assert len(found[0]) == 50


def test_budget_leaves_a_random_part_of_the_entry_points(index, model):
    search = BatchSearch(index.retriever(model, algorithm="surrogate", max_scored=60), index.reader, 10)
    chosen = search._draw_others(np.arange(0, 120, 2), np.arange(1, 41, 2), 40)
    assert len(chosen) == 20 and chosen.max() > 60 and not set(chosen) & set(range(1, 41, 2))
