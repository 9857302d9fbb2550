"""Results of searches, and the top-k selection."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyterrier_hypencoder.search import results
from pyterrier_hypencoder.search.results import Results, select_top_k, sort_by_score


def make_results(*rows: list[tuple[int, float]], **stats) -> Results:
    docids = [np.array([docid for docid, _ in row], np.int64) for row in rows]
    scores = [np.array([score for _, score in row], np.float32) for row in rows]
    return Results(docids, scores, {name: np.array(values) for name, values in stats.items()})


def test_from_tensors_leaves_out_places_without_a_document():
    scores = torch.tensor([[3.0, 1.0], [2.0, -torch.inf], [-torch.inf, -torch.inf]])
    found = Results.from_tensors(scores, torch.tensor([[5, 7], [9, 0], [0, 0]]), n_scored=torch.tensor([2, 1, 0]))
    assert [row.tolist() for row in found.docids] == [[5, 7], [9], []]
    assert [row.tolist() for row in found.scores] == [[3, 1], [2], []]
    assert all(row.dtype == np.float32 for row in found.scores) and found.stats["n_scored"].tolist() == [2, 1, 0]


def test_from_tensors_copies_statistics():
    n_scored = torch.tensor([4])
    found = Results.from_tensors(torch.tensor([[1.0]]), torch.tensor([[0]]), n_scored=n_scored)
    n_scored += 1
    assert found.stats["n_scored"].tolist() == [4]


def test_concat_appends_queries_and_missing_statistics_become_nan_or_false():
    joined = make_results([(1, 2.0)], n_scored=[3]).concat(
        make_results([(4, 5.0)], [], n_scored=[6, 7], last_yield=[0.5, 0.0], fell_back=[True, False])
    )
    assert [row.tolist() for row in joined.docids] == [[1], [4], []]
    assert [row.tolist() for row in joined.scores] == [[2], [5], []]
    assert joined.stats["n_scored"].tolist() == [3, 6, 7]
    np.testing.assert_array_equal(joined.stats["last_yield"], [np.nan, 0.5, 0])
    assert joined.stats["fell_back"].tolist() == [False, True, False] and joined.stats["fell_back"].dtype == bool


def test_concat_with_empty_results_changes_nothing():
    some, nothing = make_results([(1, 2.0)], n_scored=[3]), Results([], [])
    for joined in (some.concat(nothing), nothing.concat(some)):
        assert joined.docids[0].tolist() == [1] and joined.stats["n_scored"].tolist() == [3]
        assert joined.stats["n_scored"].dtype.kind == "i"
    assert nothing.concat(nothing).docids == []


def test_select_returns_queries_in_the_given_order():
    found = make_results([(1, 1.0)], [(2, 2.0)], [(3, 3.0)], n_scored=[10, 20, 30]).select([2, 0])
    assert [row.tolist() for row in found.docids] == [[3], [1]]
    assert [row.tolist() for row in found.scores] == [[3], [1]] and found.stats["n_scored"].tolist() == [30, 10]


def test_replace_takes_new_results_and_adds_costs():
    old = make_results([(1, 1.0)], [(2, 2.0)], n_scored=[10, 20], fell_back=[False, True])
    found = old.replace([1], make_results([(7, 9.0), (8, 8.0)], n_scored=[100]))
    assert [row.tolist() for row in found.docids] == [[1], [7, 8]]
    assert [row.tolist() for row in found.scores] == [[1], [9, 8]]
    assert found.stats["n_scored"].tolist() == [10, 120] and found.stats["fell_back"].tolist() == [False, True]
    assert old.stats["n_scored"].tolist() == [10, 20] and old.docids[1].tolist() == [2]


def test_select_top_k_of_empty_rows():
    scores, docids = select_top_k(torch.empty(2, 0), torch.empty(2, 0, dtype=torch.long), 5)
    assert scores.shape == docids.shape == (2, 0)


@pytest.mark.parametrize("k", [1, 3, 10, 40, 50])
@pytest.mark.parametrize("n_levels", [1, 4, 10**6])
def test_top_k_and_sort_break_ties_by_docid(k, n_levels):
    rng = np.random.default_rng(k)
    scores = rng.integers(0, n_levels, (5, 40)).astype(np.float32)
    docids = np.sort(rng.permuted(np.tile(np.arange(100), (5, 1)), axis=1)[:, :40], axis=1)
    expected = [sorted(zip(-s, d, strict=True))[:k] for s, d in zip(scores, docids, strict=True)]
    found, found_ids = select_top_k(torch.from_numpy(scores), torch.from_numpy(docids), k)
    assert found_ids.tolist() == [[d for _, d in row] for row in expected]
    assert found.tolist() == [[-s for s, _ in row] for row in expected]
    order = rng.permutation(40)  # sort_by_score takes docids in any order
    found, found_ids = sort_by_score(torch.from_numpy(scores[:, order]), torch.from_numpy(docids[:, order]))
    assert found_ids[:, :k].tolist() == [[d for _, d in row] for row in expected]
    assert found[:, :k].tolist() == [[-s for s, _ in row] for row in expected]


@pytest.mark.parametrize("k", [1, 10, 40])
def test_top_k_by_keys_equals_top_k_by_sorting(k):
    scores = torch.from_numpy(np.random.default_rng(k).integers(-3, 4, (5, 40)).astype(np.float32))
    scores[scores == 0] *= torch.tensor([1.0, -1.0]).repeat(40)[: int((scores == 0).sum())]  # -0 equals 0
    scores[0, ::3], scores[1] = -torch.inf, torch.linspace(-1e38, 1e38, 40)
    scores[2, ::2] = torch.tensor([1e-45, -1e-45]).repeat(10)  # the smallest numbers
    expected = scores.sort(dim=1, descending=True, stable=True)
    for find in (results._find_top_places, results._find_top_places_by_key):
        found = find(scores, k)
        real = expected.values[:, :k] > -torch.inf
        assert torch.equal(found[real], expected.indices[:, :k][real])
        assert torch.equal(scores.gather(1, found), expected.values[:, :k])


def test_top_k_of_shared_docids_equals_top_k_of_repeated_docids():
    scores, docids = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)), torch.arange(100, 300)
    for k in (2, 50, 500):
        for one, other in zip(select_top_k(scores, docids, k), select_top_k(scores, docids.expand(3, -1), k), strict=True):
            assert torch.equal(one, other)
