"""Tests of the comparison of q-nets with linear functions."""

from __future__ import annotations

import pandas as pd
import pytest
from shared import linearity


def test_linear_qnets_agree_with_their_linear_fit(minilm, texts, docs, tmp_path):
    from pyterrier_hypencoder import HypencoderIndexer

    index = HypencoderIndexer(tmp_path / "docs.hyp", minilm).index(docs)
    topics = pd.DataFrame(texts["queries"]).rename(columns={"text": "query"})
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": [doc["docno"] for doc in docs[: len(topics)]], "label": 1})
    results = linearity.compare_with_linear(minilm, index, topics, qrels)
    assert results["overlap@100"] >= 0.9
    assert results["nDCG@10"] == pytest.approx(results["nDCG@10 linear"], abs=0.1)
