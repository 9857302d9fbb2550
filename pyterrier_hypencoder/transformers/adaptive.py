"""Adaptive re-ranking over the neighbour graph: GAR of pyterrier_adaptive, and LADR of pyterrier_dr.

A first stage gives documents, and the graph adds their neighbours. The packages choose the documents, and the q-nets score
them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyterrier as pt

from ..encoders.base import Encoder
from ..encoders.columns import group_rows, read_docnos, read_vectors
from ..encoders.stages import QueryEncoder
from ..index.files import resolve_path
from ..index.graph_builder import open_or_build_graph
from ..index.layout import list_graph_sizes
from ..index.neighbour_graph import NeighbourGraph, open_graph
from ..index.reader import IndexReader
from ..options import check_non_negative, check_option_names, check_positive
from ..search.results import Results
from .example import build_example_index
from .opened import IndexTransformer, get_index_path
from .result_frames import build_result_frame, split_candidates
from .scorer import HypencoderScorer, PinnedScorer

NEIGHBOURS = 16
"""Default number of neighbours per document, if the graph has as many."""

Made = TypeVar("Made", bound="AdaptiveReranker")


class AdaptiveReranker(IndexTransformer, pt.Transformer):
    """Base class of the adaptive re-rankers. Subclasses name their package and choose the documents.

    Attributes:
        scorer: A :class:`HypencoderScorer` over the same index, an encoder, or None.
        k: Number of neighbours per document, or None.
        num_results: Number of results per query.
    """

    scorer: Any
    k: int | None
    num_results: int
    _package: str
    _counts: tuple[str, ...] = ("num_results",)
    _columns: tuple[str, ...] = ()

    @classmethod
    def example(cls: type[Made]) -> Made:
        """Return the re-ranker over the three-document index of :meth:`HypencoderIndex.example`, with a graph.

        The index records no model, so queries need a column ``query_vec``.
        """
        path = build_example_index()
        open_or_build_graph(IndexReader(path), 2)
        return cls(path)

    def _run(self, reader: IndexReader, frame: pd.DataFrame, scorer: pt.Transformer) -> pd.DataFrame:
        """Return ``qid``, ``docno`` and ``score`` of the documents that were found, for a frame with ``query_vec``."""
        raise NotImplementedError

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Re-rank documents and their neighbours.

        Args:
            inp: A result frame with ``qid``, ``docno``, and ``query`` or ``query_vec``. GAR also needs ``score``.

        Returns:
            The query columns and ``docno``, ``docid``, ``score`` and ``rank``, sorted by query and rank. A query without
            documents has no results.

        Raises:
            ImportError: If the package that chooses the documents is not installed.
            pt.validate.InputValidationError: If columns are missing.
            ValueError: If an option is not valid, a docno is not in the index, or the scorer has another index.
            FileNotFoundError: If the index has no neighbour graph, or a smaller one than ``k``.
        """
        self._check()
        with pt.validate.any(inp) as modes:
            for column in ("query", "query_vec"):
                modes.result_frame(extra_columns=[column, *self._columns])
        topics, _ = split_candidates(inp)
        if not len(inp):
            return build_result_frame(topics, Results([], []), np.asarray, {})
        return self._read_index(lambda reader: self._rerank(reader, inp.reset_index(drop=True), topics))

    def _check(self) -> None:
        if importlib.util.find_spec(self._package) is None:
            pip_name = self._package.replace("_", "-")
            raise ImportError(f"{type(self).__name__} requires {self._package}: pip install {pip_name}")
        for name in self._counts:
            check_positive(name, getattr(self, name))
        if self.k is not None:
            check_positive("k", self.k)

    def _rerank(self, reader: IndexReader, inp: pd.DataFrame, topics: pd.DataFrame) -> pd.DataFrame:
        reader.docnos.require(read_docnos(inp))  # GAR would pass unknown docnos on, or drop them
        scorer = self._make_scorer(reader)
        frame = inp[["qid", "docno", *self._columns]].assign(query=inp["query"] if "query" in inp.columns else "")
        if isinstance(scorer, PinnedScorer):
            vectors = _encode_queries(scorer, reader, topics)
            frame["query_vec"] = pd.Series([vectors[qid] for qid in frame["qid"]], index=frame.index, dtype=object)
        found = self._run(reader, frame, scorer)
        # Queries with a single result come from pyterrier_dr as cells with arrays.
        found = found[["qid", "docno", "score"]].explode(["docno", "score"], ignore_index=True)
        by_query = {found["qid"].iloc[rows[0]]: rows for rows in group_rows(found)}
        docids, scores = reader.docnos.require(read_docnos(found)), found["score"].to_numpy(dtype=np.float32)
        order = [rows[np.lexsort((docids[rows], -scores[rows]))] for rows in (by_query[qid] for qid in topics["qid"])]
        results = Results([docids[rows] for rows in order], [scores[rows] for rows in order])
        return build_result_frame(topics, results, reader.docnos.at, {})

    def _make_scorer(self, reader: IndexReader) -> pt.Transformer:
        scorer = self.scorer
        if scorer is None or isinstance(scorer, Encoder):
            scorer = self._open("scorer", scorer, lambda: HypencoderScorer(self._index, scorer))
        if not isinstance(scorer, HypencoderScorer):
            return self._check_other_scorer(scorer)
        path = get_index_path(scorer.get_parameter("index"))
        if path != get_index_path(self._index):
            raise ValueError(
                f"scorer must score documents of the index at {reader.path}, got a scorer of {path or 'no index'}. Pass "
                "index.scorer(model)."
            )
        return PinnedScorer(scorer, reader)

    def _check_other_scorer(self, scorer: Any) -> pt.Transformer:
        raise ValueError(f"scorer must be index.scorer(model) or a model, got {scorer!r}. Pass index.scorer(model).")

    def _open_neighbours(self, reader: IndexReader) -> NeighbourGraph:
        k = min(NEIGHBOURS, max(list_graph_sizes(reader.folder), default=NEIGHBOURS)) if self.k is None else self.k
        return self._open("graph", (reader.version, k), lambda: open_graph(reader, k))

    def subtransformers(self) -> dict[str, Any]:
        """Return the scorer, if it is a stage."""
        return {"scorer": self.scorer} if isinstance(self.scorer, pt.Transformer) else {}


class Gar(AdaptiveReranker):
    """Graph-based adaptive re-ranking (GAR): alternate between the first stage and the neighbours of the best documents.

    GAR comes from pyterrier_adaptive. Each query is encoded once.

    Args:
        index: A :class:`HypencoderIndex` or its path.
        scorer: ``index.scorer(model)``, a model, or any re-ranker that needs ``qid``, ``query`` and ``docno`` only. None
            loads the model that is recorded in the index.
        k: Number of neighbours per document. None uses 16, or all neighbours of a smaller graph.
        num_results: Number of documents that are scored and returned per query.
        batch_size: Number of documents that are scored together.
        backfill: If True, add documents of the first stage that were not scored, after all others.
        verbose: If True, show a progress bar.

    Example:
        >>> import pandas as pd
        >>> gar = Gar.example()
        >>> run = pd.DataFrame({"qid": ["q"], "query_vec": [[1.0, 0, 0, 0]], "docno": ["d2"], "score": [1.0], "rank": [0]})
        >>> gar(run)["docno"].tolist()
        ['d1', 'd3', 'd2']
    """

    schematic = {"label": "GAR"}
    _package = "pyterrier_adaptive"
    _counts = ("num_results", "batch_size")
    _columns = ("score",)

    @check_option_names
    def __init__(
        self,
        index: Any,
        scorer: Any = None,
        *,
        k: int | None = None,
        num_results: int = 1000,
        batch_size: int = 128,
        backfill: bool = True,
        verbose: bool = False,
    ) -> None:
        self._index = resolve_path(index)
        self.scorer = scorer
        self.k = k
        self.num_results = num_results
        self.batch_size = batch_size
        self.backfill = backfill
        self.verbose = verbose

    def _check_other_scorer(self, scorer: Any) -> pt.Transformer:
        return scorer if isinstance(scorer, pt.Transformer) else super()._check_other_scorer(scorer)

    def _run(self, reader: IndexReader, frame: pd.DataFrame, scorer: pt.Transformer) -> pd.DataFrame:
        if "query_vec" in frame.columns:
            scorer = _KnownQueries(scorer, dict(zip(frame["qid"], frame["query_vec"], strict=True)))
        gar = importlib.import_module(self._package).GAR(
            scorer,
            self._open_neighbours(reader),
            num_results=self.num_results,
            batch_size=self.batch_size,
            backfill=self.backfill,
            verbose=self.verbose,
        )
        return gar.transform(frame.drop(columns="query_vec", errors="ignore"))


class _Ladr(AdaptiveReranker):
    """LADR of pyterrier_dr."""

    _package = "pyterrier_dr"
    budget: bool | int
    verbose: bool

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Return the re-ranker with at most k results, or None if the number of results limits the documents scored."""
        if not 0 < k < self.num_results or self.budget:
            return None
        return pt.inspect.transformer_apply_attributes(self, num_results=k)

    def _check(self) -> None:
        super()._check()
        check_non_negative("budget", int(self.budget) if isinstance(self.budget, bool) else self.budget)

    def _make_view(self, reader: IndexReader) -> Any:
        """Return what LADR reads of a ``FlexIndex``: the lookup of docnos."""
        docnos = SimpleNamespace(inv=_Lookup(reader.docnos.require), fwd=_Lookup(reader.docnos.at))
        return SimpleNamespace(payload=lambda **options: (docnos, None), verbose=self.verbose)

    def _make_options(self, scorer: pt.Transformer) -> dict[str, Any]:
        names = ("num_results", "budget")
        return {"dense_scorer": scorer, "drop_query_vec": True} | {name: getattr(self, name) for name in names}


class LadrProactive(_Ladr):
    """Proactive LADR: score the documents of the first stage and all their neighbours.

    Lexically accelerated dense retrieval comes from pyterrier_dr.

    Args:
        index: A :class:`HypencoderIndex` or its path.
        scorer: ``index.scorer(model)`` or a model. None loads the model that is recorded in the index.
        k: Number of neighbours per document. None uses 16, or all neighbours of a smaller graph.
        hops: Number of steps along the graph.
        num_results: Number of results per query.
        budget: Maximum number of documents to score. False sets no limit, and True means ``num_results``.
        verbose: If True, show a progress bar.

    Example:
        >>> import pandas as pd
        >>> ladr = LadrProactive.example()
        >>> run = pd.DataFrame({"qid": ["q"], "query_vec": [[1.0, 0, 0, 0]], "docno": ["d2"], "score": [1.0], "rank": [0]})
        >>> ladr(run)["docno"].tolist()
        ['d1', 'd3', 'd2']
    """

    schematic = {"label": "LADR (proactive)"}
    _counts = ("num_results", "hops")

    @check_option_names
    def __init__(
        self,
        index: Any,
        scorer: Any = None,
        *,
        k: int | None = None,
        hops: int = 1,
        num_results: int = 1000,
        budget: bool | int = False,
        verbose: bool = False,
    ) -> None:
        self._index = resolve_path(index)
        self.scorer = scorer
        self.k = k
        self.hops = hops
        self.num_results = num_results
        self.budget = budget
        self.verbose = verbose

    def _run(self, reader: IndexReader, frame: pd.DataFrame, scorer: pt.Transformer) -> pd.DataFrame:
        make = importlib.import_module(self._package).FlexIndex.ladr_proactive
        graph, options = self._open_neighbours(reader), self._make_options(scorer)
        return make(self._make_view(reader), graph, hops=self.hops, **options).transform(frame)


class LadrAdaptive(_Ladr):
    """Adaptive LADR: score the neighbours of the best documents until the best documents no longer change.

    Lexically accelerated dense retrieval comes from pyterrier_dr.

    Args:
        index: A :class:`HypencoderIndex` or its path.
        scorer: ``index.scorer(model)`` or a model. None loads the model that is recorded in the index.
        k: Number of neighbours per document. None uses 16, or all neighbours of a smaller graph.
        depth: Number of best documents whose neighbours are scored.
        max_hops: Maximum number of rounds. None sets no limit.
        num_results: Number of results per query.
        budget: Maximum number of documents to score. False sets no limit, and True means ``num_results``.
        verbose: If True, show a progress bar.

    Example:
        >>> import pandas as pd
        >>> ladr = LadrAdaptive.example()
        >>> run = pd.DataFrame({"qid": ["q"], "query_vec": [[1.0, 0, 0, 0]], "docno": ["d2"], "score": [1.0], "rank": [0]})
        >>> ladr(run)["docno"].tolist()
        ['d1', 'd3', 'd2']
    """

    schematic = {"label": "LADR (adaptive)"}
    _counts = ("num_results", "depth")

    @check_option_names
    def __init__(
        self,
        index: Any,
        scorer: Any = None,
        *,
        k: int | None = None,
        depth: int = 100,
        max_hops: int | None = None,
        num_results: int = 1000,
        budget: bool | int = False,
        verbose: bool = False,
    ) -> None:
        self._index = resolve_path(index)
        self.scorer = scorer
        self.k = k
        self.depth = depth
        self.max_hops = max_hops
        self.num_results = num_results
        self.budget = budget
        self.verbose = verbose

    def _check(self) -> None:
        super()._check()
        if self.max_hops is not None:
            check_non_negative("max_hops", self.max_hops)

    def _run(self, reader: IndexReader, frame: pd.DataFrame, scorer: pt.Transformer) -> pd.DataFrame:
        make = importlib.import_module(self._package).FlexIndex.ladr_adaptive
        graph, options = self._open_neighbours(reader), self._make_options(scorer)
        return make(self._make_view(reader), graph, depth=self.depth, max_hops=self.max_hops, **options).transform(frame)


class _Lookup:
    """A function that is called by subscripts, as the lookups of docnos in pyterrier_dr are."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self._function = function

    def __getitem__(self, keys: np.ndarray) -> np.ndarray:
        return self._function(keys)


class _KnownQueries(pt.Transformer):
    """A scorer that gets the query vectors again, because GAR passes only ``qid`` and ``query`` on."""

    def __init__(self, scorer: pt.Transformer, vectors: dict[Any, np.ndarray]) -> None:
        self._scorer = scorer
        self._vectors = vectors

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        vectors = pd.Series([self._vectors[qid] for qid in inp["qid"]], index=inp.index, dtype=object)
        return self._scorer.transform(inp.assign(query_vec=vectors))


def _encode_queries(scorer: PinnedScorer, reader: IndexReader, topics: pd.DataFrame) -> dict[Any, np.ndarray]:
    """Return the query vector or flattened q-net of each query, by qid."""
    if "query_vec" not in topics.columns:
        model = scorer._get_model()
        if model is None:
            raise ValueError(
                "Queries need a model or a column query_vec, got neither. Pass a scorer with a model: index.scorer(model)."
            )
        scorer._check_model_fits(reader, model)
        topics = QueryEncoder(model)(topics)
    return dict(zip(topics["qid"], read_vectors(topics, "query_vec"), strict=True))
