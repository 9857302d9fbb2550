"""Load configurations, transformers and tokenizers of Hugging Face models, after checking their files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .building import build_and_compare, find_mismatches, own_defaults
from .config_checks import check_remote_code, check_sizes
from .model_files import CONFIG_FILE, find_file, find_local_directory
from .reading import ModelFileError, check_file, guard_reading, parse_json
from .weights import check_finite, find_weight_files, read_shapes, read_tensors, shorten_list

_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "spm.model", "source.spm", "tekken.json"),
)
TOKENIZER_FILES = (*_VOCABULARIES, *_TOKENIZER_SETTINGS)
"""Files that a tokenizer may have; a model has some of them."""
_TOKENIZERS_OF_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Tokenizers without a vocabulary file."""
_MIN_VOCABULARY = 0.5
"""Smallest share of a transformer's rows that a tokenizer must have tokens for. Unused rows are few in real models."""
_TEXT_ENCODERS = ("t5", "mt5", "umt5")
"""Types of encoder-decoders whose encoder is used alone."""
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


def load_config(name_or_path: str, revision: str | None = None, subfolder: str = "", trust_remote_code: bool = False) -> Any:
    """Load the Hugging Face configuration of a model.

    Args:
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.
        subfolder: Folder inside the model.
        trust_remote_code: If True, code that comes with the model may run.

    Raises:
        FileNotFoundError: If there is no such model.
        ModelFileError: If the configuration is damaged, needs code, or describes a quantised model.
    """
    from transformers import AutoConfig

    path = find_file(name_or_path, os.path.join(subfolder, CONFIG_FILE), revision)
    if path is None:
        raise FileNotFoundError(
            f"There is no encoder at {name_or_path!r}. It is neither a directory with configuration and weights nor a model "
            "on the hub or in its local cache. Check the name, or go online once."
        )
    options = parse_json(path)
    has_code = check_remote_code(options, path, trust_remote_code)
    check_sizes(options, path)
    if options.get("quantization_config"):
        raise ModelFileError(f"{path} describes quantised weights, which are not supported. Use the model's original weights.")
    source, version = _get_source(path, name_or_path, revision, has_code)
    with guard_reading(path, "is not a valid configuration"):
        return AutoConfig.from_pretrained(source, revision=version, trust_remote_code=trust_remote_code)


def _get_source(path: Path, name_or_path: str, revision: str | None, has_code: bool) -> tuple[str, str | None]:
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
        ModelFileError: If the stored configuration is damaged or needs code.
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
        ModelFileError: If it is no text encoder.
    """
    from transformers import AutoModel, AutoModelForTextEncoding

    kind: Any = AutoModel
    if config.is_encoder_decoder:
        if config.model_type not in _TEXT_ENCODERS:
            raise ModelFileError(
                f"Encoder-decoders of type {config.model_type!r} are not supported, except for {', '.join(_TEXT_ENCODERS)}. "
                "Use an encoder."
            )
        kind = AutoModelForTextEncoding
    elif config.model_type == "dpr":
        raise ModelFileError(
            "Models of type 'dpr' are not supported, because queries and documents have different models. Save the BERT "
            "inside each of them with save_pretrained(), and load it with pooling='cls'."
        )
    options = {"trust_remote_code": trust_remote_code} if kind is AutoModel else {}
    transformer = kind.from_config(config, **_float32(), **options)
    takes_mask = "attention_mask" in signature(transformer.forward).parameters
    if transformer.main_input_name != "input_ids" or not takes_mask or not hasattr(config, "hidden_size"):
        raise ModelFileError(
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
        ModelFileError: If the files are damaged, contradict each other or need code, or if weights are missing.
    """
    config = load_config(name_or_path, revision, subfolder, trust_remote_code)
    if find_file(name_or_path, os.path.join(subfolder, "adapter_config.json"), revision) is not None:
        raise ModelFileError(f"{name_or_path!r} has a PEFT adapter, which is not supported. Merge it into the model first.")
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
        raise ModelFileError(
            f"{name_or_path!r} lacks weights of a {type(transformer).__name__}: {shorten_list(missing)}. Check that "
            f"the checkpoint is complete and that its {CONFIG_FILE} belongs to it."
        )
    return transformer.float()


def _load_with_code(files: list[Path], name_or_path: str, revision: str | None, config: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModel

    source, version = _get_source(files[0], name_or_path, revision, has_code=True)
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
        raise ModelFileError(
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


# Tokenizers


def load_tokenizer(
    name_or_path: str, revision: str | None, backbone: str = "", *, subfolder: str = "", trust_remote_code: bool = False
) -> Any:
    """Load the tokenizer of a checkpoint, or of its backbone if the checkpoint has none.

    Args:
        name_or_path: Directory or hub id of the checkpoint.
        revision: Branch, tag or commit on the hub.
        backbone: Directory or hub id of the backbone.
        subfolder: Folder inside the checkpoint.
        trust_remote_code: If True, code that comes with the tokenizer may run.

    Raises:
        FileNotFoundError: If the files of the tokenizer are missing.
        ModelFileError: If they are damaged or need code.
    """
    from transformers import AutoTokenizer

    names = [os.path.join(subfolder, name) for name in TOKENIZER_FILES]
    found = {Path(name).name: path for name in names if (path := find_file(name_or_path, name, revision)) is not None}
    if not found and backbone:
        return load_tokenizer(backbone, None, trust_remote_code=trust_remote_code)
    settings = {name: parse_json(found[name]) for name in _TOKENIZER_SETTINGS if name in found}.get(_TOKENIZER_SETTINGS[0], {})
    if not _has_vocabulary(found, settings):
        raise FileNotFoundError(
            f"The tokenizer of {name_or_path!r} has no vocabulary ({', '.join(_VOCABULARIES[:3])} or another file). Copy the "
            "tokenizer's files into the model."
        )
    path = next(iter(found.values()))
    _check_directory(path.parent)
    if (path.parent / CONFIG_FILE).exists():  # the class of the tokenizer depends on it
        check_sizes(parse_json(path.parent / CONFIG_FILE), path.parent / CONFIG_FILE)
    has_code = check_remote_code(settings, found.get(_TOKENIZER_SETTINGS[0], path), trust_remote_code)
    source, version = _get_source(path, name_or_path, revision, has_code)
    with guard_reading(f"The tokenizer in {path.parent} ({', '.join(found)})"):
        return AutoTokenizer.from_pretrained(source, revision=version, trust_remote_code=trust_remote_code)


def _has_vocabulary(found: Mapping[str, Path], settings: Mapping[str, Any]) -> bool:
    others = (".model", ".spm", ".tiktoken")
    return (
        any(name in found for name in _VOCABULARIES)
        or settings.get("tokenizer_class") in _TOKENIZERS_OF_BYTES
        or any(file.suffix in others for path in found.values() for file in path.parent.iterdir())
    )


def _check_directory(directory: Path) -> None:
    """Check that everything in a directory that transformers may read is a file. Reading a pipe would never end."""
    for path in [*directory.iterdir(), *directory.glob("additional_chat_templates/*")]:
        if path.suffix in (".json", ".txt", ".model", ".jinja", ".safetensors", ".bin", ".spm", ".codes"):
            check_file(path)


def check_vocabulary(tokenizer: Any, transformer: Any, name_or_path: str) -> None:
    """Check that a tokenizer belongs to a transformer, by the number of tokens.

    Raises:
        ModelFileError: If the tokenizer has a token beyond the transformer's vocabulary, or far fewer tokens.
    """
    try:
        rows = len(transformer.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError, TypeError):  # a few architectures hash characters
        return
    ids = tokenizer.get_vocab().values()
    if not ids or max(ids) >= rows or len(ids) < _MIN_VOCABULARY * rows:
        raise ModelFileError(
            f"The tokenizer of {name_or_path!r} has {len(ids):,} tokens with ids up to {max(ids, default=0):,}, but the "
            f"vocabulary of the transformer has {rows:,} rows. Copy the files of the right tokenizer into the model."
        )
