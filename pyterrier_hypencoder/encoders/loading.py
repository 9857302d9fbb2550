"""Load the right encoder for a checkpoint or for the record in an index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..options import check_choice
from . import checkpoint
from .base import Encoder
from .biencoder import BiEncoder
from .checkpoint_config import DualEncoderConfig
from .hypencoder import Hypencoder

_RENAMED_OPTIONS = {"pads_in_mean": "pool_padding"}
"""Options that older indexes record under another name."""


def load_recorded_encoder(record: dict[str, Any], *, device: str = "auto") -> Encoder:
    """Load the encoder that an index records; see :meth:`Encoder.record`.

    Args:
        record: The entry ``model`` of an index's ``pt_meta.json``.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``.

    Raises:
        ValueError: If the record names an unknown class.
    """
    classes: dict[str, Callable[..., Encoder]] = {"Hypencoder": Hypencoder, "BiEncoder": BiEncoder}
    check_choice("The model class of the index", record.get("class"), classes)
    options = {_RENAMED_OPTIONS.get(name, name): value for name, value in record["options"].items()}
    return classes[record["class"]](record["name"], revision=record["revision"], device=device, **options)


def load_encoder(name_or_path: str, **options: Any) -> Encoder:
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
    config = checkpoint.find_config(name_or_path, options.get("revision"))
    return (BiEncoder if config is None else get_encoder_class(config))(name_or_path, **options)


def get_encoder_class(config: DualEncoderConfig) -> type[BiEncoder] | type[Hypencoder]:
    """Return the class of encoder that loads a dual encoder."""
    return Hypencoder if config.architecture == "HypencoderDualEncoder" else BiEncoder


def check_encoder(model: Any) -> None:
    """Check that a model is an encoder.

    Raises:
        ValueError: If it is something else, such as the name of a model.
    """
    if not (hasattr(model, "encode_docs") and hasattr(model, "record")):
        raise ValueError(
            f"model must be a Hypencoder(...) or a BiEncoder(...), got {model!r}. Other encoders can provide vectors: "
            "doc_encoder >> HypencoderIndexer(path), and query_encoder >> HypencoderRetriever(index)."
        )
