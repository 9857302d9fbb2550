"""Use with other plugins: pyterrier-caching, pyterrier_dr, pyterrier_adaptive and pyterrier-alpha."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from result_checks import count_calls, score_by_document

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer, HypencoderScorer
from pyterrier_hypencoder.transformers.batch_search import BatchSearch


@pytest.fixture(scope="module")
def candidates(topics, docs):
    """Return 15 documents per query, in place of a lexical retriever."""
    frame = topics.merge(pd.DataFrame({"docno": [doc["docno"] for doc in docs]}), how="cross")
    frame = frame.sample(frac=1, random_state=2).groupby("qid").head(15).sort_values("qid", kind="stable", ignore_index=True)
    rank = frame.groupby("qid").cumcount()
    return frame.assign(score=50.0 - rank, rank=rank)


def assert_scores(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Check that all found documents have the expected scores, within a thousandth of the largest score."""
    wanted = score_by_document(expected).loc[score_by_document(found).index]
    assert len(found) > 0
    np.testing.assert_allclose(score_by_document(found), wanted, rtol=0, atol=1e-3 * expected["score"].abs().max())


# pyterrier-caching


@pytest.fixture
def caching():
    return pytest.importorskip("pyterrier_caching")


def test_retriever_cache_searches_once(caching, index, model, topics, full, tmp_path, monkeypatch):
    searches = count_calls(monkeypatch, BatchSearch, "search")
    with caching.RetrieverCache(tmp_path / "cache", index.retriever(model)) as cache:
        for _ in range(2):
            found = cache(topics)
            assert_scores(found, full)
            assert list(found.columns) == list(full.columns) and len(found) == len(full)
            assert len(searches) == 1
        cache(pd.concat([topics, topics.iloc[:1].assign(qid="new")]))
        assert len(searches) == 2
    with caching.RetrieverCache(tmp_path / "cache", index.retriever(model)) as reopened:
        assert_scores(reopened(topics), full)
    assert len(searches) == 2


def test_scorer_cache_scores_once(caching, index, model, candidates, full, tmp_path, monkeypatch):
    batches = count_calls(monkeypatch, HypencoderScorer, "_score_batch")
    with caching.ScorerCache(tmp_path / "cache", index.scorer(model)) as cache:
        for _ in range(2):
            found = cache(candidates)
            assert_scores(found, full)
            assert len(found) == len(candidates) and len(batches) == 1
        ranked = found.sort_values(["qid", "rank"])
        assert (ranked.groupby("qid")["score"].diff().dropna() <= 0).all()


def test_dense_scorer_cache_scores_once(caching, index, model, docs, candidates, full, tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    batches = count_calls(monkeypatch, HypencoderScorer, "_score_batch")
    with caching.DenseScorerCache(tmp_path / "cache", index.scorer(model)) as cache:
        cache.build(docs)
        for _ in range(2):
            assert_scores(cache(candidates), full)
            assert len(batches) == 1


def test_indexer_cache_can_be_indexed(caching, model, docs, topics, fp32_index, tmp_path):
    """The cache stores float32 vectors, so the index is compared in float32."""
    cache = caching.IndexerCache(tmp_path / "cache")
    (model.doc_encoder() >> cache).index(docs)
    index = HypencoderIndexer(tmp_path / "cached.hyp", dtype="fp32").index(iter(cache))
    assert_scores(index.retriever(model)(topics), fp32_index.retriever(model)(topics))


def test_cache_in_a_pipeline_has_a_schematic(caching, index, model, tmp_path):
    cache = caching.RetrieverCache(tmp_path / "cache", index.retriever(model))
    assert "Hypencoder" in pt.schematic.draw(cache >> index.scorer(model))


# pyterrier_dr


@pytest.fixture(scope="module")
def dr():
    return pytest.importorskip("pyterrier_dr")


@pytest.fixture(scope="module")
def flex(dr, index, tmp_path_factory):
    """Return a FlexIndex with the vectors of the index."""
    return index.to_flex(tmp_path_factory.mktemp("flex") / "docs.flex")


@pytest.fixture(scope="module")
def ours(index, tmp_path_factory):
    """Return our neighbour graph of the index."""
    copy = shutil.copytree(str(index.path), tmp_path_factory.mktemp("graph") / "docs.hyp")
    return HypencoderIndex(copy).corpus_graph(8)


@pytest.fixture(scope="module", params=["ours", "theirs"])
def graph(request):
    """Return a graph with eight neighbours: ours or that of pyterrier_dr."""
    return request.getfixturevalue("ours") if request.param == "ours" else request.getfixturevalue("flex").corpus_graph(8)


def reachable(graph, candidates: pd.DataFrame, index: HypencoderIndex, hops: int) -> dict[str, set[str]]:
    """Return the candidates of each query and their neighbours within some hops."""
    found = {}
    for qid, run in candidates.groupby("qid"):
        docids = {int(docid) for docid in index.docnos.find(run["docno"].to_numpy())}
        for _ in range(hops):
            docids |= {int(docid) for docid in np.ravel(graph.edges_data[sorted(docids)])}
        found[qid] = set(index.docnos.at(np.array(sorted(docids))))
    return found


@pytest.mark.parametrize("hops", [1, 2])
def test_proactive_ladr_scores_neighbours_of_candidates(flex, graph, index, model, candidates, full, hops):
    ladr = flex.ladr_proactive(graph, hops=hops, dense_scorer=index.scorer(model))
    found = (model.query_encoder() >> ladr)(candidates)
    expected = reachable(graph, candidates, index, hops)
    assert {qid: set(run["docno"]) for qid, run in found.groupby("qid")} == expected
    assert_scores(found, full)


def test_adaptive_ladr_returns_the_best_documents_it_reaches(flex, graph, index, model, candidates, full):
    ladr = flex.ladr_adaptive(graph, depth=20, num_results=10, dense_scorer=index.scorer(model), drop_query_vec=True)
    found = (model.query_encoder() >> ladr)(candidates)
    assert_scores(found, full)
    assert (found.groupby("qid").size() == 10).all() and "query_vec" not in found
    best = {qid: run["score"].max() for qid, run in index.scorer(model)(candidates).groupby("qid")}
    assert all(run["score"].max() >= best[qid] - 1e-3 for qid, run in found.groupby("qid"))


def test_flex_index_with_the_same_vectors_gives_the_same_scores(flex, index):
    vectors = np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)
    topics = pd.DataFrame({"qid": list("abcd"), "query": "", "query_vec": list(vectors)})
    ours, theirs = index.retriever(num_results=50)(topics), flex.np_retriever(num_results=50)(topics)
    assert_scores(ours, theirs)
    assert_scores(theirs, ours)


def test_vectors_survive_a_round_trip_through_flex(flex, index, model, topics, full, tmp_path):
    again = HypencoderIndex.from_flex(flex, tmp_path / "again.hyp")
    np.testing.assert_array_equal(again.vectors, index.vectors)
    assert_scores(again.retriever(model)(topics), full)


class Encoder(pt.Transformer):
    """An encoder like those of pyterrier_dr: adds query_vec to queries and doc_vec to documents."""

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        with pt.validate.any(inp) as modes:
            modes.columns(includes=["query"], mode="query_vec")
            modes.columns(includes=["text"], mode="doc_vec")
        texts = inp["query" if modes.mode == "query_vec" else "text"]
        vectors = [np.array([len(text), text.count("a"), text.count("e")], dtype=np.float32) for text in texts]
        return inp.assign(**{modes.mode: pd.Series(vectors, index=inp.index, dtype=object)})


def test_other_encoders_work_for_documents_and_queries(docs, topics, tmp_path):
    index = (Encoder() >> HypencoderIndexer(tmp_path / "theirs.hyp")).index(docs)
    pipeline = Encoder() >> index.retriever()
    found = pipeline(topics)
    queries = np.stack(Encoder()(topics)["query_vec"])
    documents = np.stack(Encoder()(pd.DataFrame(docs))["doc_vec"])
    expected = pd.DataFrame(queries @ documents.T, topics["qid"], [doc["docno"] for doc in docs]).stack()
    np.testing.assert_allclose(score_by_document(found), expected.sort_index(), rtol=1e-5)
    assert pt.inspect.transformer_outputs(pipeline, ["qid", "query"])[-4:] == ["docno", "docid", "score", "rank"]
    reranked = (Encoder() >> index.scorer())(found.drop(columns="query_vec"))
    np.testing.assert_allclose(score_by_document(reranked), expected.sort_index(), rtol=1e-5)


def test_pyterrier_dr_encoder_works_for_documents_and_queries(dr, minilm, tmp_path):
    encoder = dr.SBertBiEncoder(minilm.name_or_path) if hasattr(dr, "SBertBiEncoder") else pytest.skip("no such encoder")
    docs = [{"docno": "sun", "text": "The sun is a star."}, {"docno": "soup", "text": "Tomatoes make a soup."}]
    index = (encoder >> HypencoderIndexer(tmp_path / "dr.hyp")).index(docs)
    found = (encoder >> index.retriever())(pd.DataFrame({"qid": ["1"], "query": ["dinner recipe"]}))
    assert list(found["docno"]) == ["soup", "sun"]


# pyterrier_adaptive


@pytest.fixture(scope="module")
def adaptive():
    return pytest.importorskip("pyterrier_adaptive")


def test_gar_reaches_documents_beyond_the_candidates(adaptive, graph, index, model, candidates, full):
    gar = adaptive.GAR(index.scorer(model), graph, num_results=30, batch_size=5)
    found = gar(candidates)
    assert_scores(found, full)
    assert (found.groupby("qid").size() == 30).all()
    first = set(zip(candidates["qid"], candidates["docno"], strict=True))
    assert len(set(zip(found["qid"], found["docno"], strict=True)) - first) >= 5 * 15
    assert (found.groupby("qid")["score"].diff().dropna() <= 0).all()


def test_pyterrier_adaptive_opens_our_graph(adaptive, ours, index, model, candidates):
    theirs = pt.Artifact.load(str(ours.path))
    assert isinstance(theirs, adaptive.CorpusGraph)
    np.testing.assert_array_equal(theirs.edges_data, ours.edges_data)
    np.testing.assert_array_equal(theirs.to_limit_k(3).weights_data, ours.weights_data[:, :3])
    for document in (5, index.docnos.at(5).item()):
        for found, expected in zip(ours.neighbours(document, weights=True), theirs.neighbours(document, True), strict=True):
            assert list(found) == list(expected)
    gars = [adaptive.GAR(index.scorer(model), graph, num_results=30, batch_size=5) for graph in (ours, theirs)]
    pd.testing.assert_frame_equal(gars[0](candidates), gars[1](candidates))


def test_gar_works_in_a_pipeline(adaptive, ours, index, model, topics, full, candidates):
    first = pt.Transformer.from_df(candidates.drop(columns="query"))
    pipeline = first >> adaptive.GAR(index.scorer(model), ours, num_results=40) >> index.scorer(model) % 10
    found = pipeline.compile()(topics)
    assert_scores(found, full)
    assert (found.groupby("qid").size() == 10).all()
    assert "GAR" in pt.schematic.draw(pipeline)


def test_ladr_that_reaches_all_documents_is_exhaustive(flex, index, index_copy, model, candidates, full):
    everything = index_copy.corpus_graph(len(index) - 1)
    ladr = flex.ladr_adaptive(everything, depth=5, num_results=20, dense_scorer=index.scorer(model))
    found = (model.query_encoder() >> ladr)(candidates)
    expected = full[full["rank"] < 20]
    np.testing.assert_allclose(
        found.sort_values(["qid", "rank"])["score"], expected.sort_values(["qid", "rank"])["score"], rtol=0, atol=2e-3
    )


def test_gar_accepts_a_graph_built_with_the_retriever(adaptive, index, model, docs, candidates, full, tmp_path):
    graph = adaptive.CorpusGraph.from_retriever(index.retriever(model, num_results=6), iter(docs), tmp_path / "graph", k=5)
    found = adaptive.GAR(index.scorer(model), graph, num_results=25, batch_size=5)(candidates)
    assert_scores(found, full)
    assert (found.groupby("qid").size() == 25).all()


# pyterrier_alpha


def test_reciprocal_rank_fusion_accepts_the_retriever(index, model, topics, candidates, full):
    fusion = pytest.importorskip("pyterrier_alpha.fusion")
    bm25 = pt.Transformer.from_df(candidates.drop(columns="query"))
    found = fusion.RRFusion(index.retriever(model, num_results=20), bm25, num_results=30)(topics)
    expected = set(score_by_document(full[full["rank"] < 20]).index) | set(score_by_document(candidates).index)
    assert set(score_by_document(found).index) <= expected and (found.groupby("qid").size() > 20).all()
