"""Pooling: how the token vectors of a text become one vector."""

from __future__ import annotations

import torch
from torch import Tensor

from ..options import check_choice

POOLINGS = ("cls", "mean", "max", "last")


def pool(hidden: Tensor, mask: Tensor, pooling: str, *, pool_padding: bool = False, num_skipped: int = 0) -> Tensor:
    """Pool the token vectors of each text into one vector.

    Args:
        hidden: Last hidden state of the transformer, (B, T, D).
        mask: 1 for tokens and 0 for padding, (B, T).
        pooling: ``cls`` (first token), ``mean``, ``max`` or ``last`` (token before the padding).
        pool_padding: If True, the mean also sums over padding, as in the released code. A vector then depends on the
            padding of its batch.
        num_skipped: Number of tokens at the start that are left out.

    Returns:
        One vector per text, (B, D).

    Raises:
        ValueError: If the pooling is unknown.
    """
    check_choice("pooling", pooling, POOLINGS)
    if num_skipped:
        mask = mask.clone()
        mask[:, :num_skipped] = 0
    if pooling == "cls":
        return hidden[:, min(num_skipped, hidden.shape[1] - 1)]
    attended = mask.unsqueeze(-1).bool()
    if pooling == "mean":
        total = (hidden if pool_padding else hidden.masked_fill(~attended, 0)).sum(1)
        return total / mask.sum(1, keepdim=True).clamp(min=1)
    if pooling == "max":
        return hidden.masked_fill(~attended, -torch.inf).amax(1)
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)  # (B,)
    return hidden[torch.arange(len(hidden), device=mask.device), last]
