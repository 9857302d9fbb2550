"""The Hypencoder: its checkpoints as encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..qnet import QNets, QNetSpec
from . import checkpoint, hub
from .base import Encoder
from .networks import DualEncoderConfig


class Hypencoder(Encoder):
    """A Hypencoder checkpoint: queries become q-nets, documents vectors (arXiv 2502.05364).

    Args:
        name_or_path: hub id (``jfkback/hypencoder.6_layer``) or directory.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda[:n]``.
        dtype: ``fp32``; ``bf16`` runs the transformers under autocast, twice as fast where the hardware has it; ``auto``
            is fp32, as the released code computes: layer norms amplify what bf16 loses.
        batch_size: texts in a mini-batch.
        query_max_length: tokens of a query, the rest is cut.
        doc_max_length: tokens of a document, the rest is cut.
        verbose: whether to show progress.
        revision: branch, tag or commit on the hub.
        pool_padding: take padding into the sum when pooling by mean, as the released code does; a document's vector then
            depends on the others of its batch. Only for comparing with that code.
        qnet: options of :class:`QNetSpec` in place of the checkpoint's own, such as ``{"do_residual": False}``: the published
            code of Matryoshka q-nets (arXiv 2607.17457) leaves residuals out whatever the configuration says.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
        query_max_length: int = 64,
        doc_max_length: int = 512,
        verbose: bool = False,
        revision: str | None = None,
        pool_padding: bool = False,
        qnet: Mapping[str, Any] | None = None,
    ) -> None:
        self.name_or_path = str(name_or_path)
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size
        self.query_max_length = query_max_length
        self.doc_max_length = doc_max_length
        self.verbose = verbose
        self.revision = revision
        self.pool_padding = pool_padding
        self.qnet = qnet

    @property
    def vec_size(self) -> int:
        """Dimensions of the document vectors, D; needs the configuration only."""
        return self.qnet_spec.input_dim

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of the q-nets; needs the configuration only."""
        return self._open("spec", self._load_key(), lambda: self._checked(self._config()).qnet_spec)

    def _config(self) -> DualEncoderConfig:
        return checkpoint.override_config(checkpoint.read_config(self.name_or_path, self.revision), qnet=self.qnet)

    def _checked(self, config: DualEncoderConfig) -> DualEncoderConfig:
        if config.architecture != "HypencoderDualEncoder":
            raise ValueError(
                f"expected a Hypencoder in {self.name_or_path!r}, found a {config.architecture}; load it with "
                f"BiEncoder({self.name_or_path!r})"
            )
        return config

    def _load_key(self) -> tuple[Any, ...]:
        return (*super()._load_key(), self.pool_padding, dict(self.qnet or {}))

    def _networks(self) -> tuple[nn.Module, nn.Module, Any]:
        options: dict[str, Any] = {"pool_padding": self.pool_padding, "qnet": self.qnet}
        model, config = checkpoint.load(self.name_or_path, revision=self.revision, **options)
        self._checked(config)
        backbone = config.query_encoder_kwargs.get("model_name_or_path", "")
        return model.query_encoder, model.passage_encoder, hub.load_tokenizer(self.name_or_path, self.revision, backbone)

    def _to_qnets(self, output: QNets) -> QNets:
        return output.to(dtype=torch.float32)
