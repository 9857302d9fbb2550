"""Find the inner product that ranks documents most like a q-net, to measure how far the q-net is from linear."""

from __future__ import annotations

import torch
from torch import Tensor

CUTOFF = 100
"""Number of first documents that two rankings are compared by."""
_RIDGES = (1e-3, 1e-2, 1e-1)


def fit_linear_scores(vectors: Tensor, scores: Tensor) -> Tensor:
    """Return the scores of the linear function that ranks most like a q-net.

    The function is fitted to normal scores of the q-net's ranks, because all monotone functions of the scores rank alike.
    The fit is a ridge regression that gives the first ranks the highest weights. It is repeated with several ridges, and
    the one with the largest overlap of the first documents is kept. It knows the scores of all documents, unlike the fits
    of surrogate search, so it shows the best ranking that a query vector could reach.

    Args:
        vectors: Document vectors, (N, D), float64.
        scores: Scores of the q-net, (N,).

    Returns:
        Scores of the linear function, (N,).
    """
    n = len(scores)
    rank = torch.empty(n, dtype=torch.float64)
    rank[scores.argsort(descending=True, stable=True)] = torch.arange(n, dtype=torch.float64)
    target = -torch.special.ndtri((rank + 0.5) / n)
    weight = torch.exp(-rank / (n / 4)) + 10 * (rank < CUTOFF)
    x = torch.cat([vectors, torch.ones(n, 1, dtype=vectors.dtype)], dim=1)  # (N, D + 1)
    gram, moment = x.T @ (weight[:, None] * x), x.T @ (weight * target)
    best_overlap, best_scores = -1.0, scores
    for ridge in _RIDGES:
        diagonal = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        linear_scores = x @ torch.linalg.solve(gram + diagonal, moment)
        overlap = measure_overlap(scores, linear_scores)
        if overlap > best_overlap:
            best_overlap, best_scores = overlap, linear_scores
    return best_scores


def measure_overlap(one: Tensor, other: Tensor, k: int = CUTOFF) -> float:
    """Return the share of the first k documents that two score lists have in common.

    Args:
        one: Scores, (N,).
        other: Other scores of the same documents, (N,).
        k: Number of first documents. All N are compared if there are fewer.
    """
    k = min(k, len(one))
    return len(set(one.topk(k).indices.tolist()) & set(other.topk(k).indices.tolist())) / k
