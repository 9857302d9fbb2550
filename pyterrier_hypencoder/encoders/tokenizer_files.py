"""Load the tokenizer of a model, after checking its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..index.reading import MAX_JSON_BYTES, check_regular_file, guard_reading, make_error, parse_json
from .hub import check_remote_code, check_sizes, get_source
from .model_files import CONFIG_FILE, find_file

_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "spm.model", "source.spm", "tekken.json"),
)
TOKENIZER_FILES = (*_VOCABULARIES, *_TOKENIZER_SETTINGS)
"""Files that a tokenizer may have; a model has some of them."""
_MAX_BYTES = 4 * MAX_JSON_BYTES
"""Largest file of a tokenizer."""
_TOKENIZERS_OF_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Tokenizers without a vocabulary file."""
_MIN_VOCABULARY = 0.5
"""Smallest share of a transformer's rows that a tokenizer must have tokens for. Unused rows are few in real models."""


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
        ValueError: If they are damaged or need code.
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
    for path in found.values():
        check_regular_file(path, _MAX_BYTES)
    path = next(iter(found.values()))
    _check_directory(path.parent)
    if (path.parent / CONFIG_FILE).exists():  # the class of the tokenizer depends on it
        check_sizes(parse_json(path.parent / CONFIG_FILE), path.parent / CONFIG_FILE)
    has_code = check_remote_code(settings, found.get(_TOKENIZER_SETTINGS[0], path), trust_remote_code)
    source, version = get_source(path, name_or_path, revision, has_code)
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
            check_regular_file(path)


def check_vocabulary(tokenizer: Any, transformer: Any, name_or_path: str) -> None:
    """Check that a tokenizer belongs to a transformer, by the number of tokens.

    Raises:
        ValueError: If the tokenizer has a token beyond the transformer's vocabulary, or far fewer tokens.
    """
    try:
        rows = len(transformer.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError, TypeError):  # a few architectures hash characters
        return
    ids = tokenizer.get_vocab().values()
    if not ids or max(ids) >= rows or len(ids) < _MIN_VOCABULARY * rows:
        raise make_error(
            f"The tokenizer of {name_or_path!r} has {len(ids):,} tokens with ids up to {max(ids, default=0):,}, but the "
            f"vocabulary of the transformer has {rows:,} rows. Copy the files of the right tokenizer into the model."
        )
