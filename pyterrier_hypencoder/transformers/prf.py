"""Pseudo-relevance feedback: move query vectors towards the best documents of a first search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from ..encoders.base import Encoder
from ..encoders.columns import group_rows, pick_queries, read_docnos
from ..index.files import resolve_path
from ..index.reader import IndexReader
from ..options import check_number, check_option_names, check_positive
from ..qnet import QNets
from .example import build_example_index
from .opened import IndexTransformer, gather_vectors


class VectorFeedback(IndexTransformer, pt.Transformer):
    """Move the query vector towards the best documents: ``alpha * query + beta * mean(documents)`` (Rocchio).

    It stands between two searches. The q-nets need a query vector:

    - A q-net without hidden layers, as those of a ``BiEncoder``, is a query vector.
    - A q-net with an inner-product skip, as those of ``hypencoder-minilm``, has one. The network beside it stays as it is.
    - Other q-nets have none, so they are an error. Expand the text of the query instead.

    ``alpha=1 / (k + 1)`` and ``beta=k / (k + 1)`` average the query vector and k documents.

    Args:
        index: A :class:`HypencoderIndex` or its path.
        model: The encoder of the queries. None loads the model that is recorded in the index.
        k: Number of documents that the query vector moves towards.
        alpha: Weight of the query vector.
        beta: Weight of the mean of the documents.

    Example:
        >>> import pandas as pd
        >>> from pyterrier_hypencoder import HypencoderIndex
        >>> index = HypencoderIndex.example()
        >>> pipeline = index.retriever() >> index.prf(k=1, beta=0.5) >> index.retriever(num_results=1)
        >>> pipeline(pd.DataFrame({"qid": ["q1"], "query_vec": [[1.0, 0.5, 0.0, 0.0]]}))[["docno", "score"]]
          docno  score
        0    d1    1.5
    """

    schematic = {"label": "VectorFeedback"}

    @check_option_names
    def __init__(self, index: Any, model: Encoder | None = None, *, k: int = 3, alpha: float = 1.0, beta: float = 0.2) -> None:
        self._index = resolve_path(index)
        self.model = model
        self.k = k
        self.alpha = alpha
        self.beta = beta

    @classmethod
    def example(cls) -> VectorFeedback:
        """Return a stage over the three-document index of :meth:`HypencoderIndex.example`, which records no model."""
        return cls(build_example_index())

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Return the queries with new query vectors.

        Args:
            inp: A result frame with ``qid``, ``docno``, ``rank``, and ``query`` or ``query_vec``.

        Returns:
            The query columns, one row per query, with the moved ``query_vec``. A query without results has no row.

        Raises:
            pt.validate.InputValidationError: If columns are missing.
            ValueError: If an option is not valid, a docno is not in the index, or the q-nets have no query vector.
        """
        check_positive("k", self.k)
        check_number("alpha", self.alpha)
        check_number("beta", self.beta)
        with pt.validate.any(inp) as modes:
            for column in ("query", "query_vec"):
                modes.result_frame(extra_columns=[column, "rank"])
        frame = inp.reset_index(drop=True)
        groups = group_rows(frame) if len(frame) else []
        topics = pick_queries(frame[pt.model.query_columns(frame)], groups).reset_index(drop=True)
        vectors: list[np.ndarray] = []
        if groups:
            ranks = frame["rank"].to_numpy()
            best = [rows[np.argsort(ranks[rows], kind="stable")][: self.k] for rows in groups]
            docnos = read_docnos(frame)
            vectors = self._read_index(lambda reader: self._move(reader, topics, [docnos[rows] for rows in best]))
        return topics.assign(query_vec=pd.Series(vectors, index=topics.index, dtype=object))

    def _move(self, reader: IndexReader, topics: pd.DataFrame, docnos: list[np.ndarray]) -> list[np.ndarray]:
        """Return the flattened q-nets with moved query vectors."""
        qnets = self._make_fitting_qnets(reader, topics)
        means = [gather_vectors(reader, reader.docnos.require(names)).mean(dim=0) for names in docnos]
        vectors = read_query_vectors(qnets)
        moved = self.alpha * vectors + self.beta * torch.stack(means).to(vectors)  # (Q, D)
        return list(replace_query_vectors(qnets, moved).flatten().cpu().numpy())

    def compile(self) -> pt.Transformer:
        """Return the stage after a cutoff at k, because it uses no other documents."""
        return pt.RankCutoff(self.k) >> self

    def subtransformers(self) -> dict[str, Any]:
        """Return an empty dictionary, because index and model are not stages of a pipeline."""
        return {}


def read_query_vectors(qnets: QNets) -> torch.Tensor:
    """Return the query vectors of q-nets, (Q, D).

    Raises:
        ValueError: If the q-nets are networks without an inner-product skip.
    """
    if qnets.query_vectors is not None:
        return qnets.query_vectors
    if qnets.spec.is_linear:
        return qnets.weights[0].squeeze(-1)
    raise ValueError(
        f"Pseudo-relevance feedback must have q-nets with a query vector, got networks {qnets.spec.vector_dimensions}. A "
        "document vector cannot be added to the weights of a network. Expand the text of the query instead, for example "
        "with pt.rewrite.RM3 before the retriever, or use a BiEncoder or a model with inner_product_skip."
    )


def replace_query_vectors(qnets: QNets, vectors: torch.Tensor) -> QNets:
    """Return q-nets with other query vectors (Q, D)."""
    if qnets.query_vectors is None:
        return QNets.linear(vectors)
    return QNets(qnets.spec, qnets.weights, qnets.biases, vectors)
