"""Training losses, as pure functions of score matrices. They are the same for Hypencoders and bi-encoders.

A batch has B training rows, each a query with M items (documents). Item 0 of a row is the positive one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def margin_mse(scores: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the mean squared error between the margins of the student and of the teacher.

    The margin is the score of the positive minus the score of a negative, for every negative of a row:

    .. math:: \frac{1}{B(M-1)} \sum_{b} \sum_{m>0} \big((s_{b0} - s_{bm}) - (t_{b0} - t_{bm})\big)^2

    Source: Hofstätter et al., arXiv 2010.02666. The Hypencoder paper (section 4.2) and the released code use it.

    Args:
        scores: Scores of the student for each row's own items, shape (B, M).
        teacher: Scores of the teacher for the same items, shape (B, M).

    Returns:
        Scalar.

    Raises:
        ValueError: If the shapes differ, or if a row has fewer than two items.

    Example:
        >>> margin_mse(torch.tensor([[3.0, 1.0]]), torch.tensor([[9.0, 8.0]]))  # margins 2 and 1
        tensor(1.)
    """
    _check_scores("margin_mse", scores)
    _check_teacher("margin_mse", scores, teacher)
    return F.mse_loss(scores[:, :1] - scores[:, 1:], teacher[:, :1] - teacher[:, 1:])


def kl(scores: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Return the Kullback-Leibler divergence between the teacher's and the student's softmax over a row's items.

    .. math:: \frac{1}{B} \sum_{b} \sum_{m} p_{bm} \log \frac{p_{bm}}{q_{bm}}, \quad
        p_b = \mathrm{softmax}(t_b / \tau), \quad q_b = \mathrm{softmax}(s_b / \tau)

    Source: Hinton et al., arXiv 1503.02531, without the factor :math:`\tau^2`.

    Args:
        scores: Scores of the student for each row's own items, shape (B, M).
        teacher: Scores of the teacher for the same items, shape (B, M).
        temperature: Divisor :math:`\tau` of both score matrices.

    Returns:
        Scalar, the mean over rows.

    Raises:
        ValueError: If the shapes differ, or if a row has fewer than two items.

    Example:
        >>> round(kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item(), 3)
        0.111
    """
    _check_scores("kl", scores)
    _check_teacher("kl", scores, teacher)
    student, target = (F.log_softmax(s / temperature, dim=1) for s in (scores, teacher))
    return F.kl_div(student, target, reduction="batchmean", log_target=True)


def in_batch_ce(scores: Tensor) -> Tensor:
    r"""Return the cross-entropy of each query's positive against items of the whole batch.

    .. math:: -\frac{1}{B} \sum_{b} \log \mathrm{softmax}(s_b)_{bm}

    The columns decide which items compete. With the positives only, the shape is (B, B): hard negatives take no part, as in
    the Hypencoder paper (section 4.2) and in the released code. With all items, the shape is (B, B * M).

    Source: Karpukhin et al., arXiv 2004.04906. There is no temperature, as in the released code.

    Args:
        scores: Scores of each query for m items of every row, shape (B, B * m). The positive of row b is column b * m.

    Returns:
        Scalar, the mean over rows.

    Raises:
        ValueError: If the number of columns is not a multiple of the number of rows.

    Example:
        >>> round(in_batch_ce(torch.tensor([[2.0, 0.0], [0.0, 2.0]])).item(), 3)
        0.127
    """
    n_rows, n_columns = scores.shape
    if n_columns % n_rows:
        raise ValueError(f"in_batch_ce: the number of columns must be a multiple of {n_rows} rows, got {n_columns}.")
    return F.cross_entropy(scores, torch.arange(n_rows, device=scores.device) * (n_columns // n_rows))


def listwise_ce(scores: Tensor) -> Tensor:
    r"""Return the cross-entropy of each row's positive against the other items of the same row.

    .. math:: -\frac{1}{B} \sum_{b} \log \mathrm{softmax}(s_b)_0

    Source: Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML 2007, for one relevant item.

    Args:
        scores: Scores of each query for its own items, shape (B, M).

    Returns:
        Scalar, the mean over rows.

    Raises:
        ValueError: If a row has fewer than two items.

    Example:
        >>> round(listwise_ce(torch.tensor([[2.0, 0.0, 0.0]])).item(), 3)
        0.24
    """
    _check_scores("listwise_ce", scores)
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))


def _check_scores(name: str, scores: Tensor) -> None:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"{name}: scores must have shape (B, M) with at least two items, got {tuple(scores.shape)}.")


def _check_teacher(name: str, scores: Tensor, teacher: Tensor) -> None:
    if scores.shape != teacher.shape:
        raise ValueError(f"{name}: teacher scores must have shape {tuple(scores.shape)}, got {tuple(teacher.shape)}.")
