"""The PyTerrier indexer: documents in, index directory out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from ..index.graph_builder import check_options, corpus_graph
from ..index.reader import IndexReader
from ..index.writer import IndexWriter, check_same_build, discard_leftovers, is_index, is_unfinished, prepare_metadata
from ..options import check_positive
from .pipeline import IndexedPipeline, _stages
from .retriever import HypencoderRetriever


class DocumentIndexer(ByArguments, pt.Indexer):
    """Write the vectors of documents to an index directory; see :class:`pyterrier_hypencoder.HypencoderIndexer`."""

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
        self.path = path
        self.model = model
        self.mode = mode
        self.dtype = dtype
        self.text_field = text_field
        self.batch_size = batch_size
        self.graph_k = graph_k
        self.verbose = verbose

    def index_inputs(self) -> list[list[str]]:
        """The columns that documents must have."""
        with_text = [["docno", *list_text_fields(self.text_field)]] if self.model is not None else []
        return [*with_text, ["docno", "doc_vec"]]

    def index(self, iter: Iterable[dict[str, Any]] | pd.DataFrame, **kwargs: Any) -> pt.Artifact:
        """Indexes documents.

        Args:
            iter: documents with ``docno`` and text, or with ``docno`` and ``doc_vec``; or a frame of them.
            **kwargs: none; there for PyTerrier's signature.

        Returns:
            The :class:`HypencoderIndex`.

        Raises:
            FileExistsError: where the mode does not allow what is there.
            ValueError: for bad documents (naming the first one) or options. What was stored before it is kept for
                ``mode="resume"``; nothing appears under the index's name.
        """
        if kwargs:
            raise TypeError(f"index: expected no options, found {sorted(kwargs)}; pass them to HypencoderIndexer")
        check_positive("batch_size", self.batch_size)
        if self.graph_k is not None:
            check_options(self.graph_k)
        if self.model is not None:
            check_encoder(self.model)
        if not isinstance(self.path, str | Path) or not Path(self.path).name:
            raise ValueError(f"path: expected the name of a directory to make, found {self.path!r}")
        path = Path(self.path)
        documents = iter.to_dict("records") if isinstance(iter, pd.DataFrame) else iter
        progress = pt.tqdm(documents, desc=f"indexing {path.name}", unit="doc", disable=not self.verbose)
        self._build(path, progress)
        if self.graph_k is not None:
            corpus_graph(IndexReader(path), self.graph_k, verbose=self.verbose)
        return self.open_index(path)

    def open_index(self, path: Path) -> pt.Artifact:
        """Return the artifact for a directory that was just written."""
        raise TypeError(f"{type(self).__name__} does not say how to open what it builds; use HypencoderIndexer")

    def _build(self, path: Path, documents: Iterable[dict[str, Any]]) -> None:
        stream = _checked(documents)
        first = next(stream, None)
        if first is None:
            raise ValueError("expected at least one document, found none; nothing was written")
        source = "doc_vec" if "doc_vec" in first else "text"
        if source == "text" and self.model is None:
            raise ValueError(
                f"document {first['docno']!r}: expected a doc_vec, found only {sorted(first)}; pass a model to the indexer "
                "to encode texts"
            )
        facts = {
            "model": None if self.model is None else self.model.record(),
            "text_field": self.text_field if source == "text" else None,
        }
        stream = chain([first], stream)
        if self.mode == "resume" and is_index(path) and not is_unfinished(path):
            return _check_complete(path, prepare_metadata(self.dtype, facts), stream)
        writer = IndexWriter(path, mode=self.mode, dtype=self.dtype, facts=facts)
        try:
            _match(stream, writer.stored_docnos(), writer.count)
            for batch in chunked(stream, self.batch_size):
                docnos = [document["docno"] for document in batch]
                writer.check(docnos)
                writer.add(docnos, self._vectors(batch, source, writer.vec_size))
            writer.finish()
        except BaseException:
            writer.abandon()
            raise

    def _vectors(self, batch: list[dict[str, Any]], source: str, size: int | None) -> np.ndarray:
        if source == "doc_vec":
            return _stack(batch, size if self.model is None else self.model.vec_size)
        fields = list_text_fields(self.text_field)
        return self.model.encode_docs([join_text(document, fields) for document in batch])  # type: ignore[union-attr]

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        """``indexer >> retriever`` builds with ``.index()`` and searches with ``.transform()``; binds the retriever."""
        retrievers = [stage for stage in _stages(right) if isinstance(stage, HypencoderRetriever)]
        if not retrievers:
            return super().__rshift__(right)
        for retriever in retrievers:
            retriever.check_binding(self.path)
        for retriever in retrievers:
            retriever.bind(self.path, self.model)
        return IndexedPipeline(self, right)

    def subtransformers(self) -> dict[str, Any]:
        """None: the model is no stage of its own."""
        return {}


def _checked(documents: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for position, document in enumerate(documents):
        if not isinstance(document, dict) or "docno" not in document:
            found = sorted(document) if isinstance(document, dict) else repr(document)
            raise ValueError(f"document {position}: expected a dictionary with a docno, found {found}")
        yield document


def _match(documents: Iterator[dict[str, Any]], stored: Iterable[str], count: int) -> None:
    """Takes from a stream the documents that are stored, which must come first and in the same order."""
    for position, docno in enumerate(stored):
        document = next(documents, None)
        if document is None or document["docno"] != docno:
            raise ValueError(
                f"expected the stream to begin with the {count} documents that are stored, found "
                f"{'its end' if document is None else repr(document['docno'])} where {docno!r} was, at position {position}; "
                "give the same documents in the same order, or use mode='overwrite'"
            )


def _check_complete(path: Path, facts: dict[str, Any], documents: Iterator[dict[str, Any]]) -> None:
    """Resuming a build that had been completed: nothing to do, if options and documents are the same."""
    reader = IndexReader(path)
    check_same_build(path, reader.meta, facts)
    _match(documents, reader.docnos, reader.doc_count)
    more = next(documents, None)
    if more is not None:
        raise ValueError(
            f"expected the {reader.doc_count} documents of the complete index {path}, found another one, "
            f"{more['docno']!r}; an index does not grow: use mode='overwrite' or another path"
        )
    discard_leftovers(path)


def _stack(batch: list[dict[str, Any]], size: int | None) -> np.ndarray:
    """The ``doc_vec`` of documents as one array, with errors that name the document; size is that of those before."""
    vectors: list[np.ndarray] = []
    for document in batch:
        try:
            vector: np.ndarray = np.asarray(document.get("doc_vec"), dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.empty(())
        if vector.ndim != 1 or not vector.size or vector.size != (size or vector.size):
            raise ValueError(
                f"document {document['docno']!r}: expected a doc_vec of {size or 'some'} numbers, found "
                f"{'a vector of ' + str(vector.shape) if vector.ndim else repr(document.get('doc_vec'))[:80]}"
            )
        size = vector.size
        vectors.append(vector)
    return np.stack(vectors)
