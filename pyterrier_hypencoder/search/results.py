"""What a search gives, and the top-k that all of them use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Results:
    """The best documents of Q queries, best first; equal scores by docid.

    Args:
        docids: for every query its docids, int64.
        scores: for every query the scores, float32.
        stats: what the search cost, by name, a value a query: ``n_scored`` (documents evaluated), ``n_rounds``, and what
            else a search has to say.
    """

    docids: list[np.ndarray]
    scores: list[np.ndarray]
    stats: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Tensor, docids: Tensor, **stats: Tensor) -> Results:
        """Results from rows (Q, K), best first, in which a score of -inf stands for no document."""
        values, ids = scores.float().cpu().numpy(), docids.cpu().numpy()
        kept = values > -np.inf
        return cls(
            [row[keep] for row, keep in zip(ids, kept, strict=True)],
            [row[keep] for row, keep in zip(values, kept, strict=True)],
            {name: values.cpu().numpy().copy() for name, values in stats.items()},
        )

    def then(self, others: Results) -> Results:
        """These and the results of further queries; a statistic that only some have is NaN for the others."""
        stats = {}
        for name in [*self.stats, *(name for name in others.stats if name not in self.stats)]:
            parts = [part.stats.get(name, np.full(len(part.docids), np.nan)) for part in (self, others) if part.docids]
            stats[name] = np.concatenate(parts) if parts else np.empty(0)
        return Results(self.docids + others.docids, self.scores + others.scores, stats)

    def select(self, queries: Sequence[int]) -> Results:
        """The results of some queries."""
        stats = {name: values[queries] for name, values in self.stats.items()}
        return Results([self.docids[q] for q in queries], [self.scores[q] for q in queries], stats)

    def extended(self, queries: Sequence[int], others: Results) -> Results:
        """The same with the results of some queries taken from a search that went on; what that cost is added."""
        docids, scores = list(self.docids), list(self.scores)
        stats = {name: values.copy() for name, values in self.stats.items()}
        for place, q in enumerate(queries):
            docids[q], scores[q] = others.docids[place], others.scores[place]
            for name, values in others.stats.items():
                stats[name][q] += values[place]
        return Results(docids, scores, stats)


def by_docid(scores: Tensor, docids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (Q, N) best first, equal scores by docid."""
    order = docids.sort(dim=1, stable=True).indices
    order = order.gather(1, scores.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    return scores.gather(1, order), docids.gather(1, order)


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
    last = best.values[:, -1:]
    if k and bool((((scores >= last).sum(dim=1, keepdim=True) > k) & (last > -torch.inf)).any()):
        # More documents have the last score than fit, and topk is free to take any of them: decide by sorting.
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    else:
        order = best.indices.sort(dim=1).values
        order = order.gather(1, scores.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    return scores.gather(1, order), docids.gather(1, order)
