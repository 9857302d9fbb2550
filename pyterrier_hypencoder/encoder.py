"""Encoders: texts in, document vectors and q-nets out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyterrier as pt
import torch
from torch import Tensor, nn

from . import checkpoint, hub
from .frames import ByArguments, TextField, check_choice, check_positive
from .model import POOLINGS, DualEncoderConfig, TextEncoder
from .qnet import QNets, QNetSpec
from .scoring import resolve_device
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
        details = (document.pooling, document.pads_in_mean, document.normalize, self.doc_prefix)
        return checkpoint.fingerprint(document.transformer, *details)

    def record(self) -> dict[str, Any]:
        """What an index keeps of the model that made its vectors; :func:`from_record` makes the encoder again."""
        defaults = {a.name: a.init_default_value for a in pt.inspect.transformer_attributes(self)}  # type: ignore[arg-type]
        skipped = ("name_or_path", "revision", "device", "batch_size", "verbose")
        return {
            "class": type(self).__name__,
            "name": os.path.abspath(self.name_or_path) if os.path.isdir(self.name_or_path) else self.name_or_path,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "options": {k: v for k, v in self._arguments().items() if k not in skipped and v != defaults[k]},
        }

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
        pads_in_mean: take padding into the sum when pooling by mean, as the released code does; a document's vector then
            depends on the others of its batch. Only for comparing with that code.
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
        pads_in_mean: bool = False,
    ) -> None:
        self.name_or_path = str(name_or_path)
        self.device = device
        self.dtype = dtype
        self.batch_size = batch_size
        self.query_max_length = query_max_length
        self.doc_max_length = doc_max_length
        self.verbose = verbose
        self.revision = revision
        self.pads_in_mean = pads_in_mean

    @property
    def vec_size(self) -> int:
        """Dimensions of the document vectors, D; needs the configuration only."""
        return self.qnet_spec.input_dim

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of the q-nets; needs the configuration only."""
        name, revision = self.name_or_path, self.revision
        return self._open("spec", (name, revision), lambda: self._checked(checkpoint.read_config(name, revision)).qnet_spec)

    def _checked(self, config: DualEncoderConfig) -> DualEncoderConfig:
        if config.architecture != "HypencoderDualEncoder":
            raise ValueError(
                f"expected a Hypencoder in {self.name_or_path!r}, found a {config.architecture}; load it with "
                f"BiEncoder({self.name_or_path!r})"
            )
        return config

    def _load_key(self) -> tuple[Any, ...]:
        return (*super()._load_key(), self.pads_in_mean)

    def _networks(self) -> tuple[nn.Module, nn.Module, Any]:
        model, config = checkpoint.load(self.name_or_path, revision=self.revision, pads_in_mean=self.pads_in_mean)
        self._checked(config)
        backbone = config.query_encoder_kwargs.get("model_name_or_path", "")
        return model.query_encoder, model.passage_encoder, hub.load_tokenizer(self.name_or_path, self.revision, backbone)

    def _to_qnets(self, output: QNets) -> QNets:
        return output.to(dtype=torch.float32)


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
        config = hub.read_json(self.name_or_path, revision=self.revision)
        if config is not None and checkpoint.is_dual_encoder(config):
            return self._dual_networks()
        from transformers import AutoModel

        pooling, normalize = self.pooling, self.normalize
        if pooling is None or normalize is None:
            stated = hub.pooling_settings(self.name_or_path, self.revision)
            pooling = pooling or stated.pooling
            normalize = stated.normalize if normalize is None else normalize
        try:
            # Weights that a file lacks are made up, from the global random state: a pooler's may be, no others.
            with hub.quiet(), torch.random.fork_rng(devices=[]):
                transformer, info = AutoModel.from_pretrained(
                    self.name_or_path, revision=self.revision, output_loading_info=True
                )
        except OSError as err:
            raise FileNotFoundError(
                f"expected an encoder in {self.name_or_path!r}, found none: neither a directory with config and weights nor "
                "a model on the hub or in its local cache; check the name, or go online once"
            ) from err
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise ValueError(
                f"expected all weights of a {type(transformer).__name__} in {self.name_or_path!r}, found none for "
                f"{', '.join(missing[:5])}{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}; is the checkpoint "
                "complete, and does its config.json belong to it?"
            )
        network = TextEncoder(transformer.float(), pooling, normalize=normalize)
        return network, network, hub.load_tokenizer(self.name_or_path, self.revision)

    def _dual_networks(self) -> tuple[nn.Module, nn.Module, Any]:
        model, config = checkpoint.load(self.name_or_path, revision=self.revision)
        if config.architecture != "TextDualEncoder":
            raise ValueError(
                f"expected a bi-encoder in {self.name_or_path!r}, found a {config.architecture}; load it with "
                f"Hypencoder({self.name_or_path!r})"
            )
        sides = [
            TextEncoder(
                side.transformer,
                self.pooling or side.pooling,
                normalize=side.normalize if self.normalize is None else self.normalize,
            )
            for side in (model.query_encoder, model.passage_encoder)
        ]
        backbone = config.query_encoder_kwargs.get("model_name_or_path", "")
        return sides[0], sides[1], hub.load_tokenizer(self.name_or_path, self.revision, backbone)

    def _use_bf16(self, side: str) -> bool:
        auto = self.dtype == "auto" and side == "document" and _has_native_bf16(self._loaded().device)
        return super()._use_bf16(side) or auto

    def _to_qnets(self, output: Tensor) -> QNets:
        return QNets.linear(output.float())


def check_encoder(model: Any) -> None:
    """Checks that a model is an encoder.

    Raises:
        ValueError: where it is something else, such as the name of one.
    """
    if not (hasattr(model, "encode_docs") and hasattr(model, "record")):
        raise ValueError(
            f"model: expected an encoder, found {model!r}; pass Hypencoder(...) or BiEncoder(...). Other encoders join by "
            "their vectors: doc_encoder >> HypencoderIndexer(path), and query_encoder >> HypencoderRetriever(index)"
        )


def from_record(record: dict[str, Any], *, device: str = "auto") -> Encoder:
    """The encoder that an index names, on a device; see :meth:`Encoder.record`.

    Raises:
        ValueError: where the record is of an unknown class.
    """
    classes: dict[str, Callable[..., Encoder]] = {"Hypencoder": Hypencoder, "BiEncoder": BiEncoder}
    check_choice("the index's model class", record.get("class"), classes)
    return classes[record["class"]](record["name"], revision=record["revision"], device=device, **record["options"])


def _has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 there: emulated bf16 is slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
