"""Validate checkpoints: index and search a collection with them, or re-rank candidates."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import pandas as pd

from ..artifact import HypencoderIndex, HypencoderIndexer
from ..encoders.base import Encoder
from ..encoders.columns import TextField
from ..encoders.loading import load_encoder
from ..options import check_option_names, check_positive
from .mining import check_frame


class Validation:
    """Measure how well a checkpoint ranks. Pass it to :meth:`HypencoderTrainer.fit` as ``validate``.

    Args:
        topics: Frame with qid and query. If it also has docno and text, these documents are re-ranked instead of searched.
        qrels: Frame with qid, docno and label. Judgements of other topics are left out.
        docs: Collection: list of dictionaries, frame, PyTerrier dataset or ``HypencoderIndex``. The vectors of an index are
            used unchanged, so documents must be frozen. Re-ranking does not need it.
        measures: Measures of ir_measures, or their names. The default is R-Precision, as in the paper.
        judged_only: If True, only judged documents are indexed. The paper does this for TREC DL 2021 and 2022.
        text_field: Field with the text of a document, or a list of fields.
        num_results: Number of documents to retrieve per query.
        options: Options for loading checkpoints, such as ``doc_max_length``.
        verbose: If True, show the progress of indexing and re-ranking.

    The documents are indexed in a temporary folder. The next validation reuses that index if the document vectors are the
    same, so frozen documents are encoded once. The index is deleted with the validation.

    Raises:
        TypeError: If the documents are neither documents nor a dataset or an index.
        ValueError: If the collection is missing, or no topic is judged.

    Example:
        >>> from pyterrier_hypencoder import BiEncoder
        >>> candidates = pd.DataFrame(
        ...     [("q1", "red planet", "d1", "Venus is hot."), ("q1", "red planet", "d2", "Mars looks red.")],
        ...     columns=["qid", "query", "docno", "text"],
        ... )
        >>> qrels = pd.DataFrame({"qid": ["q1"], "docno": ["d2"], "label": [1]})
        >>> validation = Validation(candidates, qrels, measures=["RR@10"])
        >>> validation(BiEncoder("sentence-transformers/all-MiniLM-L6-v2"))
        {'RR@10': 1.0}
    """

    @check_option_names
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
        verbose: bool = False,
    ) -> None:
        check_frame("topics", topics, "qid", "query")
        check_frame("qrels", qrels, "qid", "docno", "label")
        check_positive("num_results", num_results)
        self.topics = topics.assign(qid=topics["qid"].astype(str))
        self.qrels = qrels[qrels["qid"].astype(str).isin(set(self.topics["qid"]))]
        if self.qrels.empty:
            raise ValueError("qrels has no judgements of the validation topics. Check that the qids of both match.")
        if docs is None and "docno" not in topics.columns:
            raise ValueError("Validation needs docs, or topics with candidates (docno and text), got neither.")
        if judged_only and "docno" in topics.columns:
            raise ValueError("judged_only has no effect on topics with candidates, which are re-ranked. Leave it out.")
        if isinstance(docs, str | Path):
            raise ValueError(
                f"docs must be documents, a dataset or an index, got {docs!r}. Open it with HypencoderIndex(...)."
            )
        self.judged = set(self.qrels["docno"].astype(str)) if judged_only else None
        self.docs = docs
        if not isinstance(docs, HypencoderIndex | pd.DataFrame) and not hasattr(docs, "get_corpus_iter") and docs is not None:
            self.docs = [doc for doc in docs if self._is_indexed(doc)]  # a list, because every validation reads it again
        self.measures = _parse_measures(measures)
        self.text_field = text_field
        self.num_results = num_results
        self.options = dict(options or {})
        self.verbose = verbose
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._indexed: Any = None

    def __call__(self, model: Encoder | str | Path) -> dict[str, float]:
        """Measure a model.

        Args:
            model: Encoder, or directory of a checkpoint.

        Returns:
            Mean of each measure over the topics, by the name of the measure.
        """
        encoder = load_encoder(str(model), **self.options) if isinstance(model, str | Path) else model
        run = self._rerank(encoder) if "docno" in self.topics.columns else self._search(encoder)
        qrels = self.qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
        run = run.rename(columns={"qid": "query_id", "docno": "doc_id"})
        means = ir_measures.calc_aggregate(self.measures, qrels, run)
        return {str(measure): float(value) for measure, value in means.items()}

    def _rerank(self, encoder: Encoder) -> pd.DataFrame:
        return encoder.text_scorer(text_field=self.text_field, verbose=self.verbose)(self.topics)

    def _search(self, encoder: Encoder) -> pd.DataFrame:
        """Search the given index, or that of the documents, which is built unless the last one has the same vectors."""
        if isinstance(self.docs, HypencoderIndex):
            allowed = None if self.judged is None else [d for d in self.docs.docnos if d in self.judged]
            return self.docs.retriever(encoder, num_results=self.num_results, allowed_docnos=allowed)(self.topics)
        record = encoder.record()
        key = (record["fingerprint"], record["precision"], encoder.doc_max_length)
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="validation-")
        path = Path(self._folder.name) / "index.hyp"
        if key != self._indexed:
            self._indexed = None
            options: dict[str, Any] = {"text_field": self.text_field, "verbose": self.verbose}
            HypencoderIndexer(path, encoder, mode="overwrite", **options).index(self._get_corpus())
            self._indexed = key
        return HypencoderIndex(path).retriever(encoder, num_results=self.num_results)(self.topics)

    def _get_corpus(self) -> Iterator[Mapping[str, Any]]:
        """Return the documents to index. Judged ones are kept in memory, because they are few."""
        if self.judged is not None and not isinstance(self.docs, list):
            self.docs = list(self._read_docs())
        return self._read_docs()

    def _read_docs(self) -> Iterator[Mapping[str, Any]]:
        docs = self.docs.get_corpus_iter(verbose=False) if hasattr(self.docs, "get_corpus_iter") else self.docs
        records = docs.to_dict("records") if isinstance(docs, pd.DataFrame) else docs
        return (doc for doc in records if self._is_indexed(doc))

    def _is_indexed(self, doc: Mapping[str, Any]) -> bool:
        return self.judged is None or doc.get("docno") in self.judged


def _parse_measures(measures: Any) -> list[Any]:
    """Return measures by their names, or unchanged if they are no strings."""
    if isinstance(measures, str) or not isinstance(measures, Iterable):
        raise ValueError(f"measures must be a list of measures, got {measures!r}. Put it in a list.")
    try:
        parsed = [ir_measures.parse_measure(measure) if isinstance(measure, str) else measure for measure in measures]
    except (NameError, ValueError) as err:
        raise ValueError(f"measures must be measures of ir_measures or their names: {err}") from err
    if not parsed:
        raise ValueError("measures must contain at least one measure, got none.")
    return parsed
