"""Torch devices by name."""

from __future__ import annotations

import torch


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device for a name.

    Args:
        device: ``auto`` (a GPU if there is one, else the CPU), ``cpu`` or ``cuda[:n]``.

    Raises:
        ValueError: If the device is unknown, or if this machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as err:
        raise _unknown_device(device) from err
    if found.type not in ("cpu", "cuda"):
        raise _unknown_device(device)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r} is not available: this machine has {torch.cuda.device_count()} CUDA devices. "
            "Use device='auto' to take a GPU only if there is one."
        )
    return found


def _unknown_device(device: object) -> ValueError:
    return ValueError(f"device must be 'auto', 'cpu' or 'cuda[:n]', got {device!r}.")
