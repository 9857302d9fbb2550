"""The PyTerrier transformer that searches an index."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from .. import scoring
from ..encoders.base import Encoder
from ..index.files import resolve_path
from ..index.reader import IndexReader
from ..options import check_option_names
from ..search.entry_points import SEED
from ..search.hnsw import EF_SEARCH
from ..search.results import Results
from .batches import search_in_batches
from .example import build_example_index
from .opened import IndexTransformer
from .result_frames import build_result_frame, check_topics, list_statistics, split_candidates
from .search_options import check_search_options

logger = logging.getLogger(__name__)


class HypencoderRetriever(IndexTransformer, pt.Transformer):
    """Search an index with the q-nets of queries.

    The options by group, in the order of the list below:

    - **Index and model**: ``index``, ``model``.
    - **Results**: ``num_results``, ``max_scored``, ``batch_size``, ``return_stats``, ``drop_query_vec``, ``verbose``.
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
        max_scored: Maximum number of documents that a query scores. None sets no limit. Exhaustive search raises an error if
            more documents are allowed. The other algorithms stop at the limit and return the best documents found so far.
        batch_size: Number of queries that are searched together. Memory grows with it.
        return_stats: If True, add the cost of the search as columns: ``n_scored`` (documents that were scored),
            ``n_rounds``, and ``converged`` (False if the search ran out of rounds, or stopped at ``max_scored``).
            ``surrogate`` and ``auto`` also add ``last_yield`` (see :mod:`pyterrier_hypencoder.search.surrogate`) and
            ``fell_back`` (True if the query was searched exhaustively because its q-net is too far from linear).
            :data:`NumScored` and :data:`NumRounds` make measures of them.
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
        n_per_round: Number of documents that each round of ``surrogate`` scores. None uses 2.5 times ``num_results`` if the
            model also produces a query vector, or else ``num_results``, and at least 250.
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
        precision: Precision in which q-nets are evaluated: ``fp32``, ``bf16`` or ``auto``. ``auto`` returns the documents,
            scores and order of ``fp32``. On hardware with native bf16, exhaustive search is faster with it.
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
        max_scored: int | None = None,
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
        self.max_scored = max_scored
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
