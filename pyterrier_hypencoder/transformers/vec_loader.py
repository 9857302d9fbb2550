"""Load the stored vectors of documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from ..encoders.columns import read_docnos
from ..index.files import resolve_path
from ..index.reader import IndexReader
from ..options import check_option_names
from .example import build_example_index
from .opened import IndexTransformer, check_docids, gather_vectors


class VecLoader(IndexTransformer, pt.Transformer):
    """Add the stored vectors of documents as ``doc_vec`` (float32).

    Args:
        index: A :class:`HypencoderIndex` or its path.

    Example:
        >>> import pandas as pd
        >>> from pyterrier_hypencoder import HypencoderIndex
        >>> loader = HypencoderIndex.example().vec_loader()
        >>> loader(pd.DataFrame({"docno": ["d3", "d1"]}))
          docno               doc_vec
        0    d3  [0.5, 0.5, 0.0, 0.0]
        1    d1  [1.0, 0.0, 0.0, 0.0]
    """

    schematic = {"label": "VecLoader"}
    model = None

    @check_option_names
    def __init__(self, index: Any) -> None:
        self._index = resolve_path(index)

    @classmethod
    def example(cls) -> VecLoader:
        """Return a loader of the three-document index of :meth:`HypencoderIndex.example`."""
        return cls(build_example_index())

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Add the vectors.

        Args:
            inp: A frame with ``docno``, or only ``docid``. If there are both, ``docno`` decides, because the docids may be
                those of another index.

        Returns:
            All columns and ``doc_vec``.

        Raises:
            pt.validate.InputValidationError: If there is neither ``docno`` nor ``docid``.
            ValueError: If the index does not contain a document.
        """
        with pt.validate.any(inp) as modes:
            modes.columns(includes=["docno"])
            modes.columns(includes=["docid"])
        vectors: list[np.ndarray] = []
        if len(inp):
            vectors = self._read_index(lambda reader: list(gather_vectors(reader, _find_docids(reader, inp)).numpy()))
        return inp.assign(doc_vec=pd.Series(vectors, index=inp.index, dtype=object))

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer:
        """Apply the cutoff first, so only the vectors of the remaining documents are loaded."""
        return pt.RankCutoff(k) >> self


def _find_docids(reader: IndexReader, frame: pd.DataFrame) -> np.ndarray:
    if "docno" in frame.columns:
        return reader.docnos.require(read_docnos(frame))
    docids = frame["docid"].to_numpy()
    if docids.dtype.kind not in "iu":
        raise ValueError(f"docid must contain integers, got {frame['docid'].iloc[0]!r}. Convert the column with .astype(int).")
    check_docids(reader, docids)
    return docids
