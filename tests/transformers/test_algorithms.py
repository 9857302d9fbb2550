"""The retriever's algorithms: options, entry points from a first stage, statistics, and the choice of ``auto``."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from pyterrier.measures import nDCG

from pyterrier_hypencoder import PRESETS, HypencoderIndex, HypencoderIndexer, HypencoderRetriever
from pyterrier_hypencoder.index.inner_product import INDEX_FILE
from pyterrier_hypencoder.search import choose
from pyterrier_hypencoder.transformers import retriever as retriever_module
from pyterrier_hypencoder.transformers.measures import NumRounds, NumScored

ALGORITHMS = ("exhaustive", "graph", "surrogate")


@pytest.fixture(scope="module")
def graphed(index, tmp_path_factory) -> HypencoderIndex:
    """The index with a graph of 10 neighbours."""
    path = tmp_path_factory.mktemp("graphed") / "docs.hyp"
    shutil.copytree(str(index.path), path)
    HypencoderIndex(path).corpus_graph(10)
    return HypencoderIndex(path)


@pytest.fixture
def graph(graphed, model):
    return graphed.retriever(model, algorithm="graph", graph_k=10, initial_candidates=12, n_candidates=4, num_results=10)


def runs(results: pd.DataFrame) -> dict[str, list[str]]:
    return {qid: run["docno"].tolist() for qid, run in results.groupby("qid", sort=False)}


def test_algorithms_agree_if_they_score_all_documents(graphed, model, topics):
    expected = graphed.retriever(model, num_results=20)(topics)
    for options in (
        {"algorithm": "graph", "graph_k": 10, "initial_candidates": 120},
        {"algorithm": "graph", "graph_k": 10, "initial_candidates": 10_000},
        {"algorithm": "surrogate", "n_initial": 120},
        {"algorithm": "auto"},
    ):
        found = graphed.retriever(model, num_results=20, **options)(topics)
        assert runs(found) == runs(expected), options


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_return_stats_adds_the_costs_of_a_search(graphed, model, topics, algorithm):
    options = {"graph_k": 10, "initial_candidates": 12, "n_initial": 16, "n_per_round": 16, "num_results": 5}
    plain = graphed.retriever(model, algorithm=algorithm, **options)
    found = plain(topics)
    counted = graphed.retriever(model, algorithm=algorithm, return_stats=True, **options)
    with_stats = counted(topics)
    added = ["n_scored", "n_rounds", *(["last_yield", "fell_back"] if algorithm == "surrogate" else [])]
    assert list(with_stats.columns) == [*found.columns, *added]
    pd.testing.assert_frame_equal(with_stats[found.columns], found)
    assert with_stats["n_scored"].dtype.kind == "i" and (with_stats.groupby("qid")["n_scored"].nunique() == 1).all()
    assert list(counted(topics.iloc[:0]).columns) == list(with_stats.columns)
    assert pt.inspect.transformer_outputs(counted, ["qid", "query"]) == list(with_stats.columns)
    if algorithm == "exhaustive":
        assert set(with_stats["n_scored"]) == {120} and set(with_stats["n_rounds"]) == {1}


def test_num_scored_and_num_rounds_are_measures(graphed, model, topics):
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": "d001", "label": 1})
    systems = [graphed.retriever(model, return_stats=True), graphed.retriever(model, algorithm="surrogate", return_stats=True)]
    table = pt.Experiment(systems, topics, qrels, [nDCG @ 10, NumScored, NumRounds], names=["all", "some"])
    assert table["NumScored"].tolist()[0] == 120.0 and table["NumRounds"].tolist()[0] == 1.0
    assert table["NumScored"].tolist()[1] <= 240


def test_batch_size_does_not_change_results(graphed, model, topics, graph):
    for algorithm in ALGORITHMS:
        graph.algorithm = algorithm
        graph.batch_size = 32
        whole = graph(topics)
        graph.batch_size = 2
        assert runs(graph(topics)) == runs(whole)


def test_candidates_of_a_first_stage_are_entry_points(graphed, model, topics, graph):
    few = [f"d{i:03}" for i in (3, 50, 77)]
    frame = topics.merge(pd.DataFrame({"docno": few, "score": [3.0, 2.0, 1.0], "rank": [0, 1, 2]}), how="cross")
    graph.max_iter, graph.num_results = 1, 120
    found = graph(frame)
    assert {qid: set(run) for qid, run in runs(found).items()} == {qid: set(few) for qid in topics["qid"]}
    graph.max_iter = 16
    assert all(len(run) > 20 for run in runs(graph(frame)).values())
    surrogate = graphed.retriever(model, algorithm="surrogate", n_initial=16, n_per_round=16, num_results=5)
    assert list(surrogate(frame)["qid"].unique()) == list(topics["qid"])
    first = pt.Transformer.from_df(frame)
    assert runs((first >> graph)(topics)) == runs(graph(frame))


def test_exhaustive_search_refuses_candidates_and_points_to_the_scorer(graphed, model, topics):
    frame = topics.assign(docno="d001", score=1.0, rank=0)
    with pytest.raises(pt.validate.InputValidationError, match=r"index\.scorer"):
        graphed.retriever(model)(frame)


def test_entry_points_option_takes_docnos(graph, topics):
    graph.entry_points = ["d003", "d050"]
    graph.max_iter, graph.num_results = 1, 120
    assert all(sorted(run) == ["d003", "d050"] for run in runs(graph(topics)).values())
    graph.algorithm, graph.n_initial = "surrogate", 16
    assert all(len(run) >= 16 and {"d003", "d050"} <= set(run) for run in runs(graph(topics)).values())
    graph.entry_points = ["d003", "nonesuch"]
    with pytest.raises(ValueError, match="nonesuch"):
        graph(topics)


@pytest.mark.parametrize("kind", [np.array, pd.Series, tuple])
def test_entry_points_option_takes_any_collection(graph, topics, kind):
    graph.entry_points, graph.max_iter = kind(["d003", "d050"]), 1
    assert all(sorted(run) == ["d003", "d050"] for run in runs(graph(topics)).values())


def test_options_accept_numpy_integers(graph, topics):
    expected = graph(topics)
    graph.initial_candidates = np.int64(12)
    pd.testing.assert_frame_equal(graph(topics), expected)
    graph.num_results = np.int32(10)
    pd.testing.assert_frame_equal(graph(topics), expected)


def test_unknown_candidates_are_an_error(graph, topics):
    with pytest.raises(ValueError, match="nonesuch"):
        graph(topics.assign(docno="nonesuch", score=1.0, rank=0))


@pytest.mark.parametrize("algorithm", ["graph", "surrogate"])
def test_small_filters_are_searched_exhaustively(graphed, model, topics, algorithm, caplog):
    allowed = [f"d{i:03}" for i in range(0, 120, 12)]
    options = {"graph_k": 10, "initial_candidates": 16, "n_initial": 16, "num_results": 10, "return_stats": True}
    with caplog.at_level(logging.INFO, logger="pyterrier_hypencoder"):
        found = graphed.retriever(model, algorithm=algorithm, allowed_docnos=allowed, **options)(topics)
    assert "cover all allowed documents, so all 10 are scored" in caplog.text
    assert set(found["n_scored"]) == {10} and all(sorted(run) == allowed for run in runs(found).values())


@pytest.mark.parametrize("algorithm", ["graph", "surrogate"])
def test_filter_limits_approximate_search(graphed, model, topics, algorithm):
    allowed = [f"d{i:03}" for i in range(0, 120, 4)]
    options = {"graph_k": 10, "initial_candidates": 60, "n_initial": 16, "n_per_round": 16, "num_results": 5}
    found = graphed.retriever(model, algorithm=algorithm, allowed_docnos=allowed, **options)(topics)
    assert set(found["docno"]) <= set(allowed) and (found.groupby("qid").size() == 5).all()


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
def test_invalid_options_are_refused(graphed, model, topics, option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        graphed.retriever(model, **{option: value})(topics)


def test_graph_search_without_a_graph_says_how_to_build_it(index, model, topics):
    with pytest.raises(FileNotFoundError, match=r"corpus_graph"):
        index.retriever(model, algorithm="graph", initial_candidates=5)(topics)


def test_graph_with_all_documents_as_entry_points_is_exhaustive_and_logged(index, model, topics, caplog):
    with caplog.at_level(logging.INFO, logger="pyterrier_hypencoder"):
        found = index.retriever(model, algorithm="graph", return_stats=True)(topics)  # needs no graph then
    assert set(found["n_scored"]) == {120} and "cover all allowed documents, so all 120 are scored" in caplog.text


def test_auto_follows_the_rules_and_builds_nothing(graphed, model, minilm, topics, caplog, monkeypatch):
    auto = graphed.retriever(model, algorithm="auto", num_results=5)

    def picked(retriever, frame=topics) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="pyterrier_hypencoder"):
            retriever(frame)
        return next(r.message for r in caplog.records if "auto" in r.message).split("chooses ")[1].split()[0]

    assert picked(auto) == "exhaustive"
    assert picked(auto, topics.assign(docno="d001", score=1.0, rank=0)) == "exhaustive"
    monkeypatch.setattr(choose, "EXHAUSTIVE_UP_TO", 50)
    monkeypatch.setattr(retriever_module.scoring, "resolve_device", lambda device: torch.device("cpu"))
    assert picked(auto) == "surrogate"
    assert picked(auto, topics.assign(docno="d001", score=1.0, rank=0)) == "surrogate"
    auto.allowed_docnos = [f"d{i:03}" for i in range(50)]
    assert picked(auto) == "exhaustive"
    auto.allowed_docnos = None
    monkeypatch.setattr(choose, "GRAPH_ABOVE", 119)
    auto.graph_k = 10
    assert picked(auto) == "graph"
    auto.graph_k, auto.n_initial = 100, 16
    assert picked(auto) == "surrogate" and not (graphed.path / INDEX_FILE).exists()  # no query builds an index
    graphed.inner_product_index()
    auto.graph_k = 10
    assert picked(auto) == "surrogate"
    auto.num_results = 12
    assert picked(auto) == "exhaustive"
    vectors = topics.assign(query_vec=[np.ones(24, np.float32)] * len(topics))
    auto.num_results = 5
    assert picked(auto, vectors) == "exhaustive"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gpu_and_cpu_find_the_same_documents(graphed, model, topics, algorithm):
    options = {
        "graph_k": 10,
        "initial_candidates": 12,
        "n_candidates": 4,
        "n_initial": 40,
        "n_per_round": 20,
        "num_results": 5,
    }
    found = [graphed.retriever(model, algorithm=algorithm, device=device, **options)(topics) for device in ("cpu", "cuda")]
    assert runs(found[0]) == runs(found[1])


def test_presets_are_the_papers_settings():
    found = HypencoderRetriever(**PRESETS["efficient_2"])
    values = {name: found.get_parameter(name) for name in PRESETS["efficient_2"]}
    assert values == PRESETS["efficient_2"] and values["n_candidates"] == 328
    assert HypencoderRetriever(**PRESETS["efficient_1"]) == HypencoderRetriever(algorithm="graph")


def test_grid_scan_varies_algorithm_and_candidates(graphed, model, topics, graph):
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": "d001", "label": 1})
    table = pt.GridScan(graph, {graph: {"algorithm": list(ALGORITHMS), "n_candidates": [1, 4]}}, topics, qrels, [nDCG @ 10])
    assert len(table) == 6


def test_graph_k_builds_the_graph_with_the_index(model, docs, topics, tmp_path):
    pipeline = HypencoderIndexer(tmp_path / "x.hyp", model, graph_k=5) >> HypencoderRetriever(
        algorithm="graph", graph_k=5, initial_candidates=3, num_results=4
    )
    pipeline.index(docs)
    assert (pipeline(topics).groupby("qid").size() == 4).all()


def test_rank_cutoff_returns_the_first_results(graph, topics):
    for algorithm in ALGORITHMS:
        graph.algorithm = algorithm
        assert runs((graph % 3).compile()(topics)) == {qid: run[:3] for qid, run in runs(graph(topics)).items()}
