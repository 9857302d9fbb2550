"""The exact scan returns the documents with the largest inner products, whatever the batch, the blocks and the filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyterrier_hypencoder.search.allowed import make_allowed
from pyterrier_hypencoder.search.scan import _find_largest, make_exact_scan

N, D = 3000, 16


def list_seen(mask: torch.Tensor) -> torch.Tensor:
    """Return the docids (Q, n) of documents that are marked (Q, N), filled up with -1."""
    rows = [row.nonzero()[:, 0] for row in mask]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def none_seen(n_queries: int) -> torch.Tensor:
    return torch.empty(n_queries, 0, dtype=torch.long)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n_queries", [1, 3])
def test_exact_scan_returns_the_largest_inner_products(monkeypatch, vectors, dtype, n_queries):
    monkeypatch.setattr("pyterrier_hypencoder.search.scan._PRODUCTS_IN_MEMORY", 1000 * n_queries)
    functions = 1e6 * torch.randn(n_queries, D, generator=torch.Generator().manual_seed(0))
    seen = torch.zeros(n_queries, N, dtype=torch.bool)
    seen[:, ::2] = True
    values, docids = make_exact_scan(vectors.astype(dtype))(functions, 7, list_seen(seen))
    products = (functions @ torch.from_numpy(vectors.astype(dtype)).float().T).masked_fill(seen, -torch.inf)
    expected = products.topk(7, dim=1)
    torch.testing.assert_close(values.sort(dim=1, descending=True).values, expected.values, rtol=1e-5, atol=0)
    assert not seen.gather(1, docids).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("mean", [0, 10])
@pytest.mark.parametrize("k", [1, 10, 500, N])
def test_exact_scan_of_one_query_equals_its_scan_in_a_batch(dtype, mean, k):
    """With a large common mean, half precision gives many documents the same product. Some documents are equal."""
    rows = (np.random.default_rng(0).normal(size=(N, D)) + mean).astype(dtype)
    rows[5::50] = rows[5]
    functions = torch.randn(5, D, generator=torch.Generator().manual_seed(3)) + 1
    functions[4] = torch.from_numpy(rows[5]).float() - mean  # the equal documents are among its best
    seen = torch.rand(5, N, generator=torch.Generator().manual_seed(2)) < 0.2
    scan = make_exact_scan(rows)
    values, docids = scan(functions, k, list_seen(seen))
    for q in range(5):
        value, docid = scan(functions[q : q + 1], k, list_seen(seen[q : q + 1]))
        real = value[0] > -torch.inf
        assert torch.equal(value[0], values[q]) and torch.equal(docid[0][real], docids[q][real])


def test_exact_scan_orders_equal_products_by_docid():
    rows = np.zeros((N, D), np.float16)
    rows[100:900] = 1
    values, docids = make_exact_scan(rows)(torch.ones(1, D), 60, torch.tensor([[100, -1, 102]]))
    assert docids[0].tolist() == [101, *range(103, 162)] and set(values[0].tolist()) == {float(D)}


def test_exact_scan_of_equal_documents_reads_a_limited_number_again(monkeypatch):
    read = []
    take_rows = "pyterrier_hypencoder.search.scan.take_rows"
    monkeypatch.setattr(take_rows, lambda rows, docids: read.append(docids.numel()) or torch.from_numpy(rows[docids.numpy()]))
    values, docids = make_exact_scan(np.ones((N, D), np.float16))(torch.ones(1, D), 5, none_seen(1))
    assert len(set(docids[0].tolist())) == 5 and max(read) < N / 2


@pytest.mark.parametrize("n_queries", [1, 3])
def test_products_beyond_half_precision_keep_their_order(n_queries):
    """The products of these vectors are above 65,504, the largest half-precision number."""
    rows = np.full((1000, D), 60_000, np.float16)
    rows[:, 0] = 50 * np.arange(1000)
    docids = make_exact_scan(rows)(torch.ones(n_queries, D), 5, none_seen(n_queries))[1]
    assert docids.sort(dim=1).values.tolist() == [list(range(995, 1000))] * n_queries


@pytest.mark.parametrize("n_queries", [1, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_exact_scan_does_not_depend_on_block_sizes(monkeypatch, vectors, n_queries, dtype):
    functions = torch.randn(n_queries, D, generator=torch.Generator().manual_seed(1))
    seen = list_seen(torch.rand(n_queries, N, generator=torch.Generator().manual_seed(2)) < 0.5)
    rows = vectors.astype(dtype)
    allowed = make_allowed([np.arange(5, N, 3)] * (n_queries - 1) + [None])
    expected = [make_exact_scan(rows)(functions, 10, seen, filters) for filters in (None, allowed)]
    monkeypatch.setattr("pyterrier_hypencoder.search.scan._BLOCK", 700)
    monkeypatch.setattr("pyterrier_hypencoder.search.scan._CACHE_BYTES", 64 * 4 * D)
    found = [make_exact_scan(rows)(functions, 10, seen, filters) for filters in (None, allowed)]
    assert all(torch.equal(a, b) for one, two in zip(found, expected, strict=True) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("n_queries", [1, 3])
@pytest.mark.parametrize("step", [1, 3, 40])
@pytest.mark.parametrize("shared", [True, False])
def test_exact_scan_finds_allowed_documents_only(vectors, n_queries, step, shared):
    """A filter that leaves one of 40 documents limits the product, one that leaves a third does not."""
    filters = [np.arange(0, N, step)] * n_queries if shared else [np.arange(q, N, step) for q in range(n_queries)]
    functions = torch.randn(n_queries, D, generator=torch.Generator().manual_seed(1))
    seen = torch.rand(n_queries, N, generator=torch.Generator().manual_seed(2)) < 0.3
    values, docids = make_exact_scan(vectors)(functions, 20, list_seen(seen), make_allowed(filters))
    for q, ids in enumerate(filters):
        unwanted = seen[q].clone()
        unwanted |= ~torch.isin(torch.arange(N), torch.from_numpy(ids))
        expected = (torch.from_numpy(vectors) @ functions[q]).masked_fill(unwanted, -torch.inf).topk(20).indices
        assert docids[q].tolist() == expected.tolist()


def test_exact_scan_with_a_filter_that_allows_nothing(vectors):
    values, docids = make_exact_scan(vectors)(torch.ones(2, D), 5, none_seen(2), make_allowed([np.arange(0)] * 2))
    assert values.shape == docids.shape == (2, 0)
    filters = make_allowed([np.arange(0), np.arange(N)])
    values = make_exact_scan(vectors)(torch.ones(2, D), 5, none_seen(2), filters)[0]
    assert (values > -torch.inf).sum(dim=1).tolist() == [0, 5]


@pytest.mark.parametrize("n", [1, 15, 100, 1003, 5000])
@pytest.mark.parametrize("number", [1, 7, 150])
def test_find_largest_returns_the_largest_values(n, number):
    values = torch.randn(3, n, generator=torch.Generator().manual_seed(n))
    values[1, ::2] = -torch.inf
    found, places = _find_largest(values, number)
    assert torch.equal(found, values.gather(1, places)) and all(len(set(row)) == len(row) for row in places.tolist())
    assert torch.equal(found.sort(dim=1).values, values.topk(min(number, n), dim=1).values.sort(dim=1).values)


def test_exact_scan_marks_places_without_a_document(vectors):
    seen = torch.ones(2, 5, dtype=torch.bool)
    seen[0, 3] = False
    values, docids = make_exact_scan(vectors[:5])(torch.ones(2, D), 10, list_seen(seen))
    assert values.shape == (2, 5) and (values > -torch.inf).sum(dim=1).tolist() == [1, 0]
    assert docids[0, values[0].argmax()] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("n_queries", [1, 3])
def test_exact_scan_on_a_gpu_of_vectors_in_main_memory(vectors, n_queries):
    functions, seen = torch.randn(n_queries, D), none_seen(n_queries)
    values, docids = make_exact_scan(vectors)(functions.cuda(), 10, seen.cuda())
    assert values.is_cuda and docids.is_cuda
    expected = make_exact_scan(vectors)(functions, 10, seen)[1]
    assert docids.cpu().sort(dim=1).values.tolist() == expected.sort(dim=1).values.tolist()
