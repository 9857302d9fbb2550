"""HypencoderRetriever: frames, options, algorithms, entry points."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from pyterrier.measures import nDCG
from result_checks import ADDED, assert_same_ranking, assert_sorted, list_runs, score_all

from pyterrier_hypencoder import (
    PRESETS,
    Hypencoder,
    HypencoderIndex,
    HypencoderIndexer,
    HypencoderRetriever,
)
from pyterrier_hypencoder.encoders.base import Encoder
from pyterrier_hypencoder.index.inner_product import INDEX_FILE
from pyterrier_hypencoder.search import choose

ALGORITHMS = ("exhaustive", "graph", "surrogate")


@pytest.fixture
def graph(index_with_graph, model) -> HypencoderRetriever:
    """Return a graph search whose options leave most documents out."""
    return index_with_graph.retriever(
        model, algorithm="graph", graph_k=10, initial_candidates=12, n_candidates=4, num_results=10
    )


# Frames


def test_results_are_the_scores_of_the_q_nets_sorted(retriever, model, index, topics):
    assert_same_ranking(retriever(topics), score_all(model, index, topics))


def test_results_have_columns_dtypes_and_ranks(retriever, topics, index):
    results = retriever(topics)
    assert list(results.columns) == ["qid", "query", *ADDED]
    assert results["docid"].dtype == np.int64 and results["score"].dtype == np.float32 and results["rank"].dtype == np.int64
    assert all(type(docno) is str for docno in results["docno"])
    assert list(index.docnos.at(results["docid"].to_numpy())) == list(results["docno"])
    assert results.index.equals(pd.RangeIndex(len(topics) * len(index)))
    assert all(list(group["rank"]) == list(range(len(index))) for _, group in results.groupby("qid"))


def test_topic_columns_are_kept_and_old_ranks_replaced(retriever, topics):
    extra = topics.assign(narrative="long", query_0=[["a"]] * len(topics), weight=np.arange(5), score=-1, rank=7)
    results = retriever(extra)
    assert list(results.columns) == ["qid", "query", "narrative", "query_0", "weight", *ADDED]
    assert list(results["weight"]) == list(np.repeat(np.arange(5), 120))
    assert_same_ranking(results[["qid", "query", *ADDED]], retriever(topics))


@pytest.mark.parametrize("extra", [{}, {"allowed_docnos": [["d003"], None, [], ["d001"], ["d002"]]}])
def test_input_frame_is_not_changed(retriever, topics, extra):
    given = topics.assign(**extra).set_index(pd.Index([3, 3, 9, 0, 1]))
    before = given.copy(deep=True)
    retriever(given)
    pd.testing.assert_frame_equal(given, before)


@pytest.mark.parametrize("columns", [["qid", "query"], ["qid", "query_vec"], ["qid", "query", "more"]])
def test_empty_topics_give_empty_results_with_the_same_dtypes(retriever, topics, columns):
    found = retriever(pd.DataFrame(columns=columns))
    assert len(found) == 0 and list(found.columns) == [*columns, *ADDED]
    assert list(found[ADDED].dtypes) == list(retriever(topics)[ADDED].dtypes)


@pytest.mark.parametrize("query", ["", " ", "heart " * 2000, "東京 ☕ naïve \u0000\u200f", "-+()[]:\"'"], ids=range(5))
def test_unusual_queries_are_searched(retriever, model, index, query):
    assert_same_ranking(retriever.search(query), score_all(model, index, pd.DataFrame({"qid": ["1"], "query": [query]})))


def test_num_results_above_doc_count_returns_all_documents(retriever, topics, index):
    retriever.num_results = 10**6
    assert (retriever(topics)["qid"].value_counts() == len(index)).all()


def test_num_results_cuts_the_full_ranking(retriever, topics):
    everything = retriever(topics)
    retriever.num_results = 7
    assert_same_ranking(retriever(topics), everything[everything["rank"] < 7])


def test_equal_scores_are_ordered_by_docid(retriever, topics):
    results = retriever(topics)
    assert results.duplicated(["qid", "score"]).sum() > 20  # many q-nets return 0
    assert_sorted(results)
    twins = results[results["docno"].isin(["d040", "d041"])].sort_values(["qid", "docid"])["score"].to_numpy()
    np.testing.assert_allclose(twins[::2], twins[1::2], atol=3e-3)


@pytest.mark.parametrize("num_results", [1, 2, 17, 39, 40])
@pytest.mark.parametrize(("batch_size", "chunk"), [(1, 40), (2, 40), (3, 40), (3, 7), (2, 1)])
def test_ties_at_the_cutoff_go_to_the_smaller_docids(tmp_path, num_results, batch_size, chunk, monkeypatch):
    monkeypatch.setattr("pyterrier_hypencoder.search.passes._CHUNK_BYTES", 4 * 4 * chunk)
    vectors = np.random.default_rng(0).integers(-1, 2, (40, 4))  # few different scores, exact in any order of summation
    index = HypencoderIndexer(tmp_path / "t.hyp").index({"docno": f"t{i}", "doc_vec": v} for i, v in enumerate(vectors))
    queries = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, -1, 2, 0]])
    topics = pd.DataFrame({"qid": ["a", "b", "c"], "query_vec": list(queries)})
    results = index.retriever(num_results=num_results, batch_size=batch_size)(topics)
    expected = [np.lexsort((np.arange(40), -scores))[:num_results] for scores in queries @ vectors.T]
    assert [list(results[results["qid"] == qid]["docid"]) for qid in "abc"] == [list(docids) for docids in expected]
    assert_sorted(results)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_batch_size_does_not_change_exhaustive_results(retriever, topics, batch_size):
    expected = retriever(topics)
    retriever.batch_size = batch_size
    assert_same_ranking(retriever(topics), expected)


def test_topic_order_is_kept_and_does_not_change_results(retriever, topics):
    expected, backwards = retriever(topics), retriever(topics.iloc[::-1])
    assert list(backwards["qid"].unique()) == list(topics["qid"])[::-1]
    for qid in topics["qid"]:
        assert_same_ranking(backwards[backwards["qid"] == qid], expected[expected["qid"] == qid])


@pytest.mark.parametrize("labels", [[5, 5, 5, 5, 5], list("edcba"), [10, 8, 6, 4, 2]], ids=str)
def test_frame_index_does_not_change_results(retriever, topics, labels):
    assert_same_ranking(retriever(topics.set_axis(labels)), retriever(topics))


def test_integer_qids_are_kept(retriever, topics):
    results = retriever(topics.assign(qid=[4, 3, 2, 1, 0]))
    assert results["qid"].dtype == np.int64 and list(results["qid"].unique()) == [4, 3, 2, 1, 0]


def test_frame_with_documents_points_to_the_scorer(retriever, topics):
    with pytest.raises(pt.validate.InputValidationError, match=r"index\.scorer\("):
        retriever(topics.assign(docno="d001"))


@pytest.mark.parametrize("columns", [["qid"], ["query"], ["qid", "text"], []], ids=str)
def test_frame_without_qid_or_query_is_refused(retriever, columns):
    with pytest.raises(pt.validate.InputValidationError, match="does not match"):
        retriever(pd.DataFrame([["x"] * len(columns)], columns=columns))


@pytest.mark.parametrize("query", [None, float("nan"), 3])
def test_query_that_is_not_a_string_is_named(retriever, query):
    with pytest.raises(ValueError, match="Query 'q7' must be a string"):
        retriever(pd.DataFrame({"qid": ["q1", "q7"], "query": pd.Series(["fine", query], dtype=object)}))


def test_missing_qid_is_refused(retriever):
    with pytest.raises(ValueError, match="qid is missing"):
        retriever(pd.DataFrame({"qid": ["q1", None], "query": ["a", "b"]}))


def test_queries_are_encoded_in_batches(index, model, topics, monkeypatch):
    sizes = []
    encode = Encoder.encode_queries
    monkeypatch.setattr(Encoder, "encode_queries", lambda self, texts: sizes.append(len(texts)) or encode(self, texts))
    index.retriever(model, batch_size=2)(topics)
    assert sizes == [2, 2, 1]


# Options


@pytest.mark.parametrize(
    ("option", "value", "choices"),
    [
        *[
            (name, value, "must be a positive integer")
            for name in ("num_results", "batch_size")
            for value in (0, -1, True, 1.5, "3", None)
        ],
        *[("qnet_width", value, "must be a positive integer") for value in (0, -1, True, 1.5, "3")],
        *[("device", value, "'auto', 'cpu' or 'cuda") for value in ("tpu", "", None, 3, "meta")],
        ("device", "cuda:64", "CUDA devices"),
        *[("precision", value, "'auto', 'fp32', 'bf16'") for value in ("fp64", "", None)],
        *[("algorithm", value, "'exhaustive'") for value in ("exact", "", None)],
    ],
)
def test_invalid_options_say_what_is_allowed(retriever, topics, option, value, choices):
    setattr(retriever, option, value)
    with pytest.raises(ValueError, match=f"{option} (must be|'cuda:64' is not available)") as error:
        retriever(topics)
    assert choices in str(error.value) and repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("algorithm", "guess"),
        ("initial_candidates", 0),
        ("initial_candidates", 0.0),
        ("initial_candidates", 0.5),
        ("initial_candidates", 1.0),
        ("initial_candidates", 1.5),
        ("initial_candidates", -1),
        ("initial_candidates", None),
        ("initial_candidates", np.float64(1.5)),
        ("n_candidates", 0),
        ("max_iter", 0),
        ("graph_k", 0),
        ("variant", "mine"),
        ("n_initial", 3),
        ("n_initial", 20.5),
        ("max_rounds", 0),
        ("n_per_round", 0),
        ("n_per_round", 3),
        ("ridge", 0.0),
        ("ridge", float("nan")),
        ("entry_points", []),
        ("entry_points", "d001"),
    ],
)
def test_invalid_algorithm_options_are_refused(index_with_graph, model, topics, option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        index_with_graph.retriever(model, **{option: value})(topics)


def test_options_accept_numpy_integers(graph, topics):
    expected = graph(topics)
    graph.initial_candidates = np.int64(12)
    pd.testing.assert_frame_equal(graph(topics), expected)
    graph.num_results = np.int32(10)
    pd.testing.assert_frame_equal(graph(topics), expected)


def test_qnet_width_above_the_hidden_width_names_the_limit(retriever, topics):
    retriever.qnet_width = 25
    with pytest.raises(ValueError, match="between 1 and 24"):
        retriever(topics)


def test_options_are_checked_first_and_for_empty_frames(index, model):
    with pytest.raises(ValueError, match="num_results"):
        HypencoderRetriever("nowhere.hyp", model, num_results=0).search("a query")
    with pytest.raises(ValueError, match="num_results"):
        index.retriever(num_results=0)(pd.DataFrame(columns=["qid", "query"]))


def test_constructor_does_no_work():
    retriever = HypencoderRetriever("nowhere.hyp", Hypencoder("nobody/nothing"), num_results=5, device="cuda:99")
    assert (retriever.num_results, retriever.device) == (5, "cuda:99")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_results", -5),
        ("device", "abacus"),
        ("algorithm", "guess"),
        ("precision", "fp64"),
        ("variant", "mine"),
        ("index", 5),
        ("ridge", 0.0),
    ],
)
def test_invalid_options_are_refused_by_the_constructor(option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        HypencoderRetriever(**{option: value})


def test_options_are_keyword_only(index, model):
    with pytest.raises(TypeError):
        HypencoderRetriever(index, model, 10)


@pytest.mark.parametrize("width", [1, 5, 24])
def test_qnet_width_narrows_the_q_nets(retriever, model, index, topics, width):
    retriever.qnet_width = width
    assert_same_ranking(retriever(topics), score_all(model, index, topics, width=width))


def test_options_that_are_set_later_take_effect(retriever, topics, index, model, other_model, docs, tmp_path):
    full = retriever(topics)
    retriever.num_results = 3
    assert len(retriever(topics)) == 15
    retriever.num_results = 1000
    retriever.precision = "bf16"
    bf16 = retriever(topics).merge(full, on=["qid", "docno"], suffixes=("", "_full"))
    assert not np.array_equal(bf16["score"], bf16["score_full"])
    assert (bf16["score"] - bf16["score_full"]).abs().median() < 0.1
    retriever.precision = "fp32"
    retriever.qnet_width = 5
    narrow = retriever(topics)
    assert not np.allclose(narrow["score"], full["score"], atol=0.5)
    retriever.qnet_width = None
    assert_same_ranking(retriever(topics), full)
    retriever.set_parameter("index", HypencoderIndexer(tmp_path / "first.hyp", model).index(docs[:20]))
    assert set(retriever(topics)["docno"]) == {doc["docno"] for doc in docs[:20]}
    retriever.set_parameter("index", index.path)
    retriever.model = other_model
    with pytest.raises(ValueError, match="does not fit the index"):
        retriever(topics)


def test_search_is_a_method_and_algorithm_an_option(retriever, topics):
    expected = retriever(topics.iloc[:1])
    assert_same_ranking(retriever.search(topics["query"][0], qid="q0"), expected)
    retriever.algorithm = "exhaustive"
    assert_same_ranking(retriever.search(topics["query"][0], qid="q0"), expected)
    retriever.algorithm = "nearest"
    assert retriever.get_parameter("algorithm") == "nearest"
    with pytest.raises(ValueError, match="algorithm must be one of"):
        retriever.search("a query")


# Algorithms


def test_algorithms_agree_if_they_score_all_documents(index_with_graph, model, topics):
    expected = index_with_graph.retriever(model, num_results=20)(topics)
    for options in (
        {"algorithm": "graph", "graph_k": 10, "initial_candidates": 120},
        {"algorithm": "graph", "graph_k": 10, "initial_candidates": 10_000},
        {"algorithm": "surrogate", "n_initial": 120},
        {"algorithm": "auto"},
    ):
        found = index_with_graph.retriever(model, num_results=20, **options)(topics)
        assert list_runs(found) == list_runs(expected), options


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_batch_size_does_not_change_results(topics, graph, algorithm):
    graph.algorithm = algorithm
    graph.batch_size = 32
    whole = graph(topics)
    graph.batch_size = 2
    assert list_runs(graph(topics)) == list_runs(whole)


@pytest.mark.parametrize("algorithm", ["graph", "surrogate"])
def test_filter_limits_approximate_search(index_with_graph, model, topics, algorithm):
    allowed = [f"d{i:03}" for i in range(0, 120, 4)]
    options = {"graph_k": 10, "initial_candidates": 60, "n_initial": 16, "n_per_round": 16, "num_results": 5}
    found = index_with_graph.retriever(model, algorithm=algorithm, allowed_docnos=allowed, **options)(topics)
    assert set(found["docno"]) <= set(allowed) and (found.groupby("qid").size() == 5).all()


@pytest.mark.parametrize("algorithm", ["graph", "surrogate"])
def test_small_filters_are_searched_exhaustively(index_with_graph, model, topics, algorithm, caplog):
    allowed = [f"d{i:03}" for i in range(0, 120, 12)]
    options = {"graph_k": 10, "initial_candidates": 16, "n_initial": 16, "num_results": 10, "return_stats": True}
    with caplog.at_level(logging.INFO, logger="pyterrier_hypencoder"):
        found = index_with_graph.retriever(model, algorithm=algorithm, allowed_docnos=allowed, **options)(topics)
    assert "cover all allowed documents, so all 10 are scored" in caplog.text
    assert set(found["n_scored"]) == {10} and all(sorted(run) == allowed for run in list_runs(found).values())


def test_graph_search_without_a_graph_says_how_to_build_it(index, model, topics):
    with pytest.raises(FileNotFoundError, match=r"corpus_graph"):
        index.retriever(model, algorithm="graph", initial_candidates=5)(topics)


def test_graph_with_all_documents_as_entry_points_is_exhaustive_and_logged(index, model, topics, caplog):
    with caplog.at_level(logging.INFO, logger="pyterrier_hypencoder"):
        found = index.retriever(model, algorithm="graph", return_stats=True)(topics)  # needs no graph then
    assert set(found["n_scored"]) == {120} and "cover all allowed documents, so all 120 are scored" in caplog.text


def test_algorithm_is_chosen_from_the_facts_of_the_batch(index_with_graph, model, topics, monkeypatch):
    seen: list[dict[str, object]] = []

    def choose_surrogate(**facts: object) -> choose.Choice:
        seen.append(facts)
        return choose.Choice("surrogate", "test")

    monkeypatch.setattr("pyterrier_hypencoder.transformers.batch_search.choose_algorithm", choose_surrogate)
    auto = index_with_graph.retriever(model, algorithm="auto", graph_k=10, num_results=7, device="cpu")
    auto(topics.head(2).assign(allowed_docnos=[["d001", "d002"], ["d002", "d003"]]))
    auto.graph_k, auto.entry_points = 100, ["d001"]
    auto(topics.head(1).assign(query_vec=[np.ones(24)]))
    facts = {"num_results": 7, "doc_count": 120, "on_gpu": False, "has_inner_product_index": False, "max_scored": None}
    assert seen == [
        {"n_allowed": 3, "is_linear": False, "has_entry_points": False, "has_graph": True, **facts},
        {"n_allowed": 120, "is_linear": True, "has_entry_points": True, "has_graph": False, **facts},
    ]


def test_auto_follows_the_rules_and_builds_nothing(index_with_graph, model, topics, tmp_path, caplog, monkeypatch):
    index = HypencoderIndex(shutil.copytree(index_with_graph.path, tmp_path / "docs.hyp"))
    auto = index.retriever(model, algorithm="auto", num_results=5)

    def picked(retriever, frame=topics) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="pyterrier_hypencoder"):
            retriever(frame)
        return next(r.message for r in caplog.records if "auto" in r.message).split("chooses ")[1].split()[0]

    assert picked(auto) == "exhaustive"
    assert picked(auto, topics.assign(docno="d001", score=1.0, rank=0)) == "exhaustive"
    monkeypatch.setattr(choose, "EXHAUSTIVE_UP_TO", 50)
    monkeypatch.setattr("pyterrier_hypencoder.scoring.resolve_device", lambda device: torch.device("cpu"))
    assert picked(auto) == "surrogate"
    assert picked(auto, topics.assign(docno="d001", score=1.0, rank=0)) == "surrogate"
    auto.allowed_docnos = [f"d{i:03}" for i in range(50)]
    assert picked(auto) == "exhaustive"
    auto.allowed_docnos = None
    monkeypatch.setattr(choose, "GRAPH_ABOVE", 119)
    auto.graph_k = 10
    assert picked(auto) == "graph"
    auto.graph_k, auto.n_initial = 100, 16
    assert picked(auto) == "surrogate" and not (index.path / INDEX_FILE).exists()
    index.inner_product_index()
    auto.graph_k = 10
    assert picked(auto) == "surrogate"
    auto.num_results = 12
    assert picked(auto) == "exhaustive"
    vectors = topics.assign(query_vec=[np.ones(24, np.float32)] * len(topics))
    auto.num_results = 5
    assert picked(auto, vectors) == "exhaustive"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gpu_and_cpu_find_the_same_documents(index_with_graph, model, topics, algorithm):
    options = {
        "graph_k": 10,
        "initial_candidates": 12,
        "n_candidates": 4,
        "n_initial": 40,
        "n_per_round": 20,
        "num_results": 5,
    }
    options["algorithm"] = algorithm
    found = [index_with_graph.retriever(model, device=device, **options)(topics) for device in ("cpu", "cuda")]
    assert list_runs(found[0]) == list_runs(found[1])


def test_index_method_says_how_to_index(retriever):
    with pytest.raises(TypeError, match=r"A retriever cannot index.*Call \(docs_pipeline >> indexer\)\.index\(corpus\) first"):
        retriever.index([{"docno": "d", "text": "t"}])


def test_presets_are_the_papers_settings():
    found = HypencoderRetriever(**PRESETS["efficient_2"])
    values = {name: found.get_parameter(name) for name in PRESETS["efficient_2"]}
    assert values == PRESETS["efficient_2"] and values["n_candidates"] == 328
    assert HypencoderRetriever(**PRESETS["efficient_1"]) == HypencoderRetriever(algorithm="graph")


def test_grid_scan_varies_algorithm_and_candidates(topics, graph):
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": "d001", "label": 1})
    table = pt.GridScan(graph, {graph: {"algorithm": list(ALGORITHMS), "n_candidates": [1, 4]}}, topics, qrels, [nDCG @ 10])
    assert len(table) == 6


def test_graph_k_builds_the_graph_with_the_index(model, docs, topics, tmp_path):
    pipeline = HypencoderIndexer(tmp_path / "x.hyp", model, graph_k=5) >> HypencoderRetriever(
        algorithm="graph", graph_k=5, initial_candidates=3, num_results=4
    )
    pipeline.index(docs)
    assert (pipeline(topics).groupby("qid").size() == 4).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rank_cutoff_returns_the_first_results(graph, topics, algorithm):
    graph.algorithm = algorithm
    assert list_runs((graph % 3).compile()(topics)) == {qid: run[:3] for qid, run in list_runs(graph(topics)).items()}


# Entry points


def test_candidates_of_a_first_stage_are_entry_points(index_with_graph, model, topics, graph):
    few = [f"d{i:03}" for i in (3, 50, 77)]
    frame = topics.merge(pd.DataFrame({"docno": few, "score": [3.0, 2.0, 1.0], "rank": [0, 1, 2]}), how="cross")
    graph.max_iter, graph.num_results = 1, 120
    found = graph(frame)
    assert {qid: set(run) for qid, run in list_runs(found).items()} == {qid: set(few) for qid in topics["qid"]}
    graph.max_iter = 16
    assert all(len(run) > 20 for run in list_runs(graph(frame)).values())
    surrogate = index_with_graph.retriever(model, algorithm="surrogate", n_initial=16, n_per_round=16, num_results=5)
    assert list(surrogate(frame)["qid"].unique()) == list(topics["qid"])
    first = pt.Transformer.from_df(frame)
    assert list_runs((first >> graph)(topics)) == list_runs(graph(frame))


def test_entry_points_option_takes_docnos(graph, topics):
    graph.entry_points = ["d003", "d050"]
    graph.max_iter, graph.num_results = 1, 120
    assert all(sorted(run) == ["d003", "d050"] for run in list_runs(graph(topics)).values())
    graph.algorithm, graph.n_initial = "surrogate", 16
    assert all(len(run) >= 16 and {"d003", "d050"} <= set(run) for run in list_runs(graph(topics)).values())
    graph.entry_points = ["d003", "nonesuch"]
    with pytest.raises(ValueError, match="nonesuch"):
        graph(topics)


@pytest.mark.parametrize("kind", [np.array, pd.Series, tuple])
def test_entry_points_option_takes_any_collection(graph, topics, kind):
    graph.entry_points, graph.max_iter = kind(["d003", "d050"]), 1
    assert all(sorted(run) == ["d003", "d050"] for run in list_runs(graph(topics)).values())


def test_unknown_candidates_are_an_error(graph, topics):
    with pytest.raises(ValueError, match="nonesuch"):
        graph(topics.assign(docno="nonesuch", score=1.0, rank=0))
