"""HypencoderScorer over an index with default options. Scorers of text are tested with the encoders."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from result_checks import assert_same_results, assert_sorted, list_runs

from pyterrier_hypencoder import HypencoderScorer


@pytest.fixture(scope="module")
def candidates(full) -> pd.DataFrame:
    """Return half of all documents per query in random order, without docids and scores of the retriever."""
    some = full[["qid", "query", "docno"]].sample(frac=0.5, random_state=0)
    return some.assign(score=0.5, rank=np.arange(len(some)))


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("recorded", [True, False])
def test_scorer_gives_the_scores_of_the_retriever(index, model, candidates, full, batch_size, recorded):
    found = index.scorer(None if recorded else model, batch_size=batch_size)(candidates)
    expected = full.merge(candidates[["qid", "docno"]], on=["qid", "docno"])[["qid", "query", "docno", "score"]]
    assert_same_results(found, expected)
    assert list(found.columns) == list(candidates.columns)


def test_equal_scores_are_ordered_by_docid(index, model, candidates):
    found = index.scorer(model)(candidates)
    assert found.duplicated(["qid", "score"]).sum() > 10
    assert_sorted(found.assign(docid=index.docnos.find(found["docno"].to_numpy())))


def test_reranking_all_documents_is_exhaustive_search(index, model, topics, full, docs):
    everything = topics.merge(pd.DataFrame({"docno": [doc["docno"] for doc in docs]}), how="cross")
    found = index.scorer(model)(everything)
    assert_same_results(found, full[["qid", "query", "docno", "score", "rank"]])
    close = {qid: run[:5] for qid, run in list_runs(full).items()}
    assert {qid: run[:5] for qid, run in list_runs(found).items()} == close


def test_score_method_gives_the_scores_of_the_retriever(index, model, topics, full):
    docids = np.array([119, 0, 7])
    scores = index.scorer(model).score(np.stack(model.query_encoder()(topics)["query_vec"]), docids)
    expected = full.set_index(["qid", "docid"])["score"]
    for qid, row in zip(topics["qid"], scores, strict=True):
        np.testing.assert_allclose(row, [expected[qid, docid] for docid in docids], rtol=0, atol=3e-3)


@pytest.mark.parametrize("docids", [[-1], [0, 120]])
def test_docids_outside_the_index_are_refused(index, docids):
    with pytest.raises(ValueError, match=r"docids must be between 0 and 119, got .* Use docids of the index at .*docs\.hyp"):
        index.scorer().score(np.ones((1, 24)), np.array(docids))


def test_example_scores_the_example_vectors():
    frame = pd.DataFrame({"qid": "q", "docno": ["d1", "d2", "d3"], "query_vec": [[0.0, 4.0, 0.0, 0.0]] * 3})
    found = HypencoderScorer.example()(frame)
    assert found["docno"].tolist() == ["d2", "d3", "d1"] and found["score"].tolist() == [4.0, 2.0, 0.0]


def test_a_sum_of_runs_is_reranked_although_it_lacks_the_queries_of_some_rows(index, model, topics, full):
    first = full[full["rank"] < 3]
    second = full[(full["rank"] >= 2) & (full["rank"] < 6)]
    summed = (pt.Transformer.from_df(first) + pt.Transformer.from_df(second))(topics)
    assert summed["query"].isna().any()
    for rows in (summed, summed.iloc[::-1]):
        found = index.scorer(model)(rows)
        columns = ["qid", "docno", "score", "rank"]
        assert_same_results(found[columns], full.loc[full["rank"] < 6, columns])
