"""The PyTerrier transformer that searches an index."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from torch import Tensor

from .. import scoring
from ..encoders.base import Encoder
from ..encoders.columns import group_rows, is_missing, read_docnos
from ..index.files import identity
from ..index.inner_product import FACTS_FILE, InnerProductIndex, is_built
from ..index.neighbour_graph import NeighbourGraph, has_graph, open_graph
from ..index.reader import IndexReader
from ..options import check_choice, check_positive
from ..qnet import QNets
from ..search.exhaustive import exhaustive_search
from ..search.graph import SEED, VARIANTS, count_entry_points, draw_entry_points, graph_search
from ..search.results import Results
from ..search.surrogate import Scan, default_n_initial, make_exact_scan, surrogate_search
from .opened import IndexTransformer, get_index_path

logger = logging.getLogger(__name__)

ALGORITHMS = ("auto", "exhaustive", "graph", "surrogate")
FILTER_COLUMN = "allowed_docnos"
FEW = 16
"""Documents that a surrogate is fitted to at least, and that a round evaluates."""
SMALL = 20_000
"""Documents up to which ``algorithm="auto"`` evaluates all; on a GPU, fifty times as many."""
SCANNED = 2_000_000
"""Documents above which surrogate search on a CPU has an inner-product index built where there is none."""
_NO_STATS = {"n_scored": 0, "n_rounds": 0}
_SURROGATE_STATS = {"last_yield": np.nan, "fell_back": False}


class HypencoderRetriever(IndexTransformer, pt.Transformer):
    """Searches an index with the q-nets of queries.

    Args:
        index: a :class:`HypencoderIndex` or its path; None for ``indexer >> HypencoderRetriever()``, which sets it.
        model: the encoder of the queries; None takes the one recorded in the index.
        num_results: documents per query at most.
        batch_size: queries that go through the collection together.
        algorithm: which documents are evaluated: ``exhaustive`` (all), ``graph`` (the paper's Algorithm 1), ``surrogate`` (what a
            linear stand-in of the q-net likes, found by a product with all vectors, or on a CPU, where that costs less, by
            :meth:`HypencoderIndex.inner_product_index` if that has been built), or ``auto``: all where queries are vectors,
            where few documents may be returned (20,000, or a million on a GPU) or a tenth of them are wanted; ``graph`` where
            a CPU would first have to build an inner-product index (above two million documents) and there is a graph; and
            else ``surrogate``. A frame that brings documents gives ``graph`` and ``surrogate`` where to begin. Where as many
            documents would be entered as may be returned, all those are evaluated.
        device: where q-nets are evaluated: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda[:n]``.
        precision: of that evaluation: ``fp32``, ``bf16``, or ``auto`` (what keeps the ranking: fp32).
        qnet_width: evaluate only the first units of every hidden layer, for Matryoshka models; None for all.
        allowed_docnos: documents that may be returned, for all queries; None for all. A column of the same name in the
            topics limits single queries (a set per query, None for no limit); where both are given, both hold. Docnos that
            the index does not have are passed over.
        initial_candidates: entry points of ``graph``, drawn at random: a number, or a fraction of the collection. Where that
            is all of it, the search is exhaustive.
        n_candidates: documents that a round of ``graph`` expands by their neighbours.
        max_iter: rounds of ``graph`` at most.
        early_stop: whether ``graph`` stops for a query when a round brings nothing.
        variant: what a round of ``graph`` offers to the results: ``released`` (the best max(n_candidates, num_results), as the
            released code) or ``paper`` (the best n_candidates).
        graph_k: neighbours of each document in ``graph``; the index must have a graph with as many.
        entry_points: docnos of the entry points of ``graph`` and ``surrogate``, for all queries, in place of random ones.
        fill: whether random entry points are added to those that are given; ``surrogate`` always adds them.
        seed: of random entry points; 43 draws those of the released code.
        n_initial: documents that ``surrogate`` evaluates first, drawn at random; None for twice as many as dimensions and at
            least 1,024, or 256 where q-nets have a query vector to begin with. More make it likelier that needs of several
            kinds are all met.
        max_rounds: rounds of ``surrogate`` at most; it stops when the best documents have settled. With fewer than 4 it does not
            notice q-nets that are too far from linear.
        n_per_round: documents that such a round evaluates; None for half of ``num_results``, and at least 250.
        ridge: of the linear functions' fit, as a part of the vectors' mean variance.
        fallback: what ``surrogate`` does for a q-net that turns out too far from linear: ``exhaustive``, or ``graph``, a walk
            over the graph from the best documents found, which costs less and may miss some.
        polish: whether ``surrogate`` ends with such a walk for every query.
        return_stats: whether to add what the search cost: ``n_scored`` (documents evaluated) and ``n_rounds``, and for
            ``surrogate`` and ``auto`` also ``last_yield`` (see :mod:`pyterrier_hypencoder.search.surrogate`) and ``fell_back``
            (whether the q-net was too far from linear).
            :mod:`pyterrier_hypencoder.measures` makes measures of them.
        verbose: whether to show progress.
    """

    schematic = {"label": "Hypencoder"}

    def __init__(
        self,
        index: Any = None,
        model: Encoder | None = None,
        *,
        num_results: int = 1000,
        batch_size: int = 32,
        algorithm: str = "exhaustive",
        device: str = "auto",
        precision: str = "auto",
        qnet_width: int | None = None,
        allowed_docnos: Collection[str] | None = None,
        initial_candidates: float = 10_000,
        n_candidates: int = 64,
        max_iter: int = 16,
        early_stop: bool = True,
        variant: str = "released",
        graph_k: int = 100,
        entry_points: Collection[str] | None = None,
        fill: bool = False,
        seed: int = SEED,
        n_initial: int | None = None,
        max_rounds: int = 8,
        n_per_round: int | None = None,
        ridge: float = 0.05,
        fallback: str = "exhaustive",
        polish: bool = False,
        return_stats: bool = False,
        verbose: bool = False,
    ) -> None:
        self._index = index
        self.model = model
        self.num_results = num_results
        self.batch_size = batch_size
        self.algorithm = algorithm
        self.device = device
        self.precision = precision
        self.qnet_width = qnet_width
        self.allowed_docnos = allowed_docnos
        self.initial_candidates = initial_candidates
        self.n_candidates = n_candidates
        self.max_iter = max_iter
        self.early_stop = early_stop
        self.variant = variant
        self.graph_k = graph_k
        self.entry_points = entry_points
        self.fill = fill
        self.seed = seed
        self.n_initial = n_initial
        self.max_rounds = max_rounds
        self.n_per_round = n_per_round
        self.ridge = ridge
        self.fallback = fallback
        self.polish = polish
        self.return_stats = return_stats
        self.verbose = verbose

    def get_parameter(self, name: str) -> Any:
        """The value of an option; see :meth:`pyterrier.Transformer.get_parameter`."""
        return self._index if name == "index" else super().get_parameter(name)

    def index(self, iter: Any, **kwargs: Any) -> Any:
        """Refuse to index, and say what to do: Python reads ``docs >> indexer >> retriever`` from the left."""
        raise TypeError(
            "a retriever does not index: Python reads docs_pipeline >> indexer >> retriever from the left; run "
            "(docs_pipeline >> indexer).index(corpus) first, then search with the retriever, bound to the index"
        )

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
                f"expected a retriever without index, or of {get_index_path(index)}, found one of {get_index_path(self._index)}; make a "
                "new HypencoderRetriever() for this pipeline"
            )

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Searches.

        Args:
            inp: ``qid`` and ``query`` or ``query_vec`` (a query vector, or a flattened q-net of the model); optionally
                ``allowed_docnos``, and, unless the search is exhaustive, ``docno`` of documents to begin with.

        Returns:
            The columns of the topics with ``docno``, ``docid``, ``score`` (float32) and ``rank`` (from 0) added, sorted by
            query and rank; equal scores by docid.
        """
        self._validate(inp)
        if inp["qid"].isna().any():
            raise ValueError("qid: expected a query id in every row, found missing ones")
        topics, brought = _split_topics(inp)
        results = Results([], [])
        if len(topics):
            reader = self._reader()
            everyone = None if self.allowed_docnos is None else _known(reader, self.allowed_docnos)
            with pt.tqdm(total=len(topics), unit="query", disable=not self.verbose) as progress:
                for start in range(0, len(topics), self.batch_size):
                    batch = topics.iloc[start : start + self.batch_size]
                    own = None if brought is None else brought[start : start + self.batch_size]
                    allowed = _allowed(reader, batch, everyone)
                    tried = _counter(progress, len(batch) / reader.doc_count)
                    found = self._search_batch(reader, batch, allowed, own, tried)
                    results = results.then(found)
                    progress.update(start + len(batch) - progress.n)
        docnos = [self._reader().docnos.at(ids) for ids in results.docids]
        return _ranked(topics, results, docnos, self._stats_wanted())

    def _stats_wanted(self) -> dict[str, Any]:
        """The columns of statistics, with what they have where a search does not say."""
        if not self.return_stats:
            return {}
        return _NO_STATS | (_SURROGATE_STATS if self.algorithm in ("auto", "surrogate") else {})

    def _validate(self, inp: pd.DataFrame) -> None:
        self._check_options()
        try:
            with pt.validate.any(inp) as modes:
                for column in ("query", "query_vec"):
                    modes.query_frame(extra_columns=[column])
                    if self.algorithm != "exhaustive":
                        modes.columns(includes=["qid", column, "docno"])
        except pt.validate.InputValidationError as err:
            if "docno" in inp.columns:
                err.args = (
                    f"{err.args[0]} It brings documents: to re-rank them, use index.scorer(model); to begin a search with "
                    "them, set algorithm='graph' or 'surrogate'.",
                )
            raise

    def _check_options(self) -> None:
        check_choice("algorithm", self.algorithm, ALGORITHMS)
        check_choice("precision", self.precision, scoring.PRECISIONS)
        check_choice("variant", self.variant, VARIANTS)
        check_choice("fallback", self.fallback, ("exhaustive", "graph"))
        for name in ("num_results", "batch_size", "n_candidates", "max_iter", "graph_k", "max_rounds"):
            check_positive(name, getattr(self, name))
        share = self.initial_candidates
        if not isinstance(share, float | np.floating):
            check_positive("initial_candidates", share)
        elif not 0 < share <= 1:
            raise ValueError(f"initial_candidates: expected a number above 0, or a fraction from 0 to 1, found {share!r}")
        for name in ("n_initial", "n_per_round"):
            number = getattr(self, name)
            if number is None:
                continue
            check_positive(name, number)
            if number < FEW:
                raise ValueError(f"{name}: expected at least {FEW} documents to fit a surrogate to, found {number!r}")
        if not 1e-4 <= self.ridge < np.inf:
            raise ValueError(f"ridge: expected a number from 0.0001, found {self.ridge!r}")
        if self.entry_points is not None and (isinstance(self.entry_points, str) or not len(self.entry_points)):
            raise ValueError(f"entry_points: expected at least one docno in a list, found {self.entry_points!r}")
        scoring.resolve_device(self.device)

    def _search_batch(
        self,
        reader: IndexReader,
        batch: pd.DataFrame,
        allowed: list[np.ndarray | None],
        brought: list[list[str]] | None,
        progress: Callable[[int], object],
    ) -> Results:
        qnets = self._fitting_qnets(batch)
        score = scoring.make_scorer(qnets, device=self.device, precision=self.precision)
        count = _number_allowed(allowed, reader.doc_count)
        way = self._way(reader, qnets, brought is not None or self.entry_points is not None, count)
        entries = (
            None if way == "exhaustive" else self._entries(reader, brought, way, self._number_of_entries(way, reader, qnets))
        )
        if entries is None or self._enters_all(entries, count):
            return exhaustive_search(score, reader.vectors, len(qnets), self.num_results, allowed=allowed, progress=progress)
        device = scoring.resolve_device(self.device)
        if way == "graph":
            return graph_search(
                score,
                reader.vectors,
                self._graph(reader).edges_data,
                entries,
                len(qnets),
                self.num_results,
                device=device,
                n_candidates=self.n_candidates,
                max_iter=self.max_iter,
                early_stop=self.early_stop,
                variant=self.variant,
                allowed=allowed,
            )
        return surrogate_search(
            score,
            reader.vectors,
            entries,
            len(qnets),
            self.num_results,
            scan=self._scan(reader, device),
            device=device,
            start=qnets.query_vectors,
            max_rounds=self.max_rounds,
            n_per_round=max(250, self.num_results // 2) if self.n_per_round is None else self.n_per_round,
            ridge=self.ridge,
            fallback=self.fallback,
            polish=self.polish,
            neighbours=self._graph(reader).edges_data if self.polish or self.fallback == "graph" else None,
            n_candidates=self.n_candidates,
            max_iter=self.max_iter,
            allowed=allowed,
        )

    def _way(self, reader: IndexReader, qnets: QNets, begun: bool, count: int) -> str:
        """Which search it is, where that is left open, for so many documents that may be returned."""
        if self.algorithm != "auto":
            return self.algorithm
        device = scoring.resolve_device(self.device)
        small = SMALL * (50 if device.type == "cuda" else 1)
        walks = reader.doc_count > SCANNED and device.type == "cpu" and not is_built(reader)
        reasons = {
            "queries are vectors, so that scoring all is one matrix product": qnets.spec.is_linear and "exhaustive",
            f"of {small} documents and fewer all are evaluated": count <= small and "exhaustive",
            "results are wanted for a tenth of the documents or more": 10 * self.num_results >= count and "exhaustive",
            "documents to begin with were given": begun and "surrogate",
            "there is a graph, and no inner-product index yet": walks and has_graph(reader, self.graph_k) and "graph",
            "there are many documents": "surrogate",
        }
        reason, chosen = next((reason, str(chosen)) for reason, chosen in reasons.items() if chosen)
        logger.info("algorithm='auto' is %s for %d documents: %s", chosen, count, reason)
        return chosen

    def _number_of_entries(self, way: str, reader: IndexReader, qnets: QNets) -> int:
        if way == "graph":
            return count_entry_points(self.initial_candidates, reader.doc_count)
        if self.n_initial is not None:
            return self.n_initial
        return default_n_initial(reader.vec_size, started=qnets.query_vectors is not None)

    def _enters_all(self, entries: np.ndarray | list[np.ndarray], count: int) -> bool:
        """Whether a search would begin with as many documents as may be returned, so that evaluating those is less."""
        fewest = len(entries) if isinstance(entries, np.ndarray) else min(map(len, entries))
        if fewest >= count:
            logger.info(
                "algorithm=%r: it would begin with %d documents, so all %d are evaluated", self.algorithm, fewest, count
            )
        return fewest >= count

    def _scan(self, reader: IndexReader, device: torch.device) -> Scan | None:
        """The inner-product index, where there is one or the collection is large, while that costs less than the product.

        Returns:
            None for the product with all vectors.
        """
        if device.type != "cpu":
            return None

        def opened() -> Scan | None:
            wanted = reader.doc_count > SCANNED or is_built(reader)
            return (
                self._either(InnerProductIndex(reader, verbose=self.verbose), make_exact_scan(reader.vectors))
                if wanted
                else None
            )

        return self._open("scan", (identity(reader.path), identity(reader.path, FACTS_FILE)), opened)

    @staticmethod
    def _either(index: InnerProductIndex, product: Scan) -> Scan:
        def scan(queries: Tensor, k: int, met: Tensor) -> tuple[Tensor, Tensor]:
            return (index if index.is_worth_it(len(queries), k, met) else product)(queries, k, met)

        return scan

    def _graph(self, reader: IndexReader) -> NeighbourGraph:
        return self._open("graph", (identity(reader.path), self.graph_k), lambda: open_graph(reader, self.graph_k))

    def _entries(
        self, reader: IndexReader, brought: list[list[str]] | None, way: str, number: int
    ) -> np.ndarray | list[np.ndarray]:
        """docids to begin with: those brought, or the option's, or random ones."""
        random = draw_entry_points(reader.doc_count, number, self.seed)
        fill = self.fill or way == "surrogate"
        if brought is not None:
            own = [reader.docnos.require(docnos) for docnos in brought]
            return [np.union1d(ids, random) for ids in own] if fill else own
        if self.entry_points is None:
            return random
        ids = reader.docnos.require(list(self.entry_points))
        return np.union1d(ids, random) if fill else ids

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """The same retriever with at most k results, where that is fewer (``retriever % k``).

        Only where all documents are evaluated: other searches look at more of them the more results are wanted, so that
        their first k are not those of a search for k.
        """
        if not 0 < k < self.num_results or self.algorithm != "exhaustive":
            return None
        return pt.inspect.transformer_apply_attributes(self, num_results=k)

    def subtransformers(self) -> dict[str, Any]:
        """None: index and model are no stages of their own."""
        return {}


def _same_path(index: Any, other: Any) -> bool:
    return os.path.abspath(get_index_path(index) or "") == os.path.abspath(get_index_path(other) or "")


def _counter(progress: Any, share: float) -> Callable[[int], object]:
    """What counts documents that all queries of a batch were tried on, as a share of those queries."""
    return lambda n_docs: progress.update(n_docs * share)


def _split_topics(inp: pd.DataFrame) -> tuple[pd.DataFrame, list[list[str]] | None]:
    """The topics of a frame, one row each, and the docnos that it brings for each."""
    if "docno" not in inp.columns:
        return inp.reset_index(drop=True), None
    frame = inp.reset_index(drop=True)
    groups = group_rows(frame) if len(frame) else []
    docnos = read_docnos(frame)
    columns = [*pt.model.query_columns(frame)] + [column for column in (FILTER_COLUMN,) if column in frame.columns]
    topics = frame[columns].iloc[[rows[0] for rows in groups]].reset_index(drop=True)
    return topics, [docnos[rows].tolist() for rows in groups]


def _known(reader: IndexReader, docnos: Collection[str]) -> np.ndarray:
    """The docids of those docnos that the index has, ascending."""
    if isinstance(docnos, str) or not isinstance(docnos, Iterable):
        raise ValueError(f"{FILTER_COLUMN}: expected a collection of docnos, found {docnos!r}; put docnos in a list or set")
    docids = np.unique(reader.docnos.find([str(docno) for docno in docnos]))
    return docids[docids >= 0]


def _allowed(reader: IndexReader, batch: pd.DataFrame, everyone: np.ndarray | None) -> list[np.ndarray | None]:
    """For each query the docids that it may return, or None for all."""
    if FILTER_COLUMN not in batch.columns:
        return [everyone] * len(batch)
    own = [None if is_missing(docnos) else _known(reader, docnos) for docnos in batch[FILTER_COLUMN]]
    if everyone is None:
        return own
    return [everyone if ids is None else np.intersect1d(ids, everyone, assume_unique=True) for ids in own]


def _number_allowed(allowed: list[np.ndarray | None], doc_count: int) -> int:
    """How many documents may be returned for some query of a batch."""
    limits = [ids for ids in allowed if ids is not None]
    return len(np.unique(np.concatenate(limits))) if len(limits) == len(allowed) else doc_count


def _ranked(topics: pd.DataFrame, results: Results, docnos: list[np.ndarray], stats: dict[str, Any]) -> pd.DataFrame:
    """The result frame: the topics' columns, repeated, and the documents'; ``stats`` has columns and what they are empty."""
    counts = [len(ids) for ids in results.docids] or [0] * len(topics)

    def joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)

    own = [c for c in topics.columns if c not in ("docno", "docid", "score", "rank")]
    found = (
        topics[own]
        .iloc[np.repeat(np.arange(len(topics)), counts)]
        .reset_index(drop=True)
        .assign(
            docno=pd.Series(joined(docnos, object), dtype=str),
            docid=joined(results.docids, np.int64),
            score=joined(results.scores, np.float32),
            rank=joined([np.arange(n) for n in counts], np.int64),
        )
    )
    for name, default in stats.items():
        values = results.stats.get(name, np.full(len(counts), default))
        found[name] = np.repeat(values, counts).astype(type(default))
    return found
