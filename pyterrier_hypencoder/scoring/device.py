"""Torch devices by name."""

from __future__ import annotations

import torch


def choose_search_device(device: torch.device | None) -> torch.device:
    """Return the device on which a search keeps its candidates: the device of the scores, or the CPU for ``mps``.

    Apple's back-end lacks some operations that the searches need.

    Args:
        device: Device that computes the scores; None for the CPU.
    """
    return torch.device("cpu") if device is None or device.type == "mps" else device


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device for a name.

    Args:
        device: ``auto`` (a CUDA GPU if there is one, else the CPU), ``cpu``, ``cuda[:n]``, or ``mps`` on a Mac.

    Raises:
        ValueError: If the device is unknown, or if this machine does not have it.
    """
    found = parse_device(device)
    if found is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[found.type]
    if (found.index or 0) >= available:
        raise ValueError(
            f"device {str(device)!r} is not available: this machine has {available} {found.type.upper()} devices. "
            "Use device='auto' to take a GPU only if there is one."
        )
    return found


def parse_device(device: str | torch.device) -> torch.device | None:
    """Return the torch device for a name, which this machine need not have; None for ``auto``.

    Raises:
        ValueError: If the device is unknown.
    """
    if isinstance(device, str) and device == "auto":
        return None
    try:
        found = torch.device(device) if isinstance(device, str | torch.device) else None
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda[:n]' (on a Mac also 'mps'), got {device!r}.")
    return found
