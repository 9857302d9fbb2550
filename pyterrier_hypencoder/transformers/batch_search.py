"""Search for one batch of queries: choose the algorithm, open what it needs, and run it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .. import scoring
from ..index.inner_product import InnerProductIndex, is_built, require_inner_product_index
from ..index.neighbour_graph import NeighbourGraph, has_graph, open_graph
from ..index.reader import IndexReader
from ..qnet import QNets
from ..scoring.rows import Rows
from ..search.choose import EXHAUSTIVE_IF_LINEAR, choose_algorithm
from ..search.entry_points import default_n_initial, default_n_per_round, draw_entry_points
from ..search.exhaustive import exhaustive_search
from ..search.finite import NonFiniteScoreError
from ..search.graph import graph_search
from ..search.hnsw import hnsw_search
from ..search.results import Results
from ..search.scan import Scan
from ..search.surrogate import surrogate_search
from .filters import count_allowed
from .scans import open_scan, read_inner_product_version
from .search_options import read_linear_queries

logger = logging.getLogger(__name__)

ENTRY_POINTS_PER_BUDGET = 2
"""With ``max_scored``, at most half of it is spent on random entry points."""


class BatchSearch:
    """The search of a retriever over one state of the index.

    Args:
        retriever: The retriever, whose options are used. It keeps what is opened for later batches.
        reader: The index.
        num_results: Number of results per query, which may differ from the retriever's option.
        algorithm: The algorithm; None for the retriever's option.
    """

    def __init__(self, retriever: Any, reader: IndexReader, num_results: int, algorithm: str | None = None) -> None:
        self._options = retriever
        self._algorithm = retriever.algorithm if algorithm is None else algorithm
        self._reader = reader
        self._num_results = num_results
        self._open = retriever._open

    def search(
        self,
        batch: pd.DataFrame,
        allowed: Sequence[np.ndarray | None],
        candidates: list[list[str]] | None,
        progress: Callable[[float], object],
    ) -> Results:
        """Search for one batch.

        Args:
            batch: One row per query.
            allowed: For every query the ascending docids that may be returned, or None for all documents.
            candidates: For each query docnos to start from, or None.
            progress: Called with the number of queries that are finished, or with fractions of it.

        Returns:
            The results. ``fell_back`` marks queries that the caller must search exhaustively.

        Raises:
            ValueError: If an option or a query is not valid, or a score is NaN or infinite.
            FileNotFoundError: If the algorithm needs a file that the index does not have.
        """
        qnets = self._options._make_fitting_qnets(self._reader, batch)
        try:
            return self._search_with(qnets, allowed, candidates, progress)
        except NonFiniteScoreError as err:
            qid, docno = batch["qid"].iloc[err.query], self._reader.docnos.at(np.array([err.docid]))[0]
            raise ValueError(f"{err.explain(repr(qid), repr(docno), qnets)} The index is at {self._reader.path}.") from err

    def _search_with(
        self,
        qnets: QNets,
        allowed: Sequence[np.ndarray | None],
        candidates: list[list[str]] | None,
        progress: Callable[[float], object],
    ) -> Results:
        score = scoring.make_scorer(qnets, device=self._options.device, precision=self._options.precision)
        n_allowed = count_allowed(allowed, self._reader.doc_count)
        algorithm = self._choose_algorithm(qnets, n_allowed, candidates is not None)
        if algorithm == "hnsw":
            return self._search_hnsw(qnets, score, allowed)
        if algorithm != "exhaustive":
            entry_points = self._find_entry_points(qnets, candidates, algorithm)
            if not self._covers_all(entry_points, n_allowed):
                search = self._search_graph if algorithm == "graph" else self._search_surrogate
                return search(qnets, score, entry_points, allowed, progress)
        self._check_budget(n_allowed)
        results = exhaustive_search(
            score,
            self._get_vectors(),
            len(qnets),
            self._num_results,
            first_pass=scoring.make_first_pass(qnets, device=self._options.device, precision=self._options.precision),
            device=scoring.resolve_device(self._options.device),
            allowed=allowed,
            progress=lambda n_docs: progress(n_docs * len(qnets) / max(1, n_allowed)),
        )
        return results.add(converged=np.ones(len(qnets), dtype=bool))

    def _check_budget(self, n_allowed: int) -> None:
        """Check that exhaustive search keeps within ``max_scored``."""
        budget = self._options.max_scored
        if budget is not None and n_allowed > budget:
            raise ValueError(
                f"max_scored must be at least {n_allowed} for exhaustive search, which scores all allowed documents, got "
                f"{budget}. Set algorithm='auto', 'surrogate' or 'graph', or a larger max_scored."
            )

    def _get_vectors(self) -> Rows:
        """Return the vectors where q-nets are evaluated, if they fit there."""
        return self._reader.get_vectors(scoring.resolve_device(self._options.device))

    def _choose_algorithm(self, qnets: QNets, n_allowed: int, has_candidates: bool) -> str:
        budget = self._options.max_scored
        if qnets.spec.is_linear and self._algorithm in EXHAUSTIVE_IF_LINEAR and (budget is None or n_allowed <= budget):
            logger.info("algorithm=%r: q-nets are single vectors, so the search is exhaustive", self._algorithm)
            return "exhaustive"
        if self._algorithm != "auto":
            return self._algorithm
        choice = choose_algorithm(
            n_allowed=n_allowed,
            num_results=self._num_results,
            doc_count=self._reader.doc_count,
            is_linear=qnets.spec.is_linear,
            has_entry_points=has_candidates or self._options.entry_points is not None,
            has_graph=has_graph(self._reader, self._options.graph_k),
            has_inner_product_index=self._has_inner_product_index(),
            on_gpu=scoring.resolve_device(self._options.device).type == "cuda",
            max_scored=budget,
        )
        logger.info("algorithm='auto' chooses %s for %d documents: %s", choice.algorithm, n_allowed, choice.reason)
        return choice.algorithm

    def _find_entry_points(
        self, qnets: QNets, candidates: list[list[str]] | None, algorithm: str
    ) -> np.ndarray | list[np.ndarray]:
        """Return docids that all queries share, or one array per query, at most ``max_scored`` of them."""
        if algorithm == "graph":
            number = int(self._options.initial_candidates)
        elif self._options.n_initial is not None:
            number = int(self._options.n_initial)
        else:
            has_query_vector = qnets.spec.is_linear or qnets.query_vectors is not None
            number = default_n_initial(self._reader.vec_size, has_query_vector=has_query_vector)
        budget = self._reader.doc_count if self._options.max_scored is None else int(self._options.max_scored)
        if self._options.max_scored is not None:
            number = min(number, max(1, budget // ENTRY_POINTS_PER_BUDGET))
        random = draw_entry_points(self._reader.doc_count, number, self._options.seed)
        given: list[np.ndarray] | None = None
        if candidates is not None:
            given = [_drop_repeated(self._reader.docnos.require(docnos))[:budget] for docnos in candidates]
        elif self._options.entry_points is not None:
            given = [_drop_repeated(self._reader.docnos.require(list(self._options.entry_points)))[:budget]]
        if given is None:
            return random
        if algorithm == "surrogate":
            given = [np.union1d(docids, self._draw_others(random, docids, budget)) for docids in given]
        given = [np.sort(docids) for docids in given]
        return given if candidates is not None else given[0]

    def _draw_others(self, random: np.ndarray, docids: np.ndarray, budget: int) -> np.ndarray:
        """Return random entry points besides given ones, as many as the budget leaves."""
        others, room = np.setdiff1d(random, docids), budget - len(docids)
        if len(others) <= room:
            return others
        return np.random.default_rng(int(self._options.seed)).choice(others, room, replace=False)

    def _get_count(self, name: str) -> int | None:
        """Return an option that is a number or None, as a Python integer, because small numpy integers overflow."""
        value = getattr(self._options, name)
        return None if value is None else int(value)

    def _covers_all(self, entry_points: np.ndarray | list[np.ndarray], n_allowed: int) -> bool:
        """Return True if every query has at least as many entry points as there are allowed documents."""
        fewest = len(entry_points) if isinstance(entry_points, np.ndarray) else min(map(len, entry_points))
        if fewest >= n_allowed:
            message = "algorithm=%r: %d entry points cover all allowed documents, so all %d are scored"
            logger.info(message, self._algorithm, fewest, n_allowed)
        return fewest >= n_allowed

    def _search_hnsw(self, qnets: QNets, score: scoring.Scorer, allowed: Sequence[np.ndarray | None]) -> Results:
        query_vectors = read_linear_queries(qnets)  # first: without them, an inner-product index is of no use
        results = hnsw_search(
            self._open_inner_product_index().find,
            score,
            self._reader.vectors,
            query_vectors,
            self._num_results,
            ef_search=self._options.ef_search,
            allowed=allowed,
            max_scored=self._get_count("max_scored"),
        )
        limit = self._reader.doc_count if self._get_count("max_scored") is None else self._get_count("max_scored")
        n_allowed = [self._reader.doc_count if docids is None else len(docids) for docids in allowed]
        return results.add(converged=np.minimum(self._num_results, n_allowed) <= limit)

    def _search_graph(
        self,
        qnets: QNets,
        score: scoring.Scorer,
        entry_points: np.ndarray | list[np.ndarray],
        allowed: Sequence[np.ndarray | None],
        progress: Callable[[float], object],
    ) -> Results:
        device = scoring.resolve_device(self._options.device)
        return graph_search(
            score,
            self._get_vectors(),
            self._open_graph().get_edges(device),
            entry_points,
            len(qnets),
            self._num_results,
            device=device,
            n_candidates=int(self._options.n_candidates),
            max_iter=int(self._options.max_iter),
            early_stop=self._options.early_stop,
            variant=self._options.variant,
            allowed=allowed,
            max_scored=self._get_count("max_scored"),
            progress=progress,
        )

    def _search_surrogate(
        self,
        qnets: QNets,
        score: scoring.Scorer,
        entry_points: np.ndarray | list[np.ndarray],
        allowed: Sequence[np.ndarray | None],
        progress: Callable[[float], object],
    ) -> Results:
        device = scoring.resolve_device(self._options.device)
        query_vectors = read_linear_queries(qnets) if qnets.spec.is_linear else qnets.query_vectors
        return surrogate_search(
            score,
            self._get_vectors(),
            entry_points,
            len(qnets),
            self._num_results,
            scan=self._open_scan() if device.type == "cpu" else None,
            device=device,
            query_vectors=query_vectors,
            max_rounds=int(self._options.max_rounds),
            n_per_round=self._get_count("n_per_round")
            or default_n_per_round(self._num_results, has_query_vector=query_vectors is not None),
            ridge=self._options.ridge,
            allowed=allowed,
            max_scored=self._get_count("max_scored"),
            defer_fallback=True,
            progress=progress,
        )

    def _open_graph(self) -> NeighbourGraph:
        k = self._options.graph_k
        return self._open("graph", (self._reader.version, k), lambda: open_graph(self._reader, k))

    def _open_scan(self) -> Scan | None:
        return self._open("scan", read_inner_product_version(self._reader), lambda: open_scan(self._reader))

    def _open_inner_product_index(self) -> InnerProductIndex:
        version = read_inner_product_version(self._reader)
        return self._open("inner_product_index", version, lambda: require_inner_product_index(self._reader))

    def _has_inner_product_index(self) -> bool:
        return self._open("has_inner_product_index", read_inner_product_version(self._reader), lambda: is_built(self._reader))


def _drop_repeated(docids: np.ndarray) -> np.ndarray:
    """Return different docids in the order of their first occurrence."""
    return docids[np.sort(np.unique(docids, return_index=True)[1])]
