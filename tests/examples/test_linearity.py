"""Tests of the linear functions that approximate q-nets."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from shared import linearity


def test_linear_scores_are_recovered_and_others_are_not():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    inner = vectors @ torch.randn(8, generator=generator, dtype=torch.float64)
    fitted = linearity.fit_linear_scores(vectors, inner.exp())  # a monotone function ranks alike
    assert linearity.measure_overlap(inner, fitted) >= 0.95
    fitted = linearity.fit_linear_scores(vectors, inner.abs())
    assert linearity.measure_overlap(inner.abs(), fitted) <= 0.7


def test_linear_qnets_agree_with_their_linear_fit(minilm, texts, docs, tmp_path):
    from pyterrier_hypencoder import HypencoderIndexer

    index = HypencoderIndexer(tmp_path / "docs.hyp", minilm).index(docs)
    topics = pd.DataFrame(texts["queries"]).rename(columns={"text": "query"})
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": [doc["docno"] for doc in docs[: len(topics)]], "label": 1})
    results = linearity.compare_with_linear(minilm, index, topics, qrels)
    assert results["overlap@100"] >= 0.9
    assert results["nDCG@10"] == pytest.approx(results["nDCG@10 linear"], abs=0.1)
