"""The PyTerrier transformers that search an index: retriever, scorer and vector loader."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from . import scoring
from .encoder import Encoder, from_record
from .frames import ByArguments, TextField, check_choice, check_positive, docnos_of, fields_of, is_missing
from .qnet import QNets
from .search.exhaustive import exhaustive
from .search.results import Results
from .stages import TextScorer, qnets_of
from .storage import Reader, identity

SEARCHES = ("exhaustive",)
FILTER_COLUMN = "allowed_docnos"


class OnIndex(ByArguments):
    """What transformers over an index share: the opened directory and the model that fits it."""

    _index: Any
    model: Any
    qnet_width: int | None

    def _reader(self) -> Reader:
        """The opened index; opened anew when the index was replaced, or the attribute set to another."""
        path = _path_of(self._index)
        if path is None:
            raise ValueError(
                f"{type(self).__name__}: expected an index, found none; pass one (an index or its path), or compose it: "
                "HypencoderIndexer(path, model) >> HypencoderRetriever()"
            )
        return self._open("reader", identity(path), lambda: Reader(path))

    def _encoder(self) -> Encoder | None:
        """The model given, or the one that the index names; checked against the index."""
        reader = self._reader()
        if self.model is None:
            record = reader.meta.get("model")
            return None if record is None else self._open("recorded", str(record), lambda: from_record(record))
        if not hasattr(self.model, "encode_queries"):
            raise ValueError(f"model: expected an encoder, found {self.model!r}; pass Hypencoder(...) or BiEncoder(...)")
        return self.model

    def _fitting_qnets(self, queries: pd.DataFrame) -> QNets:
        """The q-nets of a frame's queries, narrowed where asked for, which take the index's vectors."""
        reader, model = self._reader(), self._encoder()
        if "query_vec" not in queries.columns and model is not None:
            _check_fit(reader, model)
        qnets = qnets_of(queries, model, reader.vec_size)
        if qnets.spec.input_dim != reader.vec_size:
            raise ValueError(_misfit(reader, model, f"{reader.vec_size} dimensions", f"{qnets.spec.input_dim}"))
        return self._narrowed(qnets)

    def _narrowed(self, qnets: QNets) -> QNets:
        if self.qnet_width is None:
            return qnets
        check_positive("qnet_width", self.qnet_width)
        return qnets.narrow(self.qnet_width)


class Option:
    """An option whose name is also that of a method: calling it calls the method, setting it sets the option.

    ``retriever.search("query")`` and ``retriever.search = "exhaustive"`` both do what they say, and so does
    :func:`pyterrier.GridScan`.

    Args:
        attribute: where the option's value is kept.
        method: the method.
    """

    def __init__(self, attribute: str, method: Callable[..., Any]) -> None:
        self.attribute = attribute
        self.method = method

    def __get__(self, instance: Any, owner: type) -> Any:
        return self.method if instance is None else MethodType(self.method, instance)

    def __set__(self, instance: Any, value: Any) -> None:
        setattr(instance, self.attribute, value)


def _refuse_to_index(self: HypencoderRetriever, iter: Any, **kwargs: Any) -> None:
    """There to say what to do: a retriever at the end of a pipeline cannot index."""
    raise TypeError(
        "a retriever does not index: Python reads docs_pipeline >> indexer >> retriever from the left; run "
        "(docs_pipeline >> indexer).index(corpus) first, then search with the retriever, bound to the index"
    )


class HypencoderRetriever(OnIndex, pt.Transformer):
    """Searches an index with the q-nets of queries.

    Args:
        index: a :class:`HypencoderIndex` or its path; None for ``indexer >> HypencoderRetriever()``, which sets it.
        model: the encoder of the queries; None takes the one recorded in the index.
        num_results: documents per query at most.
        batch_size: queries that go through the collection together.
        search: which documents are evaluated: ``exhaustive`` (all).
        device: where q-nets are evaluated: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda[:n]``.
        precision: of that evaluation: ``fp32``, ``bf16``, or ``auto`` (what keeps the ranking: fp32).
        qnet_width: evaluate only the first units of every hidden layer, for Matryoshka models; None for all.
        allowed_docnos: documents that may be returned, for all queries; None for all. A column of the same name in the
            topics limits single queries (a set per query, None for no limit); where both are given, both hold. Docnos that
            the index does not have are passed over.
        verbose: whether to show progress.
    """

    schematic = {"label": "Hypencoder"}
    search = Option("_search", pt.Transformer.search)
    index = Option("_index", _refuse_to_index)

    def __init__(
        self,
        index: Any = None,
        model: Encoder | None = None,
        *,
        num_results: int = 1000,
        batch_size: int = 32,
        search: str = "exhaustive",
        device: str = "auto",
        precision: str = "auto",
        qnet_width: int | None = None,
        allowed_docnos: Collection[str] | None = None,
        verbose: bool = False,
    ) -> None:
        self._index = index
        self.model = model
        self.num_results = num_results
        self.batch_size = batch_size
        self._search = search
        self.device = device
        self.precision = precision
        self.qnet_width = qnet_width
        self.allowed_docnos = allowed_docnos
        self.verbose = verbose

    def get_parameter(self, name: str) -> Any:
        """The value of an option; see :meth:`pyterrier.Transformer.get_parameter`."""
        return getattr(self, f"_{name}") if name in ("index", "search") else super().get_parameter(name)

    def bind(self, index: Any, model: Encoder | None) -> None:
        """Sets index and model of a retriever that was made without an index.

        Raises:
            ValueError: where it belongs to another index already.
        """
        if self._index is not None and _path_of(self._index) != _path_of(index):
            raise ValueError(
                f"expected a retriever without index, or of {_path_of(index)}, found one of {_path_of(self._index)}; make a "
                "new HypencoderRetriever() for this pipeline"
            )
        self._index = index
        if self.model is None:
            self.model = model

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Searches.

        Args:
            inp: ``qid`` and ``query`` or ``query_vec`` (a query vector, or a flattened q-net of the model); optionally
                ``allowed_docnos``.

        Returns:
            The columns of the topics with ``docno``, ``docid``, ``score`` (float32) and ``rank`` (from 0) added, sorted by
            query and rank; equal scores by docid.
        """
        self._validate(inp)
        topics = inp.reset_index(drop=True)
        if not len(topics):
            return _ranked(topics, [], [], [])
        if topics["qid"].isna().any():
            raise ValueError("qid: expected a query id in every row, found missing ones")
        reader = self._reader()
        everyone = None if self.allowed_docnos is None else _known(reader, self.allowed_docnos)
        docids: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        with pt.tqdm(total=len(topics) * reader.doc_count, unit="doc", disable=not self.verbose) as progress:
            for start in range(0, len(topics), self.batch_size):
                batch = topics.iloc[start : start + self.batch_size]
                results = self._search_batch(reader, batch, everyone, _counter(progress, len(batch)))
                docids += results.docids
                scores += results.scores
        return _ranked(topics, docids, scores, [reader.docnos.at(ids) for ids in docids])

    def _validate(self, inp: pd.DataFrame) -> None:
        check_choice("search", self._search, SEARCHES)
        check_choice("precision", self.precision, scoring.PRECISIONS)
        check_positive("num_results", self.num_results)
        check_positive("batch_size", self.batch_size)
        scoring.resolve_device(self.device)
        try:
            with pt.validate.any(inp) as modes:
                modes.query_frame(extra_columns=["query"])
                modes.query_frame(extra_columns=["query_vec"])
        except pt.validate.InputValidationError as err:
            if "docno" in inp.columns:
                err.args = (f"{err.args[0]} It brings documents: to re-rank them, use index.scorer(model).",)
            raise

    def _search_batch(
        self, reader: Reader, batch: pd.DataFrame, everyone: np.ndarray | None, progress: Callable[[int], object]
    ) -> Results:
        qnets = self._fitting_qnets(batch)
        return exhaustive(
            scoring.scorer(qnets, device=self.device, precision=self.precision),
            reader.vectors,
            len(qnets),
            self.num_results,
            allowed=_allowed(reader, batch, everyone),
            progress=progress,
        )

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """The same retriever with at most k results, where that is fewer (``retriever % k``)."""
        if not 0 < k < self.num_results:
            return None
        return pt.inspect.transformer_apply_attributes(self, num_results=k)

    def subtransformers(self) -> dict[str, Any]:
        """None: index and model are no stages of their own."""
        return {}


class HypencoderScorer(OnIndex, TextScorer):
    """Re-ranks with stored vectors; or with a ``doc_vec`` column, which comes first; or, without index, by encoding text.

    Also scores for pyterrier_dr's LADR and pyterrier_adaptive's GAR (see :meth:`score`).

    Args:
        index: a :class:`HypencoderIndex` or its path; None to take documents from ``doc_vec`` or text.
        model: the encoder of the queries; None takes the one recorded in the index.
        text_field: the field with the text, or several; only without index.
        batch_size: queries whose q-nets are in memory at a time.
        device: where q-nets are evaluated: ``auto``, ``cpu`` or ``cuda[:n]``.
        precision: of that evaluation: ``auto``, ``fp32`` or ``bf16``.
        qnet_width: evaluate only the first units of every hidden layer, for Matryoshka models; None for all.
        verbose: whether to show progress.
    """

    schematic = {"label": "HypencoderScorer"}

    def __init__(
        self,
        index: Any = None,
        model: Encoder | None = None,
        *,
        text_field: TextField = "text",
        batch_size: int = 32,
        device: str = "auto",
        precision: str = "auto",
        qnet_width: int | None = None,
        verbose: bool = False,
    ) -> None:
        self._index = index
        self.model = model
        self.text_field = text_field
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.qnet_width = qnet_width
        self.verbose = verbose

    def _document_columns(self) -> list[list[str]]:
        return [[], ["doc_vec"]] if self._index is not None else [fields_of(self.text_field), ["doc_vec"]]

    def _qnets(self, queries: pd.DataFrame) -> QNets:
        if self._index is not None:
            return self._fitting_qnets(queries)
        return self._narrowed(qnets_of(queries, self.model, None))

    def _vectors(self, frame: pd.DataFrame) -> Any:
        if self._index is None or "doc_vec" in frame.columns:
            return super()._vectors(frame)
        reader = self._reader()
        docids = reader.docnos.known(docnos_of(frame))
        return lambda rows: _gather(reader, docids[rows])

    def _ties(self, frame: pd.DataFrame) -> np.ndarray:
        if self._index is None or "doc_vec" in frame.columns:
            return super()._ties(frame)
        return self._reader().docnos.find(docnos_of(frame))

    def score(self, query_vecs: np.ndarray, docids: np.ndarray) -> np.ndarray:
        """Scores documents by docid: what pyterrier_dr's scorers offer to its search algorithms.

        Args:
            query_vecs: (Q, D) query vectors or (Q, n) flattened q-nets, as ``query_vec`` holds them.
            docids: (N,) docids of the index.

        Returns:
            (Q, N) float32.
        """
        docids = np.asarray(docids, dtype=np.int64)
        if docids.size and not (0 <= docids.min() and docids.max() < self._reader().doc_count):
            raise ValueError(
                f"docid: expected 0 to {self._reader().doc_count - 1}, found {docids.min()} to {docids.max()}; do they come "
                "from another index?"
            )
        qnets = self._fitting_qnets(pd.DataFrame({"query_vec": list(np.atleast_2d(query_vecs))}))
        return self._score(qnets, _gather(self._reader(), docids)).cpu().numpy()


class VecLoader(OnIndex, pt.Transformer):
    """Adds the stored vectors of documents as ``doc_vec`` (float32).

    Args:
        index: a :class:`HypencoderIndex` or its path.
    """

    schematic = {"label": "VecLoader"}
    model = None

    def __init__(self, index: Any) -> None:
        self._index = index

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Takes frames with ``docno``, keeps all columns, adds ``doc_vec``; unknown docnos are an error."""
        pt.validate.columns(inp, includes=["docno"])
        vectors: list[np.ndarray] = []
        if len(inp):
            reader = self._reader()
            vectors = list(_gather(reader, reader.docnos.known(docnos_of(inp))).numpy())
        return inp.assign(doc_vec=pd.Series(vectors, index=inp.index, dtype=object))

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Vectors are loaded only for the documents that a cut-off leaves."""
        return pt.RankCutoff(k) >> self

    def subtransformers(self) -> dict[str, Any]:
        """None: the index is no stage of its own."""
        return {}


def _counter(progress: Any, n_queries: int) -> Callable[[int], object]:
    """What counts a batch's documents, each once for every query."""
    return lambda n_docs: progress.update(n_docs * n_queries)


def _path_of(index: Any) -> Path | None:
    """The directory of an index object, or of a path."""
    path = getattr(index, "path", index)
    if path is not None and not isinstance(path, str | Path):
        raise ValueError(f"index: expected a HypencoderIndex or its path, found {index!r}; pass an encoder as model=...")
    return None if path is None else Path(path)


def _gather(reader: Reader, docids: np.ndarray) -> torch.Tensor:
    """Stored vectors by docid, (n, D) float32."""
    return torch.from_numpy(reader.vectors[docids].astype(np.float32))


def _check_fit(reader: Reader, model: Encoder) -> None:
    """Checks that a model's document vectors are those of the index, as far as the index knows.

    Raises:
        ValueError: naming both.
    """
    if model.vec_size != reader.vec_size:
        raise ValueError(_misfit(reader, model, f"{reader.vec_size} dimensions", f"{model.vec_size}"))
    expected = (reader.meta.get("model") or {}).get("fingerprint")
    if expected is not None and expected != model.fingerprint:
        raise ValueError(_misfit(reader, model, f"document encoder {expected}", f"{model.fingerprint}"))


def _misfit(reader: Reader, model: Encoder | None, expected: str, found: str) -> str:
    record = reader.meta.get("model")
    made_by = f"{record['class']}({record['name']!r})" if record else "vectors from elsewhere"
    return (
        f"the index {reader.path} was made by {made_by}: expected a model of {expected}, found {model or 'query vectors'} of "
        f"{found}; search with the model that the index was made with, or build another index"
    )


def _known(reader: Reader, docnos: Collection[str]) -> np.ndarray:
    """The docids of those docnos that the index has, ascending."""
    if isinstance(docnos, str) or not isinstance(docnos, Iterable):
        raise ValueError(f"{FILTER_COLUMN}: expected a collection of docnos, found {docnos!r}; put docnos in a list or set")
    docids = np.unique(reader.docnos.find([str(docno) for docno in docnos]))
    return docids[docids >= 0]


def _allowed(reader: Reader, batch: pd.DataFrame, everyone: np.ndarray | None) -> list[np.ndarray | None]:
    """For each query the docids that it may return, or None for all."""
    if FILTER_COLUMN not in batch.columns:
        return [everyone] * len(batch)
    own = [None if is_missing(docnos) else _known(reader, docnos) for docnos in batch[FILTER_COLUMN]]
    if everyone is None:
        return own
    return [everyone if ids is None else np.intersect1d(ids, everyone, assume_unique=True) for ids in own]


def _ranked(
    topics: pd.DataFrame, docids: list[np.ndarray], scores: list[np.ndarray], docnos: list[np.ndarray]
) -> pd.DataFrame:
    """The result frame: the topics' columns, repeated, and the documents'."""
    counts = [len(ids) for ids in docids] or [0] * len(topics)

    def joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)

    own = [c for c in topics.columns if c not in ("docno", "docid", "score", "rank")]
    return (
        topics[own]
        .iloc[np.repeat(np.arange(len(topics)), counts)]
        .reset_index(drop=True)
        .assign(
            docno=pd.Series(joined(docnos, object), dtype=str),
            docid=joined(docids, np.int64),
            score=joined(scores, np.float32),
            rank=joined([np.arange(n) for n in counts], np.int64),
        )
    )
