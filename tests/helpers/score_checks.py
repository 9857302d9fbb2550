"""Comparisons of scored frames, and a record of the texts that are encoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pyterrier_hypencoder.encoders.base import Encoder


def assert_ranked(results: pd.DataFrame, ties: str) -> None:
    """Check that each query's documents are together and sorted by score, then by a column, with ranks from 0."""
    assert (results["qid"] != results["qid"].shift()).sum() == results["qid"].nunique()
    for _, run in results.groupby("qid"):
        best_first = np.lexsort((run[ties], -run["score"].to_numpy()))
        assert list(best_first) == list(range(len(run))) == list(run["rank"])


def assert_same_scores(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Check that all found documents have the expected scores, within a thousandth of the largest score."""
    both = found.merge(expected[["qid", "docno", "score"]], on=["qid", "docno"], suffixes=("", "_expected"))
    assert len(both) == len(found) > 0
    tolerance = 1e-3 * expected["score"].abs().max()
    np.testing.assert_allclose(both["score"], both["score_expected"], rtol=0, atol=tolerance)


def record_texts(monkeypatch: Any, method: str) -> list[str]:
    """Return a list that gets every text that encoders receive in a method."""
    given: list[str] = []
    encode = getattr(Encoder, method)
    monkeypatch.setattr(Encoder, method, lambda self, texts: given.extend(texts) or encode(self, texts))
    return given
