"""Pipeline stages that need a model but no index: document encoder, query encoder and text scorer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from more_itertools import chunked

from .. import scoring
from ..identity import ByArguments
from ..options import check_positive
from ..qnet import QNets, QNetSpec
from ..search.finite import NonFiniteScoreError, check_finite
from .columns import (
    TextField,
    group_rows,
    list_text_fields,
    pick_queries,
    rank_rows,
    read_queries,
    read_texts,
    read_vectors,
)

_TEXTS_PER_BATCH = 2048
_SCORED_BYTES = 2**26
"""Size of the vectors that are scored at a time, as float32."""


class Model(Protocol):
    """The part of an encoder that the stages use."""

    @property
    def vec_size(self) -> int:
        """Number of dimensions of the document vectors, D."""
        ...

    @property
    def qnet_spec(self) -> QNetSpec:
        """The architecture of the q-nets."""
        ...

    def encode_docs(self, texts: Sequence[str]) -> np.ndarray:
        """Encode documents as vectors, (N, D)."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> QNets:
        """Encode queries as q-nets."""
        ...


def make_qnets(queries: pd.DataFrame, model: Model | None, vec_size: int | None) -> QNets:
    """Return the q-nets of a frame's queries, from the column ``query_vec`` if there is one, or else from ``query``.

    Args:
        queries: One row per query.
        model: The encoder. It is not needed if ``query_vec`` contains query vectors.
        vec_size: Number of dimensions of the document vectors, D; None takes it from the model.

    Raises:
        ValueError: If ``query_vec`` contains neither query vectors (D numbers) nor flattened q-nets of the model, or if
            there is no model to encode the queries.
    """
    if "query_vec" not in queries.columns:
        if model is None:
            raise ValueError(
                "Queries need a model or a column query_vec, got neither. Pass model=..., for example Hypencoder(...) or "
                "BiEncoder(...)."
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
        f"query_vec must contain {' or '.join(map(str, sizes))} numbers (a query vector, or a flattened q-net of the model), "
        f"got {flat.shape[1]}. Use the model that encoded the documents ({model or 'no model given'})."
    )


def narrow_qnets(qnets: QNets, width: int | None) -> QNets:
    """Return q-nets with the first ``width`` units of every hidden layer; None keeps all units."""
    if width is None:
        return qnets
    check_positive("qnet_width", width)
    return qnets.narrow(width)


def _encode_docs(model: Model, texts: Iterable[str], batch_size: int, verbose: bool) -> list[np.ndarray]:
    """Return the vectors of texts. The progress bar counts texts that have been encoded."""
    texts = list(texts)
    vectors: list[np.ndarray] = []
    with pt.tqdm(total=len(texts), desc="documents", disable=not verbose) as progress:
        for batch in chunked(texts, batch_size):
            vectors.extend(model.encode_docs(batch))
            progress.update(len(batch))
    return vectors


class DocEncoder(ByArguments, pt.Transformer):
    """Add document vectors as ``doc_vec`` (float32).

    Args:
        model: The encoder.
        text_field: Name of the field with the text, or several names. Several fields are joined by a space.
        batch_size: Number of documents that are sorted by length together. PyTerrier's indexing pipelines pass chunks of
            this size. The mini-batch is an option of the model.
        verbose: If True, show progress.

    Example:
        >>> import pandas as pd
        >>> from pyterrier_hypencoder import BiEncoder
        >>> encoder = BiEncoder.example().doc_encoder()
        >>> frame = encoder(pd.DataFrame({"docno": ["d1"], "text": ["Read a CSV file."]}))
        >>> list(frame.columns), frame["doc_vec"][0].shape
        (['docno', 'text', 'doc_vec'], (384,))
    """

    schematic = {"label": "DocEncoder"}

    def __init__(
        self, model: Model, *, text_field: TextField = "text", batch_size: int = _TEXTS_PER_BATCH, verbose: bool = False
    ) -> None:
        self.model = model
        self.text_field = text_field
        self.batch_size = batch_size
        self.verbose = verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Add ``doc_vec`` to a frame with the text fields. All columns are kept."""
        pt.validate.columns(inp, includes=list_text_fields(self.text_field))
        texts = read_texts(inp, self.text_field)
        check_positive("batch_size", self.batch_size)
        vectors = _encode_docs(self.model, texts, self.batch_size, self.verbose)
        return inp.assign(doc_vec=pd.Series(vectors, index=inp.index, dtype=object))

    def transform_inputs(self) -> list[list[str]]:
        """Return the columns of documents. Only the text is needed, but the next stages also need the docno."""
        return [["docno", *list_text_fields(self.text_field)]]

    def subtransformers(self) -> dict[str, Any]:
        """Return nothing, because the model is not a stage."""
        return {}


class QueryEncoder(ByArguments, pt.Transformer):
    """Add ``query_vec`` (float32): the query vector, or the flattened q-net (:meth:`QNets.flatten`).

    Args:
        model: The encoder.

    Example:
        >>> import pandas as pd
        >>> from pyterrier_hypencoder import BiEncoder
        >>> encoder = BiEncoder.example().query_encoder()
        >>> frame = encoder(pd.DataFrame({"qid": ["1"], "query": ["load comma-separated data"]}))
        >>> frame["query_vec"][0].shape
        (384,)
    """

    schematic = {"label": "QueryEncoder"}

    def __init__(self, model: Model) -> None:
        self.model = model

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Add ``query_vec`` to a frame with ``query``. All columns are kept, and equal queries are encoded once."""
        pt.validate.columns(inp, includes=["query"])
        codes, queries = pd.factorize(np.asarray(read_queries(inp), dtype=object))
        rows: list[np.ndarray] = []
        if len(inp):
            flat = self.model.encode_queries(list(queries)).flatten().cpu().numpy()
            rows = [flat[code] for code in codes]
        return inp.assign(query_vec=pd.Series(rows, index=inp.index, dtype=object))

    def transform_inputs(self) -> list[list[str]]:
        """Return the columns of queries. Only the query is needed, but the next stages also need the qid."""
        return [["qid", "query"]]

    def subtransformers(self) -> dict[str, Any]:
        """Return nothing, because the model is not a stage."""
        return {}


class TextScorer(ByArguments, pt.Transformer):
    """Re-rank documents by their text or by a column ``doc_vec``, without an index.

    Args:
        model: The encoder.
        text_field: Name of the field with the text, or several names. Several fields are joined by a space.
        batch_size: Number of queries whose q-nets are in memory at a time.
        device: Device that evaluates the q-nets: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``.
        precision: Precision of that evaluation: ``auto``, ``fp32`` or ``bf16``.
        qnet_width: Number of units of every hidden layer to use, for Matryoshka models; None for all.
        verbose: If True, show progress.

    Example:
        >>> import pandas as pd
        >>> from pyterrier_hypencoder import Hypencoder
        >>> scorer = Hypencoder.example().text_scorer()
        >>> candidates = pd.DataFrame({
        ...     "qid": "1", "query": "load comma-separated data", "docno": ["sort", "read_csv"],
        ...     "text": ["Sort an array in place.", "Read a table from a CSV file."],
        ... })
        >>> scorer(candidates)["docno"].tolist()
        ['read_csv', 'sort']
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
        """Score and rank a result frame.

        Args:
            inp: A frame with ``qid``, ``docno``, ``query`` or ``query_vec``, and the documents' text or ``doc_vec``.

        Returns:
            All columns, with new values in ``score`` and ``rank``, sorted by query and rank. Documents with equal scores
            keep their order, or are ordered by docid if vectors come from an index.
        """
        with pt.validate.any(inp) as modes:
            for query in ("query", "query_vec"):
                for document in self._list_document_columns():
                    modes.result_frame(extra_columns=[query, *document])
        check_positive("batch_size", self.batch_size)
        frame = inp.reset_index(drop=True)
        if not len(frame):
            return frame.assign(score=np.zeros(0, dtype=np.float32), rank=np.zeros(0, dtype=np.int64))
        groups, ties = group_rows(frame), self._get_tie_keys(frame)
        scores = self._score_groups(frame, groups)
        order = [rows[rank_rows(scores[rows], ties[rows])] for rows in groups]
        ranks = [np.arange(len(rows)) for rows in groups]
        ranked = frame.assign(score=scores).iloc[np.concatenate(order)].reset_index(drop=True)
        return ranked.assign(rank=np.concatenate(ranks))

    def _score_groups(self, frame: pd.DataFrame, groups: list[np.ndarray]) -> np.ndarray:
        """Score the rows of each query, with the q-nets of ``batch_size`` queries in memory at a time."""
        scores = np.zeros(len(frame), dtype=np.float32)
        get_vectors = self._make_vector_lookup(frame)
        with pt.tqdm(total=len(groups), desc="queries", disable=not self.verbose) as progress:
            for batch in chunked(groups, self.batch_size):
                qnets = self._make_qnets(pick_queries(frame, batch))
                scores[np.concatenate(batch)] = self._score_batch(qnets, get_vectors, frame, batch)
                progress.update(len(batch))
        return scores

    def _score_batch(self, qnets: QNets, get_vectors: Any, frame: pd.DataFrame, groups: list[np.ndarray]) -> np.ndarray:
        """Score the rows of some queries together, a bounded number of rows at a time."""
        score = scoring.make_scorer(qnets, device=self.device, precision=self.precision)
        rows, ends = np.concatenate(groups), np.cumsum([0, *map(len, groups)])
        step = max(1, _SCORED_BYTES // (4 * qnets.spec.input_dim))
        parts = []
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            counts = np.diff(ends.clip(start, start + len(part)))  # of each query in this part
            vectors = get_vectors(part)
            scores = score.each(vectors, counts.tolist())
            try:
                check_finite(scores, vectors, queries=torch.from_numpy(np.repeat(np.arange(len(groups)), counts)))
            except NonFiniteScoreError as err:
                qid, docno = (repr(frame[name].iloc[part[err.docid]]) for name in ("qid", "docno"))
                raise ValueError(err.explain(qid, docno, qnets)) from err
            parts.append(scores.cpu().numpy())
        return np.concatenate(parts)

    def _list_document_columns(self) -> list[list[str]]:
        """Return sets of columns that describe a document; one of them is needed. Schematics show the first."""
        return [list_text_fields(self.text_field), ["doc_vec"]]

    def _make_qnets(self, queries: pd.DataFrame) -> QNets:
        return narrow_qnets(make_qnets(queries, self.model, None), self.qnet_width)

    def _make_vector_lookup(self, frame: pd.DataFrame) -> Any:
        """Return a function that maps row numbers (n,) to vectors (n, D). A column ``doc_vec`` takes precedence."""
        if "doc_vec" in frame.columns:
            vectors = torch.from_numpy(read_vectors(frame, "doc_vec"))
            return lambda rows: vectors[torch.from_numpy(rows)]
        if self.model is None:
            raise ValueError("Texts need a model to encode them, got none. Pass model=...")
        codes, texts = pd.factorize(np.asarray(read_texts(frame, self.text_field), dtype=object))
        encoded = torch.from_numpy(np.stack(_encode_docs(self.model, texts, _TEXTS_PER_BATCH, self.verbose)))
        return lambda rows: encoded[torch.from_numpy(codes[rows])]

    def _get_tie_keys(self, frame: pd.DataFrame) -> np.ndarray:
        """Return the keys that order documents of equal score: here their order in the frame."""
        return np.arange(len(frame))

    def subtransformers(self) -> dict[str, Any]:
        """Return nothing, because the model is not a stage."""
        return {}
