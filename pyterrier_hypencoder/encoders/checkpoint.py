"""Checkpoints: reading and writing the weights and configuration of dual encoders, from directories or the hub."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..qnet import QNetSpec
from .hub import CONFIG_FILE, backbone_config, find_file, load_transformer, pooling_settings, read_json
from .networks import ARCHITECTURES, DualEncoderConfig, HypencoderDualEncoder

WEIGHT_FILES = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
_TRUNKS = {side: f"{side}_encoder.transformer." for side in ("query", "passage")}


def read_config(name_or_path: str, revision: str | None = None) -> DualEncoderConfig:
    """The configuration of a dual-encoder checkpoint.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is the configuration of something else.
    """
    config = read_json(name_or_path, revision=revision)
    if config is None:
        raise FileNotFoundError(
            f"expected a {CONFIG_FILE} in {name_or_path!r}, found none; is it a checkpoint, and if it is on the hub, can "
            "the hub be reached or is the model in the local cache?"
        )
    if not is_dual_encoder(config):
        raise ValueError(
            f"expected the configuration of one of {sorted(ARCHITECTURES)} in {name_or_path!r}, found architectures "
            f"{config.get('architectures')}; other encoders are loaded with BiEncoder({name_or_path!r})"
        )
    return DualEncoderConfig.from_dict(config)


def find_config(name_or_path: str, revision: str | None = None) -> DualEncoderConfig | None:
    """The configuration of a dual-encoder checkpoint, or None where the model is another, or has none."""
    config = read_json(name_or_path, revision=revision)
    return DualEncoderConfig.from_dict(config) if config is not None and is_dual_encoder(config) else None


def is_dual_encoder(config: dict[str, Any]) -> bool:
    """Whether a parsed ``config.json`` is that of a dual encoder of this package or of the released code."""
    return (config.get("architectures") or [None])[0] in ARCHITECTURES or "passage_encoder_kwargs" in config


def load(
    name_or_path: str,
    *,
    revision: str | None = None,
    pool_padding: bool = False,
    pooling: str | None = None,
    normalize: bool | None = None,
    qnet: Mapping[str, Any] | None = None,
) -> tuple[HypencoderDualEncoder, DualEncoderConfig]:
    """Loads a dual encoder in float32 on the CPU, in evaluation mode.

    Backbone weights are never fetched, as the checkpoint holds them; only a checkpoint that was saved without them (see
    :func:`save`) names where they are.

    Args:
        name_or_path: directory or hub id.
        revision: branch, tag or commit on the hub.
        pool_padding: see :func:`pyterrier_hypencoder.model.pool`.
        pooling: in place of what the configuration says, as for the next two.
        normalize: whether vectors have length 1.
        qnet: options of :class:`pyterrier_hypencoder.QNetSpec`; see :func:`override_config`.

    Raises:
        FileNotFoundError: where configuration or weights are missing, or the backbone is not known.
        ValueError: where the weights do not fit the configuration, naming them, or an option does not exist.
    """
    config = override_config(read_config(name_or_path, revision), pooling=pooling, normalize=normalize, qnet=qnet)
    model = build(config, name_or_path, pool_padding=pool_padding)
    weights = read_weights(name_or_path, revision)
    base = config.extra.get("base_weights")
    if base is not None:
        weights = _transformer_weights(load_transformer(base)) | weights
    fit_weights(model, weights, name_or_path)
    return model.eval(), config


def override_config(
    config: DualEncoderConfig,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    qnet: Mapping[str, Any] | None = None,
) -> DualEncoderConfig:
    """A configuration with some of its options in place of its own.

    Args:
        config: stays as it is.
        pooling: of both sides.
        normalize: of both sides.
        qnet: options of :class:`pyterrier_hypencoder.QNetSpec` under which the same weights are read, such as
            ``do_residual=False``.

    Raises:
        ValueError: for an option of q-nets that does not exist, or that decides the weights' shapes.
    """
    config = copy.deepcopy(config)
    known = {field.name for field in dataclasses.fields(QNetSpec)} - {"vector_dimensions", "inner_product_skip", "narrowed"}
    if unknown := sorted(set(qnet or {}) - known):
        raise ValueError(f"qnet: expected some of {sorted(known)}, found {', '.join(unknown)}")
    if qnet:
        config.query_encoder_kwargs["converter_kwargs"] = (config.query_encoder_kwargs.get("converter_kwargs") or {}) | dict(
            qnet
        )
    if pooling is not None:
        config.query_encoder_kwargs["pooling_type"] = config.passage_encoder_kwargs["pooling_type"] = pooling
    if normalize is not None:
        config.passage_encoder_kwargs["normalize"] = normalize
    return config


def build(
    config: DualEncoderConfig, name_or_path: str = "", *, seed: int = 0, pool_padding: bool = False
) -> HypencoderDualEncoder:
    """Builds a dual encoder with random weights; the global random state stays as it is.

    Args:
        config: the configuration.
        name_or_path: where it came from, to find backbones named by a relative path.
        seed: of the random weights.
        pool_padding: see :func:`pyterrier_hypencoder.model.pool`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        query = _build_backbone(config, "query", name_or_path)
        passage = query if config.shared_encoder else _build_backbone(config, "passage", name_or_path)
        return ARCHITECTURES[config.architecture](config, query, passage, pool_padding=pool_padding)


def _build_backbone(config: DualEncoderConfig, side: str, name_or_path: str) -> nn.Module:
    from transformers import AutoModel

    stored = config.extra.get("backbone_configs", {}).get(side)
    kwargs = config.query_encoder_kwargs if side == "query" else config.passage_encoder_kwargs
    return AutoModel.from_config(backbone_config(kwargs.get("model_name_or_path", ""), stored, name_or_path)).float()


def from_dense(
    name_or_path: str,
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
    """A dual encoder that begins with all that a dense model knows: its first scores rank as that model's do.

    With hidden layers it is a Hypencoder with an inner-product skip: the score is ``skip_scale * <p, x> + skip_gate *
    net(sqrt(D) x / |x|)``, p the encoder's own query vector, and the network's output layer begins at zero.

    Args:
        name_or_path: directory or hub id of a Hugging Face or sentence-transformers encoder.
        hidden: widths of the q-nets' hidden layers; None makes a bi-encoder.
        shared_encoder: whether queries and documents are encoded by one transformer.
        revision: branch, tag or commit on the hub.
        pooling: None reads it from the sentence-transformers files.
        normalize: None reads it from the same files.
        query_projection: whether query vectors p become p + W p + b, a linear map that is zero before it is trained. With
            ``train="head"`` it lets either kind of model learn with its transformers frozen.
        seed: of the hyper-head's random weights.
        **qnet: other options of :class:`pyterrier_hypencoder.QNetSpec`. ``skip_scale`` is 20 where vectors have length 1, as
            cross-entropy over bare cosines is nearly flat, and else 1; ``normalize_input`` is True, and ``do_residual`` False
            unless the widths allow it.

    Raises:
        FileNotFoundError: where there is no such model.
        ValueError: where an option does not fit.
    """
    settings = pooling_settings(name_or_path, revision, pooling, normalize)
    pooling, normalize = settings.pooling, settings.normalize
    transformer = load_transformer(name_or_path, revision)
    query = _dense_query(name_or_path, transformer, hidden, pooling, normalize, qnet)
    query |= {"query_projection": True} if query_projection else {}
    config = DualEncoderConfig(
        "TextDualEncoder" if hidden is None else "HypencoderDualEncoder",
        query_encoder_kwargs=query,
        passage_encoder_kwargs={"model_name_or_path": name_or_path, "pooling_type": pooling, "normalize": normalize},
        shared_encoder=shared_encoder,
        extra={"backbone_configs": dict.fromkeys(_TRUNKS, _architecture(transformer.config))},
    )
    model = build(config, name_or_path, seed=seed)
    for side in (model.query_encoder, model.passage_encoder):
        side.transformer.load_state_dict(transformer.state_dict())
    return model.eval()


def _dense_query(
    name: str, transformer: Any, hidden: Sequence[int] | None, pooling: str, normalize: bool, qnet: dict[str, Any]
) -> dict[str, Any]:
    """The options of a query encoder that begins as a dense model's."""
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


def _transformer_weights(transformer: nn.Module) -> dict[str, Tensor]:
    """The weights of a transformer under the names that they have on both sides of a dual encoder."""
    return {prefix + key: value for prefix in _TRUNKS.values() for key, value in transformer.state_dict().items()}


def read_weights(name_or_path: str, revision: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name.

    Raises:
        FileNotFoundError: where there is no weight file.
        ValueError: where the file is broken or holds anything but tensors.
    """
    for filename in WEIGHT_FILES.values():
        path = find_file(name_or_path, filename, revision)
        if path is not None:
            return _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)
    raise FileNotFoundError(
        f"expected {' or '.join(WEIGHT_FILES.values())} in {name_or_path!r}, found neither; is the checkpoint complete, or "
        "is the machine offline?"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as err:
        raise ValueError(f"expected a safetensors file at {path}, found a broken one ({err}); fetch it again") from err


def _read_bin(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # random bytes raise nearly anything, all of which means the same
        raise ValueError(
            f"expected nothing but tensors in {path}, found a pickle that is broken or holds other objects, which are "
            f"never loaded as they could run code ({repr(err)[:200]}); save the weights as safetensors"
        ) from err
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"expected a dictionary of nothing but tensors in {path}, found other values")
    return weights


def fit_weights(model: HypencoderDualEncoder, weights: dict[str, Tensor], name_or_path: str) -> None:
    """Puts weights into a model, whole or not at all; a shared trunk may come under both prefixes or either.

    Raises:
        ValueError: naming what is missing, unknown or of another shape.
    """
    expected = model.state_dict()
    # Buffers that old versions of transformers wrote into their checkpoints.
    weights = {k: v for k, v in weights.items() if k in expected or not k.endswith((".position_ids", ".token_type_ids"))}
    if model.config.shared_encoder:
        weights = _complete_shared_trunk(weights, name_or_path)
    problems = [f"{key} {_shape(expected[key])} is missing" for key in expected if key not in weights]
    problems += [f"{key} {_shape(weights[key])} is unknown" for key in weights if key not in expected]
    problems += [
        f"{key}: expected shape {_shape(expected[key])}, found {_shape(weights[key])}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"the weights in {name_or_path!r} do not fit its {CONFIG_FILE}: {'; '.join(problems[:8])}{more}. Do the two "
            "files belong together?"
        )
    model.load_state_dict(weights)


def _complete_shared_trunk(weights: dict[str, Tensor], name_or_path: str) -> dict[str, Tensor]:
    weights = dict(weights)
    for here, there in ((_TRUNKS["query"], _TRUNKS["passage"]), (_TRUNKS["passage"], _TRUNKS["query"])):
        for key in [key for key in weights if key.startswith(here)]:
            twin = there + key.removeprefix(here)
            if not torch.equal(weights.setdefault(twin, weights[key]), weights[key]):
                raise ValueError(
                    f"{name_or_path!r} says that both encoders share a transformer (shared_encoder), but {key} and {twin} "
                    "differ; set shared_encoder to false in its config.json if they are meant to"
                )
    return weights


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def save(
    model: HypencoderDualEncoder,
    directory: str | Path,
    *,
    format: str = "safetensors",
    tokenizer: Any = None,
    weights: dict[str, Tensor] | None = None,
    base: str | None = None,
    half: bool = False,
) -> None:
    """Writes a checkpoint that :func:`load` reads without any other file.

    Args:
        model: the dual encoder.
        directory: made where it does not exist; each file is replaced as a whole.
        format: ``safetensors`` (a shared trunk is written once) or ``bin`` (the released layout, both prefixes).
        tokenizer: a Hugging Face tokenizer to write beside it.
        weights: written in place of the model's own, under the same names.
        base: a model whose transformer both sides began as; what is still as it was there is left out, and :func:`load`
            takes it from that model again. The file is then a fraction of the size.
        half: whether weights are rounded to float16.

    Raises:
        ValueError: for an unknown format.
    """
    if format not in WEIGHT_FILES:
        raise ValueError(f"format: expected one of {sorted(WEIGHT_FILES)}, found {format!r}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict() if weights is None else weights
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    if base is not None:
        known = _transformer_weights(load_transformer(base))
        weights = {key: value for key, value in weights.items() if key not in known or not torch.equal(value, known[key])}
    if half:
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    part = directory / f"{WEIGHT_FILES[format]}.part"
    if format == "safetensors":
        from safetensors.torch import save_file

        if model.config.shared_encoder:
            weights = {key: value for key, value in weights.items() if not key.startswith(_TRUNKS["passage"])}
        save_file(weights, part, metadata={"format": "pt"})
    else:
        torch.save(weights, part)
    os.replace(part, directory / WEIGHT_FILES[format])
    for other in set(WEIGHT_FILES.values()) - {WEIGHT_FILES[format]}:
        (directory / other).unlink(missing_ok=True)  # a leftover in the other format would be read instead
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    config = {key: value for key, value in model.config.to_dict().items() if key != "base_weights"}
    config |= {} if base is None else {"base_weights": base}
    config["backbone_configs"] = {
        "query": _architecture(model.query_encoder.transformer.config),
        "passage": _architecture(model.passage_encoder.transformer.config),
    }
    part = directory / f"{CONFIG_FILE}.part"
    part.write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    os.replace(part, directory / CONFIG_FILE)


def _architecture(config: Any) -> dict[str, Any]:
    """What it takes to build a backbone again; private keys are how this version of transformers happened to run it."""
    options = {key: value for key, value in config.to_diff_dict().items() if not key.startswith("_")}
    return options | {"model_type": config.model_type}


def fingerprint(transformer: nn.Module, *details: object) -> str:
    """A short digest of a text encoder: its weights in float32 and what else shapes its vectors.

    The pooler is left out: no vector depends on it, and encoders loaded without one have random values there.
    """
    digest = hashlib.sha256(repr(details).encode())
    for key, tensor in sorted(transformer.state_dict().items()):
        if not key.startswith("pooler.") and tensor.is_floating_point():
            digest.update(f"{key}{_shape(tensor)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()[:16]
