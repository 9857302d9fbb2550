"""The retriever: frames in, frames out; options, models that fit, filters."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderIndexer, HypencoderRetriever
from pyterrier_hypencoder.encoders.base import Encoder

ADDED = ["docno", "docid", "score", "rank"]


def reference(model, index, topics: pd.DataFrame, *, width: int | None = None) -> pd.DataFrame:
    """What the q-nets themselves say of every query and document."""
    qnets = model.encode_queries(list(topics["query"]))
    qnets = qnets if width is None else qnets.narrow(width)
    scores = qnets.score(torch.from_numpy(np.array(index.vectors, dtype=np.float32))).numpy()
    docids = np.arange(len(index))
    frames = [
        pd.DataFrame({"qid": qid, "query": query, "docno": index.docnos.at(docids), "docid": docids, "score": row})
        for (qid, query), row in zip(topics[["qid", "query"]].itertuples(index=False), scores, strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def run_of(results: pd.DataFrame, qid: str) -> pd.DataFrame:
    return results[results["qid"] == qid].reset_index(drop=True)


def assert_ranked(results: pd.DataFrame) -> None:
    """Every query's documents by score, then by docid, with ranks from 0."""
    for _, run in results.groupby("qid"):
        best_first = np.lexsort((run["docid"], -run["score"].to_numpy()))
        assert list(best_first) == list(range(len(run))) == list(run["rank"])


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The same documents in order, with the same scores but for rounding, which the small model magnifies."""
    assert_ranked(found)
    keys = ["qid", "docid"]
    columns = [column for column in expected.columns if column != "rank"]
    found, expected = found[columns].sort_values(keys), expected[columns].sort_values(keys)
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected.reset_index(drop=True), rtol=0, atol=3e-3)


@pytest.fixture
def retriever(index, model):
    return index.retriever(model)


@pytest.fixture(scope="module")
def other(golden):
    """A model of the same dimensions, but of other document vectors."""
    return Hypencoder(golden / "tiny_2l_mean_separate_reslast", device="cpu", doc_max_length=64, query_max_length=32)


# Frames


def test_results_are_the_reference_scores_sorted(retriever, model, index, topics):
    assert_same(retriever(topics), reference(model, index, topics))


def test_columns_dtypes_and_ranks(retriever, topics, index):
    results = retriever(topics)
    assert list(results.columns) == ["qid", "query", *ADDED]
    assert results["docid"].dtype == np.int64 and results["score"].dtype == np.float32 and results["rank"].dtype == np.int64
    assert all(type(docno) is str for docno in results["docno"])
    assert list(index.docnos.at(results["docid"].to_numpy())) == list(results["docno"])
    assert results.index.equals(pd.RangeIndex(len(topics) * len(index)))
    assert all(list(group["rank"]) == list(range(len(index))) for _, group in results.groupby("qid"))


def test_all_columns_of_the_topics_are_kept_and_old_ranks_replaced(retriever, topics):
    extra = topics.assign(narrative="long", query_0=[["a"]] * len(topics), weight=np.arange(5), score=-1, rank=7)
    results = retriever(extra)
    assert list(results.columns) == ["qid", "query", "narrative", "query_0", "weight", *ADDED]
    assert list(results["weight"]) == list(np.repeat(np.arange(5), 120))
    assert_same(results[["qid", "query", *ADDED]], retriever(topics))


@pytest.mark.parametrize("extra", [{}, {"allowed_docnos": [["d003"], None, [], ["d001"], ["d002"]]}])
def test_input_is_never_changed(retriever, topics, extra):
    given = topics.assign(**extra).set_index(pd.Index([3, 3, 9, 0, 1]))
    before = given.copy(deep=True)
    retriever(given)
    pd.testing.assert_frame_equal(given, before)


@pytest.mark.parametrize("columns", [["qid", "query"], ["qid", "query_vec"], ["qid", "query", "more"]])
def test_no_topics_give_an_empty_frame_of_the_same_columns_and_dtypes(retriever, topics, columns):
    found = retriever(pd.DataFrame(columns=columns))
    assert len(found) == 0 and list(found.columns) == [*columns, *ADDED]
    assert list(found[ADDED].dtypes) == list(retriever(topics)[ADDED].dtypes)


@pytest.mark.parametrize("query", ["", " ", "heart " * 2000, "東京 ☕ naïve \u0000\u200f", "-+()[]:\"'"], ids=range(5))
def test_unusual_queries_simply_work(retriever, model, index, query):
    assert_same(retriever.search(query), reference(model, index, pd.DataFrame({"qid": ["1"], "query": [query]})))


def test_more_results_than_documents(retriever, topics, index):
    retriever.num_results = 10**6
    assert (retriever(topics)["qid"].value_counts() == len(index)).all()


def test_num_results_cuts_the_full_ranking(retriever, topics):
    everything = retriever(topics)
    retriever.num_results = 7
    assert_same(retriever(topics), everything[everything["rank"] < 7])  # the q-nets are the same to the bit


def test_equal_scores_are_ordered_by_docid(retriever, topics):
    results = retriever(topics)
    assert results.duplicated(["qid", "score"]).sum() > 20  # q-nets that say 0
    assert_ranked(results)
    twins = results[results["docno"].isin(["d040", "d041"])].sort_values(["qid", "docid"])["score"].to_numpy()
    np.testing.assert_allclose(twins[::2], twins[1::2], atol=3e-3)


@pytest.mark.parametrize("num_results", [1, 2, 17, 39, 40])
@pytest.mark.parametrize(("batch_size", "chunk"), [(1, 40), (2, 40), (3, 40), (3, 7), (2, 1)])
def test_ties_at_the_cutoff_go_to_the_smaller_docids(tmp_path, num_results, batch_size, chunk, monkeypatch):
    monkeypatch.setattr("pyterrier_hypencoder.search.exhaustive._CHUNK_BYTES", 4 * 4 * chunk)
    vectors = np.random.default_rng(0).integers(-1, 2, (40, 4))  # few different sums, exact in any order
    index = HypencoderIndexer(tmp_path / "t.hyp").index({"docno": f"t{i}", "doc_vec": v} for i, v in enumerate(vectors))
    queries = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, -1, 2, 0]])
    topics = pd.DataFrame({"qid": ["a", "b", "c"], "query_vec": list(queries)})
    results = index.retriever(num_results=num_results, batch_size=batch_size)(topics)
    expected = [np.lexsort((np.arange(40), -scores))[:num_results] for scores in queries @ vectors.T]
    assert [list(run_of(results, qid)["docid"]) for qid in "abc"] == [list(docids) for docids in expected]
    assert_ranked(results)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_batches_do_not_matter(retriever, topics, batch_size):
    expected = retriever(topics)
    retriever.batch_size = batch_size
    assert_same(retriever(topics), expected)


def test_the_order_of_topics_does_not_matter_and_is_kept(retriever, topics):
    backwards = retriever(topics.iloc[::-1])
    assert list(backwards["qid"].unique()) == list(topics["qid"])[::-1]
    for qid in topics["qid"]:
        assert_same(run_of(backwards, qid), run_of(retriever(topics), qid))


@pytest.mark.parametrize("labels", [[5, 5, 5, 5, 5], list("edcba"), [10, 8, 6, 4, 2]], ids=str)
def test_the_frames_index_does_not_matter(retriever, topics, labels):
    assert_same(retriever(topics.set_axis(labels)), retriever(topics))


def test_qids_of_any_type_are_kept(retriever, topics):
    results = retriever(topics.assign(qid=[4, 3, 2, 1, 0]))
    assert results["qid"].dtype == np.int64 and list(results["qid"].unique()) == [4, 3, 2, 1, 0]


def test_a_frame_with_documents_is_sent_to_the_scorer(retriever, topics):
    with pytest.raises(pt.validate.InputValidationError, match=r"index\.scorer\("):
        retriever(topics.assign(docno="d001"))


@pytest.mark.parametrize("columns", [["qid"], ["query"], ["qid", "text"], []], ids=str)
def test_frames_without_qid_or_query_are_refused(retriever, columns):
    with pytest.raises(pt.validate.InputValidationError, match="does not match"):
        retriever(pd.DataFrame([["x"] * len(columns)], columns=columns))


@pytest.mark.parametrize("query", [None, float("nan"), 3])
def test_queries_that_are_no_strings_are_named(retriever, query):
    with pytest.raises(ValueError, match="Query 'q7' must be a string"):
        retriever(pd.DataFrame({"qid": ["q1", "q7"], "query": pd.Series(["fine", query], dtype=object)}))


def test_missing_qids_are_refused(retriever):
    with pytest.raises(ValueError, match="qid is missing"):
        retriever(pd.DataFrame({"qid": ["q1", None], "query": ["a", "b"]}))


# Options


@pytest.mark.parametrize(
    ("option", "value", "choices"),
    [
        *[
            (name, value, "must be a positive integer")
            for name in ("num_results", "batch_size")
            for value in (0, -1, True, 1.5, "3", None)
        ],
        *[("qnet_width", value, "must be a positive integer") for value in (0, -1, True, 1.5, "3")],
        *[("device", value, "'auto', 'cpu' or 'cuda") for value in ("tpu", "", None, 3, "meta")],
        ("device", "cuda:64", "CUDA devices"),
        *[("precision", value, "'auto', 'fp32', 'bf16'") for value in ("fp64", "", None)],
        *[("algorithm", value, "'exhaustive'") for value in ("exact", "", None)],
    ],
)
def test_bad_options_say_what_was_expected(retriever, topics, option, value, choices):
    setattr(retriever, option, value)
    with pytest.raises(ValueError, match=f"{option} (must be|'cuda:64' is not available)") as error:
        retriever(topics)
    assert choices in str(error.value) and repr(value) in str(error.value)


def test_a_qnet_width_beyond_the_layers_says_what_there_is(retriever, topics):
    retriever.qnet_width = 25
    with pytest.raises(ValueError, match="between 1 and 24"):
        retriever(topics)


def test_options_are_checked_before_any_work_and_for_empty_frames(index, model):
    with pytest.raises(ValueError, match="num_results"):
        HypencoderRetriever("nowhere.hyp", model, num_results=0).search("a query")
    with pytest.raises(ValueError, match="num_results"):
        index.retriever(num_results=0)(pd.DataFrame(columns=["qid", "query"]))


def test_constructors_do_no_work():
    retriever = HypencoderRetriever("nowhere.hyp", Hypencoder("nobody/nothing"), num_results=-5, device="abacus")
    assert (retriever.num_results, retriever.device) == (-5, "abacus")


def test_options_are_keyword_only(index, model):
    with pytest.raises(TypeError):
        HypencoderRetriever(index, model, 10)


@pytest.mark.parametrize("width", [1, 5, 24])
def test_qnet_width_is_narrow(retriever, model, index, topics, width):
    retriever.qnet_width = width
    assert_same(retriever(topics), reference(model, index, topics, width=width))


def test_options_that_are_set_later_take_effect(retriever, topics, index, model, other, docs, tmp_path):
    full = retriever(topics)
    retriever.num_results = 3
    assert len(retriever(topics)) == 15
    retriever.num_results = 1000
    retriever.precision = "bf16"
    bf16 = retriever(topics).merge(full, on=["qid", "docno"], suffixes=("", "_full"))
    assert not np.array_equal(bf16["score"], bf16["score_full"])
    assert (bf16["score"] - bf16["score_full"]).abs().median() < 0.1
    retriever.precision = "fp32"
    retriever.qnet_width = 5
    narrow = retriever(topics)
    assert not np.allclose(narrow["score"], full["score"], atol=0.5)
    retriever.qnet_width = None
    assert_same(retriever(topics), full)
    retriever.set_parameter("index", HypencoderIndexer(tmp_path / "first.hyp", model, dtype="fp32").index(docs[:20]))
    assert set(retriever(topics)["docno"]) == {doc["docno"] for doc in docs[:20]}
    retriever.set_parameter("index", index.path)
    retriever.model = other
    with pytest.raises(ValueError, match="does not fit the index"):
        retriever(topics)


def test_search_is_a_method_and_algorithm_an_option(retriever, topics):
    expected = retriever(topics.iloc[:1])
    assert_same(retriever.search(topics["query"][0], qid="q0"), expected)
    retriever.algorithm = "exhaustive"
    assert_same(retriever.search(topics["query"][0], qid="q0"), expected)
    retriever.algorithm = "nearest"
    assert retriever.get_parameter("algorithm") == "nearest"
    with pytest.raises(ValueError, match="algorithm must be one of"):
        retriever.search("a query")


# Indexes and models


@pytest.mark.parametrize("kind", ["object", "path", "string"])
def test_an_index_is_an_object_or_a_path(index, model, topics, kind):
    given = {"object": index, "path": index.path, "string": str(index.path)}[kind]
    assert_same(HypencoderRetriever(given, model)(topics), index.retriever(model)(topics))


def test_without_index_it_says_what_to_do(model, topics):
    with pytest.raises(ValueError, match=r"has no index.*HypencoderIndexer\(path, model\) >>"):
        HypencoderRetriever(model=model)(topics)


def test_what_is_no_index_and_no_model_is_refused(index, model, topics):
    with pytest.raises(ValueError, match="index must be a HypencoderIndex or its path, got Hypencoder.*model="):
        HypencoderRetriever(model)(topics)
    with pytest.raises(ValueError, match=r"model must be a Hypencoder.*got 'jfkback/"):
        index.retriever("jfkback/hypencoder.6_layer")(topics)


def test_a_missing_index_is_named(model, topics, tmp_path):
    with pytest.raises(FileNotFoundError, match="no.hyp"):
        HypencoderRetriever(tmp_path / "no.hyp", model)(topics)


def test_without_model_the_recorded_one_is_loaded(index, model, topics):
    assert_same(HypencoderRetriever(index.path)(topics), index.retriever(model)(topics))
    assert HypencoderRetriever(index.path).model is None


def test_the_recorded_model_is_loaded_once(index, topics, monkeypatch):
    loads = []
    load = Hypencoder._load
    monkeypatch.setattr(Hypencoder, "_load", lambda self: loads.append(self) or load(self))
    opened = HypencoderIndex(index.path)
    retriever = opened.retriever(batch_size=2)
    retriever(topics)
    retriever(topics)
    opened.scorer()(retriever(topics))
    assert len(loads) == 1
    retriever.device = "cpu"
    assert retriever._get_model().device == "cpu"


def test_a_recorded_model_that_is_gone_is_named_with_what_to_do(golden, docs, topics, tmp_path):
    moved = shutil.copytree(golden / "tiny_6l_cls_shared", tmp_path / "model")
    shutil.copytree(golden / "tiny_base_bert", tmp_path / "tiny_base_bert")
    index = HypencoderIndexer(tmp_path / "x.hyp", Hypencoder(moved, doc_max_length=64)).index(docs[:5])
    shutil.rmtree(moved)
    with pytest.raises(FileNotFoundError, match=r"x.hyp was built with the model .*model.* Pass model="):
        index.retriever()(topics)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_query_vectors_that_are_not_finite_are_an_error(index, topics, value):
    with pytest.raises(ValueError, match="query_vec contains NaN or infinity at qid 'q1'"):
        vectors = [np.full(24, value if qid == "q1" else 1.0) for qid in topics["qid"]]
        index.retriever()(topics.assign(query_vec=vectors))


def test_a_model_of_other_vectors_is_refused_by_naming_both(index, other, topics):
    with pytest.raises(ValueError, match="document encoder") as error:
        index.retriever(other)(topics)
    assert "tiny_6l_cls_shared" in str(error.value) and "tiny_2l_mean_separate_reslast" in str(error.value)


def test_the_fit_is_checked_both_ways_and_again_for_another_model(docs, model, other, topics, tmp_path):
    retriever = HypencoderIndexer(tmp_path / "other.hyp", other).index(docs).retriever(other)
    assert len(retriever(topics)) == 600
    retriever.model = model
    with pytest.raises(ValueError, match="document encoder"):
        retriever(topics)


def test_a_model_that_became_another_one_is_noticed(index, golden, topics):
    model = Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", query_max_length=32)
    retriever = index.retriever(model)
    assert len(retriever(topics)) == 600
    model.name_or_path = str(golden / "tiny_2l_mean_separate_reslast")
    with pytest.raises(ValueError, match="document encoder"):
        retriever(topics)


@pytest.fixture
def eight(tmp_path):
    """An index of 8 dimensions, made without a model."""
    vectors = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    docs = [{"docno": f"v{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]
    return HypencoderIndexer(tmp_path / "eight.hyp", dtype="fp32").index(docs)


def test_a_model_of_other_dimensions_is_refused_by_naming_both(eight, model, topics):
    with pytest.raises(ValueError, match="8 dimensions.*24") as error:
        eight.retriever(model)(topics)
    assert "eight.hyp" in str(error.value) and "tiny_6l_cls_shared" in str(error.value)


def test_an_index_without_model_asks_for_one(eight, topics):
    with pytest.raises(ValueError, match="need a model"):
        eight.retriever()(topics)


def test_vectors_from_elsewhere_are_searched_as_inner_products(eight):
    queries = np.random.default_rng(1).standard_normal((3, 8))
    topics = pd.DataFrame({"qid": ["a", "b", "c"], "query": "ignored", "query_vec": list(queries)})
    results = eight.retriever(num_results=30)(topics)
    scores = np.zeros((3, 30))
    scores[results["qid"].map({"a": 0, "b": 1, "c": 2}), results["docid"]] = results["score"]
    np.testing.assert_allclose(scores, queries @ eight.vectors.T, rtol=1e-4, atol=1e-5)
    assert list(results.columns) == ["qid", "query", "query_vec", *ADDED]
    assert (results.groupby("qid")["score"].diff().dropna() <= 0).all()


@pytest.mark.parametrize("size", [1, 7, 9, 24])
def test_query_vectors_of_a_wrong_length_are_refused(eight, size):
    with pytest.raises(ValueError, match=f"8.*{size}"):
        eight.retriever()(pd.DataFrame({"qid": ["a"], "query_vec": [np.ones(size)]}))


@pytest.mark.parametrize("kind", ["object", "path"])
def test_an_overwritten_index_is_noticed(model, docs, topics, tmp_path, kind):
    indexer = HypencoderIndexer(tmp_path / "i.hyp", model, dtype="fp32", mode="overwrite")
    index = indexer.index(docs[:50])
    retriever = HypencoderRetriever(index if kind == "object" else index.path, model)
    assert set(retriever(topics)["docid"]) == set(range(50))
    indexer.index(docs[::-1])
    assert_same(retriever(topics), HypencoderRetriever(HypencoderIndex(tmp_path / "i.hyp"), model)(topics))
    assert retriever.search("heart").set_index("docno")["docid"]["d119"] == 0


def test_an_index_overwritten_by_another_models_is_noticed(model, other, docs, topics, tmp_path):
    retriever = HypencoderIndexer(tmp_path / "i.hyp", model).index(docs).retriever(model)
    retriever(topics)
    HypencoderIndexer(tmp_path / "i.hyp", other, mode="overwrite").index(docs)
    with pytest.raises(ValueError, match="document encoder"):
        retriever(topics)
    retriever.model = None
    assert_same(retriever(topics), HypencoderRetriever(tmp_path / "i.hyp", other)(topics))


def test_queries_are_encoded_in_batches(index, model, topics, monkeypatch):
    sizes = []
    encode = Encoder.encode_queries
    monkeypatch.setattr(Encoder, "encode_queries", lambda self, texts: sizes.append(len(texts)) or encode(self, texts))
    index.retriever(model, batch_size=2)(topics)
    assert sizes == [2, 2, 1]


# Filters


def filtered(retriever: HypencoderRetriever, topics: pd.DataFrame, allowed: list[set[str]]) -> pd.DataFrame:
    """The full ranking, reduced to what each topic allows."""
    limits = dict(zip(topics["qid"], allowed, strict=True))
    full = retriever(topics[["qid", "query"]])
    kept = full[[docno in limits[qid] for qid, docno in zip(full["qid"], full["docno"], strict=True)]]
    return kept.assign(rank=kept.groupby("qid").cumcount()).reset_index(drop=True)


EVERYTHING = {f"d{i:03}" for i in range(120)}
SOME = {f"d{i:03}" for i in range(0, 120, 3)}
OWN = [SOME, {"d007", "d040", "d041"}, set(), EVERYTHING, {"d017", "not a docno"}]


@pytest.mark.parametrize("kind", [set, frozenset, list, tuple, dict.fromkeys, np.array, pd.Series, pd.Index])
def test_allowed_docnos_for_all_queries(retriever, topics, kind):
    expected = filtered(retriever, topics, [SOME] * 5)
    retriever.allowed_docnos = kind(sorted(SOME))
    assert_same(retriever(topics), expected)
    assert len(expected) == 200


@pytest.mark.parametrize("kind", [set, list, tuple, np.array, pd.Series])
def test_allowed_docnos_of_each_query(retriever, topics, kind):
    expected = filtered(retriever, topics, OWN)
    results = retriever(topics.assign(allowed_docnos=[kind(sorted(docnos)) for docnos in OWN]))
    assert_same(results.drop(columns="allowed_docnos"), expected)
    assert set(results["qid"]) == {"q0", "q1", "q3", "q4"}


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_missing_filter_allows_everything(retriever, topics, missing):
    expected = filtered(retriever, topics, [SOME, EVERYTHING, {"d001"}, EVERYTHING, SOME])
    column = pd.Series([SOME, missing, {"d001"}, missing, SOME], dtype=object)
    assert_same(retriever(topics.assign(allowed_docnos=column)).drop(columns="allowed_docnos"), expected)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_where_both_filters_are_given_both_hold(retriever, topics, batch_size):
    expected = filtered(retriever, topics, [own & SOME for own in [*OWN[:4], EVERYTHING]])
    retriever.allowed_docnos = SOME
    retriever.batch_size = batch_size
    column = pd.Series([*OWN[:4], None], dtype=object)
    assert_same(retriever(topics.assign(allowed_docnos=column)).drop(columns="allowed_docnos"), expected)


def test_a_cutoff_applies_after_the_filter(retriever, topics):
    expected = filtered(retriever, topics, [SOME] * 5)
    retriever.allowed_docnos, retriever.num_results = SOME, 4
    assert_same(retriever(topics), expected[expected["rank"] < 4])


@pytest.mark.parametrize("allowed", [set(), [], {"unknown"}], ids=str)
def test_filters_that_leave_nothing_give_an_empty_frame(retriever, topics, allowed):
    complete = retriever(topics)
    retriever.allowed_docnos = allowed
    found = retriever(topics)
    assert len(found) == 0 and list(found.dtypes) == list(complete.dtypes) and list(found.columns) == list(complete.columns)


@pytest.mark.parametrize("allowed", ["d001", 5, 1.5])
def test_a_single_docno_is_no_filter(retriever, topics, allowed):
    with pytest.raises(ValueError, match="allowed_docnos must be a collection"):
        retriever(topics.assign(allowed_docnos=allowed))
    retriever.allowed_docnos = allowed
    with pytest.raises(ValueError, match="allowed_docnos must be a collection"):
        retriever(topics)


def test_repeated_docnos_in_a_filter_count_once(retriever, topics):
    retriever.allowed_docnos = ["d001", "d001", "d002"]
    assert len(retriever(topics)) == 10


def test_docnos_that_look_like_numbers_are_found(model, docs, topics, tmp_path):
    numbered = [{**doc, "docno": str(i)} for i, doc in enumerate(docs)]
    index = HypencoderIndexer(tmp_path / "n.hyp", model).index(numbered)
    assert set(index.retriever(model, allowed_docnos=["7", "11"])(topics)["docno"]) == {"7", "11"}
