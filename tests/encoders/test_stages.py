"""Query encoder, document encoder and vector loader: stages that add vectors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from score_checks import assert_same_scores, record_texts

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer

# Query encoders


@pytest.mark.parametrize("which", ["hypencoder", "bi-encoder"])
def test_query_vec_gives_the_results_of_the_query(which, index, bi_index, model, bi, topics):
    index, model = (index, model) if which == "hypencoder" else (bi_index, bi)
    expected = index.retriever(model)(topics)
    vectors = model.query_encoder()(topics)
    assert {len(vector) for vector in vectors["query_vec"]} == {model.qnet_spec.size}
    for searched in (vectors, vectors.drop(columns="query"), vectors.assign(query="something else")):
        found = index.retriever(model)(searched)
        assert_same_scores(found, expected)
        assert list(found.columns) == [*searched.columns, "docno", "docid", "score", "rank"]
    assert_same_scores((model.query_encoder() >> index.retriever())(topics), expected)


def test_query_encoder_keeps_columns_and_adds_float32_vectors(model, topics):
    given = topics.assign(docno="d001", more=1).set_axis([1, 1, 1, 5, 0])
    before = given.copy(deep=True)
    found = model.query_encoder()(given)
    pd.testing.assert_frame_equal(given, before)
    pd.testing.assert_frame_equal(found.drop(columns="query_vec"), given)
    assert all(vector.dtype == np.float32 and vector.ndim == 1 for vector in found["query_vec"])


def test_query_encoder_encodes_equal_queries_once(model, topics, monkeypatch):
    expected = model.query_encoder()(topics)["query_vec"]
    given = record_texts(monkeypatch, "encode_queries")
    found = model.query_encoder()(pd.concat([topics, topics.iloc[::-1]]))["query_vec"]
    assert given == list(topics["query"])
    np.testing.assert_allclose(np.stack(found), np.stack([*expected, *expected.iloc[::-1]]), atol=1e-5)


def test_encoders_add_an_empty_column_to_empty_frames(model):
    assert list(model.query_encoder()(pd.DataFrame(columns=["qid", "query"])).columns) == ["qid", "query", "query_vec"]
    assert list(model.doc_encoder()(pd.DataFrame(columns=["docno", "text"])).columns) == ["docno", "text", "doc_vec"]


@pytest.mark.parametrize("stage", ["query_encoder", "doc_encoder"])
def test_encoders_refuse_frames_without_their_text(model, stage):
    with pytest.raises(pt.validate.InputValidationError, match="does not match"):
        getattr(model, stage)()(pd.DataFrame({"other": ["a"]}))


@pytest.mark.parametrize(("size", "expected"), [(23, "24 or "), (1, "24 or "), (3769, "24 or ")])
def test_query_vec_of_wrong_length_is_refused(index, model, size, expected):
    topics = pd.DataFrame({"qid": ["a"], "query_vec": [np.ones(size)]})
    with pytest.raises(ValueError, match=f"query_vec must contain {expected}{model.qnet_spec.size} numbers.*got {size}"):
        index.retriever(model)(topics)


@pytest.mark.parametrize("vectors", [[np.ones(24), np.ones(23)], [np.ones(24), None], ["a", "b"], [1, 2]], ids=range(4))
def test_query_vec_must_have_one_size(index, model, vectors):
    with pytest.raises(ValueError, match="query_vec must contain one vector"):
        index.retriever(model)(pd.DataFrame({"qid": ["a", "b"], "query_vec": vectors}))


def test_query_vec_of_document_size_is_an_inner_product(index, model):
    vector = np.random.default_rng(0).standard_normal(24)
    results = index.retriever(model)(pd.DataFrame({"qid": ["a"], "query_vec": [vector]}))
    np.testing.assert_allclose(results["score"], (index.vectors @ vector)[results["docid"]], rtol=1e-4, atol=1e-5)


def test_external_vectors_work_for_queries_and_documents(tmp_path, bi, docs, topics):
    index = HypencoderIndexer(tmp_path / "vectors.hyp", dtype="fp32").index(bi.doc_encoder()(pd.DataFrame(docs)))
    assert index.model() is None
    results = (bi.query_encoder() >> index.retriever())(topics)
    queries, documents = bi.encode_queries(list(topics["query"])).flatten().numpy(), index.vectors
    scores = pd.DataFrame(queries @ documents.T, index=topics["qid"]).stack()
    np.testing.assert_allclose(
        results["score"], [scores[key] for key in zip(results["qid"], results["docid"], strict=True)], 1e-4
    )
    assert_same_scores((bi.query_encoder() >> index.scorer())(results.drop(columns="query_vec")), results)


# Document encoders and vector loaders


def test_doc_encoder_adds_the_models_vectors(model, docs):
    given = pd.DataFrame(docs).assign(more=1).set_axis([0] * len(docs))
    before = given.copy(deep=True)
    found = model.doc_encoder()(given)
    pd.testing.assert_frame_equal(given, before)
    pd.testing.assert_frame_equal(found.drop(columns="doc_vec"), given)
    vectors = np.stack(found["doc_vec"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, model.encode_docs([doc["text"] for doc in docs]), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_doc_encoder_batch_size_does_not_matter(model, docs, batch_size):
    frame = pd.DataFrame(docs[:20])
    expected = np.stack(model.doc_encoder()(frame)["doc_vec"])
    np.testing.assert_allclose(np.stack(model.doc_encoder(batch_size=batch_size)(frame)["doc_vec"]), expected, atol=1e-5)


def test_doc_encoder_joins_several_fields(model):
    frame = pd.DataFrame({"docno": list("abc"), "title": ["Heart", "", None], "body": ["of gold", " gold ", "comet"]})
    found = model.doc_encoder(text_field=["title", "body"])(frame)["doc_vec"]
    np.testing.assert_allclose(np.stack(found), model.encode_docs(["Heart of gold", "gold", "comet"]), atol=1e-5)


@pytest.mark.parametrize("text", [None, float("nan"), 3])
def test_documents_without_text_are_named(model, text):
    frame = pd.DataFrame({"docno": ["good", "bad"], "text": pd.Series(["fine", text], dtype=object)})
    with pytest.raises(ValueError, match="Document 'bad' must have a string"):
        model.doc_encoder()(frame)


@pytest.mark.parametrize("batch_size", [0, -1, True, 1.5])
def test_doc_encoder_refuses_bad_batch_sizes(model, docs, batch_size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        model.doc_encoder(batch_size=batch_size)(pd.DataFrame(docs[:2]))


def test_vec_loader_adds_stored_vectors(index, candidates):
    found = index.vec_loader()(candidates)
    pd.testing.assert_frame_equal(found.drop(columns="doc_vec"), candidates)
    expected = [index.vectors[int(docno[1:])] for docno in candidates["docno"]]
    np.testing.assert_array_equal(np.stack(found["doc_vec"]), np.stack(expected))
    assert found["doc_vec"].iloc[0].dtype == np.float32


def test_vec_loader_names_unknown_docnos(index):
    with pytest.raises(ValueError, match="docno must be in the index .* unknown docnos: nope"):
        index.vec_loader()(pd.DataFrame({"docno": ["d001", "nope"]}))


def test_cutoff_fuses_before_the_vec_loader(index, candidates):
    pipeline = pt.Transformer.identity() >> index.vec_loader() % 3
    ranked = candidates.assign(rank=candidates.groupby("qid").cumcount())
    pd.testing.assert_frame_equal(pipeline.compile()(ranked), pipeline(ranked))
    assert pipeline.compile()[-1] == index.vec_loader()


# A real bi-encoder


def test_bi_encoder_works_in_all_stages(minilm, tmp_path):
    docs = [
        {"docno": "sun", "text": "The sun is a star at the centre of the solar system."},
        {"docno": "soup", "text": "Tomatoes, onions and basil make a simple soup."},
        {"docno": "goal", "text": "The striker scored twice in the second half."},
    ]
    topics = pd.DataFrame({"qid": ["1", "2"], "query": ["a recipe for dinner", "football match"]})
    index = HypencoderIndexer(tmp_path / "real.hyp", minilm).index(docs)
    results = index.retriever(minilm)(topics)
    assert list(results[results["rank"] == 0]["docno"]) == ["soup", "goal"]
    assert_same_scores((minilm.query_encoder() >> index.retriever(minilm))(topics), results)
    assert_same_scores(minilm.text_scorer()(topics.merge(pd.DataFrame(docs), how="cross")), results)


# Encoders as transformers: the columns decide


@pytest.mark.parametrize("which", ["hypencoder", "bi-encoder"])
def test_encoder_does_what_the_columns_of_the_frame_say(which, model, bi, topics, docs):
    encoder = model if which == "hypencoder" else bi
    documents = pd.DataFrame(docs[:9])
    candidates = topics.merge(documents, how="cross")
    for frame, stage in (
        (topics, encoder.query_encoder()),
        (topics[["query"]], encoder.query_encoder()),
        (topics.assign(docno="d001"), encoder.query_encoder()),  # candidates without text
        (documents, encoder.doc_encoder()),
        (documents[["text"]], encoder.doc_encoder()),
        (candidates, encoder.text_scorer()),
        (encoder.doc_encoder()(candidates).drop(columns="text"), encoder.text_scorer()),
        (encoder.query_encoder()(candidates).drop(columns="query"), encoder.text_scorer()),
    ):
        before = frame.copy(deep=True)
        pd.testing.assert_frame_equal(encoder(frame), stage(frame))
        pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(
    "columns", [["qid"], ["docno"], ["query", "text"], ["qid", "query", "text"], ["query", "doc_vec"]], ids=str
)
def test_encoder_refuses_frames_that_it_can_neither_encode_nor_score(model, columns):
    with pytest.raises(pt.validate.InputValidationError, match="does not match"):
        model(pd.DataFrame(columns=columns))


def test_encoder_works_in_pipelines_for_indexing_search_and_reranking(tmp_path, index, model, topics, docs):
    (model >> HypencoderIndexer(tmp_path / "piped.hyp")).index(docs)
    piped = HypencoderIndex(tmp_path / "piped.hyp")
    np.testing.assert_allclose(piped.vectors, index.vectors, atol=2e-3)
    expected = index.retriever(model)(topics)
    assert_same_scores((model >> index.retriever())(topics).drop(columns="query_vec"), expected)
    texts = pt.apply.text(lambda row: {doc["docno"]: doc["text"] for doc in docs}[row["docno"]])
    reranked = (index.retriever(model, num_results=5) >> texts >> model)(topics)
    np.testing.assert_allclose(reranked["score"], expected[expected["rank"] < 5]["score"], atol=6e-3)
    assert len(model.search("a query")["query_vec"]) == 1
