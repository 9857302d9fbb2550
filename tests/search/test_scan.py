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
    torch.testing.assert_close(values.sort(dim=1, descending=True).values, expected.values, rtol=5e-3, atol=0)
    assert not seen.gather(1, docids).any()


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
