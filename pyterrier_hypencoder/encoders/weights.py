"""Weights: read the tensors of a model, in one file or several, after their names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..index.reading import check_regular_file, guard_reading, make_error, parse_json
from .model_files import find_file

WEIGHT_FILES = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
_CANDIDATES = tuple(name for file in WEIGHT_FILES.values() for name in (file, f"{file}.index.json"))
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_SHOWN = 5


def find_weight_files(name_or_path: str, revision: str | None = None, subfolder: str = "") -> list[Path]:
    """Return the files with the weights of a model: one file, or the parts that an index file lists.

    Args:
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.
        subfolder: Folder inside the model.

    Raises:
        FileNotFoundError: If there are no weights, or a part is missing.
        ValueError: If the index file is damaged.
    """
    prefix = f"{subfolder}/" if subfolder else ""
    for filename in _CANDIDATES:
        path = find_file(name_or_path, prefix + filename, revision)
        if path is not None:
            return _list_parts(path, name_or_path, revision, prefix) if path.suffix == ".json" else [path]
    raise FileNotFoundError(
        f"{name_or_path!r} has neither {' nor '.join(WEIGHT_FILES.values())}. Check that the model is complete and, if it is "
        "on the hub, that the machine is online."
    )


def _list_parts(index: Path, name_or_path: str, revision: str | None, prefix: str) -> list[Path]:
    names = parse_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(_is_plain_name(name) for name in names.values()):
        raise make_error(f"{index} must map names of weights to files beside it (weight_map). Download it again.")
    parts = []
    for name in sorted(set(names.values())):
        path = find_file(name_or_path, prefix + name, revision)
        if path is None:
            raise FileNotFoundError(f"{index} lists {name}, but {name_or_path!r} has no such file. Download the model again.")
        parts.append(path)
    if missing := sorted(set(names) - set(read_shapes(parts))):
        raise make_error(f"{index} lists {shorten_list(missing)}, but no file has it. Download the model again.")
    return parts


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith((".safetensors", ".bin"))


def shorten_list(names: Iterable[str]) -> str:
    """Return the first few of many names as text."""
    names = list(names)
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more


def read_shapes(files: Iterable[Path]) -> dict[str, Tensor]:
    """Read names, shapes and types of tensors, but not their values.

    Args:
        files: Files with weights.

    Returns:
        Tensors on the device ``meta``, by name.

    Raises:
        ValueError: If a file is damaged, or claims to have more values than fit into it.
    """
    shapes: dict[str, Tensor] = {}
    for path in files:
        check_regular_file(path)
        found = _read_header(path) if path.suffix == ".safetensors" else _read_bin(path, "meta")
        size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
        if size > 4 * path.stat().st_size + 2**20:  # tensors may share their values
            raise make_error(f"{path} claims to have {size:,} bytes of weights, more than fit into it. Download it again.")
        shapes |= found
    return shapes


def _read_header(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    shapes = {}
    with guard_reading(path, "is not a valid safetensors file"), safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            entry = file.get_slice(key)
            dtype = _DTYPES.get(entry.get_dtype(), torch.uint8)
            shapes[key] = torch.empty(entry.get_shape(), dtype=dtype, device="meta")
    return shapes


def _read_bin(path: Path, device: str) -> dict[str, Tensor]:
    with guard_reading(path, "is damaged", "Download it again, or save the weights as safetensors."):
        weights = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in weights.items()):
        raise make_error(f"{path} must contain a dictionary of tensors only, but it contains other values.")
    return dict(weights)


def read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """Read tensors by name, on the CPU.

    Args:
        files: Files with weights.

    Raises:
        ValueError: If a file is damaged, or a weight is NaN or infinite.
    """
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in files:
        check_regular_file(path)
        if path.suffix == ".safetensors":
            with guard_reading(path, "is not a valid safetensors file"):
                found = load_file(path, device="cpu")
        else:
            found = _read_bin(path, "cpu")
        check_finite(found, path)
        tensors |= found
    return tensors


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Check that weights are numbers.

    Raises:
        ValueError: If a tensor contains NaN or infinity. The message names it.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            values = tensor if tensor.element_size() in (2, 4) else tensor.float()
            if not all(bool(torch.isfinite(value)) for value in torch.aminmax(values)):  # one pass, no copy
                raise make_error(f"{path} has NaN or infinity in {name}. Download it again, or train the model again.")
