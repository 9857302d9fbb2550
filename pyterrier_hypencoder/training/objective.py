"""The training step: a dual encoder with its losses as one module, so that it runs under any launcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.networks import HypencoderDualEncoder
from ..qnet import QNets
from . import losses
from .parameters import is_trained

LISTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin_mse": losses.margin_mse,
    "kl": losses.kl,
    "listwise_ce": lambda scores, teacher: losses.listwise_ce(scores),
}
"""Losses of each query's scores of its own items, (B, M)."""
IN_BATCH = ("in_batch_ce", "in_batch_ce_all")
"""Losses of each query's scores of the batch's items; the paper's takes the first item of every row."""
LOSSES = (*LISTWISE, *IN_BATCH)
DISTILLATION = ("margin_mse", "kl")


class TrainingNetwork(nn.Module):
    """A dual encoder and the weighted sum of its losses.

    Args:
        encoder: the dual encoder.
        weights: the factor of each loss by name; see :data:`LOSSES`.
        widths: widths of the q-nets' hidden layers over which losses are averaged (Matryoshka); None for the full one.
        scale: factor of the scores in all losses.

    Raises:
        ValueError: for unknown losses, or none.
    """

    def __init__(
        self,
        encoder: HypencoderDualEncoder,
        weights: Mapping[str, float],
        widths: Sequence[int] | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        unknown = sorted(set(weights) - set(LOSSES))
        if unknown or not weights:
            raise ValueError(f"losses: expected some of {list(LOSSES)}, found {unknown or 'none'}")
        self.encoder = encoder
        self.weights = dict(weights)
        self.widths = None if widths is None else list(widths)
        self.scale = scale

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Trades time for memory: the backbones' activations are computed again for the gradients."""
        for side in (self.encoder.query_encoder, self.encoder.passage_encoder):
            # What transformers did by default before version 5 gives no gradients where embeddings are frozen.
            side.transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs or {"use_reentrant": False})

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The same by the name that transformers 5 uses."""
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
        """One step on a batch of B rows with M items each, as the collator makes it.

        Args:
            query_ids: (B, T).
            query_mask: (B, T).
            item_ids: (B * M, T), row by row, the positive first.
            item_mask: (B * M, T).
            item_vectors: (B * M, D), instead of tokens, where documents are frozen.
            teacher: (B, M), for distillation.

        Returns:
            ``loss``, a scalar.
        """
        items = self._encoded(item_ids, item_mask) if item_vectors is None else item_vectors
        queries = self.encoder.query_encoder(query_ids, query_mask)
        qnets = queries if isinstance(queries, QNets) else QNets.linear(queries)
        nets = [qnets] if self.widths is None else [qnets.narrow(width) for width in self.widths]
        return {"loss": torch.stack([self._loss(net, items, teacher) for net in nets]).mean()}

    def _encoded(self, ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """Document vectors; frozen encoders give those that they give an index, without dropout."""
        encoder = self.encoder.passage_encoder
        if is_trained(encoder):
            return encoder(ids, mask)
        training = encoder.training
        encoder.eval()
        with torch.no_grad():
            vectors = encoder(ids, mask)
        encoder.train(training)  # a query encoder that shares the transformer keeps its dropout
        return vectors

    def _loss(self, qnets: QNets, items: Tensor, teacher: Tensor | None) -> Tensor:
        per_row = len(items) // len(qnets)
        total = items.new_zeros(())
        own = None
        for name, weight in self.weights.items():
            if name in LISTWISE:
                if own is None:
                    own = self.scale * qnets.score(items.view(len(qnets), per_row, -1), training=self.training)
                if name in DISTILLATION and teacher is None:
                    raise ValueError(f"{name}: expected teacher scores in the data, found none; add them, or drop the loss")
                total = total + weight * LISTWISE[name](own, teacher if teacher is not None else own)
            else:
                chosen = items[::per_row] if name == "in_batch_ce" else items
                scores = self.scale * qnets.score(chosen, training=self.training)
                total = total + weight * losses.in_batch_cross_entropy(scores)
        return total
