"""Exhaustive search with a rough first pass returns what float32 returns, whatever the first pass gets wrong within limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyterrier_hypencoder.search import rescoring
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.finite import NonFiniteScoreError


class GivenScorer:
    """The vector of a document is its docid; its scores are given, (Q, N). Counts the scores that were computed."""

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores
        self.n_shared = self.n_each = 0
        self.selected: list[list[int]] = []

    def __call__(self, vectors):
        self.n_shared += len(vectors)
        return self.scores[:, vectors[:, 0].long()]

    def each(self, vectors, counts):
        assert sum(counts) == len(vectors) and len(counts) == len(self.scores)
        self.n_each += len(vectors)
        return self.scores[torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), vectors[:, 0].long()]

    def select(self, queries):
        self.selected.append(list(queries))
        found = GivenScorer(self.scores[list(queries)])
        found.selected = self.selected
        return found


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Score the best 20 documents again, so that small collections need a first pass."""
    monkeypatch.setattr(rescoring, "_MIN_RESCORED", 20)


def search(scores: torch.Tensor, k: int, rough: torch.Tensor | None = None, **options):
    """Search with given scores, and with given scores of a first pass; returns the results and the exact scorer."""
    vectors, exact = np.arange(scores.shape[1], dtype=np.float32)[:, None], GivenScorer(scores)
    first_pass = None if rough is None else GivenScorer(rough)
    return exhaustive_search(exact, vectors, len(scores), k, first_pass=first_pass, **options), exact


def assert_exact(scores: torch.Tensor, k: int, rough: torch.Tensor, **options) -> GivenScorer:
    """Check that a search with a first pass returns what a search without one returns; returns the exact scorer."""
    found, exact = search(scores, k, rough, **options)
    expected, _ = search(scores, k, **options)
    for one, other in zip(found.docids + found.scores, expected.docids + expected.scores, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.stats["n_scored"].tolist() == expected.stats["n_scored"].tolist()
    return exact


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_noisy_first_pass_gives_the_results_of_exact_scores(k, noise, seed):
    scores = draw(seed, 3, 600)
    rough = scores + noise * (2 * torch.rand(3, 600, generator=torch.Generator().manual_seed(seed + 50)) - 1)
    assert_exact(scores, k, rough)


def test_accurate_first_pass_scores_only_the_first_candidates_again():
    scores = draw(0, 3, 600)
    exact = assert_exact(scores, 5, scores + 1e-4 * draw(1, 3, 600))
    assert (exact.n_shared, exact.n_each) == (0, 3 * 20)


def test_rough_first_pass_scores_more_documents_of_that_query_again():
    scores = torch.linspace(1, 0, 600).repeat(3, 1)
    rough = scores.clone()
    rough[1] += 0.02 * (-1.0) ** torch.arange(600)  # the margin after 20 documents is 15 / 600
    exact = assert_exact(scores, 5, rough)
    assert (exact.n_shared, exact.n_each) == (0, 3 * 20 + 20)


def test_first_pass_without_information_searches_those_queries_exactly():
    scores = draw(0, 3, 600)
    rough = scores.clone()
    rough[[0, 2]] = draw(1, 2, 600)
    exact = assert_exact(scores, 5, rough)
    assert exact.selected == [[0, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_documents_outside_may_differ_by_twice_as_much_as_those_scored_again(seed):
    """The worst case: every document outside is better than the first pass says, by almost the limit."""
    scores = draw(seed, 2, 600)
    rough = scores + 0.05 * torch.rand(2, 600, generator=torch.Generator().manual_seed(seed))
    outside = rough.argsort(dim=1, descending=True)[:, 20:]
    seen = (rough - scores).gather(1, rough.topk(20).indices).amax(dim=1, keepdim=True)
    hidden = rough.gather(1, outside) + 0.999 * rescoring.SAFETY * seen
    assert_exact(scores.scatter(1, outside, hidden), 5, rough)


def test_a_single_document_with_a_far_larger_difference_is_missed():
    scores = draw(0, 1, 600)
    rough = scores.clone()
    scores[0, int(rough.argmin())] = 100.0
    assert search(scores, 5, rough)[0].docids[0].tolist() == search(rough, 5)[0].docids[0].tolist()


@pytest.mark.parametrize("levels", [1, 2, 40])
def test_equal_scores_are_ordered_by_docid(levels):
    scores = torch.randint(levels, (3, 600), generator=torch.Generator().manual_seed(0)).float()
    assert_exact(scores, 5, scores)
    assert_exact(scores, 5, scores + 0.01 * draw(1, 3, 600))


@pytest.mark.parametrize(
    "allowed",
    [
        [np.arange(0, 600, 2)] * 3,
        [np.arange(0, 600, 3), None, np.arange(7)],
        [np.arange(0, 600, 3), np.arange(100, 500), np.array([599])],
        [np.empty(0, np.int64), None, None],
    ],
    ids=["shared", "one without", "all different", "nothing allowed"],
)
@pytest.mark.parametrize("noise", [1e-4, 1.0])
def test_filters_give_the_results_of_exact_scores(allowed, noise):
    scores = draw(0, 3, 600)
    assert_exact(scores, 5, scores + noise * draw(1, 3, 600), allowed=allowed)


@pytest.mark.parametrize("k", [5, 60, 1000])
@pytest.mark.parametrize("n_docs", [1, 3, 39, 40, 79, 80])
def test_small_collections_give_the_results_of_exact_scores(k, n_docs):
    scores = draw(0, 2, n_docs)
    exact = assert_exact(scores, k, draw(1, 2, n_docs))
    assert k == 5 or exact.n_each == 0  # a first pass would not pay off


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_first_pass_that_is_not_finite_is_replaced_by_exact_scores(value):
    scores = draw(0, 3, 600)
    rough = scores.clone()
    rough[1, 400] = value
    assert_exact(scores, 5, rough)


@pytest.mark.parametrize("in_first_pass", [True, False])
def test_exact_scores_that_are_not_finite_are_errors(in_first_pass):
    rough = draw(0, 3, 600)
    scores, best = rough.clone(), int(rough[2].argmax())
    scores[2, best] = torch.nan
    with pytest.raises(NonFiniteScoreError) as error:
        search(scores, 5, scores if in_first_pass else rough)
    assert (error.value.query, error.value.docid) == (2, best)


def test_errors_of_a_second_search_name_the_query_of_the_batch():
    scores = draw(0, 3, 600)
    rough = scores.clone()
    rough[2] = draw(1, 600)
    scores[2, int(rough[2].argmin())] = torch.inf  # outside of the documents that are scored again
    with pytest.raises(NonFiniteScoreError) as error:
        search(scores, 5, rough)
    assert error.value.query == 2


def test_progress_counts_every_document_once():
    done: list[int] = []
    scores = draw(0, 3, 600)
    search(scores, 5, scores, progress=done.append)
    assert sum(done) == 600


@pytest.mark.parametrize("size", [4, 400])
def test_scoring_in_pieces_changes_no_result(monkeypatch, size):
    monkeypatch.setattr("pyterrier_hypencoder.search.passes._CHUNK_BYTES", 4 * size)
    monkeypatch.setattr("pyterrier_hypencoder.search.documents._SCORED_BYTES", size)
    scores = draw(0, 3, 300)
    assert_exact(scores, 5, scores + 0.01 * draw(1, 3, 300))
