"""How q-nets are evaluated: an ordered list of back-ends and the one place that chooses among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..qnet import QNets, QNetSpec
from .reference import Reference

__all__ = ["BACKENDS", "PRECISIONS", "Backend", "Score", "resolve", "resolve_device", "scorer"]

PRECISIONS = ("auto", "fp32", "bf16")
ENVIRONMENT = "HYPENCODER_BACKEND"


class Score(Protocol):
    """Evaluates the q-nets of Q queries; scores are float32 and on the back-end's device."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """Scores (Q, N) of documents (N, D) that the queries share."""
        ...

    def each(self, vectors: Tensor, counts: Sequence[int]) -> Tensor:
        """Scores (M,) of documents (M, D) of the queries' own: those of the first one come first, ``counts`` of each."""
        ...

    def select(self, queries: Sequence[int]) -> Score:
        """What evaluates the q-nets of some of the queries."""
        ...


class Backend(Protocol):
    """A way of evaluating q-nets."""

    name: str

    def is_available(self) -> bool:
        """Whether what it needs is installed."""
        ...

    def supports(self, spec: QNetSpec, device: torch.device, precision: str) -> bool:
        """Whether it can evaluate such q-nets on such a device in such a precision."""
        ...

    def scorer(self, qnets: QNets, device: torch.device, precision: str) -> Score:
        """Prepares q-nets once (moves, converts, packs them) and returns what scores documents with them."""
        ...


BACKENDS: list[Backend] = [Reference()]
"""In order of preference: the first one that can do what is asked for is taken."""


def resolve(spec: QNetSpec, device: torch.device, precision: str) -> Backend:
    """The back-end for q-nets of one architecture.

    The environment variable ``HYPENCODER_BACKEND`` forces one by name.

    Raises:
        ValueError: for an unknown back-end, or where none, or not the one asked for, can do it.
    """
    wanted = os.environ.get(ENVIRONMENT)
    names = [backend.name for backend in BACKENDS]
    if wanted and wanted not in names:
        raise ValueError(f"{ENVIRONMENT}: expected one of {names}, found {wanted!r}")
    for backend in BACKENDS:
        if wanted in (None, "", backend.name) and backend.is_available() and backend.supports(spec, device, precision):
            return backend
    raise ValueError(
        f"expected a back-end for precision {precision!r} on {device}, found that {wanted or 'none of ' + str(names)} cannot "
        f"do it; choose another precision or device{', or unset ' + ENVIRONMENT if wanted else ''}"
    )


def scorer(qnets: QNets, *, device: str = "auto", precision: str = "auto") -> Score:
    """Prepares q-nets for scoring.

    Args:
        qnets: the q-nets of Q queries.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda[:n]``.
        precision: ``fp32``, ``bf16``, or ``auto``, which is what keeps the ranking: fp32.

    Raises:
        ValueError: for an unknown device or precision, or one that cannot be had.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {list(PRECISIONS)}, found {precision!r}")
    precision = "fp32" if precision == "auto" else precision
    where = resolve_device(device)
    return resolve(qnets.spec, where, precision).scorer(qnets, where, precision)


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device for a name.

    Raises:
        ValueError: for an unknown device, or one that this machine lacks.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as err:
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda[:n]', found {device!r}") from err
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'auto', 'cpu' or 'cuda[:n]', found {device!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: expected one of this machine's {torch.cuda.device_count()} CUDA devices, found {device!r}; use "
            "device='auto' to take what there is"
        )
    return found
