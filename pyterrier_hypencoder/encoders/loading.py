"""Load the right encoder for a checkpoint or for the record in an index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..options import check_choice
from . import checkpoint
from .base import Encoder
from .biencoder import BiEncoder
from .hypencoder import Hypencoder
from .networks import DualEncoderConfig


def load_recorded_encoder(record: dict[str, Any], *, device: str = "auto") -> Encoder:
    """The encoder that an index names, on a device; see :meth:`Encoder.record`.

    Raises:
        ValueError: where the record is of an unknown class.
    """
    classes: dict[str, Callable[..., Encoder]] = {"Hypencoder": Hypencoder, "BiEncoder": BiEncoder}
    check_choice("the index's model class", record.get("class"), classes)
    return classes[record["class"]](record["name"], revision=record["revision"], device=device, **record["options"])


def load_encoder(name_or_path: str, **options: Any) -> Encoder:
    """The encoder that a checkpoint holds, a :class:`Hypencoder` or a :class:`BiEncoder`.

    Args:
        name_or_path: directory, hub id, or the name of a bundled model.
        **options: of the encoder.

    Raises:
        FileNotFoundError: where there is none.
    """
    config = checkpoint.find_config(name_or_path, options.get("revision"))
    return (BiEncoder if config is None else get_encoder_class(config))(name_or_path, **options)


def get_encoder_class(config: DualEncoderConfig) -> type[BiEncoder] | type[Hypencoder]:
    """The class of encoder that a dual encoder is loaded with."""
    return Hypencoder if config.architecture == "HypencoderDualEncoder" else BiEncoder


def check_encoder(model: Any) -> None:
    """Checks that a model is an encoder.

    Raises:
        ValueError: where it is something else, such as the name of one.
    """
    if not (hasattr(model, "encode_docs") and hasattr(model, "record")):
        raise ValueError(
            f"model: expected an encoder, found {model!r}; pass Hypencoder(...) or BiEncoder(...). Other encoders join by "
            "their vectors: doc_encoder >> HypencoderIndexer(path), and query_encoder >> HypencoderRetriever(index)"
        )
