"""The Hypencoder: queries become q-nets, documents become vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..options import check_option_names, list_items
from ..qnet import QNets, QNetSpec
from . import checkpoint
from .base import Encoder
from .biencoder import BiEncoder
from .checkpoint_config import DualEncoderConfig, override_config
from .dense_settings import DenseSettings
from .dense_start import from_dense
from .model_files import normalize_name
from .networks import HypencoderDualEncoder
from .tokenizer_files import load_tokenizer


class Hypencoder(Encoder):
    """Encode queries as q-nets and documents as vectors with a Hypencoder checkpoint (arXiv 2502.05364).

    Args:
        name_or_path: Hub id (``jfkback/hypencoder.6_layer``), directory, or ``hypencoder-minilm``, a small model that comes
            with the package.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``. A list such as ``["cuda:0", "cuda:1"]`` encodes
            documents on several devices, and queries on the first one.
        dtype: ``fp32``, ``bf16`` or ``auto``. ``bf16`` encodes texts and generates q-nets under autocast, which is about twice
            as fast on hardware with native bf16. ``auto`` is fp32 as in the released code, because layer norms amplify
            rounding. Q-nets in bf16 have a cosine above .9999 with those of fp32, but up to 2 of the best 100 documents differ
            for the bundled model, and more for deep q-nets.
        batch_size: Number of texts in a mini-batch.
        query_max_length: Maximum number of tokens of a query. Longer queries are truncated.
        doc_max_length: Maximum number of tokens of a document. Longer documents are truncated.
        verbose: If True, show progress.
        revision: Branch, tag or commit on the hub.
        pool_padding: If True, mean pooling also sums over padding, as in the released code. A document's vector then depends
            on the other documents of its batch. Only for comparisons with that code.
        qnet: Options of :class:`QNetSpec` that replace those of the checkpoint, such as ``{"do_residual": False}``. The
            published code of Matryoshka q-nets (arXiv 2607.17457) ignores residuals in the configuration.
        dense_start: Options of :func:`~pyterrier_hypencoder.encoders.dense_start.from_dense`; ``name_or_path`` is then a dense
            model. :meth:`from_dense` sets them.
        trust_remote_code: If True, code that comes with the backbone may run. Read it first.

    Example:
        >>> from pyterrier_hypencoder import Hypencoder
        >>> model = Hypencoder("hypencoder-minilm", device="cpu")
        >>> model.encode_docs(["Sort an array in place.", "Read a CSV file."]).shape
        (2, 384)
        >>> model.encode_queries(["load comma-separated data"])
        QNets(1 x 384-96-1, torch.float32, cpu)
    """

    @check_option_names
    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
        *,
        device: str | Sequence[str] = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
        query_max_length: int = 64,
        doc_max_length: int = 512,
        verbose: bool = False,
        revision: str | None = None,
        pool_padding: bool = False,
        qnet: Mapping[str, Any] | None = None,
        dense_start: Mapping[str, Any] | None = None,
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
        self.dense_start = dense_start
        self.trust_remote_code = trust_remote_code

    @classmethod
    def example(cls) -> Hypencoder:
        """Return the bundled model, for documentation and schematics. Nothing is loaded until it is used."""
        return cls("hypencoder-minilm")

    @classmethod
    def from_dense(
        cls,
        model: BiEncoder | str | os.PathLike[str],
        *,
        hidden: Sequence[int],
        shared_encoder: bool = False,
        query_projection: bool = False,
        seed: int = 0,
        **qnet: Any,
    ) -> Hypencoder:
        """Return an untrained Hypencoder that ranks like a dense model, to train it with :class:`.HypencoderTrainer`.

        It has the document vectors of the dense model, so an existing index stays valid unless documents are trained.

        Args:
            model: Bi-encoder, or its hub id or directory. Its lengths, device and batch size are kept.
            hidden: Widths of the hidden layers of the q-nets, such as ``[96]``.
            shared_encoder: If True, one transformer encodes queries and documents.
            query_projection: If True, query vectors get a projection that can learn while the transformers are frozen.
            seed: Seed of the random weights.
            **qnet: Further options of :class:`pyterrier_hypencoder.QNetSpec`; see :func:`.from_dense`.

        Raises:
            ValueError: If the model has prefixes, or if hidden is not a list of widths.

        Example:
            >>> from pyterrier_hypencoder import BiEncoder, Hypencoder
            >>> dense = BiEncoder("sentence-transformers/all-MiniLM-L6-v2", device="cpu")
            >>> Hypencoder.from_dense(dense, hidden=[96]).encode_queries(["red planet"])
            QNets(1 x 384-96-1, torch.float32, cpu)
        """
        dense = model if isinstance(model, BiEncoder) else BiEncoder(model)
        if dense.query_prefix or dense.doc_prefix:
            raise ValueError("The dense model must have no prefixes, because Hypencoders have none. Start from another model.")
        widths = list_items("hidden", hidden, int, "widths")
        start: dict[str, Any] = {
            "hidden": widths,
            "pooling": dense.pooling,
            "normalize": dense.normalize,
            "seed": seed,
            **qnet,
        }
        start |= {"shared_encoder": shared_encoder, "query_projection": query_projection}
        defaults = {"pooling": None, "normalize": None, "seed": 0, "shared_encoder": False, "query_projection": False}
        start = {name: value for name, value in start.items() if name not in defaults or value != defaults[name]}
        kept = dense.options(skip=("pooling", "normalize", "query_prefix", "doc_prefix"))
        return cls(dense.name_or_path, revision=dense.revision, dense_start=start, **kept)

    @property
    def vec_size(self) -> int:
        """Number of dimensions of the document vectors, D, read from the configuration."""
        return self.qnet_spec.input_dim

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of the q-nets, read from the configuration."""
        if self.dense_start is not None:  # no file holds the configuration
            return self._get_network("query").spec
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
        return (*super()._make_load_key(), self.pool_padding, dict(self.qnet or {}), self.dense_start)

    def load_dual_encoder(self) -> tuple[HypencoderDualEncoder, DualEncoderConfig]:
        """Load a new copy of the networks in float32 on the CPU, and return it with its configuration."""
        if self.dense_start is not None:
            network = from_dense(self.name_or_path, revision=self.revision, **{**self.dense_start, **(self.qnet or {})})
            return network, network.config
        options: dict[str, Any] = {"pool_padding": self.pool_padding, "qnet": self.qnet}
        options["trust_remote_code"] = self.trust_remote_code
        network, config = checkpoint.load(self.name_or_path, revision=self.revision, **options)
        self._check_architecture(config)
        return network, config

    def _load_networks(self) -> tuple[nn.Module, nn.Module, Any, DenseSettings]:
        model, config = self.load_dual_encoder()
        trust: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        tokenizer = load_tokenizer(self.name_or_path, self.revision, config.backbone, **trust)
        return model.query_encoder, model.passage_encoder, tokenizer, DenseSettings()

    def _write_model(self, directory: Path) -> None:
        network, config = self.load_dual_encoder()
        trust: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        tokenizer = load_tokenizer(self.name_or_path, self.revision, config.backbone, **trust)
        checkpoint.save(network, directory, tokenizer=tokenizer)

    def _to_qnets(self, output: QNets) -> QNets:
        return output.to(dtype=torch.float32)
