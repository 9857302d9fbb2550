"""Parameters: which of a dual encoder's are trained, at what rate, and LoRA's in place of the backbones' own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.networks import HypencoderDualEncoder
from ..options import check_choice, check_positive

TRAINED = ("all", "queries", "head")
_ENCODERS = (".transformer.", "_encoder.projection.")  # what makes vectors


def choose(
    encoder: HypencoderDualEncoder, train: str, *, backbone_layers: int | None = None, lora: Mapping[str, Any] | None = None
) -> None:
    """Freezes what is not trained, and poolers, which no score depends on.

    Args:
        encoder: the dual encoder, changed in place.
        train: ``all``; ``queries`` (documents frozen); ``head`` (only the hyper-head, and the linear map of
            query vectors where there is one; see :func:`pyterrier_hypencoder.model.linear_map`).
        backbone_layers: how many of the last layers of a trained backbone are trained; None for all, and the embeddings.
        lora: options of ``peft.LoraConfig``: a trained backbone then learns through adapters alone.

    Raises:
        ImportError: where LoRA is asked for and peft is not installed.
        ValueError: where options contradict each other or do not fit the encoder.
    """
    check_choice("train", train, TRAINED)
    if has_adapters(encoder):
        raise ValueError(
            "model: expected a dual encoder without adapters, found one that was trained with LoRA; load its checkpoint, in "
            "which they are merged"
        )
    for name, value in {"backbone_layers": backbone_layers, "lora": lora}.items():
        if value is not None and train == "head":
            raise ValueError(f"{name}: expected none with train='head', which leaves backbones as they are, found {value!r}")
    if backbone_layers is not None and lora is not None:
        raise ValueError("expected backbone_layers or lora, found both; peft's layers_to_transform chooses layers")
    encoder.requires_grad_(True)  # whatever an earlier stage of training has frozen
    query, passage = encoder.query_encoder, encoder.passage_encoder
    if train == "queries" and query.transformer is passage.transformer:
        raise ValueError(
            "train='queries': expected encoders of their own for queries and documents, found a shared one (shared_encoder), "
            "which cannot be trained and frozen at once; use train='head', or a checkpoint with two"
        )
    if train != "all":
        passage.requires_grad_(False)
    if train == "head":
        query.transformer.requires_grad_(False)
    trained = {"all": [query.transformer, passage.transformer], "queries": [query.transformer], "head": []}[train]
    for transformer in {id(transformer): transformer for transformer in trained}.values():
        if lora is not None:
            _add_lora(transformer, lora)
        elif backbone_layers is not None:
            _keep_last(transformer, backbone_layers)
    for side in (query, passage):
        pooler = getattr(side.transformer, "pooler", None)
        if isinstance(pooler, nn.Module):
            pooler.requires_grad_(False)
    if not is_trained(encoder):
        raise ValueError(
            f"train={train!r}: expected something to train, found nothing; a bi-encoder has no head, "
            "unless it was made with query_projection=True"
        )


def _keep_last(transformer: Any, number: int) -> None:
    """Freezes all but the last layers."""
    check_positive("backbone_layers", number)
    depth = transformer.config.num_hidden_layers
    stacks = [module for module in transformer.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if number > depth or not stacks:
        raise ValueError(f"backbone_layers: expected at most the backbone's {depth} layers, found {number}")
    transformer.requires_grad_(False)
    stacks[0][-number:].requires_grad_(True)


def _add_lora(transformer: nn.Module, lora: Mapping[str, Any]) -> None:
    if refused := sorted(option for option in ("use_dora", "lora_bias", "modules_to_save") if lora.get(option)):
        raise ValueError(f"lora: expected options whose adapters can be merged into the weights, found {', '.join(refused)}")
    try:
        import peft
    except ImportError as err:
        raise ImportError("LoRA needs peft: pip install peft") from err
    peft.inject_adapter_in_model(peft.LoraConfig(**lora), transformer)


def _lora_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with adapters by name, those of a shared backbone under all names."""
    for name, module in network.named_modules(remove_duplicate=False):
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            yield name, module


def has_adapters(network: nn.Module) -> bool:
    """Whether LoRA is in use."""
    return next(_lora_layers(network), None) is not None


def is_trained(module: nn.Module) -> bool:
    """Whether any of a module's parameters is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


def trained(network: nn.Module) -> dict[str, Tensor]:
    """What is trained, by name."""
    return {name: parameter.detach() for name, parameter in network.named_parameters() if parameter.requires_grad}


def frozen_digest(encoder: nn.Module) -> str | None:
    """A digest of the weights beside LoRA's adapters, which their checkpoints do not hold; None without adapters."""
    if not has_adapters(encoder):
        return None
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in sorted(encoder.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def load_trained(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts back what :func:`trained` gave."""
    with torch.no_grad():
        for name, value in trained(network).items():
            value.copy_(weights[name])


@torch.no_grad()
def merged(encoder: HypencoderDualEncoder) -> dict[str, Tensor]:
    """The encoder's weights under the names of its checkpoints, what LoRA learnt added to them."""
    weights = {name: value for name, value in encoder.state_dict().items() if ".lora_" not in name}
    for name, layer in _lora_layers(encoder):
        kernel = weights[f"{name}.base_layer.weight"]
        weights[f"{name}.base_layer.weight"] = kernel + layer.get_delta_weight(layer.active_adapters[0]).to(kernel.dtype)
    return {name.replace(".base_layer.", "."): value for name, value in weights.items()}


def groups(network: nn.Module, learning_rate: float, head_learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser, in which the head's rates fall with fan-in.

    A step of Adam changes every number by about its rate, so an output that sums F inputs of size 1 by F times as much. A
    rate of ``head_learning_rate / F`` changes outputs by about ``head_learning_rate``, however wide the layer. F is the last
    dimension of all that has two or more, the q-nets' base vectors (1, F) too, which so learn as slowly as their matrices.

    Args:
        network: what is trained.
        learning_rate: of backbones, and of the linear map of their query vectors.
        head_learning_rate: of the hyper-head, by which a step changes what its layers give.
        weight_decay: of matrices.
    """
    alike: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            rate = learning_rate if any(part in name for part in _ENCODERS) else head_learning_rate / fan_in
            alike.setdefault((rate, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in alike.items()]
