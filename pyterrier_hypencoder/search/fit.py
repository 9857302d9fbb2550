"""Fit linear functions of the document vectors to the ranks of the scores, by weighted ridge regression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_N_PARTS = 4
"""Number of neighbourhoods that :func:`fit_parts` fits a function to."""
_CENTRES_FROM_BEST = 100
"""Number of best documents among which the centres of the neighbourhoods are chosen."""
_PART_SHARPNESS = 20.0
"""Factor of the cosine to the centres, before the softmax that assigns documents to neighbourhoods."""
_RANK_DECAY = 4.0
"""The weight of the last rank is exp(-4) of the weight of the first one."""


def fit_linear(vectors: Tensor, scores: Tensor, ridge: float, emphasis: Tensor | None = None) -> Tensor:
    """Fit one linear function per query that ranks the documents like their scores do.

    The targets are the normal scores of the ranks, so a monotone transformation of the scores changes nothing, and equal
    scores have equal targets. Weights fall with the rank, because the top of the ranking matters most.

    Args:
        vectors: Vectors of scored documents, (Q, n, D).
        scores: Their scores, (Q, n); -inf marks a place without a document.
        ridge: Strength of the regularisation, relative to the mean variance of a dimension.
        emphasis: Additional factors of the weights, (Q, n).

    Returns:
        Linear functions, (Q, D).
    """
    target, weight = _rank_targets(scores, emphasis)
    centre = torch.einsum("qn,qnd->qd", weight, vectors).unsqueeze(1)
    rows = (vectors - centre).mul_(weight.sqrt().unsqueeze(-1))
    gram = rows.transpose(1, 2) @ rows  # (Q, D, D)
    moment = torch.einsum("qnd,qn->qd", rows, weight.sqrt() * target)
    variance = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-12)
    gram.diagonal(dim1=1, dim2=2).add_(ridge * variance.unsqueeze(1))
    return torch.cholesky_solve(moment.unsqueeze(-1), torch.linalg.cholesky(gram)).squeeze(-1)


def fit_parts(vectors: Tensor, scores: Tensor, ridge: float) -> list[Tensor]:
    """Fit several linear functions per query, each to the neighbourhood of some of the best documents.

    Args:
        vectors: Vectors of scored documents, (Q, n, D).
        scores: Their scores, (Q, n); -inf marks a place without a document.
        ridge: Strength of the regularisation; see :func:`fit_linear`.

    Returns:
        Linear functions, four tensors (Q, D).
    """
    directions = F.normalize(vectors, dim=-1)
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :_CENTRES_FROM_BEST]
    leaders = directions.gather(1, best.unsqueeze(-1).expand(-1, -1, vectors.shape[-1]))  # (Q, 100, D)
    share = (_PART_SHARPNESS * directions @ _find_centres(leaders).transpose(1, 2)).softmax(dim=2)
    return [fit_linear(vectors, scores, ridge, share[:, :, part]) for part in range(_N_PARTS)]


def rank_scores(scores: Tensor) -> Tensor:
    """Return the rank of every score in its row, from 0 for the best one, (Q, n) float32.

    Equal scores share the mean of their ranks (mid-ranks), so ranks do not depend on the order of the documents.

    Example:
        >>> rank_scores(torch.tensor([[1.0, 5.0, 1.0]])).tolist()
        [[1.5, 0.0, 1.5]]
    """
    ascending = scores.sort(dim=1).values
    first, last = (torch.searchsorted(ascending, scores.contiguous(), right=right) for right in (False, True))
    return (scores.shape[1] - last).float() + ((last - first).float() - 1) / 2


def correlate_ranks(scores: Tensor, others: Tensor) -> Tensor:
    """Return Spearman's rank correlation between scores and other values, (Q,).

    Args:
        scores: (Q, n); places with -inf are left out.
        others: (Q, n).
    """
    real = scores > -torch.inf
    mean = (real.sum(dim=1, keepdim=True).float() - 1) / 2
    ranks, other_ranks = ((rank_scores(part.masked_fill(~real, -torch.inf)) - mean) * real for part in (scores, others))
    return F.cosine_similarity(ranks, other_ranks, dim=1)


def _rank_targets(scores: Tensor, emphasis: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the centred normal scores of the ranks and the weights of the documents, both (Q, n)."""
    real = scores > -torch.inf
    counts = real.sum(dim=1, keepdim=True).clamp(min=1).float()  # a quotient of integers has the user's default dtype
    ranks = rank_scores(scores)
    target = -torch.special.ndtri(((ranks + 0.5) / counts).clamp(max=1 - 1e-6))
    weight = torch.exp(-_RANK_DECAY * ranks / counts) * real
    weight = weight if emphasis is None else weight * emphasis
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return (target - (weight * target).sum(dim=1, keepdim=True)).masked_fill(~real, 0.0), weight


def _find_centres(directions: Tensor) -> Tensor:
    """Cluster directions (Q, n, D) by k-means, starting from directions far from one another; returns (Q, 4, D)."""
    centres = directions[:, :1]
    for _ in range(_N_PARTS - 1):
        farthest = (directions @ centres.transpose(1, 2)).amax(dim=2).argmin(dim=1)
        rows = torch.arange(len(directions), device=directions.device)
        centres = torch.cat([centres, directions[rows, farthest].unsqueeze(1)], dim=1)
    for _ in range(3):
        nearest = F.one_hot((directions @ centres.transpose(1, 2)).argmax(dim=2), _N_PARTS).to(directions.dtype)
        centres = F.normalize(nearest.transpose(1, 2) @ directions + 1e-6 * centres, dim=-1)
    return centres
