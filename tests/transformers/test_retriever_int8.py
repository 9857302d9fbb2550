"""Searches of int8 indexes: the results are those of the same search over the vectors in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from result_checks import assert_same_ranking

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer

N, D = 600, 24
QUERY_VECTORS = pd.DataFrame({"qid": list("abcd"), "query_vec": list(np.random.default_rng(1).standard_normal((4, D)))})
THOROUGH: dict[str, dict[str, Any]] = {
    "exhaustive": {},
    "graph": {"initial_candidates": N},
    "surrogate": {"n_initial": 64, "n_per_round": 100},
    "auto": {},
}
"""Options with which each search finds the best documents."""


@pytest.fixture(scope="module")
def indexes(tmp_path_factory) -> tuple[HypencoderIndex, HypencoderIndex]:
    """Return an index in int8, and one that holds the same vectors in float32; both with a graph and an HNSW index."""
    folder = tmp_path_factory.mktemp("int8")
    vectors = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32) + 1
    docs = [{"docno": f"v{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]
    int8 = HypencoderIndexer(folder / "int8.hyp", dtype="int8", graph_k=20).index(docs)
    fp32 = HypencoderIndexer(folder / "fp32.hyp", dtype="fp32", graph_k=20).index(int8.get_corpus_iter())
    for index in (int8, fp32):
        index.inner_product_index()
    return int8, fp32


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("algorithm", THOROUGH)
def test_int8_searches_find_the_best_documents_of_the_vectors_in_float32(indexes, model, topics, algorithm, batch_size):
    options = {"num_results": 20, "batch_size": batch_size, **THOROUGH[algorithm]}
    expected = indexes[1].retriever(model, algorithm="exhaustive", num_results=20)(topics)
    found = indexes[0].retriever(model, algorithm=algorithm, **options)(topics)
    assert_same_ranking(found, expected)
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "graph", "graph_k": 10, "initial_candidates": 30, "n_candidates": 4, "max_iter": 3},
        {"algorithm": "surrogate", "n_initial": 32, "n_per_round": 16, "max_rounds": 2},
    ],
    ids=["graph", "surrogate"],
)
def test_int8_approximate_searches_find_what_they_find_in_the_vectors_in_float32(indexes, model, topics, options):
    found, expected = (each.retriever(model, num_results=20, return_stats=True, **options)(topics) for each in indexes)
    assert_same_ranking(found, expected)
    assert found["n_scored"].max() < N


@pytest.mark.parametrize("algorithm", ["exhaustive", "surrogate", "hnsw"])
def test_int8_searches_with_query_vectors_find_those_of_the_vectors_in_float32(indexes, algorithm):
    expected = indexes[1].retriever(algorithm="exhaustive", num_results=20)(QUERY_VECTORS)
    options = {"ef_search": N} if algorithm == "hnsw" else {}
    found = indexes[0].retriever(algorithm=algorithm, num_results=20, **options)(QUERY_VECTORS)
    assert_same_ranking(found, expected)


def test_int8_filters_scorer_and_vec_loader_read_the_vectors_in_float32(indexes, model, topics):
    allowed = [f"v{i}" for i in range(0, N, 3)]
    found, expected = (each.retriever(model, num_results=20, allowed_docnos=allowed)(topics) for each in indexes)
    assert_same_ranking(found, expected)
    scored, expected_scored = (each.scorer(model)(found[["qid", "query", "docno"]]) for each in indexes)
    pd.testing.assert_frame_equal(scored, expected_scored)
    loaded, expected_loaded = (each.vec_loader()(found) for each in indexes)
    np.testing.assert_array_equal(np.stack(loaded["doc_vec"]), np.stack(expected_loaded["doc_vec"]))


def test_int8_index_of_texts_records_its_model_and_is_copied_by_flex(model, docs, topics, tmp_path):
    pytest.importorskip("pyterrier_dr")
    index = HypencoderIndexer(tmp_path / "x.hyp", model, dtype="int8").index(docs)
    assert index.meta["model"]["fingerprint"] == model.fingerprint and len(index.retriever(num_results=5)(topics)) == 25
    copy = HypencoderIndex.from_flex(index.to_flex(tmp_path / "x.flex"), tmp_path / "y.hyp", dtype="int8")
    np.testing.assert_allclose(copy.np_vecs(), index.np_vecs(), atol=1e-2)
