"""The ``config.json`` of a dual encoder, and the options that can be overridden when it is loaded."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..qnet import QNetSpec

ARCHITECTURES = ("HypencoderDualEncoder", "TextDualEncoder")
"""Names of the architectures: Hypencoders, and bi-encoders such as BE-Base."""


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
    def from_dict(cls, config: dict[str, Any]) -> DualEncoderConfig:
        """Build the configuration from the parsed ``config.json``.

        The key ``head_start`` of older checkpoints is read as ``head_init``.
        """
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
        return self.query_encoder_kwargs.get("model_name_or_path", "")


def is_dual_encoder(config: dict[str, Any]) -> bool:
    """Return True if a parsed ``config.json`` belongs to a dual encoder of this package or of the released code."""
    return (config.get("architectures") or [None])[0] in ARCHITECTURES or "passage_encoder_kwargs" in config


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
