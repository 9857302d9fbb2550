"""Tests of the linear functions that approximate q-nets."""

from __future__ import annotations

import torch

from pyterrier_hypencoder.search.linearity import fit_linear_scores, measure_overlap


def test_linear_scores_are_recovered_and_others_are_not():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    inner = vectors @ torch.randn(8, generator=generator, dtype=torch.float64)
    fitted = fit_linear_scores(vectors, inner.exp())  # a monotone function ranks alike
    assert measure_overlap(inner, fitted) >= 0.95
    fitted = fit_linear_scores(vectors, inner.abs())
    assert measure_overlap(inner.abs(), fitted) <= 0.7


def test_overlap_counts_the_common_first_documents():
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert measure_overlap(scores, scores.flip(0), k=2) == 0
    assert measure_overlap(scores, torch.tensor([4.0, 1.0, 3.0, 2.0]), k=2) == 0.5
    assert measure_overlap(scores, -scores) == 1  # fewer documents than k
