"""The PyTerrier transformer that searches an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from types import MethodType
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from . import scoring
from .encoder import Encoder
from .frames import check_choice, check_positive, is_missing
from .scorer import OnIndex, path_of
from .search.exhaustive import exhaustive
from .search.results import Results
from .storage import Reader

SEARCHES = ("exhaustive",)
FILTER_COLUMN = "allowed_docnos"


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
        self.check_binding(index)
        self._index = index
        if self.model is None:
            self.model = model

    def check_binding(self, index: Any) -> None:
        """Checks that the retriever belongs to no other index.

        Raises:
            ValueError: where it does.
        """
        if self._index is not None and not _same_path(self._index, index):
            raise ValueError(
                f"expected a retriever without index, or of {path_of(index)}, found one of {path_of(self._index)}; make a "
                "new HypencoderRetriever() for this pipeline"
            )

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


def _same_path(index: Any, other: Any) -> bool:
    return os.path.abspath(path_of(index) or "") == os.path.abspath(path_of(other) or "")


def _counter(progress: Any, n_queries: int) -> Callable[[int], object]:
    """What counts a batch's documents, each once for every query."""
    return lambda n_docs: progress.update(n_docs * n_queries)


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
