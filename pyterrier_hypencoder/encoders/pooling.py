"""Pooling: how the token vectors of a text become one vector, and which pooling a dense model uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..options import check_choice
from .hub import find_local_directory, read_json

POOLINGS = ("cls", "mean", "max", "last")
_ST_POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}


def pool(hidden: Tensor, mask: Tensor, pooling: str, *, pool_padding: bool = False) -> Tensor:
    """Pool the token vectors of each text into one vector.

    Args:
        hidden: Last hidden state of the transformer, (B, T, D).
        mask: 1 for tokens and 0 for padding, (B, T).
        pooling: ``cls`` (first token), ``mean``, ``max`` or ``last`` (token before the padding).
        pool_padding: If True, the mean also sums over padding, as in the released code. A vector then depends on the
            padding of its batch.

    Returns:
        One vector per text, (B, D).

    Raises:
        ValueError: If the pooling is unknown.
    """
    check_choice("pooling", pooling, POOLINGS)
    if pooling == "cls":
        return hidden[:, 0]
    attended = mask.unsqueeze(-1).bool()
    if pooling == "mean":
        total = (hidden if pool_padding else hidden.masked_fill(~attended, 0)).sum(1)
        return total / mask.sum(1, keepdim=True).clamp(min=1)
    if pooling == "max":
        return hidden.masked_fill(~attended, -torch.inf).amax(1)
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)  # (B,)
    return hidden[torch.arange(len(hidden), device=mask.device), last]


@dataclass(frozen=True)
class PoolingSettings:
    """Pooling and normalisation of a dense model; the defaults are for models without sentence-transformers files."""

    pooling: str = "mean"
    normalize: bool = False


def read_pooling_settings(
    name_or_path: str, revision: str | None, pooling: str | None = None, normalize: bool | None = None
) -> PoolingSettings:
    """Return pooling and normalisation of a dense model; what is None is read from its sentence-transformers files.

    Args:
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.
        pooling: Pooling to use; None to read it.
        normalize: Normalisation to use; None to read it.

    Raises:
        ValueError: If the files ask for something unsupported, or if the machine is offline and the cache does not say
            whether the model has such files.
    """
    if pooling is not None and normalize is not None:
        return PoolingSettings(pooling, normalize)
    stated = _read_stated_pooling(name_or_path, revision)
    return PoolingSettings(pooling or stated.pooling, stated.normalize if normalize is None else normalize)


def _read_stated_pooling(name_or_path: str, revision: str | None) -> PoolingSettings:
    modules: Any = read_json(name_or_path, "modules.json", revision)
    if modules is None:
        if not _is_known_absent(name_or_path, "modules.json", revision):
            raise ValueError(
                f"The pooling of {name_or_path!r} is unknown. The machine is offline, and the local cache does not say if the "
                "model has a modules.json. Pass pooling=... and normalize=..., or go online once."
            )
        return PoolingSettings()
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise ValueError(
            f"{name_or_path!r} has unsupported modules: {', '.join(unknown)}. Supported are Transformer, Pooling and "
            "Normalize."
        )
    options = (read_json(name_or_path, f"{kinds['Pooling']}/config.json", revision) if "Pooling" in kinds else None) or {}
    modes = [options["pooling_mode"]] if isinstance(options.get("pooling_mode"), str) else []
    modes += [_ST_POOLINGS.get(key, key) for key in _list_enabled_poolings(options)]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(f"{name_or_path!r} has pooling {modes}, but exactly one of {POOLINGS} is supported. Pass pooling=...")
    return PoolingSettings(modes[0], "Normalize" in kinds)


def _is_known_absent(name_or_path: str, filename: str, revision: str | None) -> bool:
    """Return True if a model is known to lack a file that was not found, and the file is not just missing in the cache."""
    if find_local_directory(name_or_path, revision) is not None:
        return True
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(name_or_path, filename, revision=revision) is _CACHED_NO_EXIST


def _list_enabled_poolings(options: dict[str, Any]) -> list[str]:
    return [key.removeprefix("pooling_mode_") for key, on in options.items() if key.startswith("pooling_mode_") and on]
