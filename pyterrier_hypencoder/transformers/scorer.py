"""The PyTerrier transformer that re-ranks with stored document vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import scoring
from ..encoders.base import Encoder
from ..encoders.columns import TextField, list_text_fields, read_docnos
from ..encoders.stages import TextScorer
from ..index.files import resolve_path
from ..index.reader import IndexReader
from ..options import check_choice, check_option_names, check_positive
from ..qnet import QNets
from ..search.finite import NonFiniteScoreError, check_finite
from .example import build_example_index
from .opened import IndexTransformer, check_docids, gather_vectors, get_index_path


class HypencoderScorer(IndexTransformer, TextScorer):
    """Re-rank documents with their stored vectors.

    The vectors come from a column ``doc_vec`` if there is one, else from the index. Without an index, the model encodes the
    text of the documents.

    The scorer also serves pyterrier_dr's LADR and pyterrier_adaptive's GAR; see :meth:`score`.

    Args:
        index: A :class:`HypencoderIndex` or its path. None takes documents from ``doc_vec`` or their text.
        model: The encoder of the queries. None loads the model that is recorded in the index.
        text_field: The field with the text, or several fields. It is only used without an index.
        batch_size: Number of queries whose q-nets are in memory together.
        device: Device on which q-nets are evaluated: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``.
        precision: Precision in which q-nets are evaluated: ``fp32``, ``bf16`` or ``auto`` (fp32).
        qnet_width: Number of units of each hidden layer to evaluate, for Matryoshka models. None evaluates all units.
        verbose: If True, show a progress bar.

    Example:
        >>> import pandas as pd
        >>> from pyterrier_hypencoder import HypencoderScorer
        >>> scorer = HypencoderScorer.example()
        >>> run = pd.DataFrame({"qid": "q1", "query_vec": [[2.0, 1.0, 0.0, 0.0]] * 2, "docno": ["d2", "d3"]})
        >>> scorer(run)[["qid", "docno", "score", "rank"]]
          qid docno  score  rank
        0  q1    d3    1.5     0
        1  q1    d2    1.0     1
    """

    schematic = {"label": "HypencoderScorer"}

    @check_option_names
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
        self._index = resolve_path(index)
        list_text_fields(text_field)
        check_positive("batch_size", batch_size)
        check_choice("precision", precision, scoring.PRECISIONS)
        scoring.parse_device(device)
        get_index_path(self._index)

    @classmethod
    def example(cls) -> HypencoderScorer:
        """Return a scorer with the three-document index of :meth:`HypencoderIndex.example`.

        The index records no model, so queries need a column ``query_vec``.
        """
        return cls(build_example_index())

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score and rank a result frame; see :meth:`TextScorer.transform`."""
        if self._index is None or not len(inp):
            return super().transform(inp)
        return self._read_index(lambda reader: PinnedScorer(self, reader).transform(inp))

    def _list_document_columns(self) -> list[list[str]]:
        return super()._list_document_columns() if self._index is None else [[], ["doc_vec"]]

    def _make_qnets(self, queries: pd.DataFrame) -> QNets:
        if self._index is not None:
            return self._make_fitting_qnets(self._open_reader(), queries)
        return super()._make_qnets(queries)

    def _make_vector_lookup(self, frame: pd.DataFrame) -> Any:
        if self._index is None or "doc_vec" in frame.columns:
            return super()._make_vector_lookup(frame)
        reader = self._open_reader()
        docids = reader.docnos.require(read_docnos(frame))
        return lambda rows: gather_vectors(reader, docids[rows], self.device)

    def _get_tie_keys(self, frame: pd.DataFrame) -> np.ndarray:
        if self._index is None or "doc_vec" in frame.columns:
            return super()._get_tie_keys(frame)
        return self._open_reader().docnos.find(read_docnos(frame))

    def score(self, query_vecs: np.ndarray, docids: np.ndarray) -> np.ndarray:
        """Score documents by docid; pyterrier_dr's search algorithms call this method.

        Args:
            query_vecs: (Q, D) query vectors or (Q, n) flattened q-nets, as in the column ``query_vec``.
            docids: (N,) docids of the index.

        Returns:
            (Q, N) float32.

        Raises:
            ValueError: If a docid is not in the index, or a score is NaN or infinite.
        """
        docids = np.asarray(docids, dtype=np.int64)
        frame = pd.DataFrame({"query_vec": list(np.atleast_2d(query_vecs))})

        def score(reader: IndexReader) -> np.ndarray:
            check_docids(reader, docids)
            qnets = self._make_fitting_qnets(reader, frame)
            vectors = gather_vectors(reader, docids, self.device)
            scores = scoring.make_scorer(qnets, device=self.device, precision=self.precision)(vectors)
            try:
                check_finite(scores, vectors, torch.from_numpy(docids))
            except NonFiniteScoreError as err:
                docno = reader.docnos.at(np.array([err.docid]))[0]
                raise ValueError(err.explain(str(err.query), repr(docno), qnets)) from err
            return scores.cpu().numpy()

        return self._read_index(score)


class PinnedScorer(HypencoderScorer):
    """A scorer during one call, which reads one state of the index throughout.

    Args:
        scorer: The scorer.
        reader: The opened index.
    """

    def __init__(self, scorer: HypencoderScorer, reader: IndexReader) -> None:
        self.__dict__.update(scorer.__dict__)
        self._scorer = scorer
        self._reader = reader

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score and rank a result frame; see :meth:`TextScorer.transform`."""
        return TextScorer.transform(self, inp)

    def _open_reader(self) -> IndexReader:
        return self._reader

    def _get_model(self) -> Encoder | None:
        return self._scorer._get_model()
