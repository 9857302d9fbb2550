"""Build networks without side effects: own random numbers, dtype and device, and a limit on their size.

PyTorch's defaults belong to the whole process. A ``TorchFunctionMode`` belongs to the thread, so other threads and the
user's own settings are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..index.reading import guard_reading, make_error

_FLOAT_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}
_RANDOM = {
    *("normal_", "uniform_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_"),
    *("orthogonal_", "sparse_", "bernoulli_", "exponential_", "random_"),
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"),
}


class _TooManyTensorsError(Exception):
    """A network has more tensors than the file that it is built for."""


class _OwnDefaults(TorchFunctionMode):
    """Make new tensors float32, take random numbers from a generator, and count new tensors up to a limit."""

    def __init__(self, generator: torch.Generator | None, max_tensors: int | None) -> None:
        super().__init__()
        self.generator = generator
        self.max_tensors = max_tensors
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FLOAT_FACTORIES:
            self.count += 1
            if self.max_tensors is not None and self.count > self.max_tensors:
                raise _TooManyTensorsError
            if kwargs.get("dtype") is None:
                kwargs = {**kwargs, "dtype": torch.float32}
        if self.generator is not None and getattr(func, "__name__", "") in _RANDOM and kwargs.get("generator") is None:
            kwargs = {**kwargs, "generator": self.generator}
        return func(*args, **kwargs)


@contextmanager
def own_defaults(seed: int = 0) -> Iterator[None]:
    """Build networks on the CPU in float32, with random numbers of their own.

    Args:
        seed: Seed of the random numbers. The global random state does not change.
    """
    with torch.device("cpu"), _OwnDefaults(torch.Generator().manual_seed(seed), None):
        yield


@contextmanager
def build_shapes_only(max_tensors: int) -> Iterator[None]:
    """Build networks without values, on the device ``meta``.

    Args:
        max_tensors: Building stops after this number of tensors.

    Raises:
        _TooManyTensorsError: If a network has more tensors.
    """
    with torch.device("meta"), _OwnDefaults(None, max_tensors):
        yield


@contextmanager
def run_on(device: torch.device) -> Iterator[None]:
    """Run networks as usual, also if the user has changed PyTorch's default dtype or device."""
    if torch.get_default_dtype() == torch.float32 and torch.get_default_device().type == "cpu":
        yield  # a mode costs time in every operation
    else:
        with torch.device(device), _OwnDefaults(None, None):
            yield


def build_and_compare(make: Callable[[], nn.Module], shapes: Mapping[str, Tensor], source: str | Path) -> nn.Module:
    """Build a network without values, and stop if its configuration asks for more than the weights have.

    Args:
        make: Function that builds the network.
        shapes: Weights on the device ``meta``, by name.
        source: File or model with the configuration, for error messages.

    Returns:
        The network on the device ``meta``.

    Raises:
        ValueError: If the network cannot be built, or is much larger than the weights.
    """
    with guard_reading(source, "does not describe a network"):
        network = _build_small(make, 4 * len(shapes) + 2000)
    if network is None:
        raise make_error(
            f"{source} describes a network with more layers than there are weights ({len(shapes)} tensors). Check that "
            "configuration and weights belong together."
        )
    size, stored = (sum(tensor.numel() for tensor in tensors.values()) for tensors in (network.state_dict(), shapes))
    if size > 2 * stored + 2**26:
        raise make_error(
            f"{source} describes a network with {size:,} parameters, but the weights have {stored:,}. Check that "
            "configuration and weights belong together."
        )
    return network


def _build_small(make: Callable[[], nn.Module], max_tensors: int) -> nn.Module | None:
    """Build a network without values; return None if it has too many tensors."""
    try:
        with build_shapes_only(max_tensors):
            return make()
    except _TooManyTensorsError:
        return None


def find_mismatches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return what is wrong with the shapes and types of weights that both sides have."""
    problems = []
    for key, tensor in expected.items():
        if key in found and found[key].shape != tensor.shape:
            problems.append(f"{key} has shape {list(found[key].shape)} instead of {list(tensor.shape)}")
        elif key in found and tensor.is_floating_point() and not found[key].is_floating_point():
            problems.append(f"{key} has a type that is no float of 16 to 64 bits")
    return problems
