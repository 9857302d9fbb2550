"""Encoders: texts in, document vectors and q-nets out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyterrier as pt
import torch
from torch import Tensor, nn

from ..identity import ByArguments
from ..options import check_choice, check_positive
from ..qnet import QNets, QNetSpec
from ..scoring import resolve_device
from . import checkpoint, hub
from .columns import TextField
from .stages import DocEncoder, QueryEncoder, TextScorer

_BUFFER = 2048
"""Texts that are tokenised and sorted by length together; bounds memory whatever the number of texts."""
_DTYPES = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class _Loaded:
    """An encoder's networks and tokenizer, on their device."""

    query: Any
    document: Any
    tokenizer: Any
    device: torch.device
    positions: int  # longest input that tokenizer and transformer take


class Encoder(ByArguments):
    """What :class:`Hypencoder` and :class:`BiEncoder` share; made once, loaded on first use."""

    name_or_path: str
    device: str
    dtype: str
    batch_size: int
    query_max_length: int
    doc_max_length: int
    verbose: bool
    revision: str | None
    query_prefix = ""
    doc_prefix = ""

    @property
    def vec_size(self) -> int:
        """Dimensions of the document vectors, D."""
        return self._net("document").transformer.config.hidden_size

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of the q-nets that queries become."""
        raise AttributeError("qnet_spec")

    def encode_docs(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes documents, in batches of similar length; the order is kept.

        Args:
            texts: N texts, which may be empty; long ones are cut at ``doc_max_length`` tokens.

        Returns:
            (N, D) float32.

        Raises:
            ValueError: where an option, or a text, is not what it should be.
        """
        vectors = np.empty((len(texts), self.vec_size), dtype=np.float32)
        encoder = self._net("document")
        bf16 = self._use_bf16("document")
        with pt.tqdm(total=len(texts), desc="documents", disable=not self.verbose) as progress:
            for start in range(0, len(texts), _BUFFER):
                buffer = texts[start : start + _BUFFER]
                for positions, ids, mask in self._batches(buffer, self.doc_prefix, self.doc_max_length, by_length=True):
                    vectors[start + positions] = self._run(encoder, ids, mask, bf16).float().cpu().numpy()
                    progress.update(len(positions))
        return vectors

    def encode_queries(self, texts: Sequence[str]) -> QNets:
        """Encodes queries.

        Args:
            texts: Q texts, which may be empty; long ones are cut at ``query_max_length`` tokens.

        Returns:
            Q q-nets in float32, on the encoder's device. Those of the released 6-layer model take 14 MB a query.

        Raises:
            ValueError: where an option, or a text, is not what it should be, or there are no texts.
        """
        if not len(texts):
            raise ValueError("expected at least one query, found none")
        encoder = self._net("query")
        bf16 = self._use_bf16("query")
        parts = []
        with pt.tqdm(total=len(texts), desc="queries", disable=not self.verbose) as progress:
            for positions, ids, mask in self._batches(texts, self.query_prefix, self.query_max_length, by_length=False):
                parts.append(self._to_qnets(self._run(encoder, ids, mask, bf16)))
                progress.update(len(positions))
        return QNets.cat(parts) if len(parts) > 1 else parts[0]

    def _to_qnets(self, output: Any) -> QNets:
        raise TypeError(f"{type(self).__name__} makes no q-nets")

    @torch.inference_mode()
    def _run(self, network: nn.Module, ids: Tensor, mask: Tensor, bf16: bool) -> Any:
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=bf16):
            return network(ids, mask)

    def _batches(
        self, texts: Sequence[str], prefix: str, max_length: int, *, by_length: bool
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Mini-batches: positions of the texts, token ids (B, T) and mask (B, T), each padded to its own longest."""
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"expected texts to be strings (they may be empty), found {text!r}")
        check_positive("batch_size", self.batch_size)
        check_positive("doc_max_length" if by_length else "query_max_length", max_length)
        loaded = self._loaded()
        length = min(max_length, loaded.positions)
        ids = loaded.tokenizer([prefix + text for text in texts], truncation=True, max_length=length)["input_ids"]
        order = np.arange(len(ids))
        if by_length:  # longest first: memory runs out at once or never
            order = np.argsort([-len(tokens) for tokens in ids], kind="stable")
        for start in range(0, len(order), self.batch_size):
            positions = order[start : start + self.batch_size]
            pad = loaded.tokenizer.pad_token_id or 0
            # A blank text has no tokens at all where the tokenizer adds no special ones.
            batch = [torch.tensor(ids[p] or [pad]) for p in positions]
            padded = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=pad)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(tokens) for tokens in batch], batch_first=True)
            yield positions, padded.to(loaded.device), mask.to(loaded.device)

    def _net(self, side: str) -> Any:
        return getattr(self._loaded(), side)

    def _loaded(self) -> _Loaded:
        return self._open("networks", self._load_key(), self._load)

    def _load_key(self) -> tuple[Any, ...]:
        return (self.name_or_path, self.revision, self.device)

    def _load(self) -> _Loaded:
        check_choice("dtype", self.dtype, _DTYPES)
        device = resolve_device(self.device)
        query, document, tokenizer = self._networks()
        for network in (query, document):
            network.to(device).eval().requires_grad_(False)
        positions = min(hub.longest_input(network.transformer.config) for network in (query, document))
        return _Loaded(query, document, tokenizer, device, min(positions, tokenizer.model_max_length))

    def _networks(self) -> tuple[Any, Any, Any]:
        """The query network, the document network and the tokenizer, on the CPU."""
        raise TypeError(f"{type(self).__name__} has no networks")

    def _use_bf16(self, side: str) -> bool:
        check_choice("dtype", self.dtype, _DTYPES)
        return self.dtype == "bf16"

    @property
    def fingerprint(self) -> str:
        """A digest of the document side: weights, pooling, normalisation and prefix; not of lengths and precision."""
        return self._open("fingerprint", (self._load_key(), self.doc_prefix), self._fingerprint)

    def _fingerprint(self) -> str:
        document = self._net("document")
        details = (document.pooling, document.pool_padding, document.normalize, self.doc_prefix)
        return checkpoint.fingerprint(document.transformer, *details)

    def record(self) -> dict[str, Any]:
        """What an index keeps of the model that made its vectors, to make the encoder again."""
        return {
            "class": type(self).__name__,
            "name": os.path.abspath(self.name_or_path) if os.path.isdir(self.name_or_path) else self.name_or_path,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "options": self.options(skip=("device", "batch_size", "verbose")),
        }

    def options(self, skip: Sequence[str] = ()) -> dict[str, Any]:
        """The arguments, but for name and revision, that are not what they are by default."""
        defaults = {a.name: a.init_default_value for a in pt.inspect.transformer_attributes(self)}  # type: ignore[arg-type]
        skip = ("name_or_path", "revision", *skip)
        return {key: value for key, value in self._get_arguments().items() if key not in skip and value != defaults[key]}

    def doc_encoder(self, *, text_field: TextField = "text", batch_size: int = _BUFFER, verbose: bool = False) -> DocEncoder:
        """A transformer that adds ``doc_vec``; see :class:`pyterrier_hypencoder.stages.DocEncoder`."""
        return DocEncoder(self, text_field=text_field, batch_size=batch_size, verbose=verbose)

    def query_encoder(self) -> QueryEncoder:
        """A transformer that adds ``query_vec``; see :class:`pyterrier_hypencoder.stages.QueryEncoder`."""
        return QueryEncoder(self)

    def text_scorer(
        self,
        *,
        text_field: TextField = "text",
        batch_size: int = 32,
        device: str | None = None,
        precision: str = "auto",
        qnet_width: int | None = None,
        verbose: bool = False,
    ) -> TextScorer:
        """A transformer that re-ranks documents by their text; see :class:`pyterrier_hypencoder.stages.TextScorer`."""
        return TextScorer(
            self,
            text_field=text_field,
            batch_size=batch_size,
            device=self.device if device is None else device,
            precision=precision,
            qnet_width=qnet_width,
            verbose=verbose,
        )
