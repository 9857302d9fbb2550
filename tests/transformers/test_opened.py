"""Opening the index and the model of a transformer, and checking that they fit each other."""

from __future__ import annotations

import pickle
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from result_checks import ADDED, assert_same_ranking

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderIndexer, HypencoderRetriever
from pyterrier_hypencoder.index.reader import IndexReader
from pyterrier_hypencoder.transformers import batch_search
from pyterrier_hypencoder.transformers import scorer as scorer_module
from pyterrier_hypencoder.transformers.opened import check_model_fits, gather_vectors, get_index_path


@pytest.fixture
def index_without_model(tmp_path):
    """Return an index of 30 vectors with 8 dimensions."""
    vectors = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    docs = [{"docno": f"v{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]
    return HypencoderIndexer(tmp_path / "vectors.hyp").index(docs)


@pytest.mark.parametrize("kind", ["object", "path", "string"])
def test_index_can_be_an_object_or_a_path(index, model, topics, kind):
    given = {"object": index, "path": index.path, "string": str(index.path)}[kind]
    assert_same_ranking(HypencoderRetriever(given, model)(topics), index.retriever(model)(topics))


def test_missing_index_says_how_to_pass_one(model, topics):
    with pytest.raises(ValueError, match=r"has no index.*HypencoderIndexer\(path, model\) >>"):
        HypencoderRetriever(model=model)(topics)


def test_model_as_index_and_name_as_model_are_refused(index, model, topics):
    with pytest.raises(ValueError, match="index must be a HypencoderIndex or its path, got Hypencoder.*model="):
        HypencoderRetriever(model)(topics)
    with pytest.raises(ValueError, match=r"model must be an encoder, got the name 'jfkback/"):
        index.retriever("jfkback/hypencoder.6_layer")(topics)


def test_index_that_does_not_exist_is_named(model, topics, tmp_path):
    with pytest.raises(FileNotFoundError, match="no.hyp"):
        HypencoderRetriever(tmp_path / "no.hyp", model)(topics)


def test_recorded_model_is_the_default(index, model, topics):
    assert_same_ranking(HypencoderRetriever(index.path)(topics), index.retriever(model)(topics))
    assert HypencoderRetriever(index.path).model is None


def test_recorded_model_is_loaded_once_per_index(index, topics, monkeypatch):
    loads = []
    load = Hypencoder._load
    monkeypatch.setattr(Hypencoder, "_load", lambda self: loads.append(self) or load(self))
    opened = HypencoderIndex(index.path)
    retriever = opened.retriever(batch_size=2)
    retriever(topics)
    retriever(topics)
    opened.scorer()(retriever(topics))
    assert len(loads) == 1
    retriever.device = "cpu"
    assert retriever._get_model().device == "cpu"
    assert len(loads) == 1  # a model for another device is loaded on its first use


def test_recorded_model_that_is_gone_is_named(golden, docs, topics, tmp_path):
    moved = shutil.copytree(golden / "tiny_6l_cls_shared", tmp_path / "model")
    shutil.copytree(golden / "tiny_base_bert", tmp_path / "tiny_base_bert")
    index = HypencoderIndexer(tmp_path / "x.hyp", Hypencoder(moved, doc_max_length=64)).index(docs[:5])
    shutil.rmtree(moved)
    with pytest.raises(FileNotFoundError, match=r"x.hyp was built with the model .*model.* Pass model="):
        index.retriever()(topics)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_query_vec_with_nan_or_infinity_is_refused(index, topics, value):
    with pytest.raises(ValueError, match="query_vec contains NaN or infinity at qid 'q1'"):
        vectors = [np.full(24, value if qid == "q1" else 1.0) for qid in topics["qid"]]
        index.retriever()(topics.assign(query_vec=vectors))


def test_model_with_another_document_encoder_is_refused(index, other_model, topics):
    with pytest.raises(ValueError, match="document encoder") as error:
        index.retriever(other_model)(topics)
    assert "tiny_6l_cls_shared" in str(error.value) and "tiny_2l_mean_separate_reslast" in str(error.value)


def test_fit_is_checked_again_for_another_model(docs, model, other_model, topics, tmp_path):
    retriever = HypencoderIndexer(tmp_path / "other.hyp", other_model).index(docs).retriever(other_model)
    assert len(retriever(topics)) == 600
    retriever.model = model
    with pytest.raises(ValueError, match="document encoder"):
        retriever(topics)


def test_fit_is_checked_again_if_the_model_changes(index, golden, topics):
    model = Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", query_max_length=32)
    retriever = index.retriever(model)
    assert len(retriever(topics)) == 600
    model.name_or_path = str(golden / "tiny_2l_mean_separate_reslast")
    with pytest.raises(ValueError, match="document encoder"):
        retriever(topics)


def test_model_with_other_dimensions_is_refused(index_without_model, model, topics):
    with pytest.raises(ValueError, match="8 dimensions.*24") as error:
        index_without_model.retriever(model)(topics)
    assert "vectors.hyp" in str(error.value) and "tiny_6l_cls_shared" in str(error.value)


def test_index_without_model_needs_a_model_or_query_vec(index_without_model, topics):
    with pytest.raises(ValueError, match="need a model"):
        index_without_model.retriever()(topics)


def test_query_vec_on_index_without_model_ranks_by_inner_product(index_without_model):
    queries = np.random.default_rng(1).standard_normal((3, 8))
    topics = pd.DataFrame({"qid": ["a", "b", "c"], "query": "ignored", "query_vec": list(queries)})
    results = index_without_model.retriever(num_results=30)(topics)
    scores = np.zeros((3, 30))
    scores[results["qid"].map({"a": 0, "b": 1, "c": 2}), results["docid"]] = results["score"]
    np.testing.assert_allclose(scores, queries @ index_without_model.vectors.T, rtol=1e-4, atol=1e-5)
    assert list(results.columns) == ["qid", "query", "query_vec", *ADDED]
    assert (results.groupby("qid")["score"].diff().dropna() <= 0).all()


@pytest.mark.parametrize("size", [1, 7, 9, 24])
def test_query_vec_of_another_size_is_refused(index_without_model, size):
    with pytest.raises(ValueError, match=f"8.*{size}"):
        index_without_model.retriever()(pd.DataFrame({"qid": ["a"], "query_vec": [np.ones(size)]}))


@pytest.mark.parametrize("kind", ["object", "path"])
def test_overwritten_index_is_opened_again(model, docs, topics, tmp_path, kind):
    indexer = HypencoderIndexer(tmp_path / "i.hyp", model, mode="overwrite")
    index = indexer.index(docs[:50])
    retriever = HypencoderRetriever(index if kind == "object" else index.path, model)
    assert set(retriever(topics)["docid"]) == set(range(50))
    indexer.index(docs[::-1])
    assert_same_ranking(retriever(topics), HypencoderRetriever(HypencoderIndex(tmp_path / "i.hyp"), model)(topics))
    assert retriever.search("heart").set_index("docno")["docid"]["d119"] == 0


def test_index_overwritten_with_another_model_is_checked_again(model, other_model, docs, topics, tmp_path):
    retriever = HypencoderIndexer(tmp_path / "i.hyp", model).index(docs).retriever(model)
    retriever(topics)
    HypencoderIndexer(tmp_path / "i.hyp", other_model, mode="overwrite").index(docs)
    with pytest.raises(ValueError, match="document encoder"):
        retriever(topics)
    retriever.model = None
    assert_same_ranking(retriever(topics), HypencoderRetriever(tmp_path / "i.hyp", other_model)(topics))


# An index that is replaced during a search


def build_generation(path: Path, generation: int, **options: Any) -> HypencoderIndex:
    """Build an index whose docnos begin with the generation, of another size and with other vectors than the last one."""
    vectors = np.random.default_rng(generation).standard_normal((30 + generation % 7, 8)).astype(np.float32)
    docs = [{"docno": f"{generation}-{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]
    return HypencoderIndexer(path, mode="overwrite", **options).index(docs)


QUERY_VECTORS = pd.DataFrame({"qid": ["1", "2"], "query_vec": list(np.ones((2, 8)))})


def list_generations(results: pd.DataFrame) -> set[str]:
    return set(results["docno"].str.split("-").str[0])


def test_results_are_named_by_the_index_that_was_searched(tmp_path, monkeypatch):
    index = build_generation(tmp_path / "x.hyp", 1)
    expected = index.retriever()(QUERY_VECTORS)
    search = batch_search.exhaustive_search

    def replace_after_search(*args: Any, **options: Any) -> Any:
        results = search(*args, **options)
        build_generation(tmp_path / "x.hyp", 2)
        return results

    monkeypatch.setattr(batch_search, "exhaustive_search", replace_after_search)
    assert_same_ranking(index.retriever()(QUERY_VECTORS), expected)
    monkeypatch.undo()
    assert list_generations(index.retriever()(QUERY_VECTORS)) == {"2"}


def test_graph_search_runs_again_if_the_index_was_replaced_before_its_graph_was_opened(tmp_path, monkeypatch):
    index = build_generation(tmp_path / "x.hyp", 1, graph_k=5)
    open_graph, replaced = batch_search.open_graph, []

    def replace_first(reader: IndexReader, k: int) -> Any:
        if not replaced:
            replaced.append(build_generation(tmp_path / "x.hyp", 2, graph_k=5))
        return open_graph(reader, k)

    monkeypatch.setattr(batch_search, "open_graph", replace_first)
    monkeypatch.setattr(batch_search, "EXHAUSTIVE_IF_LINEAR", ())
    graph = index.retriever(algorithm="graph", graph_k=5, initial_candidates=5, num_results=40)
    assert list_generations(graph(QUERY_VECTORS)) == {"2"}


def test_rerank_uses_one_state_of_the_index(tmp_path, monkeypatch):
    index = build_generation(tmp_path / "x.hyp", 1)
    frame = index.retriever(num_results=5)(QUERY_VECTORS)
    gather, replaced = scorer_module.gather_vectors, []

    def replace_first(reader: IndexReader, docids: np.ndarray, device: str) -> torch.Tensor:
        if not replaced:
            replaced.append(build_generation(tmp_path / "x.hyp", 2))
        return gather(reader, docids, device)

    monkeypatch.setattr(scorer_module, "gather_vectors", replace_first)
    assert_same_ranking(index.scorer()(frame), frame)
    with pytest.raises(ValueError, match="unknown docnos: 1-"):
        index.scorer()(frame)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_threads_search_an_index_that_is_replaced_again_and_again(tmp_path, monkeypatch, shared):
    monkeypatch.setattr(batch_search, "EXHAUSTIVE_IF_LINEAR", ())
    path = tmp_path / "x.hyp"
    index = build_generation(path, 0, graph_k=5)
    graph = {"algorithm": "graph", "graph_k": 5, "initial_candidates": 5}
    surrogate = {"algorithm": "surrogate", "n_initial": 16}
    retrievers = [(index if shared else HypencoderIndex(path)).retriever(num_results=9, **o) for o in ({}, graph, surrogate)]
    problems, answers, stop = [], [], threading.Event()

    def search(retriever: HypencoderRetriever) -> None:
        while not stop.is_set():
            try:
                generations = list_generations(retriever(QUERY_VECTORS))
            except Exception as err:
                problems.append(err)
                continue
            answers.append(generations)

    threads = [threading.Thread(target=search, args=(retriever,)) for retriever in retrievers]
    for thread in threads:
        thread.start()
    for generation in range(1, 100):
        build_generation(path, generation, graph_k=5)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems and len(answers) > 50
    assert all(len(generations) == 1 for generations in answers)


@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate"])
def test_read_only_index_serves_every_search(tmp_path, monkeypatch, algorithm):
    monkeypatch.setattr(batch_search, "EXHAUSTIVE_IF_LINEAR", ())
    index = build_generation(tmp_path / "x.hyp", 1, graph_k=5)

    def refuse(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if active and (writes or event in ("os.mkdir", "os.rename", "os.remove")) and "x.hyp" in str(args[0]):
            raise PermissionError(f"{event} {args}")

    active = [True]
    sys.addaudithook(refuse)
    try:
        opened = HypencoderIndex(index.path, verify=True)
        results = opened.retriever(algorithm=algorithm, graph_k=5, initial_candidates=5, n_initial=16)(QUERY_VECTORS)
        opened.scorer()(results)
        opened.vec_loader()(results)
    finally:
        active.clear()


# Paths


def test_paths_do_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    indexer = HypencoderIndexer("x.hyp", mode="overwrite")
    vectors = np.random.default_rng(0).standard_normal((30, 8))
    index = indexer.index([{"docno": str(i), "doc_vec": vector} for i, vector in enumerate(vectors)])
    users = [index.retriever(), HypencoderRetriever("x.hyp"), HypencoderIndex("x.hyp").retriever()]
    users.append(HypencoderRetriever().set_parameter("index", "x.hyp") or HypencoderRetriever(Path("x.hyp")))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    expected = HypencoderRetriever(tmp_path / "x.hyp")(QUERY_VECTORS)
    for user in users:
        assert_same_ranking(user(QUERY_VECTORS), expected)
        assert_same_ranking(pickle.loads(pickle.dumps(user))(QUERY_VECTORS), expected)
    assert indexer.index([{"docno": "a", "doc_vec": vectors[0]}]).path == tmp_path / "x.hyp"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    HypencoderIndexer("~/x.hyp").index([{"docno": "a", "doc_vec": np.ones(8)}])
    assert len(HypencoderIndex("~/x.hyp")) == 1 and (tmp_path / "x.hyp").is_dir()
    assert len(HypencoderRetriever("~/x.hyp")(QUERY_VECTORS)) == 2


# Parameters, as pt.GridScan sets them


def test_set_parameter_changes_index_and_options(retriever, index_without_model):
    retriever.set_parameter("index", index_without_model.path)
    retriever.set_parameter("num_results", 3)
    assert retriever.get_parameter("index") == index_without_model.path
    assert retriever.get_parameter("num_results") == retriever.num_results == 3
    assert retriever == HypencoderRetriever(index_without_model.path, retriever.model, num_results=3)


@pytest.mark.parametrize("name", ["search", "transform", "_index", "n_seeds"])
def test_parameters_that_are_no_arguments_are_refused(retriever, name):
    for act in (lambda: retriever.set_parameter(name, 1), lambda: retriever.get_parameter(name)):
        with pytest.raises(ValueError, match=f"HypencoderRetriever has no option '{name}'. Its options are index, model"):
            act()
    assert retriever.search("heart")["qid"].unique().tolist() == ["1"]


# Functions


@pytest.mark.parametrize("kind", ["index", "path", "string"])
def test_get_index_path_accepts_objects_and_paths(index, kind):
    given = {"index": index, "path": index.path, "string": str(index.path)}[kind]
    assert get_index_path(given) == index.path
    assert get_index_path(None) is None


@pytest.mark.parametrize("wrong", [3, ["x.hyp"], Hypencoder("nobody/nothing")])
def test_get_index_path_refuses_other_objects(wrong):
    with pytest.raises(ValueError, match=r"index must be a HypencoderIndex or its path, got .*Pass an encoder as model="):
        get_index_path(wrong)


def test_gather_vectors_returns_float32_rows(index):
    docids = np.array([5, 0, 5])
    vectors = gather_vectors(index.reader, docids)
    assert vectors.dtype == torch.float32 and vectors.shape == (3, 24)
    np.testing.assert_array_equal(vectors.numpy(), index.vectors[docids].astype(np.float32))
    assert gather_vectors(index.reader, docids[:0]).shape == (0, 24)


def test_check_model_fits_compares_dimensions_and_fingerprint(index, index_without_model, model, other_model):
    check_model_fits(index.reader, model)
    with pytest.raises(ValueError, match=r"does not fit the index at .*docs\.hyp, which was built by Hypencoder\("):
        check_model_fits(index.reader, other_model)
    with pytest.raises(ValueError, match="from vectors without a model: expected 8 dimensions, got 24"):
        check_model_fits(index_without_model.reader, model)
