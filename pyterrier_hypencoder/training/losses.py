"""Training losses: pure functions on score matrices, the same for Hypencoders and bi-encoders.

A training row is a query with M items (documents); item 0 is the positive one. B rows make a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def margin_mse(scores: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the student's and the teacher's margins (Hofstaetter et al., arXiv 2010.02666).

    Over all pairs of the positive and a negative item of a row, as in the released code.

    Args:
        scores: (B, M), each q-net on its own items.
        teacher: (B, M), the teacher's scores of the same items.

    Returns:
        A scalar.

    Raises:
        ValueError: where the shapes differ, or a row has no negative.
    """
    _check_rows("margin_mse", scores)
    if scores.shape != teacher.shape:
        raise ValueError(f"margin_mse: expected teacher scores of shape {tuple(scores.shape)}, found {tuple(teacher.shape)}")
    return F.mse_loss(scores[:, :1] - scores[:, 1:], teacher[:, :1] - teacher[:, 1:])


def kl(scores: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the student's distribution over a row's items from the teacher's.

    Args:
        scores: (B, M), each q-net on its own items.
        teacher: (B, M), the teacher's scores of the same items.
        temperature: divides both before the softmax.

    Returns:
        A scalar, the mean over rows.

    Raises:
        ValueError: where the shapes differ, or a row has no negative.
    """
    _check_rows("kl", scores)
    if scores.shape != teacher.shape:
        raise ValueError(f"kl: expected teacher scores of shape {tuple(scores.shape)}, found {tuple(teacher.shape)}")
    student, target = (F.log_softmax(s / temperature, dim=1) for s in (scores, teacher))
    return F.kl_div(student, target, reduction="batchmean", log_target=True)


def in_batch_cross_entropy(scores: Tensor) -> Tensor:
    """Cross-entropy of every query's positive against the items of the whole batch; no temperature, as released.

    The columns say what takes part: with one item a row, (B, B), the positives of the other queries (the paper's choice:
    hard negatives take no part); with all of them, (B, B * M), every item of the batch.

    Args:
        scores: (B, B * m), each q-net on all items, row by row; the positive of row i is column ``i * m``.

    Returns:
        A scalar.

    Raises:
        ValueError: where the columns are no multiple of the rows.
    """
    rows, columns = scores.shape
    if columns % rows:
        raise ValueError(f"in_batch_cross_entropy: expected a multiple of {rows} columns, found {columns}")
    return F.cross_entropy(scores, torch.arange(rows, device=scores.device) * (columns // rows))


def listwise_ce(scores: Tensor) -> Tensor:
    """Cross-entropy of the positive against the other items of its row.

    Args:
        scores: (B, M), each q-net on its own items.

    Returns:
        A scalar.

    Raises:
        ValueError: where a row has no negative.
    """
    _check_rows("listwise_ce", scores)
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))


def _check_rows(name: str, scores: Tensor) -> None:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"{name}: expected scores (B, M) of at least two items a row, found shape {tuple(scores.shape)}")
