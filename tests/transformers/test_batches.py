"""Batches of queries: query vectors share one pass over the collection."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from indexes import write_index

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.index.checksums import CheckedRows
from pyterrier_hypencoder.transformers import batches

N_DOCS = 300


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> HypencoderIndex:
    path = tmp_path_factory.mktemp("batches") / "x.hyp"
    write_index(path, np.random.default_rng(0).standard_normal((N_DOCS, 4)), dtype="fp32")
    return HypencoderIndex(path)


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Return a list that gets the number of rows of every block that is read."""
    found: list[int] = []
    get = CheckedRows.__getitem__
    monkeypatch.setattr(CheckedRows, "__getitem__", lambda self, rows: (got := get(self, rows), found.append(len(got)))[0])
    return found


def make_topics(number: int) -> pd.DataFrame:
    vectors = np.random.default_rng(1).standard_normal((number, 4)).astype(np.float32)
    return pd.DataFrame({"qid": [f"q{i}" for i in range(number)], "query_vec": list(vectors)})


@pytest.mark.parametrize("algorithm", ["exhaustive", "auto", "graph", "surrogate"])
def test_thousand_query_vectors_read_the_collection_once(index, read, algorithm):
    found = index.retriever(algorithm=algorithm, num_results=3)(make_topics(1000))
    assert sum(read) == N_DOCS and len(found) == 3000


def test_query_vectors_in_one_pass_have_the_results_of_small_batches(index, monkeypatch):
    topics, retriever = make_topics(70), index.retriever(num_results=20)
    found = retriever(topics)
    monkeypatch.setattr(batches, "VECTORS_PER_PASS", 1)
    expected = retriever(topics)
    assert found["docno"].tolist() == expected["docno"].tolist()
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5, atol=1e-6)


def test_batch_size_decides_for_filters_of_single_queries(index, read):
    topics = make_topics(64).assign(excluded_docnos=[[] for _ in range(64)])
    index.retriever(num_results=3, batch_size=32)(topics)
    assert sum(read) == 2 * N_DOCS


def test_batch_size_decides_for_networks(index, model, topics, docs, tmp_path):
    networks = HypencoderIndex(tmp_path / "n.hyp")
    write_index(networks.path, np.random.default_rng(0).standard_normal((50, 24)))
    retriever = networks.retriever(model, batch_size=2)
    encoded = model.query_encoder()(topics)
    assert batches.choose_batch_size(retriever, networks.reader, encoded) == 2


def test_many_results_limit_the_query_vectors_of_a_pass(index):
    topics, few, many = make_topics(5), index.retriever(num_results=10), index.retriever(num_results=10**6, batch_size=3)
    assert batches.choose_batch_size(few, index.reader, topics) == batches.VECTORS_PER_PASS
    assert batches.choose_batch_size(many, index.reader, topics) == 8
