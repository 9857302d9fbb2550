"""The Hypencoder: queries become q-nets, documents become vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..qnet import QNets, QNetSpec
from . import checkpoint
from .base import Encoder
from .checkpoint_config import DualEncoderConfig, override_config
from .dense_settings import DenseSettings
from .model_files import normalize_name
from .tokenizer_files import load_tokenizer


class Hypencoder(Encoder):
    """Encode queries as q-nets and documents as vectors with a Hypencoder checkpoint (arXiv 2502.05364).

    Args:
        name_or_path: Hub id (``jfkback/hypencoder.6_layer``), directory, or ``hypencoder-minilm``, a small model that comes
            with the package.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``.
        dtype: ``fp32``, ``bf16`` or ``auto``. ``bf16`` runs the transformers under autocast, which is about twice as fast on
            hardware with native bf16. ``auto`` is fp32 as in the released code, because layer norms amplify rounding.
        batch_size: Number of texts in a mini-batch.
        query_max_length: Maximum number of tokens of a query. Longer queries are truncated.
        doc_max_length: Maximum number of tokens of a document. Longer documents are truncated.
        verbose: If True, show progress.
        revision: Branch, tag or commit on the hub.
        pool_padding: If True, mean pooling also sums over padding, as in the released code. A document's vector then depends
            on the other documents of its batch. Only for comparisons with that code.
        qnet: Options of :class:`QNetSpec` that replace those of the checkpoint, such as ``{"do_residual": False}``. The
            published code of Matryoshka q-nets (arXiv 2607.17457) ignores residuals in the configuration.
        trust_remote_code: If True, code that comes with the backbone may run. Read it first.

    Example:
        >>> from pyterrier_hypencoder import Hypencoder
        >>> model = Hypencoder("hypencoder-minilm", device="cpu")
        >>> model.encode_docs(["Sort an array in place.", "Read a CSV file."]).shape
        (2, 384)
        >>> model.encode_queries(["load comma-separated data"])
        QNets(1 x 384-96-1, torch.float32, cpu)
    """

    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
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
        trust_remote_code: bool = False,
    ) -> None:
        self.name_or_path = normalize_name(name_or_path)
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size
        self.query_max_length = query_max_length
        self.doc_max_length = doc_max_length
        self.verbose = verbose
        self.revision = revision
        self.pool_padding = pool_padding
        self.qnet = qnet
        self.trust_remote_code = trust_remote_code

    @classmethod
    def example(cls) -> Hypencoder:
        """Return the bundled model, for documentation and schematics. Nothing is loaded until it is used."""
        return cls("hypencoder-minilm")

    @property
    def vec_size(self) -> int:
        """Number of dimensions of the document vectors, D, read from the configuration."""
        return self.qnet_spec.input_dim

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of the q-nets, read from the configuration."""
        return self._open("spec", self._make_load_key(), lambda: self._check_architecture(self._read_config()).qnet_spec)

    def _read_config(self) -> DualEncoderConfig:
        return override_config(checkpoint.read_config(self.name_or_path, self.revision), qnet=self.qnet)

    def _check_architecture(self, config: DualEncoderConfig) -> DualEncoderConfig:
        if config.architecture != "HypencoderDualEncoder":
            raise ValueError(
                f"{self.name_or_path!r} is a {config.architecture}, not a Hypencoder. Load it with "
                f"BiEncoder({self.name_or_path!r})."
            )
        return config

    def _make_load_key(self) -> tuple[Any, ...]:
        return (*super()._make_load_key(), self.pool_padding, dict(self.qnet or {}))

    def _load_networks(self) -> tuple[nn.Module, nn.Module, Any, DenseSettings]:
        trust: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        options: dict[str, Any] = {"pool_padding": self.pool_padding, "qnet": self.qnet}
        model, config = checkpoint.load(self.name_or_path, revision=self.revision, **options, **trust)
        self._check_architecture(config)
        tokenizer = load_tokenizer(self.name_or_path, self.revision, config.backbone, **trust)
        return model.query_encoder, model.passage_encoder, tokenizer, DenseSettings()

    def _to_qnets(self, output: QNets) -> QNets:
        return output.to(dtype=torch.float32)
