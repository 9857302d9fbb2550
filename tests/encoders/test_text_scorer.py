"""Scorers: re-rank documents by their text, by a column ``doc_vec`` or by stored vectors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from score_checks import assert_ranked, assert_same_scores, record_texts

from pyterrier_hypencoder import Hypencoder, HypencoderScorer
from pyterrier_hypencoder.encoders import stages
from pyterrier_hypencoder.scoring.cpu import CpuScorer


@pytest.fixture(scope="module")
def full(index, model, topics):
    """Return the retriever's scores of all documents."""
    return index.retriever(model)(topics)


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
MAIN_SCORERS = ["stored vectors", "loaded doc_vec", "text"]


@pytest.mark.parametrize("kind", SCORERS)
def test_scorer_gives_the_retrievers_scores(index, model, candidates, full, kind):
    results = SCORERS[kind](index, model)(candidates)
    assert_same_scores(results, full)
    assert results["score"].dtype == np.float32 and results["rank"].dtype == np.int64
    kept = ["qid", "query", "docno", "text", "docid", "note"]
    assert set(kept) | {"score", "rank"} <= set(results.columns)
    pd.testing.assert_frame_equal(
        results[kept].sort_values(["qid", "docno"], ignore_index=True),
        candidates[kept].sort_values(["qid", "docno"], ignore_index=True),
    )


@pytest.mark.parametrize("kind", ["stored vectors", "text"])
def test_bi_encoder_scores_are_inner_products(bi_index, bi, candidates, kind):
    results = SCORERS[kind](bi_index, bi)(candidates)
    queries = dict(
        zip(candidates["query"].unique(), bi.encode_queries(list(candidates["query"].unique())).flatten(), strict=True)
    )
    documents = dict(zip(candidates["text"].unique(), bi.encode_docs(list(candidates["text"].unique())), strict=True))
    expected = [float(queries[q].numpy() @ documents[d]) for q, d in zip(results["query"], results["text"], strict=True)]
    np.testing.assert_allclose(results["score"], expected, rtol=1e-3)


@pytest.mark.parametrize("kind", MAIN_SCORERS)
def test_scores_do_not_depend_on_other_candidates(index, model, candidates, full, kind):
    scorer = SCORERS[kind](index, model)
    for some in (candidates.iloc[:1], candidates[candidates["qid"] == "q2"], candidates.iloc[::-7]):
        assert_same_scores(scorer(some), full)


def test_ties_are_ordered_by_docid_or_by_input_order(index, model, candidates):
    given = candidates.assign(place=np.arange(len(candidates)))
    given = given.assign(number=[int(docno[1:]) for docno in given["docno"]])
    by_docid, by_place = index.scorer(model)(given), model.text_scorer()(given)
    assert by_docid.duplicated(["qid", "score"]).sum() > 20
    assert_ranked(by_docid, ties="number")
    assert_ranked(by_place, ties="place")


@pytest.mark.parametrize("kind", MAIN_SCORERS)
def test_queries_keep_the_order_of_first_occurrence(index, model, candidates, kind):
    results = SCORERS[kind](index, model)(candidates)
    assert list(results["qid"].unique()) == list(candidates["qid"].unique())
    assert results.index.equals(pd.RangeIndex(len(candidates)))


@pytest.mark.parametrize("kind", MAIN_SCORERS)
def test_scorers_never_change_their_input(index, model, candidates, kind):
    before = candidates.copy(deep=True)
    SCORERS[kind](index, model)(candidates)
    pd.testing.assert_frame_equal(candidates, before)


@pytest.mark.parametrize("kind", MAIN_SCORERS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_scorer_batch_size_does_not_matter(index, model, candidates, full, kind, batch_size):
    scorer = SCORERS[kind](index, model)
    (scorer[1] if kind == "loaded doc_vec" else scorer).batch_size = batch_size
    assert_same_scores(scorer(candidates), full)


@pytest.mark.parametrize("kind", MAIN_SCORERS)
def test_repeated_documents_are_all_scored(index, model, candidates, full, kind):
    twice = pd.concat([candidates.head(10), candidates.head(20)])
    results = SCORERS[kind](index, model)(twice)
    assert len(results) == 30
    assert_same_scores(results, full)
    assert all(sorted(run["rank"]) == list(range(len(run))) for _, run in results.groupby("qid"))


@pytest.mark.parametrize("kind", SCORERS)
def test_empty_candidates_give_an_empty_frame_with_the_same_dtypes(index, model, candidates, kind):
    scorer = SCORERS[kind](index, model)
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
@pytest.mark.parametrize("kind", ["stored vectors", "text, scorer without index"])
def test_invalid_scorer_options_are_refused(index, model, candidates, option, value, kind):
    scorer = SCORERS[kind](index, model)
    setattr(scorer, option, value)
    with pytest.raises(ValueError, match=f"{option.removeprefix('qnet_')} must be"):
        scorer(candidates)


@pytest.mark.parametrize("kind", ["stored vectors", "text, scorer without index"])
def test_scorers_narrow_like_the_retriever(index, model, topics, candidates, full, kind):
    scorer = SCORERS[kind](index, model)
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


def test_equal_texts_and_queries_are_encoded_once(model, candidates, monkeypatch):
    queries, texts = record_texts(monkeypatch, "encode_queries"), record_texts(monkeypatch, "encode_docs")
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


@pytest.mark.parametrize("size", [1, 4 * 24 * 7, 2**26])
def test_candidates_of_all_queries_are_scored_together(index, model, candidates, full, monkeypatch, size):
    monkeypatch.setattr(stages, "_SCORED_BYTES", size)
    counted: list[int] = []
    each = CpuScorer.each
    monkeypatch.setattr(CpuScorer, "each", lambda self, v, counts: counted.append(len(v)) or each(self, v, counts))
    assert_same_scores(index.scorer(model)(candidates), full)
    step = max(1, size // (4 * 24))
    assert len(counted) == -(-len(candidates) // step) and max(counted) <= step


@pytest.mark.parametrize("size", [4 * 24 * 7, 2**26])
def test_candidate_whose_score_overflows_is_named_with_its_query(model, candidates, monkeypatch, size):
    monkeypatch.setattr(stages, "_SCORED_BYTES", size)
    frame = model.doc_encoder()(candidates).reset_index(drop=True)
    row = len(frame) - 3
    frame.at[row, "doc_vec"] = np.full(24, 3e38, np.float32)
    with pytest.raises(ValueError, match=f"document '{frame['docno'][row]}' for query '{frame['qid'][row]}'"):
        model.text_scorer()(frame)
