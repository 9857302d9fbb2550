"""Real collections in HYPENCODER_COLLECTIONS: published figures, and agreement of retriever, scorers and FlexIndex."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier.measures import nDCG

from pyterrier_hypencoder import HypencoderIndexer

pytestmark = pytest.mark.slow  # encoding the collections takes minutes


@pytest.fixture(scope="module")
def nfcorpus(collections, minilm, tmp_path_factory):
    """Return the collection and its index over title and text, with up to 256 tokens per document."""
    collection = collections("nfcorpus")
    path = tmp_path_factory.mktemp("nfcorpus") / "nfcorpus.hyp"
    return collection, HypencoderIndexer(path, minilm, text_field=["title", "text"]).index(collection.docs())


def test_minilm_reaches_its_published_ndcg_on_nfcorpus(nfcorpus, minilm):
    collection, index = nfcorpus
    table = pt.Experiment([index.retriever(minilm)], collection.topics(), collection.qrels(), [nDCG @ 10])
    assert table["nDCG@10"][0] == pytest.approx(0.316, abs=0.001)


def test_scorer_gives_the_retrievers_scores_for_any_candidates(nfcorpus, minilm):
    collection, index = nfcorpus
    topics = collection.topics().head(20)
    everything = index.retriever(minilm, num_results=len(index))(topics)
    candidates = everything[["qid", "query", "docno", "score"]].sample(2000, random_state=0)
    found = index.scorer(minilm)(candidates.drop(columns="score"))
    both = found.merge(candidates, on=["qid", "docno"], suffixes=("", "_expected"))
    assert len(both) == 2000
    np.testing.assert_allclose(both["score"], both["score_expected"], rtol=1e-3, atol=1e-6)
    for _, ranked in both.groupby("qid"):
        assert ranked["score_expected"].sort_values(ascending=False).index.equals(ranked.sort_values("rank").index)


def test_flex_index_with_the_same_vectors_gives_the_same_ranking(nfcorpus, minilm, tmp_path):
    pytest.importorskip("pyterrier_dr")
    collection, index = nfcorpus
    topics = minilm.query_encoder()(collection.topics().head(50))
    flex = index.to_flex(tmp_path / "vectors.flex")
    expected = flex.np_retriever(num_results=100)(topics)
    found = index.retriever(minilm, num_results=100)(topics)
    both = found.merge(expected, on=["qid", "docno"], suffixes=("", "_flex"))
    np.testing.assert_allclose(both["score"], both["score_flex"], atol=2e-6)
    # Some documents occur twice in the collection. Only documents with equal scores may be in another order.
    at_rank = found.merge(expected, on=["qid", "rank"], suffixes=("", "_flex"))
    assert len(at_rank) == len(found) == len(expected)
    moved = at_rank[at_rank["docno"] != at_rank["docno_flex"]]
    np.testing.assert_allclose(moved["score"], moved["score_flex"], atol=2e-6)
    assert len(moved) < 0.05 * len(at_rank)


def test_text_and_stored_vectors_give_the_same_reranking(collections, minilm, tmp_path):
    collection = collections("msmarco-dl-pool")
    run = pt.io.read_results(str(collection.folder / "runs" / "dl19.BM25.run"), format="trec")
    run = run[run["rank"] < 20].merge(collection.topics("topics.dl19.tsv"), on="qid").drop(columns=["score", "rank"])
    wanted = set(run["docno"])
    docs = [doc for doc in collection.docs() if doc["docno"] in wanted]
    index = HypencoderIndexer(tmp_path / "pool.hyp", minilm).index(docs)
    stored = index.scorer(minilm)(run)
    fresh = minilm.text_scorer()(run.merge(pd.DataFrame(docs)[["docno", "text"]], on="docno"))
    both = stored.merge(fresh, on=["qid", "docno"], suffixes=("", "_text"))
    assert len(both) == len(run)
    np.testing.assert_allclose(both["score"], both["score_text"], rtol=1e-3, atol=1e-4)
    qrels = collection.qrels()
    systems = [pt.Transformer.from_df(stored), pt.Transformer.from_df(fresh)]
    table = pt.Experiment(systems, collection.topics("topics.dl19.tsv"), qrels, [nDCG @ 10])
    assert table["nDCG@10"][0] == pytest.approx(table["nDCG@10"][1], abs=1e-3)
