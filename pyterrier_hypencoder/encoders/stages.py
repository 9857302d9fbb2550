"""Pipeline stages that need a model and no index: document encoder, query encoder, text scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from torch import Tensor

from .. import scoring
from ..identity import ByArguments
from ..options import check_positive
from ..qnet import QNets, QNetSpec
from .columns import TextField, group_rows, list_text_fields, rank_rows, read_queries, read_texts, read_vectors


class Model(Protocol):
    """What the stages ask of an encoder."""

    @property
    def vec_size(self) -> int:
        """Dimensions of the document vectors, D."""
        ...

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of its q-nets."""
        ...

    def encode_docs(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (N, D) of documents."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> QNets:
        """The q-nets of queries."""
        ...


def make_qnets(queries: pd.DataFrame, model: Model | None, vec_size: int | None) -> QNets:
    """The q-nets of a frame's queries: from ``query_vec`` where it is there, else by encoding ``query``.

    Args:
        queries: one row a query.
        model: the encoder; not needed for vectors of linear q-nets.
        vec_size: dimensions D of the document vectors; None takes the model's.

    Raises:
        ValueError: where ``query_vec`` is neither a query vector (D numbers) nor one of the model's flattened q-nets, or
            where there is no model to encode the queries with.
    """
    if "query_vec" not in queries.columns:
        if model is None:
            raise ValueError(
                "expected a model to encode the queries with, or a query_vec column, found neither; pass model=..., for "
                "example Hypencoder(...) or BiEncoder(...)"
            )
        return model.encode_queries(read_queries(queries))
    flat = torch.from_numpy(read_vectors(queries, "query_vec"))
    sizes = [vec_size if vec_size is not None or model is None else model.vec_size]
    if flat.shape[1] == sizes[0] or (sizes[0] is None and model is None):
        return QNets.linear(flat)
    if model is not None:
        spec = model.qnet_spec
        if flat.shape[1] == spec.size:
            return QNets.unflatten(flat, spec)
        sizes.append(spec.size)
    raise ValueError(
        f"query_vec: expected {' or '.join(map(str, sizes))} numbers (a query vector, or a flattened q-net of the model), "
        f"found {flat.shape[1]}; was it made by another model than the document vectors ({model or 'no model given'})?"
    )


def narrow_qnets(qnets: QNets, width: int | None) -> QNets:
    """The q-nets at the width of their hidden layers that is asked for (None: all of it)."""
    if width is None:
        return qnets
    check_positive("qnet_width", width)
    return qnets.narrow(width)


class DocEncoder(ByArguments, pt.Transformer):
    """Adds the vectors of documents as ``doc_vec`` (float32).

    Args:
        model: the encoder.
        text_field: the field with the text, or several, joined by a space.
        batch_size: documents that are sorted by length together; the mini-batch is an option of the model. PyTerrier's
            indexing pipelines hand chunks of this size.
        verbose: whether to show progress.
    """

    schematic = {"label": "DocEncoder"}

    def __init__(self, model: Model, *, text_field: TextField = "text", batch_size: int = 2048, verbose: bool = False) -> None:
        self.model = model
        self.text_field = text_field
        self.batch_size = batch_size
        self.verbose = verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Takes frames with the text fields, keeps all columns, adds ``doc_vec``."""
        pt.validate.columns(inp, includes=list_text_fields(self.text_field))
        texts = read_texts(inp, self.text_field)
        check_positive("batch_size", self.batch_size)
        parts = [
            vector
            for start in pt.tqdm(range(0, len(texts), self.batch_size), desc="documents", disable=not self.verbose)
            for vector in self.model.encode_docs(texts[start : start + self.batch_size])
        ]
        return inp.assign(doc_vec=pd.Series(parts, index=inp.index, dtype=object))

    def subtransformers(self) -> dict[str, Any]:
        """None: the model is no stage of its own."""
        return {}


class QueryEncoder(ByArguments, pt.Transformer):
    """Adds ``query_vec``: the query's vector, or its flattened q-net (:meth:`QNets.flatten`), float32.

    Args:
        model: the encoder.
    """

    schematic = {"label": "QueryEncoder"}

    def __init__(self, model: Model) -> None:
        self.model = model

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Takes frames with ``query``, keeps all columns, adds ``query_vec``; equal queries are encoded once."""
        pt.validate.columns(inp, includes=["query"])
        codes, queries = pd.factorize(np.asarray(read_queries(inp), dtype=object))
        rows: list[np.ndarray] = []
        if len(inp):
            flat = self.model.encode_queries(list(queries)).flatten().cpu().numpy()
            rows = [flat[code] for code in codes]
        return inp.assign(query_vec=pd.Series(rows, index=inp.index, dtype=object))

    def subtransformers(self) -> dict[str, Any]:
        """None: the model is no stage of its own."""
        return {}


class TextScorer(ByArguments, pt.Transformer):
    """Re-ranks documents that bring their text (or ``doc_vec``), without an index.

    Args:
        model: the encoder.
        text_field: the field with the text, or several, joined by a space.
        batch_size: queries whose q-nets are in memory at a time.
        device: where q-nets are evaluated: ``auto``, ``cpu`` or ``cuda[:n]``.
        precision: of that evaluation: ``auto``, ``fp32`` or ``bf16``.
        qnet_width: evaluate only the first units of every hidden layer, for Matryoshka models; None for all.
        verbose: whether to show progress.
    """

    schematic = {"label": "TextScorer"}

    def __init__(
        self,
        model: Model | None,
        *,
        text_field: TextField = "text",
        batch_size: int = 32,
        device: str = "auto",
        precision: str = "auto",
        qnet_width: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.text_field = text_field
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.qnet_width = qnet_width
        self.verbose = verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Scores a result frame.

        Args:
            inp: ``qid``, ``docno``, ``query`` or ``query_vec``, and the documents' text or ``doc_vec``.

        Returns:
            All columns, with ``score`` and ``rank`` replaced; sorted by query and rank, equal scores in the order of
            :meth:`_ties`.
        """
        with pt.validate.any(inp) as modes:
            for query in ("query", "query_vec"):
                for document in self._document_columns():
                    modes.result_frame(extra_columns=[query, *document])
        check_positive("batch_size", self.batch_size)
        frame = inp.reset_index(drop=True)
        scores = np.zeros(len(frame), dtype=np.float32)
        ranks = np.zeros(len(frame), dtype=np.int64)
        order: list[np.ndarray] = []
        if len(frame):
            vectors_at, ties = self._vectors(frame), self._ties(frame)
            groups = group_rows(frame)
            with pt.tqdm(total=len(groups), desc="queries", disable=not self.verbose) as progress:
                for start in range(0, len(groups), self.batch_size):
                    batch = groups[start : start + self.batch_size]
                    qnets = self._qnets(frame.iloc[[rows[0] for rows in batch]])
                    for q, rows in enumerate(batch):
                        score = self._score(qnets.select([q]), vectors_at(rows))
                        scores[rows] = score[0].cpu().numpy()
                        ranked = rows[rank_rows(scores[rows], ties[rows])]
                        ranks[ranked] = np.arange(len(ranked))
                        order.append(ranked)
                        progress.update()
        result = frame.assign(score=scores, rank=ranks)
        return result.iloc[np.concatenate(order)].reset_index(drop=True) if order else result

    def _document_columns(self) -> list[list[str]]:
        """The columns of which one set must be there, the first one shown in schematics."""
        return [list_text_fields(self.text_field), ["doc_vec"]]

    def _qnets(self, queries: pd.DataFrame) -> QNets:
        return narrow_qnets(make_qnets(queries, self.model, None), self.qnet_width)

    def _score(self, qnets: QNets, vectors: Tensor) -> Tensor:
        return scoring.make_scorer(qnets, device=self.device, precision=self.precision)(vectors)

    def _vectors(self, frame: pd.DataFrame) -> Any:
        """What gives the vectors (n, D) of some rows; a ``doc_vec`` column comes before anything else."""
        if "doc_vec" in frame.columns:
            vectors = torch.from_numpy(read_vectors(frame, "doc_vec"))
            return lambda rows: vectors[torch.from_numpy(rows)]
        if self.model is None:
            raise ValueError("expected a model to encode the documents' text with, found none; pass model=...")
        codes, texts = pd.factorize(np.asarray(read_texts(frame, self.text_field), dtype=object))
        encoded = torch.from_numpy(self.model.encode_docs(list(texts)))
        return lambda rows: encoded[torch.from_numpy(codes[rows])]

    def _ties(self, frame: pd.DataFrame) -> np.ndarray:
        """What orders documents of equal score: here their order in the frame."""
        return np.arange(len(frame))

    def subtransformers(self) -> dict[str, Any]:
        """None: the model is no stage of its own."""
        return {}
