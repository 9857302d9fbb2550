"""Load the right encoder for a checkpoint or for the record in an index."""

from __future__ import annotations

import os
from collections.abc import Callable
from inspect import signature
from typing import Any

from ..options import check_choice
from . import checkpoint
from .base import Encoder
from .biencoder import BiEncoder
from .checkpoint_config import DualEncoderConfig
from .hypencoder import Hypencoder
from .model_files import normalize_name

_RENAMED_OPTIONS = {"pads_in_mean": "pool_padding"}
"""Options that older indexes record under another name."""


def load_recorded_encoder(record: dict[str, Any], *, device: str = "auto", index: str | os.PathLike[str] = "") -> Encoder:
    """Load the encoder that an index records; see :meth:`Encoder.record`.

    Args:
        record: The entry ``model`` of an index's ``pt_meta.json``.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``.
        index: Path of the index, for error messages.

    Raises:
        ValueError: If the record names an unknown class or unknown options.
    """
    place = f"the index {index}".strip()
    classes: dict[str, Callable[..., Encoder]] = {"Hypencoder": Hypencoder, "BiEncoder": BiEncoder}
    if not isinstance(record, dict):
        raise ValueError(f"The model of {place} must be an object in pt_meta.json, got {record!r}. Pass model=...")
    check_choice(f"The model class of {place}", record.get("class"), classes)
    make, stored, name = classes[record["class"]], record.get("options") or {}, record.get("name")
    if not isinstance(stored, dict) or not isinstance(name, str):
        raise ValueError(f"The model of {place} must have a name and options, got {name!r} and {stored!r}. Pass model=...")
    options = {_RENAMED_OPTIONS.get(str(key), str(key)): value for key, value in stored.items()}
    options.pop("trust_remote_code", None)  # only the user can allow code
    if unknown := sorted(
        set(options) - set(signature(make).parameters) | set(options) & {"name_or_path", "device", "revision"}
    ):
        raise ValueError(f"The model of {place} has unknown options: {', '.join(unknown)}. Pass model=...")
    return make(name, revision=record.get("revision"), device=device, **options)


def load_encoder(name_or_path: str | os.PathLike[str], **options: Any) -> Encoder:
    """Load a checkpoint as a :class:`Hypencoder` or a :class:`BiEncoder`, whichever it is.

    Args:
        name_or_path: Directory, hub id, or name of a bundled model.
        **options: Options of the encoder.

    Raises:
        FileNotFoundError: If there is no such model.

    Example:
        >>> from pyterrier_hypencoder.encoders.loading import load_encoder
        >>> load_encoder("hypencoder-minilm", device="cpu")
        Hypencoder('hypencoder-minilm', device='cpu')
    """
    config = checkpoint.find_config(normalize_name(name_or_path), options.get("revision"))
    return (BiEncoder if config is None else get_encoder_class(config))(name_or_path, **options)


def get_encoder_class(config: DualEncoderConfig) -> type[BiEncoder] | type[Hypencoder]:
    """Return the class of encoder that loads a dual encoder."""
    return Hypencoder if config.architecture == "HypencoderDualEncoder" else BiEncoder


def check_encoder(model: Any) -> None:
    """Check that a model is an encoder.

    Raises:
        ValueError: If it is something else, such as the name of a model.
    """
    if isinstance(model, str | os.PathLike):
        raise ValueError(
            f"model must be an encoder, got the name {model!r}. Pass Hypencoder({model!r}) or BiEncoder({model!r})."
        )
    if not (hasattr(model, "encode_docs") and hasattr(model, "record")):
        raise ValueError(
            f"model must be a Hypencoder(...) or a BiEncoder(...), got {model!r}. Other encoders can provide vectors: "
            "doc_encoder >> HypencoderIndexer(path), and query_encoder >> HypencoderRetriever(index)."
        )
