"""The model that training starts from: an existing encoder, or one that a configuration describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..encoders import checkpoint, dense_start, hub
from ..encoders.checkpoint_config import DualEncoderConfig
from ..encoders.hypencoder import Hypencoder
from ..encoders.loading import check_encoder
from ..encoders.networks import HypencoderDualEncoder
from ..encoders.tokenizer_files import load_tokenizer
from .collator import Collator

if TYPE_CHECKING:
    from .config import ModelConfig


class InitialModel(NamedTuple):
    """A dual encoder to train, and what belongs to it.

    Args:
        encoder: Dual encoder, which training changes.
        tokenizer: Its Hugging Face tokenizer, or None if unknown.
        collator: Collator with the lengths and prefixes of the encoder, or None if unknown.
        encoder_options: Options for loading checkpoints as the same kind of encoder.
    """

    encoder: HypencoderDualEncoder
    tokenizer: Any
    collator: Collator | None
    encoder_options: dict[str, Any]


def prepare_training(model: Any, *, shared: bool) -> InitialModel:
    """Return a dual encoder to train, from an encoder or a dual encoder.

    Args:
        model: Encoder, which is copied, or dual encoder, which is trained itself.
        shared: If True, a dense model becomes one transformer for queries and documents instead of two.

    Raises:
        ValueError: If the model is neither.
    """
    if isinstance(model, HypencoderDualEncoder):
        return InitialModel(model, None, None, {})
    check_encoder(model)
    name, revision = model.name_or_path, model.revision
    if isinstance(model, Hypencoder):
        encoder, _ = model.load_dual_encoder()
    else:
        options: dict[str, Any] = {"revision": revision, "pooling": model.pooling, "normalize": model.normalize}
        if checkpoint.find_config(name, revision) is not None:
            encoder, _ = checkpoint.load(name, **options)
        else:
            encoder = dense_start.from_dense(name, shared_encoder=shared, **options)
    backbone = encoder.config.query_encoder_kwargs.get("model_name_or_path", "")
    tokenizer = load_tokenizer(name, revision, backbone)
    collator = Collator(
        tokenizer,
        query_max_length=min(model.query_max_length, hub.get_max_length(encoder.query_encoder.transformer)),
        doc_max_length=min(model.doc_max_length, hub.get_max_length(encoder.passage_encoder.transformer)),
        query_prefix=model.prefixes["query"],
        doc_prefix=model.prefixes["document"],
    )
    return InitialModel(encoder, tokenizer, collator, model.options(skip=("pooling", "normalize", "qnet", "dense_start")))


def build_initial_model(config: ModelConfig) -> tuple[HypencoderDualEncoder, Any]:
    """Build the dual encoder that a configuration describes.

    Args:
        config: Section ``model`` of a configuration.

    Returns:
        The dual encoder and its tokenizer.

    Raises:
        FileNotFoundError: If a model is missing.
        ValueError: If options do not fit the model.
    """
    if config.checkpoint is not None:
        source = config.checkpoint
        encoder = _load_checkpoint(config, source)
    elif config.dense is not None:
        source = config.dense
        encoder = dense_start.from_dense(
            source,
            hidden=config.hidden,
            shared_encoder=config.shared_encoder,
            pooling=config.pooling,
            normalize=config.normalize,
            seed=config.seed,
            **config.qnet,
        )
    else:
        source = str(config.backbone)
        encoder = _build_on_backbone(config, source)
    backbone = encoder.config.query_encoder_kwargs.get("model_name_or_path", "")
    return encoder, load_tokenizer(config.tokenizer or source, None, backbone)


def _load_checkpoint(config: ModelConfig, source: str) -> HypencoderDualEncoder:
    """Load a checkpoint, or build its architecture with random weights."""
    if config.weights:
        return checkpoint.load(source, qnet=config.qnet)[0]
    adjusted = checkpoint.override_config(checkpoint.read_config(source), qnet=config.qnet)
    return checkpoint.build(adjusted, source, seed=config.seed)


def _build_on_backbone(config: ModelConfig, backbone: str) -> HypencoderDualEncoder:
    """Build a dual encoder on a backbone. Its hyper-head is random, or copied from a checkpoint."""
    pooling = config.pooling or "cls"
    width = hub.load_backbone_config(backbone, None, "model.backbone").hidden_size
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
    architecture = "TextDualEncoder" if config.hidden is None else "HypencoderDualEncoder"
    encoder = checkpoint.build(DualEncoderConfig(architecture, query, passage, config.shared_encoder), seed=config.seed)
    if config.weights:
        weights = hub.load_transformer(backbone).state_dict()
        for side in (encoder.query_encoder, encoder.passage_encoder):
            side.transformer.load_state_dict(weights)
        if config.head_from is not None:
            _copy_head(encoder, config.head_from)
    return encoder


def _copy_head(encoder: HypencoderDualEncoder, name_or_path: str) -> None:
    """Copy the hyper-head of a checkpoint into an encoder.

    Raises:
        ValueError: If the q-nets or the shapes of the heads differ.
    """
    source = checkpoint.read_config(name_or_path)
    expected, found = ((c.architecture, c.qnet_spec, c.head_init) for c in (encoder.config, source))
    if found != expected:
        raise ValueError(
            f"model.head_from: the q-nets of {name_or_path!r} are {found}, but model.hidden and model.qnet describe "
            f"{expected}. Change model.hidden and model.qnet."
        )
    own_head, head = (
        {name: value for name, value in weights.items() if name.startswith("query_encoder.") and ".transformer." not in name}
        for weights in (encoder.state_dict(), checkpoint.read_weights(name_or_path))
    )
    names = {**own_head, **head}
    misfits = [n for n in names if n not in own_head or n not in head or own_head[n].shape != head[n].shape]
    if misfits:
        raise ValueError(
            f"model.head_from: the hyper-head of {name_or_path!r} does not fit a backbone of width "
            f"{encoder.query_encoder.transformer.config.hidden_size}: other names or shapes of {', '.join(misfits[:5])}."
        )
    encoder.load_state_dict(head, strict=False)
