"""The bi-encoder: any dense encoder, as a Hypencoder whose q-nets have no hidden layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..options import check_choice
from ..qnet import QNets, QNetSpec
from . import checkpoint, hub
from .base import Encoder
from .networks import POOLINGS, TextEncoder


class BiEncoder(Encoder):
    """A dense encoder whose queries become q-nets without hidden layer: scores are inner products.

    Takes any Hugging Face or sentence-transformers encoder, and bi-encoders of this package (BE-Base).

    Args:
        name_or_path: hub id or directory.
        pooling: ``cls``, ``mean``, ``max`` or ``last``; None reads it from the sentence-transformers files (``mean`` where
            there are none).
        normalize: whether vectors have length 1, so that scores are cosines; None reads it from the same files (False
            where there are none).
        query_prefix: put before every query, such as ``"query: "``.
        doc_prefix: put before every document.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda[:n]``.
        dtype: ``fp32``; ``bf16`` runs the transformer under autocast; ``auto`` is bf16 for documents where the hardware
            computes in it natively, and fp32 elsewhere and for queries.
        batch_size: texts in a mini-batch.
        query_max_length: tokens of a query, the rest is cut.
        doc_max_length: tokens of a document, the rest is cut.
        verbose: whether to show progress.
        revision: branch, tag or commit on the hub.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        query_prefix: str = "",
        doc_prefix: str = "",
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
        query_max_length: int = 64,
        doc_max_length: int = 512,
        verbose: bool = False,
        revision: str | None = None,
    ) -> None:
        self.name_or_path = str(name_or_path)
        self.pooling = pooling
        self.normalize = normalize
        self.query_prefix = query_prefix
        self.doc_prefix = doc_prefix
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size
        self.query_max_length = query_max_length
        self.doc_max_length = doc_max_length
        self.verbose = verbose
        self.revision = revision

    @property
    def qnet_spec(self) -> QNetSpec:
        """No hidden layer: the query vector is the whole q-net."""
        return QNetSpec((self.vec_size, 1))

    def _load_key(self) -> tuple[Any, ...]:
        return (*super()._load_key(), self.pooling, self.normalize)

    def _networks(self) -> tuple[nn.Module, nn.Module, Any]:
        if self.pooling is not None:
            check_choice("pooling", self.pooling, POOLINGS)
        if checkpoint.find_config(self.name_or_path, self.revision) is not None:
            return self._dual_networks()
        settings = hub.pooling_settings(self.name_or_path, self.revision, self.pooling, self.normalize)
        transformer = hub.load_transformer(self.name_or_path, self.revision)
        network = TextEncoder(transformer, settings.pooling, normalize=settings.normalize)
        return network, network, hub.load_tokenizer(self.name_or_path, self.revision)

    def _dual_networks(self) -> tuple[nn.Module, nn.Module, Any]:
        options: dict[str, Any] = {"pooling": self.pooling, "normalize": self.normalize}
        model, config = checkpoint.load(self.name_or_path, revision=self.revision, **options)
        if config.architecture != "TextDualEncoder":
            raise ValueError(
                f"expected a bi-encoder in {self.name_or_path!r}, found a {config.architecture}; load it with "
                f"Hypencoder({self.name_or_path!r})"
            )
        backbone = config.query_encoder_kwargs.get("model_name_or_path", "")
        return model.query_encoder, model.passage_encoder, hub.load_tokenizer(self.name_or_path, self.revision, backbone)

    def _use_bf16(self, side: str) -> bool:
        auto = self.dtype == "auto" and side == "document" and _has_native_bf16(self._loaded().device)
        return super()._use_bf16(side) or auto

    def _to_qnets(self, output: Tensor) -> QNets:
        return QNets.linear(output.float())


def _has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 there: emulated bf16 is slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
