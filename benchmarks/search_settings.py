"""List the settings of all searches that ``search.py`` compares."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import released
import torch

from pyterrier_hypencoder import PRESETS, HypencoderIndex, HypencoderRetriever, QNets, scoring
from pyterrier_hypencoder.index.neighbour_graph import DEFAULT_NEIGHBOURS
from pyterrier_hypencoder.search.entry_points import default_n_initial, default_n_per_round, draw_entry_points
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.graph import graph_search
from pyterrier_hypencoder.search.results import Results
from pyterrier_hypencoder.search.surrogate import surrogate_search

#: Options that a retriever uses by default.
DEFAULTS = HypencoderRetriever()
#: Settings per algorithm with ``--quick``.
N_QUICK = 2

Search = Callable[[slice], Results]
"""Function that searches with some of the queries."""


@dataclass(frozen=True)
class Setting:
    """An algorithm with its options.

    Attributes:
        algorithm: Name of the algorithm.
        options: Options that were set.
        search: Function that searches.
        takes_batches: If True, the function searches with several queries at once.
    """

    algorithm: str
    options: dict[str, Any]
    search: Search
    takes_batches: bool = True

    def format_options(self) -> str:
        """Return the options as text."""
        return " ".join(f"{name}={value}" for name, value in self.options.items())


class SearchSettings:
    """Make the settings for one index and one set of q-nets.

    Args:
        index: Index to search. Its neighbour graph and inner-product index are built if they do not exist.
        qnets: Q-nets of all queries.
        k: Results per query.
        quick: If True, try two settings per algorithm.
    """

    def __init__(self, index: HypencoderIndex, qnets: QNets, k: int, quick: bool) -> None:
        self.index = index
        self.vectors = index.vectors
        self.qnets = qnets
        self.k = k
        self.quick = quick
        self.neighbours = index.corpus_graph(DEFAULT_NEIGHBOURS, verbose=True).edges_data
        self.inner_product_index = index.inner_product_index(verbose=True)
        self.device = scoring.resolve_device("auto")

    def make_qnet_settings(self, with_released: bool) -> Iterator[Setting]:
        """Make the settings of all searches with q-nets. The exhaustive search comes first."""
        yield Setting("exhaustive", {}, self._search_exhaustively(self.qnets))
        for options in self._list_graph_options():
            yield Setting("graph", options, self._search_graph(**options))
        for options in self._list_surrogate_options():
            yield Setting("surrogate", options, self._search_surrogate(**options))
        if with_released:
            options = self._get_efficient_1()
            yield Setting("released", options, self._search_released(**options), takes_batches=False)

    def make_dense_settings(self, queries: np.ndarray) -> Iterator[Setting]:
        """Make the settings of all searches with query vectors (Q, D). The exhaustive search comes first."""
        yield Setting("dense", {}, self._search_exhaustively(QNets.linear(torch.from_numpy(queries))))
        vectors = np.array(self.vectors, dtype=np.float32)
        flat = faiss.IndexFlatIP(self.index.vec_size)
        flat.add(vectors)
        yield Setting("flat", {}, self._search_faiss(queries, flat))
        hnsw = faiss.IndexHNSWFlat(self.index.vec_size, 32, faiss.METRIC_INNER_PRODUCT)
        hnsw.add(vectors)
        for ef in (self.k,) if self.quick else (self.k, 2 * self.k, 4 * self.k):
            search = self._search_faiss(queries, hnsw, faiss.SearchParametersHNSW(efSearch=ef))
            yield Setting("hnsw", {"ef": ef}, search)

    def _search_exhaustively(self, all_qnets: QNets) -> Search:
        def search(part: slice) -> Results:
            qnets = all_qnets.select(part)
            return exhaustive_search(scoring.make_scorer(qnets), self.vectors, len(qnets), self.k)

        return search

    def _search_graph(self, *, initial_candidates: int, n_candidates: int, max_iter: int) -> Search:
        entry_points = draw_entry_points(len(self.index), initial_candidates)

        def search(part: slice) -> Results:
            qnets = self.qnets.select(part)
            return graph_search(
                scoring.make_scorer(qnets),
                self.vectors,
                self.neighbours,
                entry_points,
                len(qnets),
                self.k,
                device=self.device,
                n_candidates=n_candidates,
                max_iter=max_iter,
            )

        return search

    def _search_surrogate(self, *, scan: str, n_initial: int, n_per_round: int, max_rounds: int) -> Search:
        entry_points = draw_entry_points(len(self.index), n_initial)

        def search(part: slice) -> Results:
            qnets = self.qnets.select(part)
            return surrogate_search(
                scoring.make_scorer(qnets),
                self.vectors,
                entry_points,
                len(qnets),
                self.k,
                scan=self.inner_product_index if scan == "index" else None,
                device=self.device,
                query_vectors=qnets.query_vectors,
                max_rounds=max_rounds,
                n_per_round=n_per_round,
                ridge=DEFAULTS.ridge,
            )

        return search

    def _search_released(self, *, initial_candidates: int, n_candidates: int, max_iter: int) -> Search:
        docnos = self.index.docnos.at(np.arange(len(self.index))).tolist()
        rows = {docno: row for row, docno in enumerate(docnos)}
        neighbours = {docnos[row]: [docnos[other] for other in ids.tolist()] for row, ids in enumerate(self.neighbours)}
        vectors = torch.from_numpy(np.array(self.vectors, dtype=np.float32)).to(self.device)
        all_qnets = self.qnets.to(self.device)
        entry_docnos = released.draw_entry_points(docnos, initial_candidates)

        @torch.inference_mode()
        def search(part: slice) -> Results:
            score = all_qnets.select(part).score
            results, n_scored = released.search(score, rows, vectors, neighbours, entry_docnos, self.k, n_candidates, max_iter)
            docids = np.array([rows[docno] for docno, _ in results])
            scores = np.array([value for _, value in results])
            return Results([docids], [scores], {"n_scored": np.array([n_scored])})

        return search

    def _search_faiss(self, queries: np.ndarray, faiss_index: Any, parameters: Any = None) -> Search:
        def search(part: slice) -> Results:
            scores, docids = faiss_index.search(queries[part], self.k, params=parameters)
            return Results(list(docids), list(scores))

        return search

    def _list_graph_options(self) -> list[dict[str, Any]]:
        """Vary each option around the preset "efficient_1" and around few entry points, as in the paper's Figure 2."""
        n_docs, efficient = len(self.index), self._get_efficient_1()
        few = max(1, n_docs // 1000)
        options = [efficient]
        options += [efficient | {"initial_candidates": n} for n in (few, 100, 500, 1000, 10_000) if n < n_docs]
        for n_entry_points in (few, efficient["initial_candidates"]):
            base = efficient | {"initial_candidates": n_entry_points}
            options += [base | {"n_candidates": n} for n in (16, 32, 128, 328)]
            options += [base | {"max_iter": n} for n in (1, 2, 4, 8, 12)]
        return self._select(options)

    def _list_surrogate_options(self) -> list[dict[str, Any]]:
        """Vary each option around the retriever's defaults, which come first, with both scans."""
        base = {
            "scan": "product",
            "n_initial": default_n_initial(self.index.vec_size, has_query_vector=self.qnets.query_vectors is not None),
            "n_per_round": default_n_per_round(self.k, has_query_vector=self.qnets.query_vectors is not None),
            "max_rounds": DEFAULTS.max_rounds,
        }
        options: list[dict[str, Any]] = [base, base | {"scan": "index"}]
        options += [base | {"n_initial": n} for n in (64, 256, 1024) if n < len(self.index)]
        options += [base | {"n_per_round": n} for n in (100, 250, 500, 1000)]
        options += [base | {"max_rounds": n} for n in (1, 2, 3, 4, 16)]
        return self._select(options)

    def _get_efficient_1(self) -> dict[str, int]:
        """Return the options of the paper's preset. In a small collection, a tenth of the documents are entry points."""
        options = {name: value for name, value in PRESETS["efficient_1"].items() if name != "algorithm"}
        if options["initial_candidates"] >= len(self.index):
            options["initial_candidates"] = max(1, len(self.index) // 10)
        return options

    def _select(self, options: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Remove repeated options, and keep the first ones with ``--quick``."""
        distinct = [chosen for place, chosen in enumerate(options) if chosen not in options[:place]]
        return distinct[:N_QUICK] if self.quick else distinct
