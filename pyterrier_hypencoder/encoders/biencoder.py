"""The bi-encoder: any dense model as a Hypencoder whose q-nets have no hidden layer."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import scoring
from ..options import check_choice, check_option_names
from ..qnet import QNets, QNetSpec
from . import checkpoint, hub, saving
from .base import Encoder
from .columns import check_text
from .dense_layers import load_layers
from .dense_settings import DenseSettings, read_dense_settings
from .model_files import normalize_name
from .networks import TextEncoder
from .pooling import POOLINGS
from .tokenizer_files import load_tokenizer

_LOG = logging.getLogger(__name__)


class BiEncoder(Encoder):
    """Encode queries and documents with a dense model. Q-nets have no hidden layer, so scores are inner products.

    Any Hugging Face or sentence-transformers encoder works, and bi-encoders of this package such as BE-Base.

    Args:
        name_or_path: Hub id or directory.
        pooling: ``cls``, ``mean``, ``max`` or ``last``. None reads it from the sentence-transformers files, or takes ``mean``
            if there are none.
        normalize: If True, vectors have length 1, so scores are cosines. None reads it from the same files, or takes False
            if there are none.
        query_prefix: Text before every query, such as ``"query: "``. None takes the prompt ``query`` of the same
            files, if they have one; an empty text takes none.
        doc_prefix: Text before every document. None takes the prompt ``document``.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``. A list such as ``["cuda:0", "cuda:1"]`` encodes
            documents on several devices, and queries on the first one.
        dtype: ``fp32``, ``bf16`` (the transformer runs under autocast) or ``auto``. ``auto`` is bf16 for documents on
            hardware with native bf16, and fp32 otherwise and for queries.
        batch_size: Number of texts in a mini-batch.
        query_max_length: Maximum number of tokens of a query. Longer queries are truncated. The model's ``max_seq_length``
            also applies.
        doc_max_length: Maximum number of tokens of a document, in the same way.
        verbose: If True, show progress.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: If True, code that comes with the model may run. Read it first.

    Example:
        >>> from pyterrier_hypencoder import BiEncoder
        >>> model = BiEncoder("sentence-transformers/all-MiniLM-L6-v2", device="cpu")
        >>> model.encode_docs(["Sort an array in place.", "Read a CSV file."]).shape
        (2, 384)
        >>> model.encode_queries(["load comma-separated data"])
        QNets(1 x 384-1, torch.float32, cpu)
    """

    @check_option_names
    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        query_prefix: str | None = None,
        doc_prefix: str | None = None,
        device: str | Sequence[str] = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
        query_max_length: int = 64,
        doc_max_length: int = 512,
        verbose: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.name_or_path = normalize_name(name_or_path)
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
        self.trust_remote_code = trust_remote_code

    @classmethod
    def example(cls) -> BiEncoder:
        """Return all-MiniLM-L6-v2, for documentation and schematics. Nothing is loaded until it is used."""
        return cls("sentence-transformers/all-MiniLM-L6-v2")

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of the q-nets: the query vector is the whole q-net."""
        return QNetSpec((self.vec_size, 1))

    def _make_load_key(self) -> tuple[Any, ...]:
        return (*super()._make_load_key(), self.pooling, self.normalize, self.query_prefix, self.doc_prefix)

    def _load_networks(self) -> tuple[TextEncoder, TextEncoder, Any, DenseSettings]:
        if self.pooling is not None:
            check_choice("pooling", self.pooling, POOLINGS)
        for name, prefix in (("query_prefix", self.query_prefix), ("doc_prefix", self.doc_prefix)):
            if prefix is not None:
                check_text(prefix, name)
        if checkpoint.find_config(self.name_or_path, self.revision) is not None:
            return self._load_dual_networks()
        settings = read_dense_settings(self.name_or_path, self.revision, self.pooling, self.normalize)
        settings = self._override_prompts(settings)
        options: dict[str, Any] = {"subfolder": settings.subfolder, "trust_remote_code": self.trust_remote_code}
        tokenizer = load_tokenizer(self.name_or_path, self.revision, **options)
        if any(tokenizer("a").get("token_type_ids") or ()):
            raise ValueError(
                f"The tokenizer of {self.name_or_path!r} gives token types to single texts, which are not supported. Use "
                "another model."
            )
        transformer: Any = hub.load_transformer(self.name_or_path, self.revision, **options)
        layers, size = load_layers(settings.layers, transformer.config.hidden_size, self.name_or_path, self.revision)
        query, document = (
            TextEncoder(
                transformer,
                settings.pooling,
                normalize=settings.normalize,
                layers=layers,
                size=size,
                truncate_dim=settings.truncate_dim,
                num_skipped=0 if settings.include_prompt else _count_prompt_tokens(tokenizer, prompt),
            )
            for prompt in (settings.query_prompt, settings.doc_prompt)
        )
        return query, document, tokenizer, settings

    def _override_prompts(self, settings: DenseSettings) -> DenseSettings:
        query = settings.query_prompt if self.query_prefix is None else self.query_prefix
        return replace(
            settings, query_prompt=query, doc_prompt=settings.doc_prompt if self.doc_prefix is None else self.doc_prefix
        )

    def _load_dual_networks(self) -> tuple[TextEncoder, TextEncoder, Any, DenseSettings]:
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        model, config = checkpoint.load(
            self.name_or_path, revision=self.revision, pooling=self.pooling, normalize=self.normalize, **options
        )
        if config.architecture != "TextDualEncoder":
            raise ValueError(
                f"{self.name_or_path!r} is a {config.architecture}, not a bi-encoder. Load it with "
                f"Hypencoder({self.name_or_path!r})."
            )
        tokenizer = load_tokenizer(self.name_or_path, self.revision, config.backbone, **options)
        return model.query_encoder, model.passage_encoder, tokenizer, self._override_prompts(DenseSettings())

    def _write_model(self, directory: Path) -> None:
        query, document, tokenizer, settings = self._load_networks()
        if saving.are_one_encoder(query, document):
            length = min(self.doc_max_length, self._get_loaded().max_length)
            return saving.write_dense_model(document, settings, tokenizer, directory, length)
        if settings.query_prompt or settings.doc_prompt:
            _LOG.warning("A checkpoint with two encoders holds no prefixes. Pass them to BiEncoder(%r, ...).", str(directory))
        options: dict[str, Any] = {"pooling": self.pooling, "normalize": self.normalize}
        network, _ = checkpoint.load(self.name_or_path, revision=self.revision, **options)
        return checkpoint.save(network, directory, tokenizer=tokenizer)

    def _use_bf16(self, side: str) -> bool:
        auto = self.dtype == "auto" and side == "document" and scoring.has_native_bf16(self._get_loaded().device)
        return super()._use_bf16(side) or auto

    def _to_qnets(self, output: Tensor) -> QNets:
        return QNets.linear(output.float())


def _count_prompt_tokens(tokenizer: Any, prompt: str) -> int:
    """Return the number of first tokens that belong to a prompt, with the special tokens before it."""
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in tokenizer.all_special_ids)
