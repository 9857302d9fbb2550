"""A lexical baseline: BM25 as a PyTerrier transformer, without Java.

It needs two more packages: ``pip install bm25s PyStemmer``.
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

# bm25s logs its progress at the debug level, and sets its logger to show that wherever logging is set up.
logging.getLogger("bm25s").setLevel(logging.WARNING)


class BM25(pt.Transformer):
    """Retrieves documents by BM25, from an index in memory.

    Words are lower-cased and stemmed (Snowball's English stemmer), and English stopwords are left out. Only documents
    with at least one of a query's words are retrieved; those with the same score come in the order of indexing.

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
        """Creates a retriever, which has to index documents first.

        Args:
            num_results: The most documents to retrieve for a query.
            k1: How slowly repeated words stop adding to the score. Has to be set before indexing.
            b: How much long documents are held back, from 0 to 1. Has to be set before indexing.
            text_field: The field of the documents to index, or several, which are joined.
            verbose: Whether to show progress.
        """
        self.num_results = num_results
        self.k1 = k1
        self.b = b
        self.text_field = text_field
        self.verbose = verbose
        self._docnos: list[str] | None = None
        self._scorer: bm25s.BM25 | None = None

    def index(self, docs_iter: Iterable[dict[str, Any]]) -> "BM25":
        """Indexes documents, in place of those indexed before.

        Args:
            docs_iter: The documents, each with ``docno`` and the text fields.

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
        if any(tokens):  # bm25s takes no collection without any words
            self._scorer = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
            self._scorer.index(tokens, create_empty_token=False, show_progress=self.verbose)
        return self

    def transform(self, topics: pd.DataFrame) -> pd.DataFrame:
        """Retrieves documents for queries.

        Args:
            topics: The queries: ``qid``, ``query`` and any other columns.

        Returns:
            The columns of ``topics`` with ``docno``, ``score`` and ``rank``, best document first.

        Raises:
            RuntimeError: If nothing was indexed.
        """
        pt.validate.query_frame(topics, extra_columns=["query"])
        if len(topics) and self._docnos is None:
            raise RuntimeError("There is no index yet: call index() first.")
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
        """Retrieves fewer documents in the first place, for pipelines such as ``bm25 % 10``.

        Args:
            k: The most documents that are asked for.

        Returns:
            A retriever with the same index, or this one if it retrieves no more than that anyway.
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
        """Gives the positions and the scores of the best documents."""
        if self._scorer is None or not tokens:
            return np.empty(0, dtype=int), np.empty(0)
        scores = self._scorer.get_scores(tokens).astype(float)
        found = np.flatnonzero(scores > 0)
        best = found[np.argsort(-scores[found], kind="stable")][: self.num_results]
        return best, scores[best]
