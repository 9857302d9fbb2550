"""The PyTerrier transformer that searches an index."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from .. import scoring
from ..encoders.base import Encoder
from ..index.files import resolve_path
from ..index.inner_product import InnerProductIndex, is_built, require_inner_product_index
from ..index.neighbour_graph import NeighbourGraph, has_graph, open_graph
from ..index.reader import IndexReader
from ..options import check_option_names
from ..qnet import QNets
from ..search.choose import EXHAUSTIVE_IF_LINEAR, choose_algorithm
from ..search.entry_points import SEED, default_n_initial, draw_entry_points
from ..search.exhaustive import exhaustive_search
from ..search.finite import NonFiniteScoreError
from ..search.graph import graph_search
from ..search.hnsw import EF_SEARCH, hnsw_search
from ..search.results import Results
from ..search.scan import Scan
from ..search.surrogate import surrogate_search
from .batches import search_in_batches
from .example import build_example_index
from .filters import count_allowed
from .opened import IndexTransformer
from .result_frames import build_result_frame, check_topics, list_statistics, split_candidates
from .scans import open_scan, read_inner_product_version
from .search_options import check_search_options, read_linear_queries

logger = logging.getLogger(__name__)

MIN_PER_ROUND = 250
"""Default of ``n_per_round`` for small ``num_results``."""


class HypencoderRetriever(IndexTransformer, pt.Transformer):
    """Search an index with the q-nets of queries.

    The options by group, in the order of the list below:

    - **Index and model**: ``index``, ``model``.
    - **Results**: ``num_results``, ``batch_size``, ``return_stats``, ``drop_query_vec``, ``verbose``.
    - **Algorithm**: ``algorithm``, ``entry_points``, ``seed``.
    - **Graph search**: ``initial_candidates``, ``n_candidates``, ``max_iter``, ``early_stop``, ``variant``, ``graph_k``.
    - **Surrogate search**: ``n_initial``, ``max_rounds``, ``n_per_round``, ``ridge``.
    - **HNSW search**: ``ef_search``.
    - **Filters**: ``allowed_docnos``, ``excluded_docnos``, ``mask``, ``ignore_same_id``.
    - **Evaluation of q-nets**: ``device``, ``precision``, ``qnet_width``.

    Options may also be set later, for example by :func:`pyterrier.GridScan`, and are checked again when they are used.

    Args:
        index: A :class:`HypencoderIndex` or its path. Omit it in ``indexer >> HypencoderRetriever()``, which sets it.
        model: The encoder of the queries. None loads the model that is recorded in the index.
        num_results: Maximum number of documents per query.
        batch_size: Number of queries that are searched together. Memory grows with it.
        return_stats: If True, add the cost of the search as columns: ``n_scored`` (documents that were scored) and
            ``n_rounds``. ``surrogate`` and ``auto`` also add ``last_yield`` (see
            :mod:`pyterrier_hypencoder.search.surrogate`) and ``fell_back`` (True if the query was searched exhaustively
            because its q-net is too far from linear). :data:`NumScored` and :data:`NumRounds` make measures of them.
        drop_query_vec: If True, leave the column ``query_vec`` out of the results.
        verbose: If True, show a progress bar.
        algorithm: The search algorithm. ``exhaustive`` scores all documents. ``graph`` is Algorithm 1 of the paper, a greedy
            search over the neighbour graph. ``surrogate`` fits a linear approximation of the q-net, scores its top
            documents, and repeats; on a CPU it uses :meth:`HypencoderIndex.inner_product_index` if that has been built.
            ``hnsw`` searches the HNSW index of that method, for q-nets that are single vectors (``BiEncoder``). For such
            q-nets, ``graph`` and ``surrogate`` are exhaustive, which is exact and not slower.
            ``auto`` chooses by the rules of :mod:`pyterrier_hypencoder.search.choose`. If the entry points already cover all
            allowed documents, the search is exhaustive.
        entry_points: Docnos that ``graph`` and ``surrogate`` score first, for all queries. Alternatively pass a frame with a
            column ``docno``, which gives each query its own entry points. ``surrogate`` adds random entry points to them.
        seed: Seed of random entry points. 43 draws the same documents as the released code.
        initial_candidates: Number of random entry points of ``graph``.
        n_candidates: Number of documents that each round of ``graph`` expands by their neighbours.
        max_iter: Maximum number of rounds of ``graph``.
        early_stop: If True, ``graph`` stops for a query when a round does not improve its results.
        variant: The documents of a round that ``graph`` adds to the results. ``released`` adds the best
            ``max(n_candidates, num_results)`` like the released code, ``paper`` the best ``n_candidates``.
        graph_k: Number of neighbours per document that ``graph`` follows. None uses 100, or all neighbours of the largest
            graph of the index if it has fewer; see :meth:`HypencoderIndex.corpus_graph`.
        n_initial: Number of random entry points of ``surrogate``. None uses twice the number of dimensions and at least
            1,024, or 256 if the model also produces a query vector. A larger number helps queries whose relevant documents
            form several clusters.
        max_rounds: Maximum number of rounds of ``surrogate``. It stops earlier when the top documents no longer change. With
            fewer than 4 rounds, it does not detect q-nets that are too far from linear.
        n_per_round: Number of documents that each round of ``surrogate`` scores. None uses half of ``num_results``, and at
            least 250.
        ridge: Regularisation of the linear functions of ``surrogate``, relative to the mean variance of the vectors.
        ef_search: Number of candidates that ``hnsw`` keeps, at least ``num_results``. More candidates cost more time and
            find more of the best documents.
        allowed_docnos: Docnos that may be returned, for all queries. None allows all documents. A column of the same name in
            the topics filters single queries (a collection of docnos per query, or None). A document must pass all filters.
            Docnos that the index does not contain are ignored.
        excluded_docnos: Docnos that must not be returned. A column of the same name filters single queries.
        mask: Array with True or 1 for every docid that may be returned; :meth:`HypencoderIndex.mask` makes one of metadata.
        ignore_same_id: If True, do not return a document whose docno is the qid, as the measures of ArguAna and Quora need.
        device: Device on which q-nets are evaluated: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``.
        precision: Precision in which q-nets are evaluated: ``fp32``, ``bf16`` or ``auto`` (fp32, which keeps the ranking).
        qnet_width: Number of units of each hidden layer to evaluate, for Matryoshka models. None evaluates all units.

    Example:
        >>> import pandas as pd
        >>> from pyterrier_hypencoder import HypencoderRetriever
        >>> retriever = HypencoderRetriever.example()
        >>> topics = pd.DataFrame({"qid": ["q1"], "query_vec": [[2.0, 1.0, 0.0, 0.0]]})
        >>> retriever(topics)[["qid", "docno", "score", "rank"]]
          qid docno  score  rank
        0  q1    d1    2.0     0
        1  q1    d3    1.5     1
        2  q1    d2    1.0     2
    """

    @check_option_names
    def __init__(
        self,
        index: Any = None,
        model: Encoder | None = None,
        *,
        num_results: int = 1000,
        batch_size: int = 32,
        return_stats: bool = False,
        drop_query_vec: bool = False,
        verbose: bool = False,
        algorithm: str = "exhaustive",
        entry_points: Collection[str] | None = None,
        seed: int = SEED,
        initial_candidates: int = 10_000,
        n_candidates: int = 64,
        max_iter: int = 16,
        early_stop: bool = True,
        variant: str = "released",
        graph_k: int | None = None,
        n_initial: int | None = None,
        max_rounds: int = 8,
        n_per_round: int | None = None,
        ridge: float = 0.05,
        ef_search: int = EF_SEARCH,
        allowed_docnos: Collection[str] | None = None,
        excluded_docnos: Collection[str] | None = None,
        mask: Any = None,
        ignore_same_id: bool = False,
        device: str = "auto",
        precision: str = "auto",
        qnet_width: int | None = None,
    ) -> None:
        self._index = resolve_path(index)
        self.model = model
        self.num_results = num_results
        self.batch_size = batch_size
        self.return_stats = return_stats
        self.drop_query_vec = drop_query_vec
        self.verbose = verbose
        self.algorithm = algorithm
        self.entry_points = entry_points
        self.seed = seed
        self.initial_candidates = initial_candidates
        self.n_candidates = n_candidates
        self.max_iter = max_iter
        self.early_stop = early_stop
        self.variant = variant
        self.graph_k = graph_k
        self.n_initial = n_initial
        self.max_rounds = max_rounds
        self.n_per_round = n_per_round
        self.ridge = ridge
        self.ef_search = ef_search
        self.allowed_docnos = allowed_docnos
        self.excluded_docnos = excluded_docnos
        self.mask = mask
        self.ignore_same_id = ignore_same_id
        self.device = device
        self.precision = precision
        self.qnet_width = qnet_width
        check_search_options(self)

    @classmethod
    def example(cls) -> HypencoderRetriever:
        """Return a retriever over the three-document index of :meth:`HypencoderIndex.example`.

        The index records no model, so queries need a column ``query_vec``.
        """
        return cls(build_example_index())

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Search the index.

        Args:
            inp: Topics with ``qid``, and ``query`` or ``query_vec`` (a query vector, or a flattened q-net of the model).
                Optional columns: ``allowed_docnos``, and for ``graph`` and ``surrogate`` also ``docno`` (entry points).

        Returns:
            The columns of the topics and ``docno``, ``docid``, ``score`` (float32) and ``rank`` (from 0), sorted by query
            and rank. Documents with equal scores are sorted by docid.

        Raises:
            pt.validate.InputValidationError: If columns are missing, or if there are documents and the search is exhaustive.
            ValueError: If an option, a query or a docno is not valid, or the model does not fit the index.
            FileNotFoundError: If there is no index, no neighbour graph for ``graph``, or no HNSW index for ``hnsw``.
        """
        check_search_options(self)
        scoring.resolve_device(self.device)
        check_topics(inp, allow_candidates=self.algorithm not in ("exhaustive", "hnsw"))
        topics, candidates = split_candidates(inp)
        kept = topics.drop(columns="query_vec", errors="ignore") if self.drop_query_vec else topics
        statistics = list_statistics(self.algorithm) if self.return_stats else {}
        if not len(topics):
            return build_result_frame(kept, Results([], []), np.asarray, statistics)

        def search(reader: IndexReader) -> pd.DataFrame:
            results = search_in_batches(self, reader, topics, candidates)
            return build_result_frame(kept, results, reader.docnos.at, statistics)

        return self._read_index(search)

    def index(self, iter: Any, **kwargs: Any) -> Any:
        """Raise an error: a retriever cannot index.

        Python evaluates ``docs_pipeline >> indexer >> retriever`` from the left, so ``.index(corpus)`` on it ends here.
        """
        raise TypeError(
            "A retriever cannot index. Python evaluates docs_pipeline >> indexer >> retriever from the left. Call "
            "(docs_pipeline >> indexer).index(corpus) first, then search with the retriever, bound to the index."
        )

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Return the retriever with at most k results (``retriever % k``), or None if it cannot be fused.

        Only exhaustive search is fused. The other algorithms score more documents the more results are requested, so the
        first k of many results can differ from a search for k results.
        """
        if not 0 < k < self.num_results or self.algorithm != "exhaustive":
            return None
        return pt.inspect.transformer_apply_attributes(self, num_results=k)

    def schematic(self, *, input_columns: list[str] | None = None) -> dict[str, Any]:
        """Return the label of the retriever in schematics: the class of the model and the algorithm."""
        name = type(self.model).__name__ if isinstance(self.model, Encoder) else "Hypencoder"
        return {"label": name if self.algorithm == "exhaustive" else f"{name} {self.algorithm}"}

    def _search_batch(
        self,
        reader: IndexReader,
        batch: pd.DataFrame,
        allowed: Sequence[np.ndarray | None],
        candidates: list[list[str]] | None,
        progress: Callable[[int], object],
    ) -> Results:
        qnets = self._make_fitting_qnets(reader, batch)
        try:
            return self._search_with(reader, qnets, allowed, candidates, progress)
        except NonFiniteScoreError as err:
            qid, docno = batch["qid"].iloc[err.query], reader.docnos.at(np.array([err.docid]))[0]
            raise ValueError(f"{err.explain(repr(qid), repr(docno), qnets)} The index is at {reader.path}.") from err

    def _search_with(
        self,
        reader: IndexReader,
        qnets: QNets,
        allowed: Sequence[np.ndarray | None],
        candidates: list[list[str]] | None,
        progress: Callable[[int], object],
    ) -> Results:
        score = scoring.make_scorer(qnets, device=self.device, precision=self.precision)
        n_allowed = count_allowed(allowed, reader.doc_count)
        algorithm = self._choose_algorithm(reader, qnets, n_allowed, candidates is not None)
        if algorithm == "hnsw":
            vectors, find = read_linear_queries(qnets), self._open_inner_product_index(reader).find
            k, ef_search = self.num_results, self.ef_search
            return hnsw_search(find, score, reader.vectors, vectors, k, ef_search=ef_search, allowed=allowed)
        if algorithm != "exhaustive":
            entry_points = self._find_entry_points(reader, qnets, candidates, algorithm)
            if not self._covers_all(entry_points, n_allowed):
                search = self._search_graph if algorithm == "graph" else self._search_surrogate
                return search(reader, qnets, score, entry_points, allowed)
        return exhaustive_search(score, reader.vectors, len(qnets), self.num_results, allowed=allowed, progress=progress)

    def _choose_algorithm(self, reader: IndexReader, qnets: QNets, n_allowed: int, has_candidates: bool) -> str:
        if qnets.spec.is_linear and self.algorithm in EXHAUSTIVE_IF_LINEAR:
            logger.info("algorithm=%r: q-nets are single vectors, so the search is exhaustive", self.algorithm)
            return "exhaustive"
        if self.algorithm != "auto":
            return self.algorithm
        choice = choose_algorithm(
            n_allowed=n_allowed,
            num_results=self.num_results,
            doc_count=reader.doc_count,
            is_linear=qnets.spec.is_linear,
            has_entry_points=has_candidates or self.entry_points is not None,
            has_graph=has_graph(reader, self.graph_k),
            has_inner_product_index=self._has_inner_product_index(reader),
            on_gpu=scoring.resolve_device(self.device).type == "cuda",
        )
        logger.info("algorithm='auto' chooses %s for %d documents: %s", choice.algorithm, n_allowed, choice.reason)
        return choice.algorithm

    def _find_entry_points(
        self, reader: IndexReader, qnets: QNets, candidates: list[list[str]] | None, algorithm: str
    ) -> np.ndarray | list[np.ndarray]:
        """Return docids that all queries share, or one array per query."""
        if algorithm == "graph":
            number = self.initial_candidates
        elif self.n_initial is not None:
            number = self.n_initial
        else:
            number = default_n_initial(reader.vec_size, has_query_vector=qnets.query_vectors is not None)
        random = draw_entry_points(reader.doc_count, number, self.seed)
        add_random = algorithm == "surrogate"
        if candidates is not None:
            per_query = [reader.docnos.require(docnos) for docnos in candidates]
            return [np.union1d(docids, random) if add_random else np.unique(docids) for docids in per_query]
        if self.entry_points is None:
            return random
        docids = np.unique(reader.docnos.require(list(self.entry_points)))
        return np.union1d(docids, random) if add_random else docids

    def _covers_all(self, entry_points: np.ndarray | list[np.ndarray], n_allowed: int) -> bool:
        """Return True if every query has at least as many entry points as there are allowed documents."""
        fewest = len(entry_points) if isinstance(entry_points, np.ndarray) else min(map(len, entry_points))
        if fewest >= n_allowed:
            message = "algorithm=%r: %d entry points cover all allowed documents, so all %d are scored"
            logger.info(message, self.algorithm, fewest, n_allowed)
        return fewest >= n_allowed

    def _search_graph(
        self,
        reader: IndexReader,
        qnets: QNets,
        score: scoring.Scorer,
        entry_points: np.ndarray | list[np.ndarray],
        allowed: Sequence[np.ndarray | None],
    ) -> Results:
        return graph_search(
            score,
            reader.vectors,
            self._open_graph(reader).edges,
            entry_points,
            len(qnets),
            self.num_results,
            device=scoring.resolve_device(self.device),
            n_candidates=self.n_candidates,
            max_iter=self.max_iter,
            early_stop=self.early_stop,
            variant=self.variant,
            allowed=allowed,
        )

    def _search_surrogate(
        self,
        reader: IndexReader,
        qnets: QNets,
        score: scoring.Scorer,
        entry_points: np.ndarray | list[np.ndarray],
        allowed: Sequence[np.ndarray | None],
    ) -> Results:
        device = scoring.resolve_device(self.device)
        return surrogate_search(
            score,
            reader.vectors,
            entry_points,
            len(qnets),
            self.num_results,
            scan=self._open_scan(reader) if device.type == "cpu" else None,
            device=device,
            query_vectors=qnets.query_vectors,
            max_rounds=self.max_rounds,
            n_per_round=max(MIN_PER_ROUND, int(self.num_results) // 2) if self.n_per_round is None else self.n_per_round,
            ridge=self.ridge,
            allowed=allowed,
        )

    def _open_graph(self, reader: IndexReader) -> NeighbourGraph:
        return self._open("graph", (reader.version, self.graph_k), lambda: open_graph(reader, self.graph_k))

    def _open_scan(self, reader: IndexReader) -> Scan | None:
        return self._open("scan", read_inner_product_version(reader), lambda: open_scan(reader))

    def _open_inner_product_index(self, reader: IndexReader) -> InnerProductIndex:
        version = read_inner_product_version(reader)
        return self._open("inner_product_index", version, lambda: require_inner_product_index(reader))

    def _has_inner_product_index(self, reader: IndexReader) -> bool:
        return self._open("has_inner_product_index", read_inner_product_version(reader), lambda: is_built(reader))
