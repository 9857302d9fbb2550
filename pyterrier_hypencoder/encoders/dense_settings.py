"""Settings of dense models: what the files of sentence-transformers say beside the transformer."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..index.reading import make_error
from .model_files import CONFIG_FILE, check_subfolder, is_known_absent, read_json
from .pooling import POOLINGS

logger = logging.getLogger(__name__)

_MODEL_CONFIG = "config_sentence_transformers.json"
_LAYERS = ("Dense", "LayerNorm", "Normalize")
_IGNORED_MODULES = ("Dropout",)  # acts in training only
_POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}
_TRANSFORMER_CONFIGS = ("", "roberta_", "distilbert_", "camembert_", "albert_", "xlm-roberta_", "xlnet_")
_IGNORED_OPTIONS = ("unpad_inputs", "attn_implementation", "dtype", "torch_dtype", "add_pooling_layer", "trust_remote_code")
"""Options of the transformer that do not change vectors, or only by rounding."""
_TEXT_MODALITY = {"method": "forward", "method_output_name": "last_hidden_state"}


@dataclass(frozen=True)
class LayerSettings:
    """A layer after the pooling: its kind, the folder with its weights, and its options."""

    kind: str
    folder: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DenseSettings:
    """How a dense model turns texts into vectors; the defaults are for models without sentence-transformers files.

    Args:
        pooling: See :func:`pyterrier_hypencoder.encoders.pooling.pool`.
        normalize: If True, vectors have length 1.
        layers: Layers after the pooling.
        truncate_dim: Number of dimensions that are kept; None for all.
        include_prompt: If False, prompts are left out of the pooling.
        lower_case: If True, texts are lower-cased first.
        max_length: Maximum number of tokens; None if the tokenizer states it.
        query_prompt: Text before every query.
        doc_prompt: Text before every document.
        subfolder: Folder with the transformer and the tokenizer.
    """

    pooling: str = "mean"
    normalize: bool = False
    layers: tuple[LayerSettings, ...] = ()
    truncate_dim: int | None = None
    include_prompt: bool = True
    lower_case: bool = False
    max_length: int | None = None
    query_prompt: str = ""
    doc_prompt: str = ""
    subfolder: str = ""

    @property
    def is_plain(self) -> bool:
        """True if the vectors need nothing but a transformer, pooling and normalisation."""
        return self == DenseSettings(self.pooling, self.normalize, max_length=self.max_length)


def read_dense_settings(
    name_or_path: str, revision: str | None, pooling: str | None = None, normalize: bool | None = None
) -> DenseSettings:
    """Read the settings of a dense model from its sentence-transformers files.

    Args:
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.
        pooling: Replaces the pooling; None keeps it.
        normalize: Replaces the normalisation; None keeps it.

    Raises:
        ValueError: If the files are damaged or ask for something unsupported.
        ValueError: If the machine is offline and the cache does not say whether the model has such files.
    """
    modules = read_json(name_or_path, "modules.json", revision, kind=list)
    if modules is None:
        return _make_default_settings(name_or_path, revision, pooling, normalize)
    entries = _list_modules(modules, name_or_path)
    settings = DenseSettings(subfolder=entries[0].folder)
    settings = _read_transformer_options(settings, name_or_path, revision)
    settings = _read_pooling(settings, entries, pooling, name_or_path, revision)
    settings = _read_layers(settings, entries, name_or_path, revision)
    return _read_model_options(settings, name_or_path, revision, normalize)


def _make_default_settings(name: str, revision: str | None, pooling: str | None, normalize: bool | None) -> DenseSettings:
    """Return the settings of a model without ``modules.json``, if nothing suggests that the file got lost."""
    if pooling is None or normalize is None:
        if not is_known_absent(name, "modules.json", revision):
            raise ValueError(
                f"The pooling of {name!r} is unknown. The machine is offline, and the local cache does not say if the model "
                "has a modules.json. Pass pooling=... and normalize=..., or go online once."
            )
        if read_json(name, _MODEL_CONFIG, revision) is not None:
            raise make_error(
                f"{name!r} has a {_MODEL_CONFIG} but no modules.json, so its pooling is unknown. Download the model again, or "
                "pass pooling=... and normalize=..."
            )
    if pooling is None and _is_language_model(read_json(name, CONFIG_FILE, revision) or {}):
        raise make_error(
            f"{name!r} is a language model without sentence-transformers files, so its pooling is unknown. Pass pooling="
            "'last' or another one."
        )
    return DenseSettings(pooling or DenseSettings.pooling, bool(normalize))


def _is_language_model(config: Mapping[str, Any]) -> bool:
    architectures = config.get("architectures")
    return isinstance(architectures, list) and bool(architectures) and str(architectures[0]).endswith("ForCausalLM")


def _list_modules(modules: list[Any], name: str) -> list[LayerSettings]:
    """Return the modules of a model in order: transformer, pooling, and layers."""
    entries = []
    for module in modules:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise make_error(f"modules.json of {name!r} must list modules with type and path. Download it again.")
        package, kind = module["type"].split(".")[0], module["type"].rsplit(".", 1)[-1]
        if package != "sentence_transformers":
            raise make_error(
                f"modules.json of {name!r} names {module['type']}, which is code that comes with the model. It is not "
                "supported, with trust_remote_code neither."
            )
        if kind not in _IGNORED_MODULES:
            entries.append(LayerSettings(kind, check_subfolder(module.get("path", ""), f"modules.json of {name!r}")))
    kinds = [entry.kind for entry in entries]
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", *_LAYERS})
    if unknown:
        raise make_error(
            f"{name!r} has unsupported modules: {', '.join(unknown)}. Supported are Transformer, Pooling, "
            f"{', '.join(_LAYERS)}."
        )
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= set(_LAYERS):
        raise make_error(
            f"modules.json of {name!r} must list one Transformer, one Pooling, and then layers ({', '.join(_LAYERS)}), got "
            f"{kinds}."
        )
    return entries


def _join(folder: str, filename: str) -> str:
    return f"{folder}/{filename}" if folder else filename


def _refuse_unknown(options: Mapping[str, Any], known: Collection[str], source: str) -> None:
    """Refuse options that are set and not known, because they could change the vectors."""
    unknown = [key for key, value in options.items() if key not in known and value not in (None, {}, [], False)]
    if unknown:
        raise make_error(f"{source} has unsupported options: {', '.join(unknown)}. Remove them if they do not matter.")


def _check_type(options: Mapping[str, Any], key: str, types: tuple[type, ...], source: str, default: Any = None) -> Any:
    value: Any = options.get(key)
    if value is None:
        return default
    is_valid = isinstance(value, types) and (not isinstance(value, bool) or bool in types)
    if not is_valid or (types == (int,) and int(value) < 1):
        raise make_error(f"{source} has {key} = {value!r}, which is not a valid value. Correct it.")
    return value


def _read_transformer_options(settings: DenseSettings, name: str, revision: str | None) -> DenseSettings:
    for kind in _TRANSFORMER_CONFIGS:
        filename = _join(settings.subfolder, f"sentence_{kind or 'bert_'}config.json")
        if options := read_json(name, filename, revision):
            break
    else:
        return settings
    source = f"{filename} of {name!r}"
    flat = dict(options)
    for key in ("model", "tokenizer", "processor", "config"):  # options of the parts, under old and new names
        for suffix in ("_args", "_kwargs"):
            flat |= _check_type(flat, key + suffix, (dict,), source, {})
            flat.pop(key + suffix, None)
    known = ("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name", *_IGNORED_OPTIONS)
    _refuse_unknown(flat, known, source)
    modalities = _check_type(flat, "modality_config", (dict,), source, {"text": _TEXT_MODALITY})
    if (
        modalities.get("text") != _TEXT_MODALITY
        or "message" in modalities
        or flat.get("transformer_task", "feature-extraction") != "feature-extraction"
        or flat.get("module_output_name", "token_embeddings") != "token_embeddings"
    ):
        raise make_error(f"{source} describes something else than token vectors of a text, which is not supported.")
    return replace(
        settings,
        max_length=_check_type(flat, "max_seq_length", (int,), source),
        lower_case=_check_type(flat, "do_lower_case", (bool,), source, False),
    )


def _read_pooling(
    settings: DenseSettings, entries: list[LayerSettings], pooling: str | None, name: str, revision: str | None
) -> DenseSettings:
    filename = _join(entries[1].folder, "config.json")
    options = read_json(name, filename, revision)
    if options is None:
        raise make_error(f"{name!r} has no {filename}, which modules.json asks for. Download the model again.")
    source = f"{filename} of {name!r}"
    dimensions = ("word_embedding_dimension", "embedding_dimension")
    modes = [key for key in options if key.startswith("pooling_mode")]
    _refuse_unknown(options, (*dimensions, "include_prompt", *modes), source)
    include_prompt = _check_type(options, "include_prompt", (bool,), source, True)
    return replace(settings, pooling=pooling or _find_pooling(options, name), include_prompt=include_prompt)


def _find_pooling(options: Mapping[str, Any], name: str) -> str:
    found = options.get("pooling_mode")
    if found is None:
        found = [key.removeprefix("pooling_mode_") for key, on in options.items() if key.startswith("pooling_mode_") and on]
        found = found or ["mean"]
    found = [found] if isinstance(found, str) else found
    names = [_POOLINGS.get(mode, mode) if isinstance(mode, str) else mode for mode in found] if isinstance(found, list) else []
    if len(names) != 1 or names[0] not in POOLINGS:
        raise make_error(f"{name!r} has pooling {found}, but exactly one of {POOLINGS} is supported. Pass pooling=...")
    return names[0]


def _read_layers(settings: DenseSettings, entries: list[LayerSettings], name: str, revision: str | None) -> DenseSettings:
    layers = []
    for entry in entries[2:]:
        options = read_json(name, _join(entry.folder, "config.json"), revision) if entry.folder else None
        source = f"{_join(entry.folder, 'config.json')} of {name!r}"
        if options is None and entry.kind != "Normalize":
            raise make_error(f"{name!r} has no {source}, which modules.json asks for. Download the model again.")
        options = options or {}
        for key in ("module_input_name", "module_output_name"):
            if options.pop(key, None) not in (None, "sentence_embedding"):
                raise make_error(f"{source} has a {key} other than sentence_embedding, which is not supported.")
        layers.append(replace(entry, options=options))
    return replace(settings, layers=tuple(layers))


def _read_model_options(settings: DenseSettings, name: str, revision: str | None, normalize: bool | None) -> DenseSettings:
    source = f"{_MODEL_CONFIG} of {name!r}"
    options = read_json(name, _MODEL_CONFIG, revision) or {}
    known = ("__version__", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "model_type")
    _refuse_unknown(options, (*known, "requirements"), source)
    if options.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise make_error(f"{source} has model_type = {options['model_type']!r}. Only SentenceTransformer is supported.")
    similarity = options.get("similarity_fn_name")
    if similarity not in (None, "cosine", "dot", "dot_product") and normalize is None:
        raise make_error(
            f"{source} has similarity_fn_name = {similarity!r}, but scores are inner products. Pass normalize=True or "
            "normalize=False to use the vectors nevertheless."
        )
    prompts = _check_type(options, "prompts", (dict,), source, {})
    if not all(isinstance(prompt, str | None) for prompt in prompts.values()):
        raise make_error(f"{source} has prompts that are not strings. Correct it.")
    others = {"passage", "corpus"} & {key for key, prompt in prompts.items() if prompt}
    if others and prompts.get("document") is None:
        logger.warning("%s: documents get no prompt, because none is named document; pass doc_prefix=...", name)
    truncate_dim = _check_type(options, "truncate_dim", (int,), source)
    layers, length_one = settings.layers, similarity == "cosine"
    if layers and layers[-1].kind == "Normalize" and (truncate_dim is None or length_one or normalize is not None):
        layers, length_one = layers[:-1], True
    return replace(
        settings,
        layers=layers,
        normalize=length_one if normalize is None else normalize,
        truncate_dim=truncate_dim,
        query_prompt=prompts.get("query") or "",
        doc_prompt=prompts.get("document") or "",
    )
