"""Checkpoints: read and write the weights and the configuration of dual encoders."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..index.files import name_file, write_json
from ..index.reading import make_error
from ..options import check_choice
from .building import build_and_compare, find_mismatches, own_defaults
from .checkpoint_config import ARCHITECTURES, DualEncoderConfig, is_dual_encoder, override_config
from .hub import load_backbone_config, load_transformer, make_transformer
from .model_checksums import CHECKSUM_FILE, verify_checksums, write_checksums
from .model_files import CONFIG_FILE, read_json, suggest_name
from .networks import HypencoderDualEncoder, TextDualEncoder, TextEncoder
from .tokenizer_files import TOKENIZER_FILES
from .weights import WEIGHT_FILES, check_finite, find_weight_files, read_shapes, read_tensors

TRANSFORMER_PREFIXES = {side: f"{side}_encoder.transformer." for side in ("query", "passage")}
_NETWORKS: dict[str, type[HypencoderDualEncoder]] = {
    "HypencoderDualEncoder": HypencoderDualEncoder,
    "TextDualEncoder": TextDualEncoder,
}
_MAX_PROBLEMS_SHOWN = 8


# Reading


def read_config(name_or_path: str, revision: str | None = None) -> DualEncoderConfig:
    """Read the configuration of a dual-encoder checkpoint.

    Args:
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: If the checkpoint has no configuration.
        ValueError: If the configuration belongs to another kind of model.
    """
    config = read_json(name_or_path, revision=revision)
    if config is None:
        raise FileNotFoundError(
            f"{name_or_path!r} has no {CONFIG_FILE}. Check that it is a checkpoint. If it is on the hub, check that the hub "
            f"can be reached or that the model is in the local cache.{suggest_name(name_or_path)}"
        )
    verify_checksums(name_or_path, revision, only=CONFIG_FILE)
    if not is_dual_encoder(config):
        raise ValueError(
            f"{name_or_path!r} is not a dual encoder ({', '.join(ARCHITECTURES)}): its {CONFIG_FILE} has architectures "
            f"{config.get('architectures')}. Load other encoders with BiEncoder({name_or_path!r})."
        )
    return DualEncoderConfig.from_dict(config, name_or_path)


def find_config(name_or_path: str, revision: str | None = None) -> DualEncoderConfig | None:
    """Return the configuration of a dual-encoder checkpoint; None if the model is something else or has none."""
    config = read_json(name_or_path, revision=revision)
    return DualEncoderConfig.from_dict(config, name_or_path) if config is not None and is_dual_encoder(config) else None


def load(
    name_or_path: str,
    *,
    revision: str | None = None,
    pool_padding: bool = False,
    pooling: str | None = None,
    normalize: bool | None = None,
    qnet: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> tuple[HypencoderDualEncoder, DualEncoderConfig]:
    """Load a dual encoder in float32 on the CPU, in evaluation mode.

    The checkpoint holds all weights, so the weights of the backbone are not downloaded. Checkpoints that were saved
    with ``base=...`` are the exception; see :func:`save`.

    Args:
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.
        pool_padding: See :func:`pyterrier_hypencoder.encoders.pooling.pool`.
        pooling: Replaces the pooling in the configuration.
        normalize: Replaces the normalisation in the configuration.
        qnet: Replaces options of :class:`pyterrier_hypencoder.QNetSpec`; see
            :func:`~pyterrier_hypencoder.encoders.checkpoint_config.override_config`.
        trust_remote_code: If True, code that comes with the backbone may run.

    Returns:
        The dual encoder and its configuration.

    Raises:
        FileNotFoundError: If configuration or weights are missing, or the backbone is unknown.
        ValueError: If the weights do not fit the configuration, or an option does not exist.
    """
    config = override_config(read_config(name_or_path, revision), pooling=pooling, normalize=normalize, qnet=qnet)
    verify_checksums(name_or_path, revision)
    files = find_weight_files(name_or_path, revision)
    base: dict[str, Tensor] = {}
    if config.base_weights is not None:
        base = list_transformer_weights(load_transformer(config.base_weights, trust_remote_code=trust_remote_code))
    options: dict[str, Any] = {"pool_padding": pool_padding, "trust_remote_code": trust_remote_code}
    shapes = {key: tensor.to("meta") for key, tensor in base.items()} | read_shapes(files)
    source = f"{CONFIG_FILE} of {name_or_path!r}"
    plan: Any = build_and_compare(lambda: _assemble(config, name_or_path, **options), shapes, source)
    _match_weights(plan, shapes, name_or_path)
    model = build(config, name_or_path, **options)
    fit_weights(model, base | read_tensors(files), name_or_path)
    return model.eval(), config


def build(
    config: DualEncoderConfig,
    name_or_path: str = "",
    *,
    seed: int = 0,
    pool_padding: bool = False,
    trust_remote_code: bool = False,
) -> HypencoderDualEncoder:
    """Build a dual encoder with random weights. The global random state does not change.

    Args:
        config: The configuration.
        name_or_path: Directory or hub id of the configuration, to find backbones that are named by a relative path.
        seed: Seed of the random weights.
        pool_padding: See :func:`pyterrier_hypencoder.encoders.pooling.pool`.
        trust_remote_code: If True, code that comes with the backbone may run.
    """
    with own_defaults(seed):
        return _assemble(config, name_or_path, pool_padding=pool_padding, trust_remote_code=trust_remote_code)


def _assemble(
    config: DualEncoderConfig, name_or_path: str, *, pool_padding: bool, trust_remote_code: bool
) -> HypencoderDualEncoder:
    query = _make_backbone(config, "query", name_or_path, trust_remote_code)
    passage = query if config.shared_encoder else _make_backbone(config, "passage", name_or_path, trust_remote_code)
    return _NETWORKS[config.architecture](config, query, passage, pool_padding=pool_padding)


def _make_backbone(config: DualEncoderConfig, side: str, name_or_path: str, trust_remote_code: bool) -> nn.Module:
    stored = config.extra.get("backbone_configs", {}).get(side)
    kwargs = config.query_encoder_kwargs if side == "query" else config.passage_encoder_kwargs
    backbone = load_backbone_config(kwargs.get("model_name_or_path", ""), stored, name_or_path, trust_remote_code)
    return make_transformer(backbone, trust_remote_code).float()


def list_transformer_weights(transformer: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a transformer under the names that they have in both encoders of a dual encoder."""
    state = transformer.state_dict()
    return {prefix + key: value for prefix in TRANSFORMER_PREFIXES.values() for key, value in state.items()}


def read_weights(name_or_path: str, revision: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name.

    Raises:
        FileNotFoundError: If there is no weight file.
        ValueError: If a file is damaged, contains anything but tensors, or has NaN or infinity.
    """
    return read_tensors(find_weight_files(name_or_path, revision))


def fit_weights(model: HypencoderDualEncoder, weights: dict[str, Tensor], name_or_path: str) -> None:
    """Copy weights into a model, all or none. A shared transformer may be stored under either prefix or both.

    Args:
        model: The dual encoder.
        weights: Tensors by name.
        name_or_path: Directory or hub id of the weights, for error messages.

    Raises:
        ValueError: If a weight is missing, unknown or has another shape. The message names it.
    """
    weights = _match_weights(model, weights, name_or_path)
    if model.config.shared_encoder:
        for key in [key for key in weights if key.startswith(TRANSFORMER_PREFIXES["query"])]:
            twin = TRANSFORMER_PREFIXES["passage"] + key.removeprefix(TRANSFORMER_PREFIXES["query"])
            if not torch.equal(weights[key], weights[twin]):
                raise make_error(
                    f"{name_or_path!r} sets shared_encoder, but its weights {key} and {twin} differ. If they should differ, "
                    f"set shared_encoder to false in its {CONFIG_FILE}."
                )
    model.load_state_dict(weights)


def _match_weights(model: HypencoderDualEncoder, weights: dict[str, Tensor], name_or_path: str) -> dict[str, Tensor]:
    """Return the weights of a model under its names, after checking names and shapes. Values are not read."""
    expected = model.state_dict()
    # Old versions of transformers stored these buffers.
    weights = {k: v for k, v in weights.items() if k in expected or not k.endswith((".position_ids", ".token_type_ids"))}
    if model.config.shared_encoder:
        query, passage = TRANSFORMER_PREFIXES["query"], TRANSFORMER_PREFIXES["passage"]
        for here, there in ((query, passage), (passage, query)):
            for key in [key for key in weights if key.startswith(here)]:
                weights.setdefault(there + key.removeprefix(here), weights[key])
    problems = [f"{key} {_list_shape(expected[key])} is missing" for key in expected if key not in weights]
    problems += [f"{key} {_list_shape(weights[key])} is unknown" for key in weights if key not in expected]
    problems += find_mismatches(expected, weights)
    if problems:
        hidden = len(problems) - _MAX_PROBLEMS_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        raise make_error(
            f"The weights in {name_or_path!r} do not fit its {CONFIG_FILE}: "
            f"{'; '.join(problems[:_MAX_PROBLEMS_SHOWN])}{more}. Check that the two files belong together."
        )
    return weights


def _list_shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


# Writing


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
    """Write a checkpoint that :func:`load` reads without any other file.

    Args:
        model: The dual encoder.
        directory: Directory of the checkpoint. It is created if needed. Its files are replaced when all new ones are complete.
        format: ``safetensors`` (a shared transformer is stored once) or ``bin`` (released layout, both prefixes).
        tokenizer: A Hugging Face tokenizer to save with the checkpoint.
        weights: Weights to write instead of those of the model, under the same names.
        base: Name of the model that both transformers started from. Weights that are unchanged since then are not stored;
            :func:`load` takes them from that model. The file is then much smaller.
        half: If True, weights are rounded to float16.

    The checkpoint gets a file of checksums, so :func:`load` notices files that have changed since then.

    Raises:
        ValueError: If the format is unknown, or a weight is NaN or infinite, also after rounding.
    """
    check_choice("format", format, WEIGHT_FILES)
    directory = Path(directory)
    selected = _select_weights(model, weights, base, half, format)
    check_finite(selected, f"The model for {directory}")
    config = {key: value for key, value in model.config.to_dict().items() if key != "base_weights"}
    config |= {} if base is None else {"base_weights": base}
    config["backbone_configs"] = {
        "query": describe_backbone(model.query_encoder.transformer.config),
        "passage": describe_backbone(model.passage_encoder.transformer.config),
    }
    with _replace_files(directory) as new:
        _write_weights(selected, new / WEIGHT_FILES[format])
        if tokenizer is not None:
            with name_file(directory):
                tokenizer.save_pretrained(new)
        write_json(new / CONFIG_FILE, config, sort_keys=True, default=str)
        write_checksums(new, [CONFIG_FILE, WEIGHT_FILES[format], *TOKENIZER_FILES], others=directory)
    for other in set(WEIGHT_FILES.values()) - {WEIGHT_FILES[format]}:
        (directory / other).unlink(missing_ok=True)  # otherwise load() could read the old file in the other format


@contextmanager
def _replace_files(directory: Path) -> Iterator[Path]:
    """Yield a folder to write to. Its files replace those of a directory when all of them are complete.

    After an error, such as a full disk, the directory is as it was. A process that is killed between two files leaves a
    checkpoint that its checksums refuse.
    """
    existed = directory.is_dir()
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / ".partial"
    try:
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        new.mkdir()
        yield new
        for file in sorted(new.iterdir(), key=lambda file: file.name == CHECKSUM_FILE):  # the checksums last
            os.replace(file, directory / file.name)
        new.rmdir()
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if not existed:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def _select_weights(
    model: HypencoderDualEncoder, weights: dict[str, Tensor] | None, base: str | None, half: bool, format: str
) -> dict[str, Tensor]:
    """Return the weights to store."""
    weights = model.state_dict() if weights is None else weights
    weights = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    if base is not None:
        known = list_transformer_weights(load_transformer(base))
        weights = {key: value for key, value in weights.items() if key not in known or not torch.equal(value, known[key])}
    if half:
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    if format == "safetensors" and model.config.shared_encoder:
        weights = {key: value for key, value in weights.items() if not key.startswith(TRANSFORMER_PREFIXES["passage"])}
    return weights


def _write_weights(weights: dict[str, Tensor], file: Path) -> None:
    with name_file(file):
        if file.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(weights, file, metadata={"format": "pt"})
        else:
            with open(file, "wb") as out:
                torch.save(weights, out)


def describe_backbone(config: Any) -> dict[str, Any]:
    """Return the options that rebuild a backbone. Private keys are left out: they say how transformers ran it."""
    options = {key: value for key, value in config.to_diff_dict().items() if not key.startswith("_")}
    return options | {"model_type": config.model_type}


def compute_fingerprint(encoder: TextEncoder, prefix: str, *, lower_case: bool = False) -> str:
    """Compute a short digest of everything that changes document vectors.

    The pooler is left out: no vector depends on it, and its weights are random in encoders that were saved without it.

    Args:
        encoder: The document encoder. Its weights, pooling, layers and normalisation enter the digest.
        prefix: Text before every document.
        lower_case: If True, texts are lower-cased first.

    Returns:
        16 hexadecimal digits.
    """
    details = (encoder.pooling, encoder.pool_padding, encoder.normalize, prefix)
    # Most models have none of these, and keep the digest that existing indexes record.
    more = (encoder.truncate_dim, encoder.num_skipped, lower_case, str(encoder.layers))
    digest = hashlib.sha256(repr(details if more == (None, 0, False, str(nn.ModuleList())) else (*details, *more)).encode())
    weights = [*sorted(encoder.transformer.state_dict().items()), *sorted(encoder.layers.state_dict().items())]
    for key, tensor in weights:
        if not key.startswith("pooler.") and tensor.is_floating_point():
            digest.update(f"{key}{_list_shape(tensor)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()[:16]
