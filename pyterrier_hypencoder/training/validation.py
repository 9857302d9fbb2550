"""Validation: how well a checkpoint ranks, by indexing and searching a collection with it, or by re-ranking."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import pandas as pd

from ..artifact import HypencoderIndex, HypencoderIndexer
from ..encoders.base import Encoder
from ..encoders.columns import TextField
from ..encoders.loading import load_encoder


class Validation:
    """Measures checkpoints while they are trained; hand it to :meth:`HypencoderTrainer.fit` as ``validate``.

    Args:
        topics: qid and query; with docno and text too, documents are re-ranked by their text rather than searched.
        qrels: qid, docno, label. Those of other topics are left out.
        docs: the collection: a list, a frame, a dataset of PyTerrier, or a ``HypencoderIndex``, whose vectors are then used as
            they are (documents frozen). Not needed for re-ranking.
        measures: of ir_measures, or their names; R-Precision as in the paper.
        judged_only: whether to index judged documents only, as the paper's validation on TREC DL 2021 and 2022 does.
        text_field: the field with a document's text, or several.
        num_results: documents that are retrieved.
        options: of the encoder, such as ``doc_max_length``.

    Raises:
        ValueError: where something is missing, or nothing is judged.
    """

    def __init__(
        self,
        topics: pd.DataFrame,
        qrels: pd.DataFrame,
        docs: Any = None,
        *,
        measures: Sequence[Any] = ("Rprec",),
        judged_only: bool = False,
        text_field: TextField = "text",
        num_results: int = 1000,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.topics = topics.assign(qid=topics["qid"].astype(str))
        self.qrels = qrels[qrels["qid"].astype(str).isin(set(self.topics["qid"]))]
        if self.qrels.empty:
            raise ValueError("qrels: expected judgements of the validation topics, found none; do their qids fit together?")
        if docs is None and "docno" not in topics.columns:
            raise ValueError("docs: expected the validation collection, found none, nor documents beside the topics")
        self.judged = set(self.qrels["docno"].astype(str)) if judged_only else None
        self.docs = docs
        if not isinstance(docs, HypencoderIndex | pd.DataFrame) and not hasattr(docs, "get_corpus_iter") and docs is not None:
            self.docs = [doc for doc in docs if self._wanted(doc)]  # read again at every validation
        self.measures = [ir_measures.parse_measure(m) if isinstance(m, str) else m for m in measures]
        self.text_field = text_field
        self.num_results = num_results
        self.options = dict(options or {})

    def __call__(self, model: Encoder | str | Path) -> dict[str, float]:
        """Measures a model.

        Args:
            model: an encoder, or the directory of a checkpoint.

        Returns:
            The mean of each measure over the topics, by its name.
        """
        encoder = load_encoder(str(model), **self.options) if isinstance(model, str | Path) else model
        run = self._rerank(encoder) if "docno" in self.topics.columns else self._search(encoder)
        qrels = self.qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
        run = run.rename(columns={"qid": "query_id", "docno": "doc_id"})
        found = ir_measures.calc_aggregate(self.measures, qrels, run)
        return {str(measure): float(value) for measure, value in found.items()}

    def _rerank(self, encoder: Encoder) -> pd.DataFrame:
        return encoder.text_scorer(text_field=self.text_field)(self.topics)

    def _search(self, encoder: Encoder) -> pd.DataFrame:
        if isinstance(self.docs, HypencoderIndex):
            allowed = None if self.judged is None else [d for d in self.docs.docnos if d in self.judged]
            return self.docs.retriever(encoder, num_results=self.num_results, allowed_docnos=allowed)(self.topics)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index.hyp"
            HypencoderIndexer(path, encoder, text_field=self.text_field).index(self._corpus())
            return HypencoderIndex(path).retriever(encoder, num_results=self.num_results)(self.topics)

    def _corpus(self) -> Any:
        if self.judged is not None and not isinstance(self.docs, list):  # they are few, and read once
            self.docs = list(self._wanted_docs())
        return self._wanted_docs()

    def _wanted_docs(self) -> Any:
        docs = self.docs.get_corpus_iter(verbose=False) if hasattr(self.docs, "get_corpus_iter") else self.docs
        records = docs.to_dict("records") if isinstance(docs, pd.DataFrame) else docs
        return (doc for doc in records if self._wanted(doc))

    def _wanted(self, doc: Mapping[str, Any]) -> bool:
        return self.judged is None or doc.get("docno") in self.judged
