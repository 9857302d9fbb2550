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


def has_native_bf16(device: torch.device) -> bool:
    """Return True if a device multiplies bf16 matrices in hardware. Emulated bf16 is slower than fp32.

    These are CUDA GPUs of compute capability 8.0 or more, and x86 CPUs with AVX512-BF16 or AMX. For other devices, the answer
    is False.

    Args:
        device: The device.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(probe() for probe in probes if probe is not None)


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
