"""The base class of encoders: text in, document vectors and q-nets out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from torch import Tensor, nn

from ..identity import ByArguments
from ..options import check_choice, check_positive
from ..qnet import QNets, QNetSpec
from . import checkpoint, hub, saving
from .building import run_on
from .columns import TextField, check_text, list_texts
from .dense_settings import DenseSettings
from .model_card import TRAINING_FILE, make_card
from .model_files import read_json
from .replicas import Replicas, resolve_devices
from .stages import DocEncoder, QueryEncoder, TextScorer
from .tokenization import TextTokenizer
from .tokenizer_files import check_vocabulary

_BUFFER = 2048
"""Number of texts that are tokenised and sorted by length together. It bounds the memory for any number of texts."""
_DTYPES = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class _Loaded:
    """The networks and the tokenizer of an encoder. Queries are encoded on the first device."""

    query: Any
    document: Any
    replicas: Replicas  # of the document network
    tokenizer: TextTokenizer
    device: torch.device
    max_length: int  # tokens that the model's files, the tokenizer and the transformers accept
    prefixes: dict[str, str]  # text before every query and document


class Encoder(ByArguments, pt.Transformer):
    """Base class of :class:`Hypencoder` and :class:`BiEncoder`. Networks are loaded on first use.

    An encoder is a transformer. The columns of a frame decide what it does:

    - ``query`` gets ``query_vec``, as by :meth:`query_encoder`.
    - ``text`` gets ``doc_vec``, as by :meth:`doc_encoder`.
    - A result frame with queries and documents gets scores, as by :meth:`text_scorer`.
    """

    name_or_path: str
    device: str | Sequence[str]
    dtype: str
    batch_size: int
    query_max_length: int
    doc_max_length: int
    verbose: bool
    revision: str | None
    trust_remote_code: bool

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode queries, encode documents, or score documents, depending on the columns.

        Args:
            inp: A frame with ``query``, with ``text``, or with ``qid``, ``docno``, a query and a document.
        """
        queries, documents = ["query", "query_vec"], ["text", "doc_vec"]
        with pt.validate.any(inp) as modes:
            for query in queries:
                for document in documents:
                    modes.result_frame(extra_columns=[query, document], mode="score")
            modes.columns(includes=["query"], excludes=documents, mode="query")
            modes.columns(includes=["text"], excludes=queries, mode="document")
        if modes.mode == "score":
            return self.text_scorer().transform(inp)
        return (self.query_encoder() if modes.mode == "query" else self.doc_encoder()).transform(inp)

    def transform_inputs(self) -> list[list[str]]:
        """Return the columns of a query frame, of documents, and of a result frame, for schematics and inspection."""
        return [["qid", "query"], ["docno", "text"], ["qid", "docno", "query", "text"]]

    def subtransformers(self) -> dict[str, Any]:
        """Return nothing, because networks are not stages."""
        return {}

    @property
    def vec_size(self) -> int:
        """Number of dimensions of the document vectors, D."""
        return self._get_network("document").vec_size

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of the q-nets."""
        raise AttributeError("qnet_spec")

    @property
    def prefixes(self) -> dict[str, str]:
        """The texts before every ``query`` and every ``document``, as given or as read from the model's files."""
        return dict(self._get_loaded().prefixes)

    def encode_docs(self, texts: Sequence[str]) -> np.ndarray:
        """Encode documents in batches of similar length. The order is kept.

        Equal texts get equal vectors up to rounding, which depends on the batch: about 1e-6 in fp32 and 1e-2 in bf16.

        Args:
            texts: A list of N texts, which may be empty. Texts over ``doc_max_length`` tokens are truncated.

        Returns:
            Document vectors, (N, D) float32.

        Raises:
            ValueError: If an option or a text is invalid.
        """
        texts = list_texts(texts)
        vectors = np.empty((len(texts), self.vec_size), dtype=np.float32)
        bf16 = self._use_bf16("document")

        def run(network: Any, batch: tuple[np.ndarray, Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
            return batch[0], self._run(network, *batch[1:], bf16).float().cpu().numpy()

        with pt.tqdm(total=len(texts), desc="documents", disable=not self.verbose) as progress:
            for start in range(0, len(texts), _BUFFER):
                buffer = texts[start : start + _BUFFER]
                batches = self._make_batches(buffer, "document", by_length=True)
                for positions, encoded in self._get_loaded().replicas.map(run, batches):
                    vectors[start + positions] = encoded
                    progress.update(len(positions))
        return vectors

    def encode_queries(self, texts: Sequence[str]) -> QNets:
        """Encode queries as q-nets.

        Args:
            texts: A list of Q texts, which may be empty. Texts over ``query_max_length`` tokens are truncated.

        Returns:
            Q q-nets in float32, on the encoder's device. A q-net of the released 6-layer model takes 14 MB.

        Raises:
            ValueError: If there are no texts, or if an option or a text is invalid.
        """
        texts = list_texts(texts)
        if not texts:
            raise ValueError("texts must contain at least one query, got none.")
        encoder = self._get_network("query")
        bf16 = self._use_bf16("query")
        parts = []
        with pt.tqdm(total=len(texts), desc="queries", disable=not self.verbose) as progress:
            for positions, ids, mask in self._make_batches(texts, "query", by_length=False):
                parts.append(self._to_qnets(self._run(encoder, ids, mask, bf16)))
                progress.update(len(positions))
        return QNets.cat(parts) if len(parts) > 1 else parts[0]

    def _to_qnets(self, output: Any) -> QNets:
        raise TypeError(f"{type(self).__name__} does not make q-nets.")

    @torch.no_grad()  # not inference_mode: gradients for documents flow through q-nets
    def _run(self, network: nn.Module, ids: Tensor, mask: Tensor, bf16: bool) -> Any:
        device = next(network.parameters()).device
        with run_on(device), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            return network(ids.to(device), mask.to(device))

    def _make_batches(self, texts: list[str], side: str, *, by_length: bool) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Yield mini-batches: positions of the texts (B,), token ids (B, T) and mask (B, T), padded to the longest text."""
        for text in texts:
            check_text(text, "A text")
        check_positive("batch_size", self.batch_size)
        loaded = self._get_loaded()
        ids = loaded.tokenizer.encode(texts, self._get_max_length(side), prefix=loaded.prefixes[side])
        order = np.arange(len(ids))
        if by_length:  # longest first, so a lack of memory shows at once
            order = np.argsort([-len(tokens) for tokens in ids], kind="stable")
        for start in range(0, len(order), self.batch_size):
            positions = order[start : start + self.batch_size]
            pad = loaded.tokenizer.pad_id
            # An empty text has no tokens if the tokenizer adds no special tokens.
            batch = [torch.tensor(ids[p] or [pad], device="cpu") for p in positions]
            padded = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=pad)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(tokens) for tokens in batch], batch_first=True)
            yield positions, padded, mask

    def _get_max_length(self, side: str) -> int:
        """Return the maximum number of tokens of a text, which must leave room beside special tokens and prefix."""
        name, option = (
            ("doc_max_length", self.doc_max_length) if side == "document" else ("query_max_length", self.query_max_length)
        )
        check_positive(name, option)
        loaded = self._get_loaded()
        length = min(option, loaded.max_length)
        special, prefix = loaded.tokenizer.num_special_tokens, loaded.prefixes[side]
        used = special + (loaded.tokenizer.count_tokens(prefix) if prefix else 0)
        if length <= used:
            raise ValueError(
                f"{name} must be greater than {used}, because special tokens and the prefix take {used} tokens, got {option}"
                f"{f' (the model allows {length})' if length < option else ''}. No text would be left."
            )
        return length

    def _get_network(self, side: str) -> Any:
        return getattr(self._get_loaded(), side)

    def _get_loaded(self) -> _Loaded:
        return self._open("networks", self._make_load_key(), self._load)

    def _make_load_key(self) -> tuple[Any, ...]:
        device = self.device if isinstance(self.device, str) else tuple(self.device)
        return (self.name_or_path, self.revision, device, self.trust_remote_code)

    def _load(self) -> _Loaded:
        check_choice("dtype", self.dtype, _DTYPES)
        devices = resolve_devices(self.device)
        device = devices[0]
        query, document, tokenizer, settings = self._load_networks()
        for network in (query, document):
            check_vocabulary(tokenizer, network.transformer, self.name_or_path)
            network.to(device).eval().requires_grad_(False)
        text_tokenizer = TextTokenizer(tokenizer, lower_case=settings.lower_case)
        lengths = [hub.get_max_length(network.transformer) for network in (query, document)]
        max_length = min(*lengths, settings.max_length or text_tokenizer.max_length)
        prefixes = {"query": settings.query_prompt, "document": settings.doc_prompt}
        replicas = Replicas(document, devices)
        return _Loaded(query, document, replicas, text_tokenizer, device, max_length, prefixes)

    def _load_networks(self) -> tuple[Any, Any, Any, DenseSettings]:
        """Load the query network, the document network, the tokenizer and further settings on the CPU."""
        raise TypeError(f"{type(self).__name__} has no networks.")

    def _use_bf16(self, side: str) -> bool:
        check_choice("dtype", self.dtype, _DTYPES)
        return self.dtype == "bf16"

    @property
    def fingerprint(self) -> str:
        """Digest of the document encoder: weights, pooling, normalisation and prefix, but not lengths and precision."""
        return self._open("fingerprint", self._make_load_key(), self._compute_fingerprint)

    def _compute_fingerprint(self) -> str:
        loaded = self._get_loaded()
        prefix, lower_case = loaded.prefixes["document"], loaded.tokenizer.lower_case
        return checkpoint.compute_fingerprint(loaded.document, prefix, lower_case=lower_case)

    def record(self) -> dict[str, Any]:
        """Return what an index needs to load the encoder again, and the precision in which documents are encoded.

        ``trust_remote_code`` is not recorded, so opening an index never runs code.
        """
        return {
            "class": type(self).__name__,
            "name": os.path.abspath(self.name_or_path) if os.path.isdir(self.name_or_path) else self.name_or_path,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "options": self.options(skip=("device", "batch_size", "verbose", "trust_remote_code")),
            "precision": "bf16" if self._use_bf16("document") else "fp32",
        }

    def options(self, skip: Sequence[str] = ()) -> dict[str, Any]:
        """Return the arguments that differ from their defaults, without name and revision.

        Args:
            skip: Further arguments to leave out.
        """
        defaults = {a.name: a.init_default_value for a in pt.inspect.transformer_attributes(self)}
        skip = ("name_or_path", "revision", *skip)
        return {key: value for key, value in self._get_arguments().items() if key not in skip and value != defaults[key]}

    def save_pretrained(self, directory: str | os.PathLike[str], *, card: bool | Mapping[str, Any] = False) -> Path:
        """Save the model as a folder that this class loads without any other file.

        A bi-encoder with one transformer becomes a folder that sentence-transformers, ``AutoModel`` of transformers, and
        pyterrier_dr load too.

        Args:
            directory: Directory to write. It must not exist, or be empty.
            card: If True, write a model card (``README.md``) with the recorded training, its measures, and the usage. A
                mapping sets its parts: ``license``, ``language``, ``datasets``, ``base_model``, ``training_data`` (a text)
                and ``measures`` (values by name).

        Returns:
            The directory.

        Raises:
            FileExistsError: If the directory is not empty.
            ValueError: If the model or the card has parts that cannot be saved.

        Example:
            >>> from pyterrier_hypencoder import BiEncoder
            >>> dense = BiEncoder("sentence-transformers/all-MiniLM-L6-v2", device="cpu")
            >>> folder = dense.save_pretrained("my-model", card={"license": "apache-2.0"})
            >>> BiEncoder(folder).fingerprint == dense.fingerprint
            True
        """
        return self._save(directory, card, Path(directory).name)

    def _save(self, directory: str | os.PathLike[str], card: bool | Mapping[str, Any], name: str) -> Path:
        training = read_json(self.name_or_path, TRAINING_FILE, self.revision)
        with saving.replace_folder(directory) as folder:
            if card is not False:
                given = {} if card is True else card
                text = make_card(type(self).__name__, name, training or {}, given)
                (folder / "README.md").write_text(text, encoding="utf-8")
            self._write_model(folder)
            if training is not None:
                (folder / TRAINING_FILE).write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
        return Path(directory).expanduser()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: bool | Mapping[str, Any] = True,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload model",
    ) -> str:
        """Upload the model to the hub, as :meth:`save_pretrained` saves it.

        Args:
            repo_id: Name of the repository, ``user/name``. It is created if needed.
            card: See :meth:`save_pretrained`.
            private: If True, a new repository is private. None takes the default of the account.
            token: Token of the hub. None takes the stored one.
            commit_message: Message of the commit.

        Returns:
            Address of the model.

        Raises:
            OSError: If the hub refuses or cannot be reached.
        """
        options: dict[str, Any] = {"private": private, "token": token, "commit_message": commit_message}
        return saving.upload(lambda folder: self._save(folder, card, repo_id), repo_id, **options)

    def _write_model(self, directory: Path) -> None:
        """Write networks and tokenizer."""
        raise TypeError(f"{type(self).__name__} cannot be saved.")

    def doc_encoder(self, *, text_field: TextField = "text", batch_size: int = _BUFFER, verbose: bool = False) -> DocEncoder:
        """Return a transformer that adds ``doc_vec``; see :class:`.DocEncoder`."""
        return DocEncoder(self, text_field=text_field, batch_size=batch_size, verbose=verbose)

    def query_encoder(self) -> QueryEncoder:
        """Return a transformer that adds ``query_vec``; see :class:`.QueryEncoder`."""
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
        """Return a transformer that re-ranks documents by their text; see :class:`.TextScorer`."""
        own = self.device if isinstance(self.device, str) else next(iter(self.device), "auto")
        return TextScorer(
            self,
            text_field=text_field,
            batch_size=batch_size,
            device=own if device is None else device,
            precision=precision,
            qnet_width=qnet_width,
            verbose=verbose,
        )
