"""The exact scan returns the documents with the largest inner products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyterrier_hypencoder.search.scan import make_exact_scan

N, D = 3000, 16


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n_queries", [1, 3])
def test_exact_scan_returns_the_largest_inner_products(monkeypatch, vectors, dtype, n_queries):
    monkeypatch.setattr("pyterrier_hypencoder.search.scan._PRODUCTS_IN_MEMORY", 1000 * n_queries)
    functions = 1e6 * torch.randn(n_queries, D, generator=torch.Generator().manual_seed(0))
    seen = torch.zeros(n_queries, N, dtype=torch.bool)
    seen[:, ::2] = True
    values, docids = make_exact_scan(vectors.astype(dtype))(functions, 7, seen)
    products = (functions @ torch.from_numpy(vectors.astype(dtype)).float().T).masked_fill(seen, -torch.inf)
    expected = products.topk(7, dim=1)
    torch.testing.assert_close(values.sort(dim=1, descending=True).values, expected.values, rtol=1e-5, atol=0)
    assert not seen.gather(1, docids).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("k", [1, 10, 500, N])
def test_exact_scan_of_one_query_equals_its_scan_in_a_batch(dtype, k):
    """The vectors share a large mean, so half precision gives many documents the same product."""
    rows = (np.random.default_rng(0).normal(size=(N, D)) + 10).astype(dtype)
    functions = torch.randn(5, D, generator=torch.Generator().manual_seed(3)) + 1
    seen = torch.rand(5, N, generator=torch.Generator().manual_seed(2)) < 0.2
    scan = make_exact_scan(rows)
    values, docids = scan(functions, k, seen)
    for q in range(5):
        value, docid = scan(functions[q : q + 1], k, seen[q : q + 1])
        order, one = values[q].argsort(), value[0].argsort()
        torch.testing.assert_close(value[0, one], values[q, order], rtol=1e-5, atol=1e-4)
        real = value[0] > -torch.inf
        assert set(docid[0][real].tolist()) == set(docids[q][values[q] > -torch.inf].tolist())


@pytest.mark.parametrize("n_queries", [1, 3])
def test_products_beyond_half_precision_keep_their_order(n_queries):
    """The products of these vectors are above 65,504, the largest half-precision number."""
    rows = np.full((1000, D), 60_000, np.float16)
    rows[:, 0] = 50 * np.arange(1000)
    docids = make_exact_scan(rows)(torch.ones(n_queries, D), 5, torch.zeros(n_queries, 1000, dtype=torch.bool))[1]
    assert docids.sort(dim=1).values.tolist() == [list(range(995, 1000))] * n_queries


@pytest.mark.parametrize("n_queries", [1, 3])
def test_exact_scan_does_not_depend_on_block_sizes(monkeypatch, vectors, n_queries):
    functions = torch.randn(n_queries, D, generator=torch.Generator().manual_seed(1))
    seen = torch.rand(n_queries, N, generator=torch.Generator().manual_seed(2)) < 0.5
    expected = make_exact_scan(vectors)(functions, 10, seen)[1].sort(dim=1).values
    monkeypatch.setattr("pyterrier_hypencoder.search.scan._DEVICE_BYTES", 700 * 4 * D)
    monkeypatch.setattr("pyterrier_hypencoder.search.scan._CACHE_BYTES", 64 * 4 * D)
    assert torch.equal(make_exact_scan(vectors)(functions, 10, seen)[1].sort(dim=1).values, expected)


def test_exact_scan_marks_places_without_a_document(vectors):
    seen = torch.ones(2, 5, dtype=torch.bool)
    seen[0, 3] = False
    values, docids = make_exact_scan(vectors[:5])(torch.ones(2, D), 10, seen)
    assert values.shape == (2, 5) and (values > -torch.inf).sum(dim=1).tolist() == [1, 0]
    assert docids[0, values[0].argmax()] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n_queries", [1, 3])
def test_exact_scan_on_a_gpu_of_vectors_in_main_memory(vectors, n_queries):
    functions, seen = torch.randn(n_queries, D), torch.zeros(n_queries, N, dtype=torch.bool)
    values, docids = make_exact_scan(vectors)(functions.cuda(), 10, seen.cuda())
    assert values.is_cuda and docids.is_cuda
    expected = make_exact_scan(vectors)(functions, 10, seen)[1]
    assert docids.cpu().sort(dim=1).values.tolist() == expected.sort(dim=1).values.tolist()
