"""What a search gives, and the top-k that all of them use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Results:
    """The best documents of Q queries, best first; equal scores by docid.

    Args:
        docids: for every query its docids, int64.
        scores: for every query the scores, float32.
    """

    docids: list[np.ndarray]
    scores: list[np.ndarray]


def top_k(scores: Tensor, docids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, best first, equal scores by docid, so that results do not depend on how work is split.

    Args:
        scores: (Q, N).
        docids: (Q, N), ascending among equal scores of a row.
        k: results wanted; fewer where there are not as many.

    Returns:
        Scores and docids, (Q, min(k, N)).
    """
    k = min(k, scores.shape[1])
    best = scores.topk(k, dim=1)
    if k and bool(((scores >= best.values[:, -1:]).sum(dim=1) > k).any()):
        # More documents have the last score than fit, and topk is free to take any of them: decide by sorting.
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    else:
        order = best.indices.sort(dim=1).values
        order = order.gather(1, scores.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    return scores.gather(1, order), docids.gather(1, order)
