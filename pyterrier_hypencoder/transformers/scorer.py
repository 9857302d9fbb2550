"""The PyTerrier transformers that read an index without searching it: scorer and vector loader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..encoders.base import Encoder
from ..encoders.columns import TextField, read_docnos
from ..encoders.stages import TextScorer
from ..qnet import QNets
from .opened import IndexTransformer, _gather


class HypencoderScorer(IndexTransformer, TextScorer):
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
        docids = reader.docnos.require(read_docnos(frame))
        return lambda rows: _gather(reader, docids[rows])

    def _ties(self, frame: pd.DataFrame) -> np.ndarray:
        if self._index is None or "doc_vec" in frame.columns:
            return super()._ties(frame)
        return self._reader().docnos.find(read_docnos(frame))

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
