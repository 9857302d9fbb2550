"""Where training starts: the dual encoder of a model at hand, or one that a configuration describes."""

from __future__ import annotations

from typing import Any

from ..encoders import checkpoint, hub
from ..encoders.hypencoder import Hypencoder
from ..encoders.loading import check_encoder
from ..encoders.networks import DualEncoderConfig, HypencoderDualEncoder
from .collator import Collator
from .config import ModelConfig


def prepare_training(model: Any, *, shared: bool) -> tuple[HypencoderDualEncoder, Any, Collator | None, dict[str, Any]]:
    """What is trained of a model that is at hand.

    Args:
        model: an encoder, which stays as it is, or a dual encoder, which is trained itself.
        shared: whether both sides of a dense model become one transformer.

    Returns:
        The dual encoder; a tokenizer and batches that fit the model, or None for a dual encoder; and the options that
        checkpoints are loaded with to be such an encoder.
    """
    if isinstance(model, HypencoderDualEncoder):
        return model, None, None, {}
    check_encoder(model)
    name, revision = model.name_or_path, model.revision
    if isinstance(model, Hypencoder):
        encoder, _ = checkpoint.load(name, revision=revision, pool_padding=model.pool_padding, qnet=model.qnet)
    else:
        options: dict[str, Any] = {"revision": revision, "pooling": model.pooling, "normalize": model.normalize}
        if checkpoint.find_config(name, revision) is not None:
            encoder, _ = checkpoint.load(name, **options)
        else:
            encoder = checkpoint.from_dense(name, shared_encoder=shared, **options)
    backbone = encoder.config.query_encoder_kwargs.get("model_name_or_path", "")
    tokenizer = hub.load_tokenizer(name, revision, backbone)
    collator = Collator(
        tokenizer,
        query_max_length=min(model.query_max_length, hub.longest_input(encoder.query_encoder.transformer.config)),
        doc_max_length=min(model.doc_max_length, hub.longest_input(encoder.passage_encoder.transformer.config)),
        query_prefix=model.query_prefix,
        doc_prefix=model.doc_prefix,
    )
    return encoder, tokenizer, collator, model.options(skip=("pooling", "normalize", "qnet"))


def build_initial_model(config: ModelConfig) -> tuple[HypencoderDualEncoder, Any]:
    """The dual encoder that is trained, and its tokenizer.

    Raises:
        FileNotFoundError: where a model is missing.
        ValueError: where options do not fit it.
    """
    if config.checkpoint is not None:
        start = config.checkpoint
        if config.weights:
            encoder, _ = checkpoint.load(start, qnet=config.qnet)
        else:
            adjusted = checkpoint.override_config(checkpoint.read_config(start), qnet=config.qnet)
            encoder = checkpoint.build(adjusted, start, seed=config.seed)
    elif config.dense is not None:
        start = config.dense
        encoder = checkpoint.from_dense(
            start,
            hidden=config.hidden,
            shared_encoder=config.shared_encoder,
            pooling=config.pooling,
            normalize=config.normalize,
            seed=config.seed,
            **config.qnet,
        )
    else:
        start = str(config.backbone)
        encoder = _from_backbone(config, start)
    backbone = encoder.config.query_encoder_kwargs.get("model_name_or_path", "")
    return encoder, hub.load_tokenizer(config.tokenizer or start, None, backbone)


def _from_backbone(config: ModelConfig, backbone: str) -> HypencoderDualEncoder:
    """A dual encoder whose transformers begin as a backbone; the head at random, or as that of another model."""
    pooling = config.pooling or "cls"
    width = hub.backbone_config(backbone, None, "model.backbone").hidden_size
    query: dict[str, Any] = {"model_name_or_path": backbone}
    if config.hidden is None:
        query |= {"pooling_type": pooling}
    else:
        query |= {
            "base_encoder_output_dim": width,
            "embedding_representation": pooling if config.qnet.get("inner_product_skip") else None,
            "converter_kwargs": {"vector_dimensions": [width, *config.hidden, 1], **config.qnet},
        }
    passage = {"model_name_or_path": backbone, "pooling_type": pooling, "normalize": bool(config.normalize)}
    kind = "TextDualEncoder" if config.hidden is None else "HypencoderDualEncoder"
    encoder = checkpoint.build(DualEncoderConfig(kind, query, passage, config.shared_encoder), seed=config.seed)
    if config.weights:
        weights = hub.load_transformer(backbone).state_dict()
        for side in (encoder.query_encoder, encoder.passage_encoder):
            side.transformer.load_state_dict(weights)
        if config.head_from is not None:
            _take_head(encoder, config.head_from)
    return encoder


def _take_head(encoder: HypencoderDualEncoder, name_or_path: str) -> None:
    """Puts the hyper-head of a checkpoint in place of a model's own."""
    theirs = checkpoint.read_config(name_or_path)
    expected, found = ((model.architecture, model.qnet_spec, model.head_init) for model in (encoder.config, theirs))
    if found != expected:
        raise ValueError(
            f"model.head_from: expected q-nets of model.hidden and model.qnet, {expected}, found {found} in {name_or_path!r}; "
            "change the former"
        )
    own, head = (
        {name: value for name, value in weights.items() if name.startswith("query_encoder.") and ".transformer." not in name}
        for weights in (encoder.state_dict(), checkpoint.read_weights(name_or_path))
    )
    misfits = [name for name in {**own, **head} if name not in own or name not in head or own[name].shape != head[name].shape]
    if misfits:
        raise ValueError(
            f"model.head_from: expected the hyper-head of {name_or_path!r} to fit a backbone of width "
            f"{encoder.query_encoder.transformer.config.hidden_size}, found other names or shapes: {', '.join(misfits[:5])}"
        )
    encoder.load_state_dict(head, strict=False)
