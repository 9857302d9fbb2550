"""The PyTerrier transformers that read an index without searching it: scorer and vector loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from .encoder import Encoder, check_encoder
from .frames import ByArguments, TextField, docnos_of
from .hypencoder import from_record
from .qnet import QNets
from .stages import TextScorer, narrowed, qnets_of
from .storage import Reader, identity


class OnIndex(ByArguments):
    """What transformers over an index share: the opened directory and the model that fits it."""

    _index: Any
    model: Any
    device: str = "auto"
    qnet_width: int | None = None

    def _reader(self) -> Reader:
        """The opened index; opened anew when the index was replaced, or the attribute set to another."""
        path = path_of(self._index)
        if path is None:
            raise ValueError(
                f"{type(self).__name__}: expected an index, found none; pass one (an index or its path), or compose it: "
                "HypencoderIndexer(path, model) >> HypencoderRetriever()"
            )
        shared = getattr(self._index, "reader", None)  # a HypencoderIndex has it open
        return shared if isinstance(shared, Reader) else self._open("reader", identity(path), lambda: Reader(path))

    def _encoder(self) -> Encoder | None:
        """The model given, or the one that the index names."""
        if self.model is not None:
            check_encoder(self.model)
            return self.model
        record = self._reader().meta.get("model")
        if record is None:
            return None
        if hasattr(self._index, "model"):  # a HypencoderIndex shares it among its transformers
            return self._index.model(device=self.device)
        return self._open("recorded", (str(record), self.device), lambda: from_record(record, device=self.device))

    def _fitting_qnets(self, queries: pd.DataFrame) -> QNets:
        """The q-nets of a frame's queries, narrowed where asked for, which take the index's vectors."""
        reader, model = self._reader(), self._encoder()
        if "query_vec" not in queries.columns and model is not None:
            self._check_fit(reader, model)
        qnets = qnets_of(queries, model, reader.vec_size)
        if qnets.spec.input_dim != reader.vec_size:
            raise ValueError(_misfit(reader, model, f"{reader.vec_size} dimensions", f"{qnets.spec.input_dim}"))
        return narrowed(qnets, self.qnet_width)

    def _check_fit(self, reader: Reader, model: Encoder) -> None:
        try:
            _check_fit(reader, model)
        except FileNotFoundError as err:
            if self.model is not None:
                raise
            raise FileNotFoundError(
                f"the index {reader.path} names the model {reader.meta['model']['name']!r}, which cannot be found here; pass "
                f"model=... with the place where you have it ({err})"
            ) from err


class HypencoderScorer(OnIndex, TextScorer):
    """Re-ranks with stored vectors; or with a ``doc_vec`` column, which comes first; or, without index, by encoding text.

    Also scores for pyterrier_dr's LADR and pyterrier_adaptive's GAR (see :meth:`score`).

    Args:
        index: a :class:`HypencoderIndex` or its path; None to take documents from ``doc_vec`` or text.
        model: the encoder of the queries; None takes the one recorded in the index.
        text_field: the field with the text, or several; only without index.
        batch_size: queries whose q-nets are in memory at a time.
        device: where q-nets are evaluated: ``auto``, ``cpu`` or ``cuda[:n]``.
        precision: of that evaluation: ``auto``, ``fp32`` or ``bf16``.
        qnet_width: evaluate only the first units of every hidden layer, for Matryoshka models; None for all.
        verbose: whether to show progress.
    """

    schematic = {"label": "HypencoderScorer"}

    def __init__(
        self,
        index: Any = None,
        model: Encoder | None = None,
        *,
        text_field: TextField = "text",
        batch_size: int = 32,
        device: str = "auto",
        precision: str = "auto",
        qnet_width: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            model,
            text_field=text_field,
            batch_size=batch_size,
            device=device,
            precision=precision,
            qnet_width=qnet_width,
            verbose=verbose,
        )
        self._index = index

    def _document_columns(self) -> list[list[str]]:
        return super()._document_columns() if self._index is None else [[], ["doc_vec"]]

    def _qnets(self, queries: pd.DataFrame) -> QNets:
        if self._index is not None:
            return self._fitting_qnets(queries)
        return super()._qnets(queries)

    def _vectors(self, frame: pd.DataFrame) -> Any:
        if self._index is None or "doc_vec" in frame.columns:
            return super()._vectors(frame)
        reader = self._reader()
        docids = reader.docnos.known(docnos_of(frame))
        return lambda rows: _gather(reader, docids[rows])

    def _ties(self, frame: pd.DataFrame) -> np.ndarray:
        if self._index is None or "doc_vec" in frame.columns:
            return super()._ties(frame)
        return self._reader().docnos.find(docnos_of(frame))

    def score(self, query_vecs: np.ndarray, docids: np.ndarray) -> np.ndarray:
        """Scores documents by docid: what pyterrier_dr's scorers offer to its search algorithms.

        Args:
            query_vecs: (Q, D) query vectors or (Q, n) flattened q-nets, as ``query_vec`` holds them.
            docids: (N,) docids of the index.

        Returns:
            (Q, N) float32.
        """
        docids = np.asarray(docids, dtype=np.int64)
        if docids.size and not (0 <= docids.min() and docids.max() < self._reader().doc_count):
            raise ValueError(
                f"docid: expected 0 to {self._reader().doc_count - 1}, found {docids.min()} to {docids.max()}; do they come "
                "from another index?"
            )
        qnets = self._fitting_qnets(pd.DataFrame({"query_vec": list(np.atleast_2d(query_vecs))}))
        return self._score(qnets, _gather(self._reader(), docids)).cpu().numpy()


class VecLoader(OnIndex, pt.Transformer):
    """Adds the stored vectors of documents as ``doc_vec`` (float32).

    Args:
        index: a :class:`HypencoderIndex` or its path.
    """

    schematic = {"label": "VecLoader"}
    model = None

    def __init__(self, index: Any) -> None:
        self._index = index

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Takes frames with ``docno``, keeps all columns, adds ``doc_vec``; unknown docnos are an error."""
        pt.validate.columns(inp, includes=["docno"])
        vectors: list[np.ndarray] = []
        if len(inp):
            reader = self._reader()
            vectors = list(_gather(reader, reader.docnos.known(docnos_of(inp))).numpy())
        return inp.assign(doc_vec=pd.Series(vectors, index=inp.index, dtype=object))

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Vectors are loaded only for the documents that a cut-off leaves."""
        return pt.RankCutoff(k) >> self

    def subtransformers(self) -> dict[str, Any]:
        """None: the index is no stage of its own."""
        return {}


def path_of(index: Any) -> Path | None:
    """The directory of an index object, or of a path."""
    path = getattr(index, "path", index)
    if path is not None and not isinstance(path, str | Path):
        raise ValueError(f"index: expected a HypencoderIndex or its path, found {index!r}; pass an encoder as model=...")
    return None if path is None else Path(path)


def _gather(reader: Reader, docids: np.ndarray) -> torch.Tensor:
    """Stored vectors by docid, (n, D) float32."""
    return torch.from_numpy(reader.vectors[docids].astype(np.float32))


def _check_fit(reader: Reader, model: Encoder) -> None:
    """Checks that a model's document vectors are those of the index, as far as the index knows.

    Raises:
        ValueError: naming both.
    """
    if model.vec_size != reader.vec_size:
        raise ValueError(_misfit(reader, model, f"{reader.vec_size} dimensions", f"{model.vec_size}"))
    expected = (reader.meta.get("model") or {}).get("fingerprint")
    if expected is not None and expected != model.fingerprint:
        raise ValueError(_misfit(reader, model, f"document encoder {expected}", f"{model.fingerprint}"))


def _misfit(reader: Reader, model: Encoder | None, expected: str, found: str) -> str:
    record = reader.meta.get("model")
    made_by = f"{record['class']}({record['name']!r})" if record else "vectors from elsewhere"
    return (
        f"the index {reader.path} was made by {made_by}: expected a model of {expected}, found {model or 'query vectors'} of "
        f"{found}; search with the model that the index was made with, or build another index"
    )
