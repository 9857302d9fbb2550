"""The scan of surrogate search: the inner-product index if it has been built and saves time, else the exact scan."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pyterrier_hypencoder import HypencoderIndexer
from pyterrier_hypencoder.index.inner_product import FACTS_FILE, InnerProductIndex
from pyterrier_hypencoder.transformers.batch_search import BatchSearch
from pyterrier_hypencoder.transformers.scans import open_scan


@pytest.fixture
def index(tmp_path):
    """Return an index of 300 vectors with 8 dimensions."""
    vectors = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    return HypencoderIndexer(tmp_path / "x.hyp").index({"docno": f"d{i}", "doc_vec": v} for i, v in enumerate(vectors))


def test_open_scan_builds_nothing(index):
    before = sorted(path.name for path in index.path.iterdir())
    assert open_scan(index.reader) is None
    assert sorted(path.name for path in index.path.iterdir()) == before


@pytest.mark.parametrize("worth_it", [True, False])
def test_scan_asks_whether_the_inner_product_index_saves_time(index, monkeypatch, worth_it):
    index.inner_product_index()
    calls = []
    search = InnerProductIndex.__call__
    monkeypatch.setattr(InnerProductIndex, "is_worth_it", lambda self, *args: worth_it)
    monkeypatch.setattr(InnerProductIndex, "__call__", lambda self, *args: calls.append(args) or search(self, *args))
    query, seen = torch.ones(1, 8), torch.full((1, 0), -1)
    values, docids = open_scan(index.reader)(query, 5, seen)
    assert len(calls) == worth_it
    products = index.vectors.astype(np.float32).sum(axis=1)
    assert set(docids[0].tolist()) == set(np.argsort(-products)[:5].tolist())
    np.testing.assert_allclose(np.sort(values[0].numpy()), np.sort(products)[-5:], rtol=1e-2)


def test_retriever_opens_a_new_inner_product_index_and_drops_a_removed_one(index):
    retriever = index.retriever(algorithm="surrogate", n_initial=16, n_per_round=16, num_results=3)
    topics = pd.DataFrame({"qid": ["q"], "query_vec": [np.ones(8)]})
    expected = retriever(topics)
    assert BatchSearch(retriever, index.reader, 3)._open_scan() is None
    index.inner_product_index()
    assert BatchSearch(retriever, index.reader, 3)._open_scan() is not None
    assert BatchSearch(retriever, index.reader, 3)._open_scan() is BatchSearch(retriever, index.reader, 3)._open_scan()
    assert list(retriever(topics)["docno"]) == list(expected["docno"])
    (index.path / FACTS_FILE).unlink()
    assert BatchSearch(retriever, index.reader, 3)._open_scan() is None
