"""Scores that are NaN or infinite are errors that name the query, the document, and what is at fault."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.finite import NonFiniteScoreError, check_finite
from pyterrier_hypencoder.search.graph import graph_search
from pyterrier_hypencoder.search.surrogate import surrogate_search

D, N, Q = 16, 3000, 3
NETWORK = QNetSpec((D, D, D, 1))
SPECS = [
    NETWORK,
    QNetSpec((D, 1)),
    QNetSpec((D, D, 1), do_layer_norm=False),
    QNetSpec((D, 8, 1), do_residual=False, inner_product_skip=True, normalize_input=True),
]


def make_qnets(spec: QNetSpec) -> QNets:
    return QNets.unflatten(torch.randn(Q, spec.size, generator=torch.Generator().manual_seed(0)), spec)


def search_exhaustively(score, vectors, **options):
    return exhaustive_search(score, vectors, Q, 10, **options)


def search_graph(score, vectors, **options):
    neighbours = (10 * np.arange(len(vectors))[:, None] + np.arange(10)) % len(vectors)  # reaches all documents in 3 rounds
    options = {"max_iter": 10**6, "early_stop": False, "n_candidates": 1000} | options
    return graph_search(score, vectors, neighbours.astype(np.uint32), np.arange(0, 300, 3), Q, 10, **options)


def search_surrogate(score, vectors, **options):
    return surrogate_search(score, vectors, np.arange(0, 300, 3), Q, 10, n_per_round=250, **options)


SEARCHES = pytest.mark.parametrize("search", [search_exhaustively, search_graph, search_surrogate])


@SEARCHES
@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, np.float16), (np.nan, np.float32), (np.inf, np.float16), (-np.inf, "f4")]
)
@pytest.mark.parametrize("docid", [6, N - 1])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_damaged_vector_is_named(vectors, search, value, dtype, docid, spec):
    damaged = vectors.astype(dtype)
    damaged[docid, 3] = value
    damaged.flags.writeable = False
    score = scoring.make_scorer(make_qnets(spec), device="cpu")
    if search is search_surrogate and not (np.isnan(value) or docid == 6):
        return  # surrogate search may never score this document
    with pytest.raises(NonFiniteScoreError, match=f"document {docid} .* vector of the document") as error:
        search(score, damaged)
    assert error.value.docid == docid and not error.value.vector_is_finite


@SEARCHES
@pytest.mark.parametrize("part", ["weights", "biases", "last weights"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_damaged_qnet_is_named(vectors, search, part, value):
    qnets = make_qnets(NETWORK)
    {"weights": qnets.weights[0], "biases": qnets.biases[1], "last weights": qnets.weights[-1]}[part][1, 2] = value
    with pytest.raises(NonFiniteScoreError, match="for query 1 is NaN or infinite, because the q-net contains") as error:
        search(scoring.make_scorer(qnets, device="cpu"), vectors)
    assert (error.value.query, error.value.vector_is_finite) == (1, True)
    assert "q-net of the query contains NaN or infinity" in error.value.explain("'q'", "'d'", qnets)


@SEARCHES
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("layer", [0, -1])
def test_float32_overflow_is_an_error(vectors, search, spec, layer):
    """A layer norm whose variance overflows returns zeros in torch, so all documents would have the same score."""
    qnets = make_qnets(spec)
    qnets.weights[layer][2] = 3e38 * qnets.weights[layer][2].sign()
    with pytest.raises(NonFiniteScoreError) as error:
        search(scoring.make_scorer(qnets, device="cpu"), vectors)
    assert error.value.query == 2 and error.value.vector_is_finite
    assert "too large for float32" in error.value.explain("'q'", "'d'", qnets)


def test_norm_that_overflows_is_an_error(vectors):
    large = vectors.copy()
    large[5] *= 1e30
    score = scoring.make_scorer(make_qnets(QNetSpec((D, 8, 1), do_residual=False, normalize_input=True)), device="cpu")
    with pytest.raises(NonFiniteScoreError) as error:
        exhaustive_search(score, large, Q, 10)
    assert error.value.docid == 5 and error.value.vector_is_finite


@SEARCHES
def test_large_finite_scores_are_no_error(vectors, search):
    qnets = QNets.linear(3e36 * torch.eye(D, dtype=torch.float32)[:Q])
    found = search(scoring.make_scorer(qnets, device="cpu"), np.abs(vectors))
    assert all(len(row) == 10 and np.isfinite(row).all() and row[0] > 1e36 for row in found.scores)


def test_damaged_vector_found_by_the_fallback_names_the_query_of_the_batch(vectors):
    class MixedScorer:
        """The first query is linear. The others rank documents by random numbers, and a document has no score."""

        random = torch.rand(N, generator=torch.Generator().manual_seed(0))

        def __init__(self, queries) -> None:
            self.queries = queries

        def __call__(self, block):
            return torch.stack([self.score_one(q, block) for q in self.queries])

        def each(self, block, counts):
            return torch.cat([self.score_one(q, p) for q, p in zip(self.queries, block.split(counts), strict=True)])

        def score_one(self, query, block):
            if query == 0:
                return block[:, 0]
            numbers = self.random[block[:, 1].mul(1e4).long() % N]
            return numbers.where((block != vectors_of_no_score).any(dim=1), torch.nan) if query == 2 else numbers

        def select(self, queries):
            return MixedScorer([self.queries[q] for q in queries])

    docid = int(np.argmin(vectors[:, 0]))
    vectors_of_no_score = torch.from_numpy(vectors[docid])
    with pytest.raises(NonFiniteScoreError) as error:
        surrogate_search(MixedScorer(range(Q)), vectors, np.arange(0, 900, 3), Q, 10, n_per_round=50)
    assert (error.value.query, error.value.docid) == (2, docid)


def test_check_finite_accepts_no_scores_and_sums_that_overflow():
    check_finite(torch.empty(2, 0), torch.empty(0, 4))
    check_finite(torch.full((2, 8), 3e38), torch.ones(8, 4))


def test_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(NonFiniteScoreError(2, 7, True)))
    assert (error.query, error.docid, error.vector_is_finite) == (2, 7, True)
