"""How q-nets are evaluated: an ordered list of back-ends and the one place that chooses among them."""

from __future__ import annotations

import os

import torch

from ..qnet import QNets, QNetSpec
from .device import resolve_device
from .protocol import Backend, Scorer
from .reference import Reference

PRECISIONS = ("auto", "fp32", "bf16")
ENVIRONMENT = "HYPENCODER_BACKEND"


BACKENDS: list[Backend] = [Reference()]
"""In order of preference: the first one that can do what is asked for is taken."""


def select_backend(spec: QNetSpec, device: torch.device, precision: str) -> Backend:
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


def make_scorer(qnets: QNets, *, device: str = "auto", precision: str = "auto") -> Scorer:
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
    return select_backend(qnets.spec, where, precision).prepare(qnets, where, precision)
