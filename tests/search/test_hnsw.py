"""HNSW search: scores, filters, the number of candidates, and damaged queries. The HNSW index is replaced by a product."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyterrier_hypencoder import QNets
from pyterrier_hypencoder.scoring import make_scorer
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.finite import NonFiniteScoreError
from pyterrier_hypencoder.search.hnsw import hnsw_search

QUERIES = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls():
    """The arguments of each call of the index: number of queries, k, candidates, number of allowed documents."""
    return []


@pytest.fixture
def search(vectors, calls):
    """Search with an index that finds the best documents exactly, in reverse order."""

    def find(queries, k, ef_search, allowed):
        calls.append((len(queries), k, ef_search, None if allowed is None else len(allowed)))
        docids = np.arange(len(vectors)) if allowed is None else allowed
        best = (queries.numpy() @ vectors[docids].T).argsort(axis=1)[:, -k:]
        return [docids[row] for row in best]

    def run(queries=QUERIES, k=10, **options):
        scorer = make_scorer(QNets.linear(queries), device="cpu")
        return hnsw_search(find, scorer, vectors, queries, k, **options)

    return run


def assert_exhaustive(found, vectors, k=10, allowed=None):
    expected = exhaustive_search(make_scorer(QNets.linear(QUERIES), device="cpu"), vectors, 4, k, allowed=allowed)
    for q in range(4):
        assert found.docids[q].tolist() == expected.docids[q].tolist()
        np.testing.assert_allclose(found.scores[q], expected.scores[q], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 10, 2999])
def test_results_have_the_scores_and_order_of_exhaustive_search(search, vectors, calls, k):
    found = search(k=k, ef_search=50)
    assert_exhaustive(found, vectors, k)
    assert calls == [(4, k, max(50, k), None)]
    assert found.stats["n_scored"].tolist() == [k] * 4 and found.stats["n_rounds"].tolist() == [1] * 4


def test_as_many_candidates_as_documents_make_the_search_exhaustive(search, vectors, calls):
    assert_exhaustive(search(ef_search=3000), vectors)
    assert_exhaustive(search(k=5000), vectors, 5000)
    assert calls == []


def test_weak_filters_widen_the_search_and_strong_filters_are_scored_completely(search, vectors, calls):
    weak, strong, none = np.arange(2400), np.arange(0, 3000, 30), np.array([], dtype=np.int64)
    found = search(allowed=[weak, strong, None, none], ef_search=40)
    assert_exhaustive(found, vectors, allowed=[weak, strong, None, none])
    assert sorted(calls, key=str) == [(1, 10, 40, None), (1, 10, 50, 2400)]
    assert found.stats["n_scored"].tolist() == [10, 100, 10, 0]


def test_queries_with_the_same_filter_are_searched_together(search, vectors, calls):
    weak = np.arange(2500)
    assert_exhaustive(search(allowed=[weak, None, weak, None], ef_search=20), vectors, allowed=[weak, None, weak, None])
    assert sorted(row[0] for row in calls) == [2, 2]


def test_query_vector_that_is_not_finite_is_named(search):
    queries = QUERIES.clone()
    queries[2, 5] = torch.nan
    with pytest.raises(NonFiniteScoreError) as caught:
        search(queries)
    assert caught.value.query == 2


def test_document_that_is_not_finite_is_named(search, vectors):
    vectors = vectors.copy()
    vectors[7] = np.inf
    scorer = make_scorer(QNets.linear(QUERIES), device="cpu")
    filters = [np.arange(100), None, None, None]
    with pytest.raises(NonFiniteScoreError) as caught:
        hnsw_search(lambda *args: [np.array([3, 7])] * 3, scorer, vectors, QUERIES, 2, allowed=filters, ef_search=2)
    assert caught.value.docid == 7 and not caught.value.vector_is_finite
