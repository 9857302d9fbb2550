"""HypencoderRetriever: threads, torch's defaults, extreme and wrong options, numbers that are no numbers."""

from __future__ import annotations

import functools
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from indexes import edit_meta
from result_checks import assert_same_ranking

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.encoders.base import Encoder

# Shared state and global defaults


@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate"])
def test_threads_share_a_retriever_and_an_index(index_with_graph, model, topics, algorithm):
    """Each of eight threads has its topics, and half of them have other options on the same index."""
    options = {"algorithm": algorithm, "graph_k": 10, "initial_candidates": 12, "n_initial": 16, "n_per_round": 16}
    vectors = model.query_encoder()(topics).drop(columns="query")
    shared = index_with_graph.retriever(model, num_results=7, **options)
    others = [
        index_with_graph.retriever(model, num_results=n, allowed_docnos=["d001", "d002", "d003"], **options) for n in (1, 3)
    ]
    jobs = [
        (retriever, vectors.iloc[[n % 5, (n + 1) % 5]])
        for n, retriever in enumerate([shared, others[0], shared, others[1]] * 2)
    ]
    expected = [retriever(frame) for retriever, frame in jobs]

    def search_again(number):
        retriever, frame = jobs[number]
        for _ in range(5):
            pd.testing.assert_frame_equal(retriever(frame), expected[number])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(search_again, range(8)))


@pytest.mark.parametrize("default", ["float16", "float64", "meta"])
@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate"])
def test_global_defaults_of_torch_change_no_results(index_with_graph, model, topics, torch_default, default, algorithm):
    options = {"algorithm": algorithm, "graph_k": 10, "initial_candidates": 12, "n_initial": 16, "n_per_round": 16}
    retriever = index_with_graph.retriever(model, return_stats=True, num_results=9, **options)
    vectors = model.query_encoder()(topics)
    expected = retriever(vectors)
    with torch_default(default):
        found = retriever(vectors)
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate", "auto"])
def test_very_large_options_give_all_documents(index_with_graph, model, topics, algorithm):
    names = (
        "num_results",
        "batch_size",
        "initial_candidates",
        "n_candidates",
        "max_iter",
        "n_initial",
        "max_rounds",
        "n_per_round",
    )
    found = index_with_graph.retriever(model, algorithm=algorithm, graph_k=10, **dict.fromkeys(names, 10**9))(topics)
    assert_same_ranking(found, index_with_graph.retriever(model)(topics))


@pytest.mark.parametrize("algorithm", ["exhaustive", "graph", "surrogate", "auto"])
def test_small_numpy_integers_do_not_overflow(index_with_graph, model, topics, algorithm):
    many = pd.concat([topics] * 52, ignore_index=True).assign(qid=[f"q{n}" for n in range(260)])
    options = {"num_results": 20, "batch_size": 250, "n_initial": 16, "n_per_round": 16, "initial_candidates": 12, "seed": 43}
    make = functools.partial(index_with_graph.retriever, model, algorithm=algorithm, graph_k=10)
    found = make(**{name: np.uint8(value) for name, value in options.items()})(many)
    pd.testing.assert_frame_equal(found, make(**options)(many))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("seed", value) for value in (-1, None, 1.0, True, "43")],
        *[("ridge", value) for value in (True, "0.1", None, np.inf, np.float32("nan"))],
        *[("entry_points", value) for value in (5, b"d001", [5], ["d001", None], pd.DataFrame({"docno": ["d001"]}))],
        *[("num_results", value) for value in (np.float64(5), np.True_, np.array([5]), float("nan"))],
    ],
    ids=str,
)
def test_options_of_wrong_types_are_refused(index_with_graph, model, topics, option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        index_with_graph.retriever(model, algorithm="surrogate", **{option: value})(topics)


@pytest.mark.parametrize("once", [iter, set, tuple, np.array, pd.Series, dict.fromkeys])
@pytest.mark.parametrize("algorithm", ["graph", "surrogate"])
def test_entry_points_may_be_any_collection(index_with_graph, model, topics, algorithm, once):
    options = {"algorithm": algorithm, "graph_k": 10, "n_initial": 16, "n_per_round": 16, "num_results": 5}
    docnos = ["d007", "d001", "d050"]
    expected = index_with_graph.retriever(model, entry_points=docnos, **options)(topics)
    retriever = index_with_graph.retriever(model, entry_points=once(docnos), **options)
    for _ in range(2):
        pd.testing.assert_frame_equal(retriever(topics), expected)
    retriever.entry_points = docnos * 100  # repetitions do not make them all documents
    pd.testing.assert_frame_equal(retriever(topics), expected)


# Numbers that are no numbers


def damage_vector(index, path, value: float) -> HypencoderIndex:
    """Return a copy of an index, without graph and checksums, in which one stored vector has another value."""
    path = shutil.copytree(str(index.path), path)
    edit_meta(path, checksums="gone")
    vectors = np.memmap(next(path.glob("vecs.*")), dtype="<f2", mode="r+", shape=(120, 24))
    vectors[7, 3] = value
    vectors.flush()
    return HypencoderIndex(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damaged_vector_is_an_error_that_names_document_query_and_index(index, model, topics, tmp_path, value):
    damaged = damage_vector(index, tmp_path / "damaged.hyp", value)
    message = r"score of document 'd007' for query 'q\d' is NaN or infinite, because the vector of the document"
    for algorithm in ("exhaustive", "surrogate", "auto"):
        with pytest.raises(ValueError, match=f"{message}.*damaged.hyp"):
            damaged.retriever(model, algorithm=algorithm, n_initial=120)(topics)
    candidates = topics.assign(docno="d007")
    with pytest.raises(ValueError, match=message):
        damaged.scorer(model)(pd.concat([candidates.assign(docno="d001"), candidates], ignore_index=True))
    with pytest.raises(ValueError, match="document 'd007' for query 0"):
        damaged.scorer(model).score(model.encode_queries(["a"]).flatten().numpy(), np.array([3, 7]))


def test_damaged_qnet_is_an_error_that_names_the_query(index, model, topics, monkeypatch):
    encode = Encoder.encode_queries

    def damage_third(self, texts):
        qnets = encode(self, texts)
        qnets.weights[1][2, 3, 4] = torch.nan
        return qnets

    monkeypatch.setattr(Encoder, "encode_queries", damage_third)
    message = "for query 'q2' is NaN or infinite, because the q-net of the query contains NaN or infinity"
    with pytest.raises(ValueError, match=message):
        index.retriever(model)(topics)
    with pytest.raises(ValueError, match=message):
        index.scorer(model)(topics.assign(docno="d001"))


def test_query_vectors_too_large_for_float32_are_an_error(index):
    with pytest.raises(ValueError, match="for query 'a' is NaN or infinite, because the values of the q-net .* too large"):
        index.retriever()(pd.DataFrame({"qid": ["b", "a"], "query_vec": [np.ones(24), np.full(24, 3e38)]}))
