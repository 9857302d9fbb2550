"""Start a dual encoder from a dense model: its first scores rank documents like that model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from . import checkpoint
from .checkpoint_config import DualEncoderConfig
from .dense_settings import DenseSettings, read_dense_settings
from .hub import load_transformer
from .model_files import normalize_name
from .networks import HypencoderDualEncoder


def from_dense(
    name_or_path: str | os.PathLike[str],
    *,
    hidden: Sequence[int] | None = None,
    shared_encoder: bool = False,
    revision: str | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    query_projection: bool = False,
    seed: int = 0,
    **qnet: Any,
) -> HypencoderDualEncoder:
    """Make a dual encoder whose first scores rank documents like a dense model. Not in the paper.

    With hidden layers it is a Hypencoder with an inner-product skip. The score is ``skip_scale * <p, x> + skip_gate *
    net(sqrt(D) x / |x|)``, where p is the query vector of the dense model. The output layer of the network starts at zero.

    Args:
        name_or_path: Directory or hub id of a Hugging Face or sentence-transformers encoder.
        hidden: Widths of the q-nets' hidden layers; None makes a bi-encoder.
        shared_encoder: If True, one transformer encodes queries and documents.
        revision: Branch, tag or commit on the hub.
        pooling: Pooling of the dense model; None reads it from its sentence-transformers files.
        normalize: If True, vectors have length 1; None reads it from the same files.
        query_projection: If True, query vectors p become ``p + W p + b`` with a projection that starts at zero. With
            ``train="head"``, both kinds of models can then learn while their transformers are frozen.
        seed: Seed of the hyper-head's random weights.
        **qnet: Further options of :class:`pyterrier_hypencoder.QNetSpec`. The default of ``skip_scale`` is 20 for vectors
            of length 1, because cross-entropy over bare cosines is nearly flat, and 1 for others. ``normalize_input`` is
            True, and ``do_residual`` is True only if all layers have the same width.

    Returns:
        The dual encoder, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If an option does not fit.
    """
    name_or_path = normalize_name(name_or_path)
    settings = _read_plain_settings(name_or_path, revision, pooling, normalize)
    transformer = load_transformer(name_or_path, revision)
    query = _make_query_kwargs(name_or_path, transformer, hidden, settings.pooling, settings.normalize, qnet)
    if query_projection:
        query["query_projection"] = True
    config = DualEncoderConfig(
        "TextDualEncoder" if hidden is None else "HypencoderDualEncoder",
        query_encoder_kwargs=query,
        passage_encoder_kwargs={
            "model_name_or_path": name_or_path,
            "pooling_type": settings.pooling,
            "normalize": settings.normalize,
        },
        shared_encoder=shared_encoder,
        extra={"backbone_configs": dict.fromkeys(("query", "passage"), checkpoint.describe_backbone(transformer.config))},
    )
    model = checkpoint.build(config, name_or_path, seed=seed)
    for encoder in (model.query_encoder, model.passage_encoder):
        encoder.transformer.load_state_dict(transformer.state_dict())
    return model.eval()


def _read_plain_settings(
    name_or_path: str, revision: str | None, pooling: str | None, normalize: bool | None
) -> DenseSettings:
    """Read the settings of a dense model, and refuse those that dual encoders do not have."""
    if checkpoint.find_config(name_or_path, revision) is not None:
        raise ValueError(
            f"{name_or_path!r} is a checkpoint of this package, not a dense model. Load it with Hypencoder(...), or save a "
            "bi-encoder as a dense model with BiEncoder(...).save_pretrained(directory) first."
        )
    settings = read_dense_settings(name_or_path, revision, pooling, normalize)
    if not settings.is_plain:
        raise ValueError(
            f"{name_or_path!r} has layers, prompts or other settings beside pooling and normalisation, which dual encoders do "
            "not have. Start from another dense model."
        )
    return settings


def _make_query_kwargs(
    name: str, transformer: Any, hidden: Sequence[int] | None, pooling: str, normalize: bool, qnet: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of the query encoder."""
    if hidden is None:
        return {"model_name_or_path": name, "pooling_type": pooling}
    width = transformer.config.hidden_size
    dimensions = [width, *hidden, 1]
    options = {
        "inner_product_skip": True,
        "skip_scale": 20.0 if normalize else 1.0,
        "normalize_input": True,
        "do_residual": len(set(dimensions[:-1])) == 1,
    }
    return {
        "model_name_or_path": name,
        "base_encoder_output_dim": width,
        "embedding_representation": pooling,
        "head_init": "dense",
        "converter_kwargs": {"vector_dimensions": dimensions, **options, **qnet},
    }
