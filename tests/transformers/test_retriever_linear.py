"""Searches with q-nets that are single vectors: HNSW, and the searches that become exhaustive."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier.measures import nDCG
from result_checks import assert_same_ranking, assert_sorted

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer, HypencoderRetriever
from pyterrier_hypencoder.index.inner_product import FACTS_FILE, INDEX_FILE

N, D = 600, 12
TOPICS = pd.DataFrame({"qid": list("abcd"), "query_vec": list(np.random.default_rng(1).standard_normal((4, D)))})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return an index of 600 random vectors, without a model, a graph or an inner-product index."""
    vectors = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    docs = ({"docno": f"v{i}", "doc_vec": vector} for i, vector in enumerate(vectors))
    return HypencoderIndexer(tmp_path_factory.mktemp("plain") / "x.hyp").index(docs)


@pytest.fixture(scope="module")
def built(plain, tmp_path_factory):
    """Return a copy with an inner-product index."""
    index = HypencoderIndex(shutil.copytree(plain.path, tmp_path_factory.mktemp("built") / "x.hyp"))
    index.inner_product_index()
    return index


def measure_recall(found: pd.DataFrame, expected: pd.DataFrame) -> float:
    return len(found.merge(expected, on=["qid", "docno"])) / len(expected)


@pytest.mark.parametrize("num_results", [1, 20])
def test_hnsw_finds_the_documents_and_scores_of_exhaustive_search(built, num_results):
    expected = built.retriever(num_results=num_results)(TOPICS)
    found = built.retriever(num_results=num_results, algorithm="hnsw")(TOPICS)
    assert list(found.columns) == list(expected.columns) and len(found) == len(expected)
    assert measure_recall(found, expected) > 0.95
    both = found.merge(expected, on=["qid", "docno"])
    np.testing.assert_allclose(both["score_x"], both["score_y"], rtol=1e-5)
    assert_sorted(found)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_does_not_change_hnsw_results(built, batch_size):
    found = built.retriever(num_results=10, algorithm="hnsw", batch_size=batch_size)(TOPICS)
    assert_same_ranking(found, built.retriever(num_results=10, algorithm="hnsw")(TOPICS))


@pytest.mark.parametrize("step", [2, 100, 1000])
def test_hnsw_returns_allowed_documents_only(built, step):
    allowed = [f"v{i}" for i in range(0, N, step)]
    found = built.retriever(num_results=10, algorithm="hnsw", allowed_docnos=allowed)(TOPICS)
    assert_same_ranking(found, built.retriever(num_results=10, allowed_docnos=allowed)(TOPICS))


def test_hnsw_without_its_index_names_the_call_that_builds_it(plain, built, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must have an inner-product index in .*x.hyp.*index.inner_product_index\(\)"):
        plain.retriever(algorithm="hnsw")(TOPICS)
    assert not (plain.path / INDEX_FILE).exists()
    stale = HypencoderIndex(shutil.copytree(built.path, tmp_path / "x.hyp"))
    retriever = stale.retriever(algorithm="hnsw", num_results=5)
    assert len(retriever(TOPICS)) == 20
    (stale.path / FACTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="inner_product_index"):
        retriever(TOPICS)
    stale.inner_product_index()
    assert len(retriever(TOPICS)) == 20


def test_hnsw_refuses_networks_and_says_why(index, model, topics):
    with pytest.raises(ValueError, match="hnsw' must have q-nets that are single vectors.*inner products.*surrogate"):
        index.retriever(model, algorithm="hnsw")(topics)


def test_hnsw_refuses_documents_in_the_frame(built):
    frame = TOPICS.assign(docno="v1", score=1.0, rank=0)
    with pytest.raises(pt.validate.InputValidationError, match="index.scorer"):
        built.retriever(algorithm="hnsw")(frame)


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_ef_search_must_be_a_positive_integer(built, value):
    with pytest.raises(ValueError, match="ef_search must be a positive integer"):
        built.retriever(algorithm="hnsw", ef_search=value)(TOPICS)


def test_hnsw_reports_its_costs_and_is_not_fused_with_a_cutoff(built):
    retriever = built.retriever(algorithm="hnsw", num_results=7, return_stats=True)
    assert set(retriever(TOPICS)["n_scored"]) == {7} and "last_yield" not in retriever(TOPICS)
    assert retriever.fuse_rank_cutoff(3) is None


def test_grid_search_sets_ef_search(built):
    retriever = built.retriever(algorithm="hnsw", num_results=1, ef_search=1)
    best = built.retriever(num_results=1)(TOPICS)
    qrels = best[["qid", "docno"]].assign(label=1)
    table = pt.GridScan(retriever, {retriever: {"ef_search": [1, 300]}}, TOPICS.assign(query=""), qrels, [nDCG @ 10])
    assert len(table) == 2 and table["nDCG@10"].iloc[0] <= table["nDCG@10"].iloc[1] == 1


def test_hnsw_searches_with_a_biencoder(minilm, tmp_path):
    texts = ["Tomatoes make a soup.", "The sun is a star.", "A cat is an animal.", "Rain falls from clouds."]
    index = HypencoderIndexer(tmp_path / "x.hyp", minilm).index({"docno": text[:6], "text": text} for text in texts)
    index.inner_product_index()
    topics = pd.DataFrame({"qid": ["1"], "query": ["dinner recipe"]})
    found = index.retriever(minilm, algorithm="hnsw", num_results=2, ef_search=2)(topics)
    assert found["docno"][0] == "Tomato"


@pytest.mark.parametrize("algorithm", ["graph", "surrogate"])
@pytest.mark.parametrize("frame", [TOPICS, TOPICS.assign(docno="v1", score=0.0, rank=0)], ids=["topics", "entry points"])
def test_graph_and_surrogate_are_exhaustive_for_query_vectors(plain, algorithm, frame):
    retriever = plain.retriever(algorithm=algorithm, num_results=20, return_stats=True)  # needs no graph
    found, expected = retriever(frame), plain.retriever(num_results=20, return_stats=True)(TOPICS)
    assert_same_ranking(found[expected.columns], expected)
    assert set(found["n_scored"]) == {N}


def test_default_of_ef_search_is_in_the_signature():
    assert HypencoderRetriever().ef_search == 128
