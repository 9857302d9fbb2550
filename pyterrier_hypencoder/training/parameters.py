"""Parameters of a dual encoder: which are trained, and at which learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.networks import HypencoderDualEncoder
from ..options import check_choice, check_positive
from .adapters import add_adapters, has_adapters

TRAIN_CHOICES = ("all", "queries", "head")
_ENCODER_PARTS = (".transformer.", "_encoder.projection.")


def select_parameters(
    encoder: HypencoderDualEncoder, train: str, *, backbone_layers: int | None = None, lora: Mapping[str, Any] | None = None
) -> None:
    """Set which parameters of an encoder are trained, in place, and freeze all others.

    Poolers of backbones are always frozen, because no score depends on them.

    Args:
        encoder: Dual encoder.
        train: ``all``, ``queries`` (documents are frozen) or ``head`` (only the hyper-head, and the projection of query
            vectors if there is one).
        backbone_layers: Number of last layers of a trained backbone to train. None trains all layers and the embeddings.
        lora: Options of ``peft.LoraConfig``. The adapters of a trained backbone are then trained in place of its weights.

    Raises:
        ImportError: If ``lora`` is given and peft is not installed.
        ValueError: If options contradict each other or do not fit the encoder.
    """
    _check_options(encoder, train, backbone_layers, lora)
    encoder.requires_grad_(True)  # an earlier training stage may have frozen parameters
    query, passage = encoder.query_encoder, encoder.passage_encoder
    if train != "all":
        passage.requires_grad_(False)
    if train == "head":
        query.transformer.requires_grad_(False)
    trained = {"all": [query.transformer, passage.transformer], "queries": [query.transformer], "head": []}[train]
    for transformer in {id(transformer): transformer for transformer in trained}.values():  # once if it is shared
        if lora is not None:
            add_adapters(transformer, lora)
        elif backbone_layers is not None:
            _freeze_all_but_last(transformer, backbone_layers)
    for side in (query, passage):
        pooler = getattr(side.transformer, "pooler", None)
        if isinstance(pooler, nn.Module):
            pooler.requires_grad_(False)
    if not is_trained(encoder):
        raise ValueError(
            f"train={train!r} leaves nothing to train, because a bi-encoder has no head unless it was built with "
            "query_projection=True. Use train='queries' or 'all'."
        )


def _check_options(
    encoder: HypencoderDualEncoder, train: str, backbone_layers: int | None, lora: Mapping[str, Any] | None
) -> None:
    check_choice("train", train, TRAIN_CHOICES)
    if has_adapters(encoder):
        raise ValueError(
            "model already has LoRA adapters from an earlier training. Load its checkpoint instead, because adapters are "
            "merged there."
        )
    for name, value in {"backbone_layers": backbone_layers, "lora": lora}.items():
        if value is not None and train == "head":
            raise ValueError(f"{name} has no effect with train='head', which freezes the backbones, got {value!r}.")
    if backbone_layers is not None and lora is not None:
        raise ValueError("Give backbone_layers or lora, not both. The peft option layers_to_transform selects layers.")
    if train == "queries" and encoder.query_encoder.transformer is encoder.passage_encoder.transformer:
        raise ValueError(
            "train='queries' needs separate encoders for queries and documents, got a shared one (shared_encoder). Use "
            "train='head', or a checkpoint with two encoders."
        )


def _freeze_all_but_last(transformer: Any, number: int) -> None:
    """Freeze all but the last layers of a transformer."""
    check_positive("backbone_layers", number)
    depth = transformer.config.num_hidden_layers
    stacks = [module for module in transformer.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if number > depth or not stacks:
        raise ValueError(f"backbone_layers must be at most {depth}, the depth of the backbone, got {number}.")
    transformer.requires_grad_(False)
    stacks[0][-number:].requires_grad_(True)


def is_trained(module: nn.Module) -> bool:
    """Return True if a module has at least one trained parameter."""
    return any(parameter.requires_grad for parameter in module.parameters())


def has_trained_head(network: nn.Module) -> bool:
    """Return True if a network has trained parameters outside its backbones: a hyper-head or a projection."""
    return any(p.requires_grad and ".transformer." not in name for name, p in network.named_parameters())


def get_trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters of a network by name, detached."""
    return {name: parameter.detach() for name, parameter in network.named_parameters() if parameter.requires_grad}


def set_trained_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights from :func:`get_trained_weights` into the trained parameters of a network."""
    with torch.no_grad():
        for name, value in get_trained_weights(network).items():
            value.copy_(weights[name])


def group_parameters(
    network: nn.Module, learning_rate: float, head_learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser, with learning rates of the head divided by fan-in.

    A step of Adam changes each weight by about the learning rate. An output that sums F inputs of size 1 then changes by F
    times as much. With a rate of ``head_learning_rate / F`` it changes by about ``head_learning_rate``, whatever the width.
    F is the last dimension of each parameter with at least two dimensions. This includes the base vectors (1, F) of the
    q-nets, so they learn as slowly as the base matrices.

    Args:
        network: Network to train.
        learning_rate: Rate of the backbones and of the projection of query vectors.
        head_learning_rate: Rate of the hyper-head before the division.
        weight_decay: Weight decay of parameters with at least two dimensions. Others have none.

    Returns:
        One group per pair of rate and decay.
    """
    grouped: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            rate = learning_rate if any(part in name for part in _ENCODER_PARTS) else head_learning_rate / fan_in
            grouped.setdefault((rate, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in grouped.items()]
