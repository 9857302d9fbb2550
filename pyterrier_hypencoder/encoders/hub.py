"""Load configurations, transformers and tokenizers of Hugging Face models, after checking their files."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..index.reading import guard_reading, make_error, parse_json
from .building import build_and_compare, find_mismatches, own_defaults
from .model_files import CONFIG_FILE, find_file, find_local_directory, suggest_name
from .weights import check_finite, find_weight_files, read_shapes, read_tensors, shorten_list

_TEXT_ENCODERS = ("t5", "mt5", "umt5")
"""Types of encoder-decoders whose encoder is used alone."""
_COUNTS = re.compile("layer|label|block|depth|expert|head")
_MAX_COUNT = 100_000
_MAX_POSITIONS = 2**24
_MAX_SIZE = 2**40
_BUFFERS = ("position_ids", "token_type_ids", "inv_freq")
"""Tensors that some versions of transformers store and others compute."""
_load_lock = threading.RLock()
# Backbones whose architecture is known without the hub: model type, and options that differ from its defaults.
_KNOWN_BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "google-bert/bert-base-uncased": ("bert", {}),
    "bert-base-uncased": ("bert", {}),
    "facebook/contriever": ("bert", {}),
    "facebook/contriever-msmarco": ("bert", {}),
    "Shitao/RetroMAE": ("bert", {}),
    "Shitao/RetroMAE_MSMARCO": ("bert", {}),
    "Shitao/RetroMAE_MSMARCO_finetune": ("bert", {}),
    "distilbert/distilbert-base-uncased": ("distilbert", {}),
    "distilbert-base-uncased": ("distilbert", {}),
    "sentence-transformers/msmarco-distilbert-base-tas-b": ("distilbert", {}),
    "sentence-transformers/all-MiniLM-L6-v2": (
        "bert",
        {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    ),
}


# Configurations


def check_remote_code(options: Mapping[str, Any], source: str | Path, trust_remote_code: bool) -> bool:
    """Return True if a model comes with code that is to be run.

    Args:
        options: A parsed ``config.json`` or ``tokenizer_config.json``.
        source: Its path, for error messages.
        trust_remote_code: If True, the user allows the code.

    Raises:
        ValueError: If there is code and the user does not allow it. Without it, the vectors may be others.
    """
    names = options.get("auto_map")
    classes = list(names) if isinstance(names, dict) else ["AutoTokenizer"] * bool(names)
    classes = [name for name in classes if name in ("AutoConfig", "AutoModel", "AutoTokenizer")]
    if classes and not trust_remote_code:
        raise make_error(
            f"{source} needs code that comes with the model ({', '.join(classes)}). It is not run unless you allow it: read "
            "the code, and pass trust_remote_code=True if you trust it."
        )
    return bool(classes)


def check_sizes(options: Any, source: str | Path) -> None:
    """Check the numbers in a configuration before a network of that size is built.

    Raises:
        ValueError: If a number cannot be a number of layers, positions or dimensions.
    """
    for key, value in options.items() if isinstance(options, dict) else enumerate(options):
        if isinstance(value, dict | list):
            check_sizes(value, source)
        elif isinstance(value, int):
            name = str(key)
            limit = _MAX_COUNT if _COUNTS.search(name) else _MAX_POSITIONS if "position" in name else _MAX_SIZE
            if abs(value) > limit:
                raise make_error(f"{source} has {name} = {value:,}, but at most {limit:,} are supported.")


def load_config(name_or_path: str, revision: str | None = None, subfolder: str = "", trust_remote_code: bool = False) -> Any:
    """Load the Hugging Face configuration of a model.

    Args:
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.
        subfolder: Folder inside the model.
        trust_remote_code: If True, code that comes with the model may run.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If the configuration is damaged, needs code, or describes a quantised model.
    """
    from transformers import AutoConfig

    path = find_file(name_or_path, os.path.join(subfolder, CONFIG_FILE), revision)
    if path is None:
        raise FileNotFoundError(
            f"There is no encoder at {name_or_path!r}: it has no {CONFIG_FILE}. It must be a directory with configuration and "
            "weights, or a model on the hub or in its local cache. Check the name, or go online once."
            f"{suggest_name(name_or_path)}"
        )
    options = parse_json(path)
    has_code = check_remote_code(options, path, trust_remote_code)
    check_sizes(options, path)
    if options.get("quantization_config"):
        raise make_error(f"{path} describes quantised weights, which are not supported. Use the model's original weights.")
    source, version = get_source(path, name_or_path, revision, has_code)
    with guard_reading(path, "is not a valid configuration"):
        return AutoConfig.from_pretrained(source, revision=version, trust_remote_code=trust_remote_code)


def get_source(path: Path, name_or_path: str, revision: str | None, has_code: bool) -> tuple[str, str | None]:
    """Return what transformers should load: the directory of a file, or the hub id if it must also download code."""
    if has_code and find_local_directory(name_or_path, revision) is None:
        return name_or_path, revision
    return str(path.parent), None


def load_backbone_config(
    backbone: str, stored: dict[str, Any] | None, name_or_path: str, trust_remote_code: bool = False
) -> Any:
    """Load the Hugging Face configuration of a backbone.

    Args:
        backbone: Directory or hub id of the backbone. A relative path may also start at the checkpoint.
        stored: Configuration stored in the checkpoint, which is used if there is one.
        name_or_path: Directory or hub id of the checkpoint.
        trust_remote_code: If True, code that comes with the backbone may run.

    Raises:
        FileNotFoundError: If the architecture of the backbone cannot be found.
        ValueError: If the stored configuration is damaged or needs code.
    """
    from transformers import AutoConfig

    if stored:
        source = f"backbone_configs in the {CONFIG_FILE} of {name_or_path!r}"
        with guard_reading(source, "is not a valid configuration"):
            check_remote_code(stored, source, trust_remote_code)
            check_sizes(stored, source)
            return AutoConfig.for_model(**stored)
    # The released code reads relative paths from the working directory; moved checkpoints have the folder beside them.
    for directory in (Path(backbone), Path(name_or_path) / backbone, Path(name_or_path).parent / backbone):
        if backbone and (directory / CONFIG_FILE).is_file():
            return load_config(str(directory), trust_remote_code=trust_remote_code)
    if backbone in _KNOWN_BACKBONES:
        model_type, options = _KNOWN_BACKBONES[backbone]
        return AutoConfig.for_model(model_type, **options)
    try:
        return load_config(backbone, trust_remote_code=trust_remote_code)
    except FileNotFoundError as err:
        raise FileNotFoundError(
            f"The architecture of the backbone {backbone!r} of {name_or_path!r} was not found, neither in a directory nor on "
            f"the hub nor in its local cache. Put the backbone's {CONFIG_FILE} into a directory of that name beside the "
            "checkpoint, or go online once."
        ) from err


# Transformers


@contextmanager
def hide_progress() -> Iterator[None]:
    """Hide the progress bars of transformers in a ``with`` block, then restore its setting.

    The setting belongs to the process, so one thread loads at a time.
    """
    from transformers.utils import logging

    with _load_lock:
        enabled = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            if enabled:
                logging.enable_progress_bar()


def _float32() -> dict[str, torch.dtype]:
    """Return the argument that asks transformers for float32, under the name that its version knows."""
    from transformers import __version__

    return {"dtype" if int(__version__.split(".")[0]) >= 5 else "torch_dtype": torch.float32}


def make_transformer(config: Any, trust_remote_code: bool = False) -> nn.Module:
    """Make the transformer that a configuration describes, with random weights. T5 models have only their encoder.

    Raises:
        ValueError: If it is no text encoder.
    """
    from transformers import AutoModel, AutoModelForTextEncoding

    kind: Any = AutoModel
    if config.model_type in _TEXT_ENCODERS:  # also those that were saved without their decoder
        kind = AutoModelForTextEncoding
    elif config.is_encoder_decoder:
        raise make_error(
            f"Encoder-decoders of type {config.model_type!r} are not supported, except for {', '.join(_TEXT_ENCODERS)}. "
            "Use an encoder."
        )
    elif config.model_type == "dpr":
        raise make_error(
            "Models of type 'dpr' are not supported, because queries and documents have different models. Save the BERT "
            "inside each of them with save_pretrained(), and load it with pooling='cls'."
        )
    options = {"trust_remote_code": trust_remote_code} if kind is AutoModel else {}
    transformer = kind.from_config(config, **_float32(), **options)
    takes_mask = "attention_mask" in signature(transformer.forward).parameters
    if transformer.main_input_name != "input_ids" or not takes_mask or not hasattr(config, "hidden_size"):
        raise make_error(
            f"{type(transformer).__name__} is not supported, because it does not take ids and a mask. Use a text encoder."
        )
    return transformer


def load_transformer(
    name_or_path: str, revision: str | None = None, *, subfolder: str = "", trust_remote_code: bool = False
) -> nn.Module:
    """Load a Hugging Face encoder with its weights, in float32 on the CPU.

    Args:
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.
        subfolder: Folder inside the model.
        trust_remote_code: If True, code that comes with the model may run.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If the files are damaged, contradict each other or need code, or if weights are missing.
    """
    config = load_config(name_or_path, revision, subfolder, trust_remote_code)
    if find_file(name_or_path, os.path.join(subfolder, "adapter_config.json"), revision) is not None:
        raise make_error(f"{name_or_path!r} has a PEFT adapter, which is not supported. Merge it into the model first.")
    files = find_weight_files(name_or_path, revision, subfolder)
    source = files[0].parent / CONFIG_FILE
    if getattr(config, "auto_map", None):
        transformer, info = _load_with_code(files, name_or_path, revision, config)
    else:
        shapes = read_shapes(files)
        plan: Any = build_and_compare(lambda: make_transformer(config), shapes, source)
        names = _map_names(plan, shapes)
        _check_keys(find_mismatches(plan.state_dict(), {name: shapes[key] for name, key in names.items()}), source)
        weights = read_tensors(files)
        with hide_progress(), own_defaults(), guard_reading(source, "does not fit its weights"):
            transformer, info = type(plan).from_pretrained(
                None, config=config, state_dict=weights, output_loading_info=True, **_float32()
            )
    _check_keys(_list_unused_layers(transformer, info["unexpected_keys"]), source)
    missing = sorted(key for key in _map_names(transformer, info["missing_keys"]) if not key.startswith("pooler."))
    if missing:
        raise make_error(
            f"{name_or_path!r} lacks weights of a {type(transformer).__name__}: {shorten_list(missing)}. Check that "
            f"the checkpoint is complete and that its {CONFIG_FILE} belongs to it."
        )
    return transformer.float()


def _load_with_code(files: list[Path], name_or_path: str, revision: str | None, config: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModel

    source, version = get_source(files[0], name_or_path, revision, has_code=True)
    with hide_progress(), own_defaults(), guard_reading(source):
        transformer, info = AutoModel.from_pretrained(
            source,
            revision=version,
            config=config,
            trust_remote_code=True,
            output_loading_info=True,
            **_float32(),
        )
    check_finite(transformer.state_dict(), files[0])
    return transformer, info


def _map_names(transformer: Any, keys: Any) -> dict[str, str]:
    """Return stored names by the names in the transformer, which may lack a prefix and have newer names of parameters."""
    prefix = f"{transformer.base_model_prefix}."
    names = {}
    for key in keys:
        name = key.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
        names[name.replace("LayerNorm.beta", "LayerNorm.bias")] = key
    return names


def _list_unused_layers(transformer: nn.Module, keys: Any) -> list[str]:
    """Return what is wrong if the file has weights of parts that the transformer has, such as further layers."""
    parts = {name for name, _ in transformer.named_children()} - {"pooler"}
    names = [name for name in _map_names(transformer, keys) if name.split(".")[0] in parts and not name.endswith(_BUFFERS)]
    return [f"{name} is unknown" for name in sorted(names)]


def _check_keys(problems: list[str], source: Path) -> None:
    if problems:
        raise make_error(
            f"The weights beside {source} do not fit it: {'; '.join(problems[:3])}"
            f"{f' and {len(problems) - 3} more' if len(problems) > 3 else ''}. Check that the files belong together."
        )


def get_max_length(transformer: Any) -> int:
    """Return the longest input of a transformer in tokens.

    RoBERTa and its relatives count positions from ``padding_idx + 1``, so the first rows of their table are not usable.
    """
    lengths = [getattr(transformer.config, "max_position_embeddings", None) or 1_000_000]
    for module in transformer.modules():
        table = getattr(module, "position_embeddings", None)
        weight = getattr(table, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            padding = getattr(module, "padding_idx", None)
            padding = getattr(table, "padding_idx", None) if padding is None else padding
            lengths.append(len(weight) - (padding + 1 if isinstance(padding, int) else 0))
    return min(length for length in lengths if length > 0)
