"""The available back-ends and the choice between them."""

from __future__ import annotations

import os

import torch

from ..qnet import QNets, QNetSpec
from .cpu import Cpu
from .cuda import Cuda
from .device import has_native_bf16, resolve_device
from .protocol import Backend, Scorer
from .reference import Reference

PRECISIONS = ("auto", "fp32", "bf16")
BACKEND_VARIABLE = "HYPENCODER_BACKEND"
"""Environment variable that forces a back-end by name."""

BACKENDS: tuple[Backend, ...] = (Cuda(), Cpu(), Reference())
"""All back-ends, the preferred one first."""


def select_backend(spec: QNetSpec, device: torch.device, precision: str) -> Backend:
    """Return the first back-end that can evaluate these q-nets.

    The environment variable ``HYPENCODER_BACKEND`` forces a back-end by name.

    Args:
        spec: Architecture of the q-nets.
        device: Device on which to compute.
        precision: ``fp32`` or ``bf16``.

    Raises:
        ValueError: If the forced back-end does not exist, or if no (or not the forced) back-end can do it.
    """
    forced = os.environ.get(BACKEND_VARIABLE)
    names = [backend.name for backend in BACKENDS]
    if forced and forced not in names:
        raise ValueError(f"{BACKEND_VARIABLE} must be one of {names}, got {forced!r}. Correct or unset it.")
    for backend in BACKENDS:
        if forced in (None, "", backend.name) and backend.is_available() and backend.supports(spec, device, precision):
            return backend
    if forced:
        raise ValueError(
            f"Back-end {forced!r} cannot evaluate these q-nets in precision {precision!r} on {device}. "
            f"Choose another precision or device, or unset {BACKEND_VARIABLE}."
        )
    raise ValueError(
        f"No back-end can evaluate these q-nets in precision {precision!r} on {device}, tried {names}. "
        "Choose another precision or device."
    )


def make_scorer(qnets: QNets, *, device: str = "auto", precision: str = "auto") -> Scorer:
    """Prepare q-nets for scoring.

    Args:
        qnets: The q-nets of Q queries.
        device: ``auto`` (a CUDA GPU if there is one, else the CPU), ``cpu``, ``cuda[:n]``, or ``mps`` on a Mac.
        precision: ``fp32``, ``bf16`` or ``auto``. ``auto`` is fp32, because these scores are final; see
            :func:`make_first_pass`. ``bf16`` concerns the hidden layers; the output layer and the inner-product skip are
            always computed in fp32.

    Returns:
        A scorer of the first back-end that supports the architecture, the device and the precision.

    Raises:
        ValueError: If the device or the precision is unknown or not available.

    Example:
        >>> import torch
        >>> from pyterrier_hypencoder import QNets
        >>> from pyterrier_hypencoder.scoring import make_scorer
        >>> score = make_scorer(QNets.linear(torch.tensor([[1.0, 2.0]])), device="cpu")
        >>> score(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        tensor([[1., 2., 3.]])
    """
    _check_precision(precision)
    precision = "fp32" if precision == "auto" else precision
    resolved = resolve_device(device)
    return select_backend(qnets.spec, resolved, precision).prepare(qnets, resolved, precision)


def make_first_pass(qnets: QNets, *, device: str = "auto", precision: str = "auto") -> Scorer | None:
    """Prepare q-nets for a fast first pass over many documents, whose best are scored again by :func:`make_scorer`.

    Args:
        qnets: The q-nets of Q queries.
        device: As for :func:`make_scorer`.
        precision: The precision of the search. A first pass only helps ``auto``.

    Returns:
        A scorer in bf16 if the precision is ``auto``, the device has native bf16 and the q-nets have hidden layers. Otherwise
        None: then nothing is faster than :func:`make_scorer`.

    Raises:
        ValueError: If the device or the precision is unknown or not available.
    """
    _check_precision(precision)
    resolved = resolve_device(device)
    if precision != "auto" or not qnets.spec.hidden_layers or not has_native_bf16(resolved):
        return None
    return select_backend(qnets.spec, resolved, "bf16").prepare(qnets, resolved, "bf16")


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}.")
