"""Every path of the package on a pretend CUDA device: the CPU's ranking, resident vectors, and few synchronisations."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from indexes import write_index
from pretend_cuda import CUDA, Seen, pretend_cuda
from result_checks import assert_same_ranking, assert_same_results

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderRetriever, HypencoderScorer
from pyterrier_hypencoder.index.reader import IndexReader
from pyterrier_hypencoder.scoring import resident

N_DOCS = 2200  # enough for the first pass in bf16
VECTOR_BYTES = N_DOCS * 24 * 2
GRAPH_BYTES = N_DOCS * 10 * 4
SMALL_BYTES = 10_000
"""Bytes that a batch of 5 queries may move: tokens, filters and entry points, but no q-nets, vectors or neighbours."""
MAX_SYNCHRONISATIONS = {"fp32": 8, "auto": 48, "graph": 160, "surrogate": 120}
"""Calls per batch that may wait for the GPU.

Exhaustive search in one pass waits to send tokens, to check that scores are finite, and to return. In two passes it also waits
to score the best documents again. The other searches wait in every round.
"""

OPTIONS = {
    "exhaustive": {},
    "graph": {"graph_k": 10, "initial_candidates": 40, "n_candidates": 8},
    "surrogate": {"n_initial": 100, "n_per_round": 32, "max_rounds": 3},
    "auto": {},
}
"""Options per algorithm that leave most documents out."""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> HypencoderIndex:
    """Return an index of random vectors with a neighbour graph."""
    path = tmp_path_factory.mktemp("cuda") / "large.hyp"
    write_index(path, np.random.default_rng(0).standard_normal((N_DOCS, 24)), dtype="fp16")
    HypencoderIndex(path).corpus_graph(10)
    return HypencoderIndex(path)


@pytest.fixture
def gpu(large):
    """Pretend to have a GPU, on which no vectors are resident yet; returns what is seen on it."""
    with pretend_cuda() as seen:
        large.close()
        yield seen
        large.close()


@pytest.fixture(scope="module")
def cuda_model_once(golden) -> Hypencoder:
    return Hypencoder(golden / "tiny_6l_cls_shared", device="cuda", doc_max_length=64, query_max_length=32)


@pytest.fixture
def cuda_model(cuda_model_once, gpu) -> Hypencoder:
    """Return the tiny model on the GPU."""
    return cuda_model_once


@pytest.fixture(scope="module")
def vector_topics(topics) -> pd.DataFrame:
    """Return the queries as query vectors."""
    vectors = np.random.default_rng(2).standard_normal((len(topics), 24)).astype(np.float32)
    return topics[["qid"]].assign(query_vec=list(vectors))


def search(index: HypencoderIndex, model: Any, topics: pd.DataFrame, device: str, **options: Any) -> pd.DataFrame:
    return index.retriever(model, device=device, num_results=20, **options)(topics)


# Rankings


@pytest.mark.parametrize("filtered", [False, True], ids=["all", "filtered"])
@pytest.mark.parametrize("algorithm", OPTIONS)
def test_each_algorithm_returns_the_ranking_of_the_cpu(large, model, cuda_model, topics, algorithm, filtered):
    if filtered:
        even, few = [f"d{i}" for i in range(0, N_DOCS, 2)], [f"d{i}" for i in range(100)]
        topics = topics.assign(allowed_docnos=[even, None, few, even, None])
    options = {"algorithm": algorithm, **OPTIONS[algorithm]}
    expected = search(large, model, topics, "cpu", **options)
    assert_same_ranking(search(large, cuda_model, topics, "cuda", **options), expected)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_vectors_of_any_precision_give_the_ranking_of_the_cpu(model, cuda_model, topics, tmp_path, dtype):
    vectors = np.random.default_rng(1).standard_normal((200, 24)).astype(np.float32)
    index = HypencoderIndex(write_index(tmp_path / "x.hyp", vectors, dtype=dtype).path)
    found = index.retriever(cuda_model, device="cuda")(topics)
    assert_same_ranking(found, index.retriever(model, device="cpu")(topics))
    assert index.reader.get_vectors(CUDA).dtype == torch.float32


def test_filters_of_the_retriever_and_own_documents(large, model, cuda_model, topics):
    for options in ({"mask": np.arange(N_DOCS) % 3 == 0}, {"excluded_docnos": ["d1", "d5"]}, {"ignore_same_id": True}):
        expected = search(large, model, topics, "cpu", **options)
        assert_same_ranking(search(large, cuda_model, topics, "cuda", **options), expected)


def test_surrogate_search_falls_back_to_exhaustive_search_like_the_cpu(large, model, cuda_model, topics):
    flat = 3 * torch.randn(5, model.qnet_spec.size, generator=torch.Generator().manual_seed(0))
    queries = topics[["qid"]].assign(query_vec=list(flat.numpy()))
    options = {"algorithm": "surrogate", "n_initial": 100, "n_per_round": 32, "return_stats": True}
    expected = search(large, model, queries, "cpu", **options)
    found = search(large, cuda_model, queries, "cuda", **options)
    assert expected["fell_back"].any() and (found["fell_back"] == expected["fell_back"]).all()
    assert_same_ranking(found.drop(columns="last_yield"), expected.drop(columns="last_yield"))


@pytest.mark.parametrize("algorithm", [*OPTIONS, "hnsw"])
def test_query_vectors_give_the_ranking_of_the_cpu(large, vector_topics, gpu, algorithm):
    if algorithm == "hnsw":
        pytest.importorskip("faiss")
        large.inner_product_index()
    found, expected = (
        large.retriever(device=device, num_results=20, algorithm=algorithm)(vector_topics) for device in ("cuda", "cpu")
    )
    assert_same_ranking(found.drop(columns="query_vec"), expected.drop(columns="query_vec"))


def test_hnsw_search_of_networks_is_an_error_on_a_gpu_too(large, cuda_model, topics):
    with pytest.raises(ValueError, match="algorithm='hnsw' must have q-nets that are single vectors"):
        search(large, cuda_model, topics, "cuda", algorithm="hnsw")


def test_feedback_between_two_searches_gives_the_ranking_of_the_cpu(large, vector_topics, gpu):
    found, expected = (
        (large.retriever(device=device) >> large.prf(k=3) >> large.retriever(device=device, num_results=20))(vector_topics)
        for device in ("cuda", "cpu")
    )
    assert_same_ranking(found.drop(columns="query_vec"), expected.drop(columns="query_vec"))


def test_reranking_with_stored_vectors_and_with_texts_gives_the_scores_of_the_cpu(index, model, cuda_model, topics, docs):
    run = topics.merge(pd.DataFrame(docs[:30]), how="cross")
    for stage in ("stored", "text"):
        found, expected = (
            (index.scorer(encoder, device=device) if stage == "stored" else encoder.text_scorer(device=device))(run)
            for encoder, device in ((cuda_model, "cuda"), (model, "cpu"))
        )
        assert_same_results(found.drop(columns="rank"), expected.drop(columns="rank"))


def test_scores_of_docids_are_those_of_the_cpu(large, vector_topics, gpu):
    queries, docids = np.stack(vector_topics["query_vec"]), np.array([5, 3, 999])
    found, expected = (large.scorer(device=device).score(queries, docids) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_encoded_documents_and_queries_are_those_of_the_cpu(model, cuda_model, texts):
    strings = [doc["text"] for doc in texts["docs"][:20]]
    np.testing.assert_allclose(cuda_model.encode_docs(strings), model.encode_docs(strings), atol=1e-5)
    qnets = cuda_model.encode_queries(["a heart", "b"])
    assert qnets.device == CUDA
    torch.testing.assert_close(qnets.flatten().cpu(), model.encode_queries(["a heart", "b"]).flatten(), rtol=1e-3, atol=1e-4)


# Resident vectors


@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate"])
def test_second_batch_moves_neither_vectors_nor_neighbours(large, cuda_model, gpu, topics, algorithm):
    options = {"algorithm": algorithm, **OPTIONS[algorithm]}
    search(large, cuda_model, topics, "cuda", **options)
    assert gpu.bytes_to_cuda > VECTOR_BYTES + (GRAPH_BYTES if algorithm == "graph" else 0)
    gpu.clear()
    search(large, cuda_model, topics, "cuda", **options)
    assert gpu.bytes_to_cuda < SMALL_BYTES


def test_vectors_are_shared_by_all_retrievers_and_scorers_of_an_index(large, cuda_model, gpu, topics):
    run = search(large, cuda_model, topics, "cuda")
    gpu.clear()
    again = HypencoderIndex(large.path)
    for stage in (
        large.retriever(cuda_model, device="cuda"),
        again.retriever(cuda_model, device="cuda"),
        HypencoderRetriever(str(large.path), cuda_model, device="cuda", algorithm="surrogate", **OPTIONS["surrogate"]),
    ):
        stage(topics)
    for scorer in (again.scorer(cuda_model, device="cuda"), HypencoderScorer(str(large.path), cuda_model, device="cuda")):
        scorer(run)
    assert gpu.bytes_to_cuda < 5 * SMALL_BYTES
    assert again.torch_vecs("cuda", fp16=True) is large.reader.get_vectors(CUDA)


def test_closing_an_index_frees_its_vectors(large, cuda_model, gpu, topics):
    before = search(large, cuda_model, topics, "cuda")
    held = weakref.ref(large.reader.get_vectors(CUDA))
    other = large.retriever(cuda_model, device="cuda", num_results=20)
    assert held() is not None
    large.close()
    gc.collect()
    assert held() is None
    assert_same_ranking(other(topics), before)


def test_vectors_are_freed_when_all_readers_are_gone(cuda_model, tmp_path, topics):
    write_index(tmp_path / "x.hyp", np.eye(24, dtype=np.float32))
    retriever = HypencoderRetriever(str(tmp_path / "x.hyp"), cuda_model, device="cuda")
    retriever(topics)
    held = weakref.ref(IndexReader(tmp_path / "x.hyp").get_vectors(CUDA))
    gc.collect()
    assert held() is not None
    del retriever
    gc.collect()
    assert held() is None


def test_a_replaced_index_is_copied_again(cuda_model, tmp_path, topics):
    path = tmp_path / "x.hyp"
    index = HypencoderIndex(write_index(path, np.eye(24, dtype=np.float32)).path)
    retriever = index.retriever(cuda_model, device="cuda")
    first = retriever(topics)
    write_index(path, 2 * np.eye(24, dtype=np.float32)[:20], mode="overwrite")
    second = retriever(topics)
    assert len(first) == 5 * 24 and len(second) == 5 * 20
    assert_same_ranking(second, index.retriever(cuda_model, device="cpu")(topics))


@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate"])
def test_vectors_that_do_not_fit_are_streamed(large, model, cuda_model, gpu, topics, algorithm, caplog):
    gpu.free_bytes = resident.RESERVE_BYTES + VECTOR_BYTES - 1
    options = {"algorithm": algorithm, **OPTIONS[algorithm]}
    for _ in range(2):
        gpu.clear()
        found = search(large, cuda_model, topics, "cuda", **options)
        assert gpu.bytes_to_cuda > SMALL_BYTES
    assert_same_ranking(found, search(large, model, topics, "cpu", **options))
    warnings = [record.message for record in caplog.records if "does not fit into the free memory" in record.message]
    assert len(warnings) == 1


# Synchronisations


def count_synchronisations(gpu: Seen, index: HypencoderIndex, model: Hypencoder, topics: pd.DataFrame, **options: Any) -> int:
    """Return the number of calls of a second batch that wait for the GPU."""
    search(index, model, topics, "cuda", **options)
    gpu.clear()
    search(index, model, topics, "cuda", **options)
    return gpu.synchronisations


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_exhaustive_search_waits_for_the_gpu_as_often_for_many_chunks_as_for_one(
    large, cuda_model, gpu, topics, monkeypatch, precision
):
    once = count_synchronisations(gpu, large, cuda_model, topics, precision=precision)
    monkeypatch.setattr("pyterrier_hypencoder.search.passes._MOST_DOCS_ON_GPU", 100)
    many = count_synchronisations(gpu, large, cuda_model, topics, precision=precision)
    assert many == once <= MAX_SYNCHRONISATIONS[precision]


@pytest.mark.parametrize("algorithm", ["graph", "surrogate"])
def test_approximate_search_waits_for_the_gpu_a_bounded_number_of_times(large, cuda_model, gpu, topics, algorithm):
    options = {"algorithm": algorithm, **OPTIONS[algorithm]}
    assert 0 < count_synchronisations(gpu, large, cuda_model, topics, **options) <= MAX_SYNCHRONISATIONS[algorithm]


def test_filters_are_sent_to_the_gpu_once_per_batch(large, cuda_model, gpu, topics):
    options = {"algorithm": "surrogate", **OPTIONS["surrogate"], "allowed_docnos": [f"d{i}" for i in range(0, N_DOCS, 2)]}
    search(large, cuda_model, topics, "cuda", **options)
    gpu.clear()
    search(large, cuda_model, topics, "cuda", **options)
    assert gpu.bytes_to_cuda < SMALL_BYTES + 2 * 8 * N_DOCS // 2


def test_graphs_with_different_limits_share_one_copy(large, gpu):
    whole = large.corpus_graph(10).get_edges(CUDA)
    gpu.clear()
    part = large.corpus_graph(10).to_limit_k(3).get_edges(CUDA)
    assert gpu.bytes_to_cuda == 0 and part.tolist() == whole[:, :3].tolist()
