"""Every path of the package on a pretend CUDA device: the CPU's ranking, resident vectors, and few synchronisations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from indexes import write_index
from pretend_cuda import PretendCuda, pretend_cuda
from result_checks import assert_same_ranking

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, QNets, QNetSpec

N_DOCS = 3000
VECTOR_BYTES = N_DOCS * 24 * 2
GRAPH_BYTES = N_DOCS * 10 * 4
SMALL_BYTES = 10_000
"""Bytes that a batch of 5 queries may move: tokens, filters and entry points, but no q-nets, vectors or neighbours."""

OPTIONS = {
    "exhaustive": {},
    "graph": {"graph_k": 10, "initial_candidates": 40, "n_candidates": 8},
    "surrogate": {"n_initial": 200, "n_per_round": 64},
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


@pytest.fixture
def cuda_model(golden, gpu) -> Hypencoder:
    """Return the tiny model on the GPU."""
    return Hypencoder(golden / "tiny_6l_cls_shared", device="cuda", doc_max_length=64, query_max_length=32)


def search(index: HypencoderIndex, model: Hypencoder, topics: pd.DataFrame, device: str, **options) -> pd.DataFrame:
    return index.retriever(model, device=device, num_results=20, **options)(topics)


@pytest.mark.parametrize("algorithm", OPTIONS)
def test_each_algorithm_returns_the_ranking_of_the_cpu(large, model, cuda_model, topics, algorithm):
    options = {"algorithm": algorithm, **OPTIONS[algorithm]}
    assert_same_ranking(search(large, cuda_model, topics, "cuda", **options), search(large, model, topics, "cpu", **options))
