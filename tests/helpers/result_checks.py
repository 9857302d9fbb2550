"""Comparisons of result frames, for tests of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

ADDED = ["docno", "docid", "score", "rank"]
"""Columns that a retriever adds to its topics."""


def score_all(model: Any, index: Any, topics: pd.DataFrame, *, width: int | None = None) -> pd.DataFrame:
    """Return the reference scores of all documents: the q-nets applied to the stored vectors in float32."""
    qnets = model.encode_queries(list(topics["query"]))
    qnets = qnets if width is None else qnets.narrow(width)
    scores = qnets.score(torch.from_numpy(np.array(index.vectors, dtype=np.float32))).numpy()
    docids = np.arange(len(index))
    frames = [
        pd.DataFrame({"qid": qid, "query": query, "docno": index.docnos.at(docids), "docid": docids, "score": row})
        for (qid, query), row in zip(topics[["qid", "query"]].itertuples(index=False), scores, strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def list_runs(results: pd.DataFrame) -> dict[str, list[str]]:
    """Return the docnos of each query in order."""
    return {qid: run["docno"].tolist() for qid, run in results.groupby("qid", sort=False)}


def score_by_document(results: pd.DataFrame) -> pd.Series:
    """Return the scores by qid and docno, sorted by these keys."""
    return results.set_index(["qid", "docno"])["score"].astype(np.float32).sort_index()


def assert_sorted(results: pd.DataFrame) -> None:
    """Check that each query's documents are sorted by score, then by docid, with ranks from 0."""
    for _, run in results.groupby("qid"):
        best_first = np.lexsort((run["docid"], -run["score"].to_numpy()))
        assert list(best_first) == list(range(len(run))) == list(run["rank"])


def assert_same_results(found: pd.DataFrame, expected: pd.DataFrame, *, atol: float = 3e-3) -> None:
    """Check that two runs have the same documents and columns, and the same scores except for rounding.

    The tiny model of the tests amplifies rounding, so scores may differ by ``atol``. The order of documents is not
    compared.
    """
    keys = ["qid", "docno"]
    columns = [column for column in expected.columns if column != "rank"]
    found, expected = found[columns].sort_values(keys), expected[columns].sort_values(keys)
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected.reset_index(drop=True), rtol=0, atol=atol)


def assert_same_ranking(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Check that a run is sorted and has the same documents and scores as another one."""
    assert_sorted(found)
    assert_same_results(found, expected)


def count_calls(monkeypatch: Any, owner: type, method: str) -> list[str]:
    """Return a list that gets one entry for every call of a method."""
    calls: list[str] = []
    original = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda self, *args: calls.append(method) or original(self, *args))
    return calls
