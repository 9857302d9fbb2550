"""Scorers, document and query encoders: stages that re-rank or add vectors."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer, HypencoderScorer
from pyterrier_hypencoder.encoders.base import Encoder


@pytest.fixture(scope="module")
def bi(golden, tmp_path_factory):
    """A bi-encoder with random weights."""
    from transformers import AutoConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(AutoConfig.from_pretrained(str(golden / "tiny_base_bert"))).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(golden / "tiny_6l_cls_shared" / name, folder)
    return BiEncoder(folder, device="cpu", dtype="fp32", doc_max_length=64, query_max_length=32)


@pytest.fixture(scope="module")
def bi_index(bi, docs, tmp_path_factory):
    return HypencoderIndexer(tmp_path_factory.mktemp("bi") / "bi.hyp", bi, dtype="fp32").index(docs)


@pytest.fixture(scope="module")
def index(fp32_index):
    """Return the index in float32, because scores of stored vectors are compared with scores of encoded text."""
    return fp32_index


@pytest.fixture(scope="module")
def full(index, model, topics):
    """The retriever's scores of all documents."""
    return index.retriever(model)(topics)


@pytest.fixture(scope="module")
def candidates(topics, docs):
    """Some documents of each query, in no order, queries interleaved; with columns to keep."""
    everything = topics.merge(pd.DataFrame(docs), how="cross")
    some = everything.sample(frac=0.5, random_state=0)
    return some.assign(score=0.5, rank=np.arange(len(some)), docid=-1, note="keep me")


def assert_ranked(results: pd.DataFrame, ties: str) -> None:
    """Queries together, each query's documents by score, then by a column, with ranks from 0."""
    assert (results["qid"] != results["qid"].shift()).sum() == results["qid"].nunique()
    for _, run in results.groupby("qid"):
        best_first = np.lexsort((run[ties], -run["score"].to_numpy()))
        assert list(best_first) == list(range(len(run))) == list(run["rank"])


def assert_same_scores(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The scores of the documents found are those expected, to a thousandth of the largest."""
    both = found.merge(expected[["qid", "docno", "score"]], on=["qid", "docno"], suffixes=("", "_expected"))
    assert len(both) == len(found) > 0
    tolerance = 1e-3 * expected["score"].abs().max()
    np.testing.assert_allclose(both["score"], both["score_expected"], rtol=0, atol=tolerance)


# Scorers

SCORERS = {
    "stored vectors": lambda index, model: index.scorer(model),
    "stored vectors, recorded model": lambda index, model: index.scorer(),
    "stored vectors by path": lambda index, model: HypencoderScorer(str(index.path), model),
    "loaded doc_vec": lambda index, model: index.vec_loader() >> HypencoderScorer(model=model),
    "loaded doc_vec with an index": lambda index, model: index.vec_loader() >> index.scorer(model),
    "encoded doc_vec": lambda index, model: model.doc_encoder() >> HypencoderScorer(model=model),
    "encoded doc_vec, text scorer": lambda index, model: model.doc_encoder() >> model.text_scorer(),
    "text": lambda index, model: model.text_scorer(),
    "text, scorer without index": lambda index, model: HypencoderScorer(model=model),
    "query_vec": lambda index, model: model.query_encoder() >> index.scorer(model),
    "query_vec, recorded model": lambda index, model: model.query_encoder() >> index.scorer(),
    "query_vec and text": lambda index, model: model.query_encoder() >> model.text_scorer(),
}
THREE = ["stored vectors", "loaded doc_vec", "text"]


@pytest.mark.parametrize("way", SCORERS)
def test_scorer_gives_the_retrievers_scores(index, model, candidates, full, way):
    results = SCORERS[way](index, model)(candidates)
    assert_same_scores(results, full)
    assert results["score"].dtype == np.float32 and results["rank"].dtype == np.int64
    kept = ["qid", "query", "docno", "text", "docid", "note"]
    assert set(kept) | {"score", "rank"} <= set(results.columns)
    pd.testing.assert_frame_equal(
        results[kept].sort_values(["qid", "docno"], ignore_index=True),
        candidates[kept].sort_values(["qid", "docno"], ignore_index=True),
    )


@pytest.mark.parametrize("way", ["stored vectors", "text"])
def test_bi_encoder_scores_are_inner_products(bi_index, bi, candidates, way):
    results = SCORERS[way](bi_index, bi)(candidates)
    queries = dict(
        zip(candidates["query"].unique(), bi.encode_queries(list(candidates["query"].unique())).flatten(), strict=True)
    )
    documents = dict(zip(candidates["text"].unique(), bi.encode_docs(list(candidates["text"].unique())), strict=True))
    expected = [float(queries[q].numpy() @ documents[d]) for q, d in zip(results["query"], results["text"], strict=True)]
    np.testing.assert_allclose(results["score"], expected, rtol=1e-3)


@pytest.mark.parametrize("way", THREE)
def test_scores_do_not_depend_on_other_candidates(index, model, candidates, full, way):
    scorer = SCORERS[way](index, model)
    for some in (candidates.iloc[:1], candidates[candidates["qid"] == "q2"], candidates.iloc[::-7]):
        assert_same_scores(scorer(some), full)


def test_ties_are_ordered_by_docid_or_by_input_order(index, model, candidates):
    given = candidates.assign(place=np.arange(len(candidates)))
    given = given.assign(number=[int(docno[1:]) for docno in given["docno"]])
    by_docid, by_place = index.scorer(model)(given), model.text_scorer()(given)
    assert by_docid.duplicated(["qid", "score"]).sum() > 20
    assert_ranked(by_docid, ties="number")
    assert_ranked(by_place, ties="place")


@pytest.mark.parametrize("way", THREE)
def test_queries_keep_the_order_of_first_occurrence(index, model, candidates, way):
    results = SCORERS[way](index, model)(candidates)
    assert list(results["qid"].unique()) == list(candidates["qid"].unique())
    assert results.index.equals(pd.RangeIndex(len(candidates)))


@pytest.mark.parametrize("way", THREE)
def test_scorers_never_change_their_input(index, model, candidates, way):
    before = candidates.copy(deep=True)
    SCORERS[way](index, model)(candidates)
    pd.testing.assert_frame_equal(candidates, before)


@pytest.mark.parametrize("way", THREE)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_scorer_batch_size_does_not_matter(index, model, candidates, full, way, batch_size):
    scorer = SCORERS[way](index, model)
    (scorer[1] if way == "loaded doc_vec" else scorer).batch_size = batch_size
    assert_same_scores(scorer(candidates), full)


@pytest.mark.parametrize("way", THREE)
def test_repeated_documents_are_all_scored(index, model, candidates, full, way):
    twice = pd.concat([candidates.head(10), candidates.head(20)])
    results = SCORERS[way](index, model)(twice)
    assert len(results) == 30
    assert_same_scores(results, full)
    assert all(sorted(run["rank"]) == list(range(len(run))) for _, run in results.groupby("qid"))


@pytest.mark.parametrize("way", SCORERS)
def test_empty_candidates_give_an_empty_frame_with_the_same_dtypes(index, model, candidates, way):
    scorer = SCORERS[way](index, model)
    columns = ["qid", "query", "docno", "text"]
    found = scorer(candidates.iloc[:0][columns])
    assert len(found) == 0 and found["score"].dtype == np.float32 and found["rank"].dtype == np.int64
    assert set(found.columns) == set(scorer(candidates[columns]).columns)


def test_doc_vec_takes_precedence_over_stored_vectors_and_text(index, model, candidates, full):
    renamed = index.vec_loader()(candidates).assign(text="something else", docno="not indexed " + candidates["docno"])
    expected = full.assign(docno="not indexed " + full["docno"])
    assert_same_scores(index.scorer(model)(renamed), expected)
    assert_same_scores(model.text_scorer()(renamed), expected)


def test_unknown_docnos_are_named(index, model, candidates):
    unknown = candidates.head(8).assign(docno=[f"new{i}" for i in range(7)] + ["d001"])
    with pytest.raises(ValueError, match="unknown docnos: new0, new1.*and 2 more") as error:
        index.scorer(model)(unknown)
    assert "d001" not in str(error.value)


@pytest.mark.parametrize("docno", [7, None, float("nan")])
def test_non_string_docnos_say_how_to_convert(index, model, candidates, docno):
    with pytest.raises(ValueError, match=r"docno must be a string.*astype\(str\)"):
        index.scorer(model)(candidates.head(2).assign(docno=pd.Series(["d001", docno], dtype=object).to_numpy()))


@pytest.mark.parametrize("missing", ["qid", "docno", "query", "text"])
def test_missing_columns_are_refused(model, candidates, missing):
    with pytest.raises(pt.validate.InputValidationError, match="does not match"):
        model.text_scorer()(candidates.drop(columns=missing))


@pytest.mark.parametrize("missing", ["qid", "docno", "query"])
def test_scorer_with_index_needs_no_text(index, model, candidates, full, missing):
    without = candidates.drop(columns="text")
    assert_same_scores(index.scorer(model)(without), full)
    with pytest.raises(pt.validate.InputValidationError, match="does not match"):
        index.scorer(model)(without.drop(columns=missing))


@pytest.mark.parametrize("text", [None, float("nan"), 3])
def test_non_string_texts_are_named(model, candidates, text):
    broken = candidates.head(2).assign(docno=["good", "bad"], text=pd.Series(["fine", text], dtype=object).to_numpy())
    with pytest.raises(ValueError, match="Document 'bad' must have a string in text"):
        model.text_scorer()(broken)


def test_text_may_come_from_several_fields(model, candidates, full):
    halves = candidates["text"].str.split(n=1, expand=True).fillna("").set_axis(["title", "body"], axis=1)
    split = candidates.drop(columns="text").join(halves)
    assert_same_scores(model.text_scorer(text_field=["title", "body"])(split), full)
    assert_same_scores(HypencoderScorer(model=model, text_field=["title", "body"])(split), full)


def test_scorer_without_model_asks_for_one(candidates):
    with pytest.raises(ValueError, match="need a model"):
        HypencoderScorer()(candidates)


def test_query_vec_and_doc_vec_need_neither_model_nor_index():
    frame = pd.DataFrame({"qid": "a", "docno": ["x", "y"], "query_vec": [np.array([1.0, 2.0])] * 2})
    frame = frame.assign(doc_vec=[np.array([3.0, 4.0]), np.array([30.0, 40.0])])
    results = HypencoderScorer()(frame)
    assert list(results["docno"]) == ["y", "x"] and list(results["score"]) == [110.0, 11.0]


@pytest.mark.parametrize(
    "vectors", [[np.ones(24), np.ones(23)], [np.ones(24), None], [1.0, 2.0], [["a"], ["b"]]], ids=range(4)
)
def test_doc_vec_must_have_one_size(index, model, candidates, vectors):
    with pytest.raises(ValueError, match="doc_vec must contain one vector"):
        index.scorer(model)(candidates.head(2).assign(doc_vec=vectors))


def test_doc_vec_of_another_model_is_refused(index, model, candidates):
    with pytest.raises(ValueError, match="Document vectors must have shape"):
        index.scorer(model)(candidates.head(2).assign(doc_vec=[np.ones(8)] * 2))


@pytest.mark.parametrize(
    ("option", "value"),
    [("device", "tpu"), ("precision", "fp64"), ("batch_size", 0), ("batch_size", 1.5), ("qnet_width", 0), ("qnet_width", 25)],
)
@pytest.mark.parametrize("way", ["stored vectors", "text, scorer without index"])
def test_invalid_scorer_options_are_refused(index, model, candidates, option, value, way):
    scorer = SCORERS[way](index, model)
    setattr(scorer, option, value)
    with pytest.raises(ValueError, match=f"{option.removeprefix('qnet_')} must be"):
        scorer(candidates)


@pytest.mark.parametrize("way", ["stored vectors", "text, scorer without index"])
def test_scorers_narrow_like_the_retriever(index, model, topics, candidates, full, way):
    scorer = SCORERS[way](index, model)
    scorer.qnet_width = 5
    narrow = index.retriever(model, qnet_width=5)(topics)
    assert_same_scores(scorer(candidates), narrow)
    scorer.qnet_width = None
    assert_same_scores(scorer(candidates), full)


def test_model_that_does_not_fit_the_index_is_refused(index, golden, candidates):
    other = Hypencoder(golden / "tiny_2l_mean_separate_reslast", device="cpu")
    with pytest.raises(ValueError, match="document encoder") as error:
        index.scorer(other)(candidates)
    assert "tiny_6l_cls_shared" in str(error.value) and "tiny_2l_mean_separate_reslast" in str(error.value)


def count_texts(monkeypatch, method: str) -> list[str]:
    """Record the texts that encoders receive."""
    given: list[str] = []
    encode = getattr(Encoder, method)
    monkeypatch.setattr(Encoder, method, lambda self, texts: given.extend(texts) or encode(self, texts))
    return given


def test_equal_texts_and_queries_are_encoded_once(model, candidates, monkeypatch):
    queries, texts = count_texts(monkeypatch, "encode_queries"), count_texts(monkeypatch, "encode_docs")
    model.text_scorer()(candidates)
    assert sorted(queries) == sorted(candidates["query"].unique())
    assert sorted(texts) == sorted(candidates["text"].unique())


# HypencoderScorer.score, for pyterrier_dr and pyterrier_adaptive


def test_score_returns_queries_by_documents(index, model, topics, full):
    docids = np.array([5, 3, 3, 119])
    scores = index.scorer(model).score(np.stack(model.query_encoder()(topics)["query_vec"]), docids)
    assert scores.shape == (5, 4) and scores.dtype == np.float32
    expected = full.set_index(["qid", "docid"])["score"]
    tolerance = 1e-3 * full["score"].abs().max()
    for row, qid in zip(scores, topics["qid"], strict=True):
        np.testing.assert_allclose(row, [expected[qid, docid] for docid in docids], rtol=0, atol=tolerance)


def test_score_takes_one_or_more_query_vectors(index):
    scorer = index.scorer()
    vectors = np.random.default_rng(0).standard_normal((2, 24))
    expected = vectors @ index.vectors[[7, 9]].T
    np.testing.assert_allclose(scorer.score(vectors, [7, 9]), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scorer.score(vectors[0], [7, 9]), expected[:1], rtol=1e-4, atol=1e-5)
    assert scorer.score(vectors, np.empty(0, dtype=np.int64)).shape == (2, 0)


def test_score_narrows_qnets(index, model, topics):
    flat = np.stack(model.query_encoder()(topics)["query_vec"])
    scorer = index.scorer(model)
    wide = scorer.score(flat, np.arange(120))
    scorer.qnet_width = 5
    assert not np.allclose(scorer.score(flat, np.arange(120)), wide, atol=0.5)


@pytest.mark.parametrize("docids", [[-1], [120], [0, 10**9], [2**32]])
def test_docids_out_of_range_are_refused(index, docids):
    with pytest.raises(ValueError, match="docids must be between 0 and 119"):
        index.scorer().score(np.ones((1, 24)), np.array(docids))


def test_score_refuses_query_vectors_of_wrong_length(index):
    with pytest.raises(ValueError, match="24 or .* got 25"):
        index.scorer().score(np.ones((1, 25)), np.array([0]))


def test_score_without_index_says_what_to_do(model):
    with pytest.raises(ValueError, match="has no index"):
        HypencoderScorer(model=model).score(np.ones((1, 24)), np.array([0]))


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
    given = count_texts(monkeypatch, "encode_queries")
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
