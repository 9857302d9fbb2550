"""Load stored document vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from ..encoders.columns import read_docnos
from .opened import IndexTransformer, _gather


class VecLoader(IndexTransformer, pt.Transformer):
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
            vectors = list(_gather(reader, reader.docnos.require(read_docnos(inp))).numpy())
        return inp.assign(doc_vec=pd.Series(vectors, index=inp.index, dtype=object))

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Vectors are loaded only for the documents that a cut-off leaves."""
        return pt.RankCutoff(k) >> self

    def subtransformers(self) -> dict[str, Any]:
        """None: the index is no stage of its own."""
        return {}
