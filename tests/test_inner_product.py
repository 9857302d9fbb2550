"""The inner-product index: what it finds, when it is built again, and surrogate search over it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from pyterrier_hypencoder import HypencoderIndexer, inner_product, retriever
from pyterrier_hypencoder.inner_product import FACTS_FILE, INDEX_FILE, InnerProductIndex

N, D = 2000, 16


def docs(seed: int):
    vectors = np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)
    return [{"docno": f"d{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]


@pytest.fixture
def index(tmp_path):
    return HypencoderIndexer(tmp_path / "x.hyp").index(docs(0))


def test_it_finds_most_of_the_best_of_what_was_not_met(index, monkeypatch):
    monkeypatch.setattr("pyterrier_hypencoder.inner_product._PROBED", 2)
    queries = torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    met = torch.zeros(3, N, dtype=torch.bool)
    met[:, ::2] = True
    values, docids = InnerProductIndex(index.reader)(queries, 50, met)
    products = (queries @ torch.from_numpy(index.vectors.astype(np.float32)).T).masked_fill(met, -torch.inf)
    torch.testing.assert_close(values, products.gather(1, docids), rtol=1e-2, atol=1e-2)
    best = products.topk(50, dim=1).indices
    assert np.mean([len(set(a.tolist()) & set(b.tolist())) / 50 for a, b in zip(docids, best, strict=True)]) > 0.7


def test_more_than_there_are(index):
    met = torch.ones(1, N, dtype=torch.bool)
    met[0, 7] = False
    values, docids = InnerProductIndex(index.reader)(torch.ones(1, D), 10 * N, met)
    assert values.shape == docids.shape == (1, N)
    assert set(docids[values > -torch.inf].tolist()) <= {7}


def test_it_is_built_once_and_again_when_the_index_has_changed(index):
    InnerProductIndex(index.reader)
    file = index.path / INDEX_FILE
    first = file.stat().st_mtime_ns
    InnerProductIndex(index.reader)
    assert file.stat().st_mtime_ns == first
    (index.path / FACTS_FILE).write_text("{}")
    InnerProductIndex(index.reader)
    assert file.stat().st_mtime_ns > first


def test_those_who_come_while_it_is_built_wait(index, monkeypatch):
    built = []
    build = inner_product._build

    def slowly(*arguments):
        time.sleep(0.3)
        built.append(build(*arguments))

    monkeypatch.setattr(inner_product, "_build", slowly)
    with ThreadPoolExecutor(4) as pool:
        scans = list(pool.map(lambda _: InnerProductIndex(index.reader), range(4)))
    assert len(built) == 1
    queries, met = torch.ones(1, D), torch.zeros(1, N, dtype=torch.bool)
    assert len({tuple(scan(queries, 5, met)[1][0].tolist()) for scan in scans}) == 1


def test_large_collections_are_searched_over_it(index, monkeypatch):
    topics = pd.DataFrame({"qid": ["1", "2"], "query_vec": list(np.random.default_rng(1).normal(size=(2, D)))})
    expected = index.retriever(num_results=20)(topics)
    monkeypatch.setattr(retriever, "SCANNED", N - 1)
    monkeypatch.setattr("pyterrier_hypencoder.inner_product._PROBED", 2)  # random vectors have no clusters
    found = index.retriever(num_results=20, search="surrogate", n_seeds=50, device="cpu")(topics)
    assert (index.path / INDEX_FILE).is_file()
    both = expected.merge(found, on=["qid", "docno"])
    assert len(both) >= 0.9 * len(expected)
