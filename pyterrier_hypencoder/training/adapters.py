"""LoRA adapters: train small matrices beside the frozen weights of a backbone, and merge them for checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.networks import HypencoderDualEncoder
from .packages import require_package

_UNMERGEABLE = ("use_dora", "lora_bias", "modules_to_save")


def add_adapters(transformer: nn.Module, lora: Mapping[str, Any]) -> None:
    """Freeze a transformer and add trainable LoRA adapters to it, in place.

    Args:
        transformer: Backbone of an encoder.
        lora: Options of ``peft.LoraConfig``.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If an option makes adapters that cannot be merged into the weights.
    """
    if unmergeable := [option for option in sorted(_UNMERGEABLE) if lora.get(option)]:
        raise ValueError(f"lora must give adapters that can be merged into the weights, got {', '.join(unmergeable)}.")
    require_package("peft", "lora")
    import peft

    peft.inject_adapter_in_model(peft.LoraConfig(**lora), transformer)


def has_adapters(network: nn.Module) -> bool:
    """Return True if a network has LoRA adapters."""
    return next(_iter_adapted_layers(network), None) is not None


@torch.no_grad()
def merge_adapters(encoder: HypencoderDualEncoder) -> dict[str, Tensor]:
    """Return the weights of an encoder by name, with its adapters added to them.

    Names and shapes are those of an encoder without adapters. The encoder does not change.
    """
    weights = {name: value for name, value in encoder.state_dict().items() if ".lora_" not in name}
    for name, layer in _iter_adapted_layers(encoder):
        kernel = weights[f"{name}.base_layer.weight"]
        weights[f"{name}.base_layer.weight"] = kernel + layer.get_delta_weight(layer.active_adapters[0]).to(kernel.dtype)
    return {name.replace(".base_layer.", "."): value for name, value in weights.items()}


def digest_base_weights(encoder: nn.Module) -> str | None:
    """Return a digest of the frozen weights beside LoRA adapters, or None if there are no adapters.

    A run with adapters must resume over the same frozen weights, but its checkpoints only hold merged ones.
    """
    if not has_adapters(encoder):
        return None
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in sorted(encoder.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def _iter_adapted_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and module of each layer with adapters. Layers of a shared backbone come once per name."""
    for name, module in network.named_modules(remove_duplicate=False):
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            yield name, module
