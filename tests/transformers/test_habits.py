"""Kinds of checks that dense indexes of PyTerrier pass: sizes, scorers, vectors, artifacts and inspection of one index."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.transformers import batch_search

SIZES = [1, 2, 7, 64, 129]


def make_index(path, n: int, size: int, **options) -> tuple[HypencoderIndex, np.ndarray]:
    vectors = np.random.default_rng(n * size).standard_normal((n, size)).astype(np.float32)
    index = HypencoderIndex(path)
    index.indexer(dtype="fp32", **options).index({"docno": f"d{i}", "doc_vec": v} for i, v in enumerate(vectors))
    return index, vectors


def make_queries(n: int, size: int) -> pd.DataFrame:
    vectors = np.random.default_rng(n + size).standard_normal((n, size)).astype(np.float32)
    return pd.DataFrame({"qid": [f"q{i}" for i in range(n)], "query_vec": list(vectors)})


def rank_by_hand(vectors: np.ndarray, queries: pd.DataFrame, k: int) -> list[list[str]]:
    scores = np.stack(queries["query_vec"]) @ vectors.T
    return [[f"d{i}" for i in np.argsort(-row, kind="stable")[:k]] for row in scores]


@pytest.fixture(scope="module", params=SIZES, ids=lambda n: f"{n} documents")
def sized(request, tmp_path_factory) -> tuple[HypencoderIndex, np.ndarray]:
    """Return an index of n documents with 33 dimensions and a complete neighbour graph, and its vectors."""
    options = {"graph_k": request.param} if request.param > 1 else {}
    return make_index(tmp_path_factory.mktemp("sized") / "x.hyp", request.param, 33, **options)


@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate", "auto"])
@pytest.mark.parametrize("options", [{}, {"num_results": 1}, {"num_results": 5, "batch_size": 2}, {"batch_size": 1}], ids=str)
def test_retrievers_of_odd_sizes_rank_like_a_product(sized, algorithm, options):
    index, vectors = sized
    queries = make_queries(5, 33)
    retriever = index.retriever(algorithm=algorithm, **options)
    found = retriever(queries)
    expected = rank_by_hand(vectors, queries, options.get("num_results", 1000))
    assert found.groupby("qid")["docno"].apply(list).tolist() == expected
    assert list(found.columns) == ["qid", "query_vec", "docno", "docid", "score", "rank"]
    assert (found["docno"] == "d" + found["docid"].astype(str)).all()
    assert found.groupby("qid")["rank"].apply(list).tolist() == [list(range(len(run))) for run in expected]


@pytest.mark.parametrize("size", [1, 3, 31, 200])
def test_vectors_of_odd_sizes_are_stored_searched_and_loaded(tmp_path, size):
    index, vectors = make_index(tmp_path / "x.hyp", 20, size)
    queries = make_queries(3, size)
    found = index.retriever(num_results=6)(queries)
    assert found.groupby("qid")["docno"].apply(list).tolist() == rank_by_hand(vectors, queries, 6)
    loaded = index.vec_loader()(found)
    np.testing.assert_array_equal(np.stack(loaded["doc_vec"]), vectors[found["docid"]])
    np.testing.assert_array_equal(index.np_vecs(), vectors)
    np.testing.assert_array_equal(index.torch_vecs("cpu").numpy(), vectors)


def test_empty_frames_give_empty_frames_with_all_columns(sized):
    index, _ = sized
    queries = make_queries(2, 33)
    for transformer, frame in (
        (index.retriever(), queries),
        (index.retriever(drop_query_vec=True), queries),
        (index.scorer(), queries.assign(docno="d0")),
        (index.vec_loader(), pd.DataFrame({"docno": ["d0"]})),
    ):
        complete, empty = transformer(frame), transformer(frame.head(0))
        assert len(empty) == 0 and list(empty.columns) == list(complete.columns)


def test_scorer_gives_the_scores_of_the_retriever_for_any_subset(sized):
    index, vectors = sized
    run = index.retriever()(make_queries(3, 33))
    some = run.sample(frac=0.7, random_state=1)
    found = index.scorer()(some.drop(columns=["score", "rank"]))
    expected = run.loc[some.index].sort_values(["qid", "rank"], ignore_index=True)
    both = found.merge(expected, on=["qid", "docno"], suffixes=("", "_expected"))
    np.testing.assert_allclose(both["score"], both["score_expected"], atol=1e-5)
    assert found.groupby("qid")["docno"].apply(list).to_dict() == expected.groupby("qid")["docno"].apply(list).to_dict()
    with_vectors = index.vec_loader()(some)
    np.testing.assert_allclose(index.scorer()(with_vectors)["score"], found["score"], atol=1e-5)


@pytest.mark.parametrize("dropped", [False, True])
def test_drop_query_vec_leaves_the_vectors_out(sized, dropped):
    index, _ = sized
    queries = make_queries(2, 33).assign(query="q", more=1)
    found = index.retriever(drop_query_vec=dropped)(queries)
    assert ("query_vec" in found.columns) is not dropped and {"query", "more"} <= set(found.columns)
    assert "query_vec" in queries.columns
    compiled = (index.retriever(drop_query_vec=dropped) % 1).compile()
    assert list(compiled(queries).columns) == list(found.columns)


def test_artifact_loads_by_path_and_knows_its_type(sized):
    index, vectors = sized
    assert pt.inspect.artifact_type_format(index) == ("dense_index", "hypencoder")
    loaded = pt.Artifact.load(str(index.path))
    assert loaded == index and loaded.built() and len(loaded) == len(vectors)
    assert [doc["docno"] for doc in loaded.get_corpus_iter()] == [f"d{i}" for i in range(len(vectors))]


def test_every_transformer_passes_inspection(sized):
    index, _ = sized
    made = [index, index.retriever(), index.retriever(algorithm="graph"), index.scorer(), index.vec_loader()]
    for transformer in [*made, index.retriever() % 3 >> index.scorer() >> index.vec_loader()]:
        for columns in pt.inspect.transformer_inputs(transformer):
            outputs = pt.inspect.transformer_outputs(transformer, columns)
            assert outputs == list(transformer(pd.DataFrame(columns=columns)).columns)
        assert "<div" in pt.schematic.draw(transformer)
    assert pt.inspect.indexer_inputs(index) == pt.inspect.indexer_inputs(index.indexer()) == [["docno", "doc_vec"]]
    assert index._repr_html_() is None  # the index itself is no pipeline


def test_retriever_uses_the_graph_that_the_indexer_built(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_search, "EXHAUSTIVE_IF_LINEAR", ())  # the queries are vectors, which need no graph
    index, _ = make_index(tmp_path / "x.hyp", 40, 5, graph_k=6)
    graph = index.retriever(algorithm="graph", initial_candidates=3, num_results=4)
    assert (graph(make_queries(2, 5)).groupby("qid").size() == 4).all()
    with pytest.raises(FileNotFoundError, match="must have a graph with at least 7 neighbours, got only graphs with 6"):
        index.retriever(algorithm="graph", graph_k=7, initial_candidates=3)(make_queries(2, 5))
