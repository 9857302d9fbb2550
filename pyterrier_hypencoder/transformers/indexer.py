"""The PyTerrier indexer: documents in, index directory out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sized
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from more_itertools import chunked

from ..encoders.base import Encoder
from ..encoders.columns import TextField, join_text, list_text_fields
from ..encoders.loading import check_encoder
from ..identity import ByArguments
from ..index.files import resolve_path
from ..index.graph_builder import check_graph_options, open_or_build_graph
from ..index.reader import IndexReader
from ..index.staging import check_same_build, discard_leftovers, is_unfinished
from ..index.writer import MODES, IndexWriter, check_place, is_index, prepare_metadata
from ..options import check_choice, check_option_names, check_positive
from .pipeline import IndexedPipeline, bind_retrievers, list_retrievers

Document = dict[str, Any]


class DocumentIndexer(ByArguments, pt.Indexer, ABC):
    """Write the vectors of documents to an index directory.

    :class:`pyterrier_hypencoder.HypencoderIndexer` documents the arguments and says how the index is opened.
    """

    @check_option_names
    def __init__(
        self,
        path: str | Path,
        model: Encoder | None = None,
        *,
        mode: str = "create",
        dtype: str = "fp16",
        text_field: TextField = "text",
        batch_size: int = 2048,
        graph_k: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.path = resolve_path(path)
        self.model = model
        self.mode = mode
        self.dtype = dtype
        self.text_field = text_field
        self.batch_size = batch_size
        self.graph_k = graph_k
        self.verbose = verbose
        self._check_options()

    @abstractmethod
    def open_index(self, path: Path) -> pt.Artifact:
        """Return the artifact of an index directory that was just built."""

    def index_inputs(self) -> list[list[str]]:
        """Return the columns that documents must have: text if there is a model, or ``doc_vec``."""
        with_text = [["docno", *list_text_fields(self.text_field)]] if self.model is not None else []
        return [*with_text, ["docno", "doc_vec"]]

    def index(self, iter: Iterable[Document] | pd.DataFrame, **kwargs: Any) -> pt.Artifact:
        """Index documents.

        Options, path and model are checked before the first document is encoded, because they may be set after the
        constructor has checked them.

        Args:
            iter: Dictionaries (or a frame) with ``docno`` and either text or ``doc_vec``.
            **kwargs: Not used; part of PyTerrier's signature.

        Returns:
            The :class:`HypencoderIndex`.

        Raises:
            FileExistsError: If the mode does not allow what is already there.
            ValueError: If an option or a document is not valid. The message names the first such document. The documents
                before it are kept for ``mode="resume"``; nothing appears under the name of the index.
        """
        if kwargs:
            raise TypeError(f"index() takes no options, got {sorted(kwargs)}. Pass them to HypencoderIndexer.")
        self._check_options()
        if self.graph_k is not None and find_spec("faiss") is None:
            raise ImportError("graph_k requires faiss: pip install faiss-cpu")
        path = Path(self.path)
        documents = iter.to_dict("records") if isinstance(iter, pd.DataFrame) else iter
        if not self._is_complete(path):
            check_place(path, self.mode)
        total = len(documents) if isinstance(documents, Sized) else None
        with pt.tqdm(total=total, desc=f"indexing {path.name}", unit="doc", disable=not self.verbose) as progress:
            self._build(path, documents, progress)
        return self.open_index(path)

    def _check_options(self) -> None:
        check_choice("mode", self.mode, MODES)
        prepare_metadata(self.dtype, {})
        check_positive("batch_size", self.batch_size)
        list_text_fields(self.text_field)
        if self.graph_k is not None:
            check_graph_options(self.graph_k)
        if self.model is not None:
            check_encoder(self.model)
        if not isinstance(self.path, Path) or not self.path.name:
            raise ValueError(f"path must be the name of the index directory, got {self.path!r}.")

    def _build(self, path: Path, documents: Iterable[Document], progress: Any) -> None:
        stream = _check_documents(documents)
        first = next(stream, None)
        if first is None:
            raise ValueError("There are no documents, expected at least one. Nothing was written.")
        has_vectors = "doc_vec" in first
        if not has_vectors and self.model is None:
            raise ValueError(
                f"Document {first['docno']!r} has no doc_vec, only {sorted(first)}. Pass a model to the indexer to encode "
                "texts."
            )
        stream = chain([first], stream)
        facts = {
            "model": None if self.model is None else self.model.record(),
            "text_field": None if has_vectors else self.text_field,
        }
        if self._is_complete(path):
            _check_complete(path, prepare_metadata(self.dtype, facts), stream)
            return self._build_graph(path)
        writer = IndexWriter(path, mode=self.mode, dtype=self.dtype, facts=facts)
        try:
            _skip_stored(stream, writer.stored_docnos(), writer.count)
            progress.update(writer.count)
            for batch in chunked(stream, self.batch_size):
                docnos = [document["docno"] for document in batch]
                writer.check(docnos)
                writer.add(docnos, self._make_vectors(batch, has_vectors, writer.vec_size))
                progress.update(len(batch))  # stored documents, not those that were read
            self._build_graph(writer.complete())
            writer.publish()
        except BaseException:
            writer.abandon()
            raise

    def _is_complete(self, path: Path) -> bool:
        """Return True if a build is to be resumed that is complete already."""
        return self.mode == "resume" and is_index(path) and not is_unfinished(path)

    def _build_graph(self, folder: Path) -> None:
        """Build the neighbour graph of an index, which need not have its final name yet."""
        if self.graph_k is not None:
            open_or_build_graph(IndexReader(folder), self.graph_k, verbose=self.verbose)

    def _make_vectors(self, batch: list[Document], has_vectors: bool, vec_size: int | None) -> np.ndarray:
        if self.model is None or has_vectors:
            return _stack_vectors(batch, vec_size if self.model is None else self.model.vec_size)
        fields = list_text_fields(self.text_field)
        return self.model.encode_docs([join_text(document, fields) for document in batch])

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        """Compose ``indexer >> retriever``: ``.index()`` builds the index, ``.transform()`` searches it."""
        retrievers = list_retrievers(right)
        if not retrievers:
            return super().__rshift__(right)
        bind_retrievers(retrievers, self.path, self.model)
        return IndexedPipeline(self, right)

    def subtransformers(self) -> dict[str, Any]:
        """Return an empty dictionary, because the model is not a stage of a pipeline."""
        return {}


def _check_documents(documents: Iterable[Document]) -> Iterator[Document]:
    for position, document in enumerate(documents):
        if not isinstance(document, dict) or "docno" not in document:
            found = sorted(document) if isinstance(document, dict) else repr(document)
            raise ValueError(f"Document {position} must be a dictionary with a docno, got {found}.")
        yield document


def _skip_stored(documents: Iterator[Document], stored: Iterable[str], count: int) -> None:
    """Skip the stored documents, which must be the first ones of the stream and in the same order."""
    for position, docno in enumerate(stored):
        document = next(documents, None)
        if document is None or document["docno"] != docno:
            found = "the end of the stream" if document is None else repr(document["docno"])
            raise ValueError(
                f"The stream must begin with the {count} documents that are stored: expected {docno!r} at position "
                f"{position}, got {found}. Pass the same documents in the same order, or use mode='overwrite'."
            )


def _check_complete(path: Path, facts: dict[str, Any], documents: Iterator[Document]) -> None:
    """Check that a complete index, which was to be resumed, has the same options and documents."""
    reader = IndexReader(path)
    check_same_build(path, reader.meta, facts)
    _skip_stored(documents, reader.docnos, reader.doc_count)
    extra = next(documents, None)
    if extra is not None:
        raise ValueError(
            f"The index at {path} is complete with {reader.doc_count} documents, got another one, {extra['docno']!r}. "
            "Documents cannot be added to an index: use mode='overwrite' or another path."
        )
    discard_leftovers(path)


def _stack_vectors(batch: list[Document], vec_size: int | None) -> np.ndarray:
    """Return the ``doc_vec`` of documents as one array.

    Args:
        batch: B documents.
        vec_size: Expected number of dimensions D. None takes that of the first document.

    Returns:
        (B, D) float32.

    Raises:
        ValueError: If a vector is missing or has another size. The message names the document.
    """
    vectors: list[np.ndarray] = []
    for document in batch:
        try:
            vector: np.ndarray = np.asarray(document.get("doc_vec"), dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.empty(())
        if vector.ndim != 1 or not vector.size or vector.size != (vec_size or vector.size):
            found = f"shape {vector.shape}" if vector.ndim else repr(document.get("doc_vec"))[:80]
            raise ValueError(
                f"doc_vec of document {document['docno']!r} must be a vector of {vec_size or 'at least one'} numbers, "
                f"got {found}."
            )
        vec_size = vector.size
        vectors.append(vector)
    return np.stack(vectors)
