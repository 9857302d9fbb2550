"""BM25 as a PyTerrier transformer that needs no Java.

Install two more packages first: ``pip install bm25s PyStemmer``.
"""

import copy
import logging
from collections.abc import Iterable
from typing import Any

import bm25s
import numpy as np
import pandas as pd
import pyterrier as pt
import Stemmer

# bm25s logs its progress at the debug level, and sets its own logger to that level.
logging.getLogger("bm25s").setLevel(logging.WARNING)


class BM25(pt.Transformer):
    """Retrieve documents by BM25 from an index in memory.

    Words are lower-cased and stemmed by Snowball's English stemmer, and English stopwords are removed. A document is
    retrieved if it contains at least one word of the query. Documents with the same score keep the order of indexing.

    Example::

        bm25 = BM25(num_results=100).index([{"docno": "d1", "text": "a document"}])
        bm25.search("documents")
    """

    def __init__(
        self,
        num_results: int = 1000,
        *,
        k1: float = 0.9,
        b: float = 0.4,
        text_field: str | list[str] = "text",
        verbose: bool = False,
    ):
        """Create a retriever without an index. Call :meth:`index` before searching.

        Args:
            num_results: Maximum number of results per query.
            k1: Saturation of term frequencies. It takes effect when documents are indexed.
            b: Normalization by document length, from 0 (none) to 1. It takes effect when documents are indexed.
            text_field: Text field of the documents, or several fields, which are joined.
            verbose: If True, show progress.
        """
        self.num_results = num_results
        self.k1 = k1
        self.b = b
        self.text_field = text_field
        self.verbose = verbose
        self._docnos: list[str] | None = None
        self._scorer: bm25s.BM25 | None = None

    def index(self, docs_iter: Iterable[dict[str, Any]]) -> "BM25":
        """Index documents and replace any earlier index.

        Args:
            docs_iter: Documents with ``docno`` and the text fields.

        Returns:
            This retriever.
        """
        fields = [self.text_field] if isinstance(self.text_field, str) else self.text_field
        docnos, texts = [], []
        for doc in docs_iter:
            docnos.append(doc["docno"])
            texts.append(" ".join(doc[field] for field in fields if isinstance(doc.get(field), str)))
        tokens = self._tokenize(texts)
        self._docnos = docnos
        self._scorer = None
        if any(tokens):  # bm25s refuses a collection without words
            self._scorer = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
            self._scorer.index(tokens, create_empty_token=False, show_progress=self.verbose)
        return self

    def transform(self, topics: pd.DataFrame) -> pd.DataFrame:
        """Retrieve documents for queries.

        Args:
            topics: Frame with ``qid``, ``query`` and any other columns.

        Returns:
            The columns of ``topics`` with ``docno``, ``score`` and ``rank``, the best document of each query first.

        Raises:
            RuntimeError: If no documents were indexed.
        """
        pt.validate.query_frame(topics, extra_columns=["query"])
        if len(topics) and self._docnos is None:
            raise RuntimeError("This BM25 retriever has no index. Call index() first.")
        indexed = self._docnos or []
        rows: list[int] = []
        docnos: list[str] = []
        scores: list[float] = []
        ranks: list[int] = []
        for row, tokens in enumerate(self._tokenize(topics["query"].tolist())):
            best, best_scores = self._search(tokens)
            rows += [row] * len(best)
            docnos += [indexed[i] for i in best]
            scores += best_scores.tolist()
            ranks += range(len(best))
        return (
            topics.iloc[rows]
            .reset_index(drop=True)
            .assign(
                docno=pd.Series(docnos, dtype=str),
                score=pd.Series(scores, dtype=float),
                rank=pd.Series(ranks, dtype=int),
            )
        )

    def fuse_rank_cutoff(self, k: int) -> "BM25":
        """Return a retriever for a pipeline such as ``bm25 % 10``.

        Args:
            k: Maximum number of results per query.

        Returns:
            A retriever with the same index, or this one if its ``num_results`` is at most ``k``.
        """
        if k >= self.num_results:
            return self
        fused = copy.copy(self)
        fused.num_results = k
        return fused

    def _tokenize(self, texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(
            texts,
            stopwords="en",
            stemmer=Stemmer.Stemmer("english"),
            return_ids=False,
            show_progress=self.verbose,
        )

    def _search(self, tokens: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions and scores of the best documents."""
        if self._scorer is None or not tokens:
            return np.empty(0, dtype=int), np.empty(0)
        scores = self._scorer.get_scores(tokens).astype(float)
        found = np.flatnonzero(scores > 0)
        best = found[np.argsort(-scores[found], kind="stable")][: self.num_results]
        return best, scores[best]
