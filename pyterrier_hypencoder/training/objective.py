"""Training objective: a dual encoder and its weighted losses as one module, which any launcher can wrap."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encoders.networks import HypencoderDualEncoder
from ..options import check_number, list_items
from ..qnet import QNets
from . import losses
from .parameters import is_trained

DISTILLATION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"margin_mse": losses.margin_mse, "kl": losses.kl}
"""Losses of the scores of each query's own items and of a teacher's scores, both (B, M)."""
LISTWISE: dict[str, Callable[[Tensor], Tensor]] = {"listwise_ce": losses.listwise_ce}
"""Losses of the scores of each query's own items (B, M)."""
IN_BATCH = ("in_batch_ce", "in_batch_ce_all")
"""Losses of each query's scores for items of the batch: ``in_batch_ce`` for the first item of each row (B, B), as in the
paper, and ``in_batch_ce_all`` for all items (B, B * M)."""
LOSSES = (*DISTILLATION, *LISTWISE, *IN_BATCH)


class TrainingObjective(nn.Module):
    """A dual encoder and the weighted sum of its losses.

    Args:
        encoder: Dual encoder.
        weights: Factor of each loss by name, or names of losses; see :data:`LOSSES`.
        widths: Widths of the q-nets' hidden layers over which the losses are averaged (Matryoshka). None uses the full width.
        scale: Factor of the scores in all losses.

    Raises:
        ValueError: If there are no losses, or unknown ones, or if a factor or a width does not fit.
    """

    def __init__(
        self,
        encoder: HypencoderDualEncoder,
        weights: Collection[str] | Mapping[str, float],
        widths: Sequence[int] | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_number("scale", scale)
        self.encoder = encoder
        self.weights = _read_losses(weights)
        self.widths = None if widths is None else _read_widths(widths, encoder)
        self.scale = scale

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute the backbones' activations in the backward pass, which saves memory and costs time."""
        for side in (self.encoder.query_encoder, self.encoder.passage_encoder):
            # The default before transformers 5 (reentrant) gives no gradients if the embeddings are frozen.
            side.transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs or {"use_reentrant": False})

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Do the same as :meth:`gradient_checkpointing_enable`, under the name that transformers 5 calls."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def forward(
        self,
        query_ids: Tensor,
        query_mask: Tensor,
        item_ids: Tensor | None = None,
        item_mask: Tensor | None = None,
        item_vectors: Tensor | None = None,
        teacher: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss of a batch of B rows with M items each, as the collator builds it.

        Args:
            query_ids: Token ids of the queries, shape (B, T).
            query_mask: Attention mask of the queries, shape (B, T).
            item_ids: Token ids of the items row by row, the positive first, shape (B * M, T).
            item_mask: Attention mask of the items, shape (B * M, T).
            item_vectors: Vectors of frozen documents, shape (B * M, D). They replace ``item_ids`` and ``item_mask``.
            teacher: Scores of the teacher, shape (B, M). Only distillation losses need them.

        Returns:
            ``loss``, a scalar.

        Raises:
            ValueError: If a distillation loss has no teacher scores.
        """
        items = self._encode_items(item_ids, item_mask) if item_vectors is None else item_vectors  # (B * M, D)
        queries = self.encoder.query_encoder(query_ids, query_mask)
        qnets = queries if isinstance(queries, QNets) else QNets.linear(queries)
        nets = [qnets] if self.widths is None else [qnets.narrow(width) for width in self.widths]
        return {"loss": torch.stack([self._compute_loss(net, items, teacher) for net in nets]).mean()}

    def _encode_items(self, ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return document vectors. A frozen encoder works without dropout, so its vectors equal those of an index."""
        encoder = self.encoder.passage_encoder
        if is_trained(encoder):
            return encoder(ids, mask)
        was_training = encoder.training
        encoder.eval()
        with torch.no_grad():
            vectors = encoder(ids, mask)
        encoder.train(was_training)  # a query encoder may share the transformer and keeps its dropout
        return vectors

    def _compute_loss(self, qnets: QNets, items: Tensor, teacher: Tensor | None) -> Tensor:
        """Return the weighted sum of all losses for q-nets of one width."""
        n_items = len(items) // len(qnets)
        total = items.new_zeros(())
        own_scores: Tensor | None = None
        for name, weight in self.weights.items():
            if name in IN_BATCH:
                candidates = items[::n_items] if name == "in_batch_ce" else items
                loss = losses.in_batch_ce(self._score(qnets, candidates))  # (B, B) or (B, B * M)
            else:
                if own_scores is None:
                    own_scores = self._score(qnets, items.view(len(qnets), n_items, -1))  # (B, M)
                loss = _compute_row_loss(name, own_scores, teacher)
            total = total + weight * loss
        return total

    def _score(self, qnets: QNets, vectors: Tensor) -> Tensor:
        return self.scale * qnets.score(vectors, training=self.training)


def _read_losses(losses: Collection[str] | Mapping[str, float]) -> dict[str, float]:
    """Return the factor of each loss by name."""
    if isinstance(losses, Mapping):
        factors = dict(losses)
    else:
        if isinstance(losses, str):
            raise ValueError(f"losses must be a list of names or a mapping from names to factors, got {losses!r}. Use a list.")
        names = list_items("losses", losses, str, "names")
        factors = dict.fromkeys(sorted(names) if isinstance(losses, Set) else names, 1.0)
    unknown = [str(name) for name in factors if name not in LOSSES]
    if unknown or not factors:
        raise ValueError(f"losses must be among {', '.join(LOSSES)}, got {', '.join(unknown) or 'none'}.")
    for name, factor in factors.items():
        check_number(f"The factor of {name}", factor)
    return factors


def _read_widths(widths: Any, encoder: HypencoderDualEncoder) -> list[int]:
    """Return the widths as a list, after checking that the q-nets are as wide."""
    found = [int(width) for width in list_items("widths", widths, int | np.integer, "integers")]
    has_qnets = "converter_kwargs" in encoder.config.query_encoder_kwargs
    widest = max(encoder.config.qnet_spec.bias_sizes, default=0) if has_qnets else 0
    if not widest:
        raise ValueError(f"widths need q-nets with hidden layers, got {found} for a model without. Remove widths.")
    if not found or not all(1 <= width <= widest for width in found):
        raise ValueError(f"widths must be between 1 and {widest}, the widest hidden layer, got {found}.")
    return found


def _compute_row_loss(name: str, scores: Tensor, teacher: Tensor | None) -> Tensor:
    """Return a loss of the scores of each query's own items (B, M)."""
    if name in LISTWISE:
        return LISTWISE[name](scores)
    if teacher is None:
        raise ValueError(f"{name} needs teacher scores, but the data has none. Add scores to all items, or drop the loss.")
    return DISTILLATION[name](scores, teacher)
