"""Fits of linear functions to ranks."""

from __future__ import annotations

import pytest
import torch

from pyterrier_hypencoder.search.fit import correlate_ranks, fit_linear, fit_parts, rank_scores

D = 16


@pytest.fixture
def linear(vectors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A direction (1, D), documents (1, 400, D) and their inner products (1, 400)."""
    direction = torch.randn(1, D, generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(vectors[:400]).unsqueeze(0)
    return direction, rows, (rows @ direction.unsqueeze(-1)).squeeze(-1)


def test_fit_linear_recovers_the_direction_of_linear_scores(linear):
    direction, rows, scores = linear
    assert torch.cosine_similarity(fit_linear(rows, scores, 1e-3), direction) > 0.97


def test_fit_linear_ignores_places_without_a_document(linear):
    _, rows, scores = linear
    padded_scores = torch.cat([scores, torch.full((1, 5), -torch.inf)], dim=1)
    padded = torch.cat([rows, 1e3 * torch.ones(1, 5, D)], dim=1)
    torch.testing.assert_close(fit_linear(padded, padded_scores, 0.05), fit_linear(rows, scores, 0.05), rtol=1e-3, atol=1e-4)


def test_fit_linear_does_not_change_if_scores_are_transformed_monotonically(linear):
    _, rows, scores = linear
    assert torch.equal(fit_linear(rows, scores.double() ** 3, 0.05), fit_linear(rows, scores.double(), 0.05))


def test_fit_linear_emphasis_leaves_documents_out(linear):
    _, rows, scores = linear
    kept = (torch.arange(400) % 2 == 0).float().unsqueeze(0)
    other = torch.where(kept.bool().unsqueeze(2), rows, 7 * torch.ones_like(rows))
    torch.testing.assert_close(fit_linear(other, scores, 0.05, kept), fit_linear(rows, scores, 0.05, kept))


def test_fit_linear_of_a_batch_equals_single_fits(linear):
    _, rows, scores = linear
    batch = fit_linear(torch.cat([rows, rows.flip(2)]), torch.cat([scores, scores]), 0.05)
    torch.testing.assert_close(batch[:1], fit_linear(rows, scores, 0.05), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch[1:], fit_linear(rows.flip(2), scores, 0.05), rtol=1e-4, atol=1e-5)


def test_fit_parts_follows_several_directions(linear):
    """The score is the larger one of two opposite inner products, so one linear function cannot follow it."""
    direction, rows, scores = linear
    either = scores.abs()
    parts = fit_parts(rows, either, 0.05)
    assert len(parts) == 4 and all(part.shape == (1, D) for part in parts)
    cosines = torch.stack([torch.cosine_similarity(part, direction) for part in parts])
    assert cosines.max() > 0.8 and cosines.min() < -0.8
    assert torch.cosine_similarity(fit_linear(rows, either, 0.05), direction).abs() < 0.5


def test_fits_of_equal_vectors_are_finite():
    rows, scores = torch.ones(1, 30, D), torch.arange(30.0).unsqueeze(0)
    assert fit_linear(rows, scores, 0.05).isfinite().all()
    assert all(part.isfinite().all() for part in fit_parts(rows, scores, 0.05))


def test_rank_scores_counts_from_the_best_and_gives_ties_their_mean_rank():
    scores = torch.tensor([[2.0, 5.0, -1.0, 2.0], [1.0, 1.0, 3.0, 1.0], [0.0, 0.0, 0.0, -torch.inf]])
    assert rank_scores(scores).tolist() == [[1.5, 0, 3, 1.5], [2, 2, 0, 2], [1, 1, 1, 3]]


def test_fit_linear_of_equal_scores_does_not_depend_on_their_order(linear):
    _, rows, scores = linear
    coarse = scores.round()  # many ties
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    expected = fit_linear(rows, coarse, 0.05)
    torch.testing.assert_close(fit_linear(rows[:, order], coarse[:, order], 0.05), expected, rtol=1e-4, atol=1e-5)


def test_correlate_ranks_of_tied_scores_does_not_depend_on_their_order():
    scores, others = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    expected = correlate_ranks(scores, others)
    assert 0.8 < expected < 0.95
    torch.testing.assert_close(correlate_ranks(scores, others[:, [1, 0, 3, 2]]), expected)


def test_correlate_ranks_is_spearman_over_real_documents():
    scores = torch.tensor([[1.0, 2.0, 3.0, -torch.inf]] * 3)
    others = torch.tensor([[10.0, 20.0, 90.0, 99.0], [3.0, 2.0, 1.0, -9.0], [1.0, 3.0, 2.0, 0.0]])
    torch.testing.assert_close(correlate_ranks(scores, others), torch.tensor([1.0, -1.0, 0.5]))
