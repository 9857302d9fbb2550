"""``indexer >> retriever``: build and search with one pipeline."""

from __future__ import annotations

import copy
import os

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier._ops import Compose
from result_checks import assert_same_results

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderIndexer, HypencoderRetriever
from pyterrier_hypencoder.encoders.stages import DocEncoder
from pyterrier_hypencoder.transformers.pipeline import IndexedPipeline, bind_retrievers, list_retrievers


@pytest.fixture
def indexer(tmp_path, model) -> HypencoderIndexer:
    """Return an indexer of an index that does not exist yet."""
    return HypencoderIndexer(tmp_path / "new.hyp", model)


def test_pipeline_builds_and_searches(indexer, docs, topics, full):
    pipeline = indexer >> HypencoderRetriever()
    built = pipeline.index(docs)
    assert isinstance(built, HypencoderIndex) and len(built) == 120
    assert_same_results(pipeline(topics), full)
    assert_same_results(pipeline.transform(topics), full)
    assert_same_results(pipeline.search(topics["query"][0], qid="q0"), full[full["qid"] == "q0"])


def test_pipeline_indexes_a_frame_of_documents(indexer, docs, topics, full):
    pipeline = indexer >> HypencoderRetriever()
    pipeline.index(pd.DataFrame(docs))
    assert_same_results(pipeline(topics), full)


@pytest.mark.parametrize(
    "compose",
    [
        lambda indexer, retriever: indexer >> retriever % 10,
        lambda indexer, retriever: (indexer >> retriever) % 10,
        lambda indexer, retriever: indexer >> (retriever % 20) % 10,
        lambda indexer, retriever: (indexer >> retriever % 10).compile(),
        lambda indexer, retriever: ((indexer >> retriever) % 10).compile(),
    ],
)
def test_cutoff_can_follow_the_retriever(indexer, docs, topics, full, compose):
    retriever = HypencoderRetriever()
    pipeline = compose(indexer, retriever)
    pipeline.index(docs)
    assert_same_results(pipeline(topics), full[full["rank"] < 10])
    assert retriever.num_results == 1000


@pytest.mark.parametrize("grouped", [True, False])
def test_reranker_can_follow_the_retriever(indexer, index, model, docs, topics, full, grouped):
    reranker = index.scorer(model, qnet_width=5)
    retriever = HypencoderRetriever(num_results=20)
    pipeline = indexer >> (retriever >> reranker) if grouped else indexer >> retriever >> reranker
    pipeline.index(docs)
    found = pipeline(topics)
    assert_same_results(found, reranker(full[full["rank"] < 20]))
    assert list(found.columns) == list(full.columns)


def test_document_transformer_can_precede_the_indexer(indexer, docs, topics, full):
    renamed = [{"docno": doc["docno"], "body": doc["text"]} for doc in docs]
    pipeline = pt.apply.text(lambda document: document["body"]) >> indexer
    index = pipeline.index(renamed)
    assert_same_results(index.retriever(indexer.model)(topics), full)


def test_doc_encoder_before_the_indexer_gets_large_chunks(model, docs, topics, full, tmp_path, monkeypatch):
    chunks = []
    transform = DocEncoder.transform
    monkeypatch.setattr(DocEncoder, "transform", lambda self, inp: chunks.append(len(inp)) or transform(self, inp))
    index = (model.doc_encoder() >> HypencoderIndexer(tmp_path / "encoded.hyp")).index(iter(docs))
    assert chunks == [120]
    assert_same_results(index.retriever(model)(topics), full)


def test_document_transformer_can_precede_the_pipeline(indexer, docs, topics, full):
    searcher = indexer >> HypencoderRetriever()
    (pt.apply.text(lambda document: document["body"]) >> searcher).index({**doc, "body": doc["text"]} for doc in docs)
    assert_same_results(searcher(topics), full)


def test_retriever_after_docs_pipeline_and_indexer_cannot_index(indexer, docs):
    pipeline = pt.apply.text(lambda document: document["text"]) >> indexer >> HypencoderRetriever()
    with pytest.raises(TypeError, match=r"\(docs_pipeline >> indexer\)\.index\(corpus\)"):
        pipeline.index(docs)
    assert not os.path.exists(indexer.path)


@pytest.mark.parametrize(
    "searcher",
    [
        lambda model, bm25: model.query_encoder() >> HypencoderRetriever(num_results=200),
        lambda model, bm25: pt.apply.query(lambda row: row["query"].lower()) >> (HypencoderRetriever(num_results=200) % 200),
        lambda model, bm25: HypencoderRetriever(num_results=200) + bm25 * 0,
    ],
)
def test_retriever_is_bound_anywhere_in_the_pipeline(indexer, model, bm25, docs, topics, full, searcher):
    pipeline = indexer >> searcher(model, bm25)
    pipeline.index(docs)
    found = pipeline(topics).merge(full, on=["qid", "docno"], suffixes=("", "_full"))
    assert len(found) > 0
    np.testing.assert_allclose(found["score"], found["score_full"], rtol=1e-3, atol=2e-2)


def test_pipeline_searches_the_index_that_it_built_last(tmp_path, model, docs, topics):
    indexer = HypencoderIndexer(tmp_path / "one.hyp", model)
    pipeline = indexer >> HypencoderRetriever(num_results=5)
    pipeline.index(docs)
    indexer.path = tmp_path / "two.hyp"
    pipeline.index(docs[:2])
    assert set(pipeline(topics)["docno"]) <= {"d000", "d001"}


def test_pipeline_binds_all_retrievers_or_none(tmp_path, model):
    free, bound = HypencoderRetriever(), HypencoderRetriever(tmp_path / "other.hyp", model)
    with pytest.raises(ValueError, match=r"other.hyp"):
        _ = HypencoderIndexer(tmp_path / "x.hyp", model) >> (free + bound)
    assert free._index is None


def test_relative_and_absolute_path_are_the_same_index(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    retriever = HypencoderRetriever()
    _ = HypencoderIndexer("x.hyp", model) >> retriever
    _ = HypencoderIndexer(tmp_path / "x.hyp", model) >> retriever
    with pytest.raises(ValueError, match=r"other.hyp"):
        _ = HypencoderIndexer("other.hyp", model) >> retriever


def test_retriever_is_bound_in_place(indexer, model):
    retriever = HypencoderRetriever(num_results=7)
    pipeline = indexer >> retriever
    assert pipeline.searcher is retriever
    assert retriever.get_parameter("index") == indexer.path and retriever.model is model
    assert retriever == HypencoderRetriever(indexer.path, model, num_results=7)


def test_binding_keeps_the_model_of_the_retriever(indexer, golden):
    short = Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", query_max_length=8)
    retriever = HypencoderRetriever(model=short)
    indexer >> retriever  # noqa: B018
    assert retriever.model is short


def test_bound_retriever_is_refused_by_another_indexer(indexer, tmp_path, model):
    retriever = HypencoderRetriever()
    bound = copy.copy((indexer >> retriever).searcher)
    assert (indexer >> retriever).searcher is retriever
    with pytest.raises(ValueError, match=r"new\.hyp.*Use a new HypencoderRetriever\(\)") as error:
        HypencoderIndexer(tmp_path / "second.hyp", model) >> retriever
    assert "second.hyp" in str(error.value)
    assert retriever == bound


def test_retriever_of_an_index_is_refused_by_another_indexer(indexer, retriever):
    with pytest.raises(ValueError, match=r"docs\.hyp"):
        indexer >> retriever  # noqa: B018


def test_searching_before_indexing_names_the_missing_index(indexer, topics):
    with pytest.raises(FileNotFoundError, match=r"new\.hyp.*Build it with HypencoderIndexer"):
        (indexer >> HypencoderRetriever())(topics)


def test_unbound_retriever_says_how_to_bind_it(topics):
    with pytest.raises(ValueError, match=r"HypencoderIndexer\(path, model\) >> HypencoderRetriever\(\)"):
        (HypencoderRetriever() % 10)(topics)


def test_rebuilt_index_is_searched(tmp_path, model, docs, topics):
    pipeline = HypencoderIndexer(tmp_path / "i.hyp", model, mode="overwrite") >> HypencoderRetriever()
    pipeline.index(docs[:10])
    assert len(pipeline(topics)) == 50
    pipeline.index(docs[:20])
    assert len(pipeline(topics)) == 100


def test_grid_scan_over_the_retriever_changes_the_pipeline(indexer, docs, topics, qrels):
    retriever = HypencoderRetriever()
    pipeline = indexer >> retriever
    pipeline.index(docs)
    table = pt.GridScan(pipeline, {retriever: {"num_results": [1, 2, 120]}}, topics, qrels, [ir_measures.R @ 1000])
    assert list(table["R@1000"]) == [0.0, 0.25, 1.0]


def test_compiled_pipeline_fuses_and_indexes(indexer, docs, topics, full):
    retriever = HypencoderRetriever()
    compiled = (indexer >> retriever % 10 >> pt.Transformer.identity()).compile()
    assert isinstance(compiled, IndexedPipeline) and compiled.searcher[0].num_results == 10
    compiled.index(docs)
    assert_same_results(compiled(topics), full[full["rank"] < 10])


def test_cutoff_fuses_into_the_pipeline(indexer, docs, topics, full):
    pipeline = pt.Transformer.identity() >> (indexer >> HypencoderRetriever()) % 5
    compiled = (Compose(pt.Transformer.identity(), indexer >> HypencoderRetriever()) % 5).compile()
    assert compiled[-1].searcher.num_results == 5
    indexer.index(docs)
    for each in (pipeline, compiled):
        assert_same_results(each(topics), full[full["rank"] < 5])


# Functions


def test_list_retrievers_finds_retrievers_in_operators_and_stages(model, bm25):
    first, second, third = (HypencoderRetriever(num_results=n) for n in (1, 2, 3))
    pipeline = model.query_encoder() >> ((first + second * 2) % 10 | third) >> bm25
    assert list_retrievers(pipeline) == [first, second, third]
    assert list_retrievers(bm25) == []


def test_bind_retrievers_sets_index_and_missing_models(tmp_path, model):
    without_model, with_model = HypencoderRetriever(), HypencoderRetriever(model=Hypencoder("nobody/nothing"))
    bind_retrievers([without_model, with_model], tmp_path / "x.hyp", model)
    assert without_model == HypencoderRetriever(tmp_path / "x.hyp", model)
    assert with_model == HypencoderRetriever(tmp_path / "x.hyp", Hypencoder("nobody/nothing"))
    bind_retrievers([without_model], str(tmp_path / "x.hyp"), None)
    with pytest.raises(ValueError, match=r"already searches the index at .*x\.hyp, .* follow the indexer of .*y\.hyp"):
        bind_retrievers([HypencoderRetriever(), without_model], tmp_path / "y.hyp", None)
