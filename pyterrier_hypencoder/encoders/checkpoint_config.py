"""The ``config.json`` of a dual encoder, and the options that can be overridden when it is loaded."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..index.reading import guard_reading, make_error
from ..qnet import QNetSpec
from .hub import check_sizes
from .model_files import CONFIG_FILE

ARCHITECTURES = ("HypencoderDualEncoder", "TextDualEncoder")
"""Names of the architectures: Hypencoders, and bi-encoders such as BE-Base."""

_TEXT, _SWITCH, _MAPPING = (str,), (bool,), (dict,)
# Types of the values in config.json, by their path. Every value may be missing or null.
_TYPES: dict[str, tuple[type, ...]] = {
    "architectures": (list,),
    "shared_encoder": _SWITCH,
    "base_weights": _TEXT,
    "backbone_configs": _MAPPING,
    "backbone_configs.query": _MAPPING,
    "backbone_configs.passage": _MAPPING,
    "passage_encoder_kwargs": _MAPPING,
    "passage_encoder_kwargs.model_name_or_path": _TEXT,
    "passage_encoder_kwargs.pooling_type": _TEXT,
    "passage_encoder_kwargs.normalize": _SWITCH,
    "query_encoder_kwargs": _MAPPING,
    "query_encoder_kwargs.model_name_or_path": _TEXT,
    "query_encoder_kwargs.pooling_type": _TEXT,
    "query_encoder_kwargs.embedding_representation": _TEXT,
    "query_encoder_kwargs.head_init": _TEXT,
    "query_encoder_kwargs.query_projection": _SWITCH,
    "query_encoder_kwargs.base_encoder_output_dim": (int,),
    "query_encoder_kwargs.converter_kwargs": _MAPPING,
    "query_encoder_kwargs.converter_kwargs.vector_dimensions": (list,),
    "query_encoder_kwargs.converter_kwargs.activation_type": _TEXT,
    **{
        f"query_encoder_kwargs.converter_kwargs.{name}": _SWITCH
        for name in ("do_dropout", "do_layer_norm", "do_residual", "do_residual_on_last", "layer_norm_before_residual")
    },
    "query_encoder_kwargs.converter_kwargs.inner_product_skip": _SWITCH,
    "query_encoder_kwargs.converter_kwargs.normalize_input": _SWITCH,
    **{f"query_encoder_kwargs.converter_kwargs.{name}": (int, float) for name in ("dropout_prob", "skip_scale", "skip_gate")},
}


@dataclass
class DualEncoderConfig:
    """The ``config.json`` of a dual encoder. Every key is optional; unknown keys are kept and written back.

    Args:
        architecture: ``HypencoderDualEncoder``, or ``TextDualEncoder`` for a bi-encoder such as BE-Base.
        query_encoder_kwargs: Arguments of the query encoder.
        passage_encoder_kwargs: Arguments of the document encoder.
        shared_encoder: If True, both encoders use the same transformer.
        extra: All other keys of the file.
    """

    architecture: str = "HypencoderDualEncoder"
    query_encoder_kwargs: dict[str, Any] = field(default_factory=dict)
    passage_encoder_kwargs: dict[str, Any] = field(default_factory=dict)
    shared_encoder: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, config: dict[str, Any], name_or_path: str = "") -> DualEncoderConfig:
        """Build the configuration from the parsed ``config.json``.

        The key ``head_start`` of older checkpoints is read as ``head_init``.

        Args:
            config: The parsed file.
            name_or_path: Directory or hub id of the checkpoint, for error messages.

        Raises:
            ValueError: If a value has the wrong type, or is no possible size.
        """
        _check_types(config, f"{CONFIG_FILE} of {name_or_path!r}")
        extra = copy.deepcopy(config)
        architecture = (extra.pop("architectures", None) or [cls.architecture])[0]
        query_encoder_kwargs = extra.pop("query_encoder_kwargs", None) or {}
        if "head_start" in query_encoder_kwargs:
            query_encoder_kwargs.setdefault("head_init", query_encoder_kwargs.pop("head_start"))
        if architecture not in ARCHITECTURES:  # forks use other names, so look at the query encoder
            architecture = "HypencoderDualEncoder" if "converter_kwargs" in query_encoder_kwargs else "TextDualEncoder"
        return cls(
            architecture,
            query_encoder_kwargs,
            extra.pop("passage_encoder_kwargs", None) or {},
            bool(extra.pop("shared_encoder", False)),
            extra,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as it is written to ``config.json``."""
        return {
            **self.extra,
            "architectures": [self.architecture],
            "query_encoder_kwargs": self.query_encoder_kwargs,
            "passage_encoder_kwargs": self.passage_encoder_kwargs,
            "shared_encoder": self.shared_encoder,
        }

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of the q-nets."""
        with guard_reading(f"converter_kwargs in {CONFIG_FILE}", "are not valid", "Correct them."):
            return QNetSpec.from_config(self.query_encoder_kwargs.get("converter_kwargs") or {})

    @property
    def head_init(self) -> str:
        """Initialisation of the hyper-head, ``released`` or ``dense``."""
        return self.query_encoder_kwargs.get("head_init", "released")

    @property
    def pooling(self) -> str:
        """Pooling of the document encoder. The default is ``cls``, as in the released code."""
        return self.passage_encoder_kwargs.get("pooling_type") or "cls"

    @property
    def normalize(self) -> bool:
        """True if document vectors and query vectors have length 1. False in the released models."""
        return bool(self.passage_encoder_kwargs.get("normalize", False))

    @property
    def backbone(self) -> str:
        """Name of the query encoder's backbone; empty if the configuration has none."""
        return self.query_encoder_kwargs.get("model_name_or_path") or ""

    @property
    def base_weights(self) -> str | None:
        """Name of the model that has the weights which the checkpoint does not store; None if it stores all of them."""
        return self.extra.get("base_weights")


def is_dual_encoder(config: dict[str, Any]) -> bool:
    """Return True if a parsed ``config.json`` belongs to a dual encoder of this package or of the released code."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return first in ARCHITECTURES or "passage_encoder_kwargs" in config


def _check_types(config: dict[str, Any], source: str) -> None:
    for path, types in _TYPES.items():
        value: Any = config
        for key in path.split("."):
            value = value.get(key) if value is not None else None
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            expected = " or ".join(t.__name__ for t in types)
            raise make_error(f"{path} in {source} must be {expected}, got {value!r}. Correct the file.")
    query = config.get("query_encoder_kwargs") or {}
    dimensions = (query.get("converter_kwargs") or {}).get("vector_dimensions") or []
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in dimensions):
        raise make_error(f"vector_dimensions in {source} must be integers, got {dimensions!r}. Correct the file.")
    check_sizes(config, source)


def override_config(
    config: DualEncoderConfig,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    qnet: Mapping[str, Any] | None = None,
) -> DualEncoderConfig:
    """Return a copy of a configuration with some options replaced.

    Args:
        config: The configuration.
        pooling: Pooling of both encoders; None keeps it.
        normalize: If True, both encoders return vectors of length 1; None keeps the option.
        qnet: Options of :class:`pyterrier_hypencoder.QNetSpec` that leave the shapes of the weights alone, such as
            ``do_residual=False``.

    Raises:
        ValueError: If a q-net option does not exist or decides the shapes of the weights.
    """
    config = copy.deepcopy(config)
    known = {entry.name for entry in dataclasses.fields(QNetSpec)} - {"vector_dimensions", "inner_product_skip", "narrowed"}
    if unknown := sorted(set(qnet or {}) - known):
        raise ValueError(f"qnet has unknown options: {', '.join(unknown)}. Known options are {sorted(known)}.")
    if qnet:
        kwargs = config.query_encoder_kwargs
        kwargs["converter_kwargs"] = (kwargs.get("converter_kwargs") or {}) | dict(qnet)
    if pooling is not None:
        config.query_encoder_kwargs["pooling_type"] = config.passage_encoder_kwargs["pooling_type"] = pooling
    if normalize is not None:
        config.passage_encoder_kwargs["normalize"] = normalize
    return config
