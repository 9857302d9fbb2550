"""Layers between the pooling and the vector of a dense model, as in sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..index.reading import make_error
from .building import build_and_compare, find_mismatches, own_defaults
from .dense_settings import LayerSettings
from .model_files import CONFIG_FILE
from .weights import find_weight_files, read_shapes, read_tensors

_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "ELU", "LeakyReLU", "Softplus", "Mish", "Hardswish")


class Dense(nn.Module):
    """A linear layer with an activation, and optionally a residual connection.

    Args:
        in_features: Number of dimensions before the layer.
        out_features: Number of dimensions after it.
        bias: If True, the linear layer has a bias.
        activation: Name of a class of ``torch.nn``.
        use_residual: If True, the input is added to the output, through a second linear layer if the sizes differ.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, activation: str, use_residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = getattr(nn, activation)()
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors (B, in_features) to (B, out_features)."""
        out = self.activation(self.linear(vectors))
        if not self.use_residual:
            return out
        return out + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class LayerNorm(nn.Module):
    """A layer normalisation, with the parameter names of sentence-transformers."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        """Normalise vectors (B, D)."""
        return self.norm(vectors)


class Normalize(nn.Module):
    """Scale vectors to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Scale vectors (B, D)."""
        return F.normalize(vectors, dim=-1)


def load_layers(
    layers: Sequence[LayerSettings], size: int, name_or_path: str, revision: str | None = None
) -> tuple[list[nn.Module], int]:
    """Load the layers of a dense model with their weights.

    Args:
        layers: The layers, in order.
        size: Number of dimensions of the pooled vectors.
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.

    Returns:
        The layers, and the number of dimensions after the last one.

    Raises:
        ValueError: If a configuration or weights are damaged or do not fit.
    """
    modules: list[nn.Module] = []
    for layer in layers:
        source = f"{layer.folder}/{CONFIG_FILE} of {name_or_path!r}"
        if layer.kind == "Normalize":
            modules.append(Normalize())
            continue
        module, expected, size_after = _load_layer(layer, source, name_or_path, revision)
        if expected != size:
            raise make_error(f"{source} expects vectors of {expected} dimensions, got {size}. Download the model again.")
        modules.append(module)
        size = size_after
    return modules, size


def _load_layer(layer: LayerSettings, source: str, name_or_path: str, revision: str | None) -> tuple[nn.Module, int, int]:
    """Return a layer with weights, and the number of dimensions before and after it."""
    keys = ("in_features", "out_features") if layer.kind == "Dense" else ("dimension", "dimension")
    sizes: list[Any] = [layer.options.get(key) for key in keys]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise make_error(f"{source} must have positive numbers for {' and '.join(keys)}, got {sizes}. Correct it.")
    activation = layer.options.get("activation_function", "torch.nn.modules.activation.Tanh")
    module_name, _, class_name = str(activation).rpartition(".")
    if class_name not in _ACTIVATIONS or not module_name.startswith("torch.nn"):
        raise make_error(f"{source} has activation_function = {activation!r}. Supported are {', '.join(_ACTIVATIONS)}.")
    bias, residual = bool(layer.options.get("bias", True)), bool(layer.options.get("use_residual", False))

    def make() -> nn.Module:
        return Dense(sizes[0], sizes[1], bias, class_name, residual) if layer.kind == "Dense" else LayerNorm(sizes[0])

    files = find_weight_files(name_or_path, revision, layer.folder)
    shapes = read_shapes(files)
    expected = build_and_compare(make, shapes, source).state_dict()
    problems = [f"{key} is missing or unknown" for key in sorted(set(expected) ^ set(shapes))]
    problems += find_mismatches(expected, shapes)
    if problems:
        raise make_error(f"{files[0]} does not fit {source}: {'; '.join(problems)}. Download the model again.")
    with own_defaults():
        module = make()
    module.load_state_dict(read_tensors(files))
    return module, sizes[0], sizes[1]
