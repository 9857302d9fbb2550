"""Contracts over all transformers: operators, experiments, tuning, pickling, equality, inspection."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import ir_measures
import joblib
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier.io import ok_filename
from result_checks import assert_same_results, count_calls, score_by_document

from pyterrier_hypencoder import (
    BiEncoder,
    Hypencoder,
    HypencoderIndex,
    HypencoderIndexer,
    HypencoderRetriever,
    HypencoderScorer,
)
from pyterrier_hypencoder.search.choose import ALGORITHMS
from pyterrier_hypencoder.transformers.batch_search import BatchSearch
from pyterrier_hypencoder.transformers.vec_loader import VecLoader

METRICS = [ir_measures.nDCG @ 10, ir_measures.RR, ir_measures.R @ 50]


# Operators


def test_sum_adds_scores(retriever, bm25, topics, full):
    expected = score_by_document(full).add(score_by_document(bm25(topics)), fill_value=0)
    found = (retriever + bm25)(topics)
    np.testing.assert_allclose(score_by_document(found), expected, atol=6e-3)
    assert len(found) == 600


def test_product_scales_scores(retriever, topics, full):
    np.testing.assert_allclose(score_by_document((retriever * 2)(topics)), 2 * score_by_document(full), atol=6e-3)
    np.testing.assert_allclose(score_by_document((0.5 * retriever)(topics)), 0.5 * score_by_document(full), atol=6e-3)


def test_union_and_intersection_combine_documents(retriever, bm25, topics, full):
    best = set(score_by_document(full[full["rank"] < 30]).index)
    lexical = set(score_by_document(bm25(topics)).index)
    for operator, expected in ((retriever % 30 | bm25, best | lexical), (retriever % 30 & bm25, best & lexical)):
        found = operator(topics)
        assert set(zip(found["qid"], found["docno"], strict=True)) == expected and len(found) == len(expected)


def test_concatenation_appends_documents(retriever, bm25, topics, full):
    found = (retriever % 5 ^ bm25)(topics)
    first = found[found["rank"] < 5]
    np.testing.assert_allclose(score_by_document(first), score_by_document(full[full["rank"] < 5]), atol=6e-3)
    best, lexical = set(score_by_document(full[full["rank"] < 5]).index), set(score_by_document(bm25(topics)).index)
    assert set(zip(found["qid"], found["docno"], strict=True)) == best | lexical


def test_feature_union_computes_both_scores(index, model, bm25, topics, full):
    found = (bm25 >> index.scorer(model) ** index.scorer(model, qnet_width=5))(topics)
    narrow = index.retriever(model, qnet_width=5)(topics)
    expected = pd.DataFrame({"wide": score_by_document(full), "narrow": score_by_document(narrow)})
    wanted = expected.loc[list(zip(found["qid"], found["docno"], strict=True))]
    np.testing.assert_allclose(np.stack(found["features"]), wanted, atol=6e-3)
    assert len(found) == 200


def test_query_rewriting_changes_results(retriever, topics):
    found = (pt.apply.query(lambda row: row["query"].upper()) >> retriever)(topics)
    expected = retriever(topics.assign(query=topics["query"].str.upper()))
    assert_same_results(found[expected.columns], expected)
    assert set(found["query_0"]) == set(topics["query"])


@pytest.mark.parametrize("k", [0, 1, 10, 119, 120, 5000])
def test_cutoff_fuses_and_returns_the_same_frame(retriever, topics, k):
    retriever.num_results = 120
    pipeline = retriever % k
    compiled = pipeline.compile()
    pd.testing.assert_frame_equal(compiled(topics), pipeline(topics))
    if 0 < k < 120:
        assert compiled == pt.inspect.transformer_apply_attributes(retriever, num_results=k)
    assert retriever.num_results == 120


def test_cutoff_never_adds_results(retriever, topics):
    retriever.num_results = 3
    assert len((retriever % 10).compile()(topics)) == 15
    assert len((retriever % 10 % 2).compile()(topics)) == 10


def test_cutoff_keeps_all_other_arguments(index, model):
    options = {
        "precision": "bf16",
        "qnet_width": 3,
        "allowed_docnos": {"d001"},
        "batch_size": 4,
        "device": "cpu",
        "verbose": True,
    }
    assert (index.retriever(model, **options) % 3).compile() == index.retriever(model, num_results=3, **options)


# Experiments


@pytest.fixture
def systems(index, model, bm25):
    retriever = index.retriever(model)
    return {
        "bm25": bm25,
        "exhaustive": retriever,
        "narrow": index.retriever(model, qnet_width=5),
        "cut": retriever % 10,
        "reranked": bm25 >> index.scorer(model),
        "fused": retriever * 0.1 + bm25,
        "encoded": model.query_encoder() >> index.retriever(model),
    }


def test_experiment_with_baseline_and_correction(systems, topics, qrels):
    table = pt.Experiment(systems, topics, qrels, METRICS, baseline="bm25", correction="holm", validate="error")
    assert list(table["name"]) == list(systems)
    assert {"nDCG@10 +", "nDCG@10 p-value", "nDCG@10 reject", "nDCG@10 p-value corrected"} <= set(table.columns)
    table = table.set_index("name")
    assert table["R@50"]["exhaustive"] == 1.0 and table["RR"]["exhaustive"] == 0.5 and table["R@50"]["cut"] == 0.75
    np.testing.assert_allclose(
        table.loc["encoded", ["nDCG@10", "R@50"]].astype(float), table.loc["exhaustive", ["nDCG@10", "R@50"]].astype(float)
    )


def test_experiment_per_query(systems, topics, qrels):
    table = pt.Experiment(systems, topics, qrels, [ir_measures.RR], perquery=True)
    assert len(table) == 5 * len(systems)
    assert (table[table["name"] == "exhaustive"]["value"] == 0.5).all()


@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"precompute_prefix": True}, {"plan": "tree", "verbose": False}], ids=str
)
@pytest.mark.filterwarnings("ignore:precompute_prefix", "ignore:There are shared")
def test_experiment_plans_agree(systems, topics, qrels, options):
    expected = pt.Experiment(systems, topics, qrels, METRICS)
    pd.testing.assert_frame_equal(pt.Experiment(systems, topics, qrels, METRICS, **options), expected)


@pytest.mark.parametrize("options", [{"precompute_prefix": True}, {"plan": "tree", "verbose": False}], ids=str)
@pytest.mark.filterwarnings("ignore:precompute_prefix", "ignore:There are shared")
def test_experiment_searches_equal_prefixes_once(index, model, topics, qrels, options, monkeypatch):
    searches = count_calls(monkeypatch, BatchSearch, "search")
    systems = [index.retriever(model) >> index.scorer(model, qnet_width=width) for width in (2, 5)]
    pt.Experiment(systems, topics, qrels, METRICS, names=["2", "5"], **options)
    assert len(searches) == 1


def test_experiment_saves_runs_and_reuses_them(systems, topics, qrels, tmp_path):
    expected = pt.Experiment(systems, topics, qrels, METRICS, save_dir=str(tmp_path))

    def refuse(_):
        raise AssertionError("expected the saved run to be read")

    broken = {name: pt.apply.generic(refuse) for name in systems}
    options = {"save_dir": str(tmp_path), "save_mode": "reuse", "validate": "ignore"}
    pd.testing.assert_frame_equal(pt.Experiment(broken, topics, qrels, METRICS, **options), expected)


def test_default_names_of_transformers_are_names_of_files(index, model, bm25, topics, qrels, tmp_path):
    long = [f"d{i:03}" for i in range(100)]
    systems = [
        index.retriever(model),
        index.retriever(model, num_results=5),
        index.retriever(Hypencoder(model.name_or_path, device="cpu", query_max_length=31), allowed_docnos=long),
        index.retriever(model, mask=np.arange(120) % 2 == 0, excluded_docnos=["a/b", 'c"d', "e:f"], entry_points=long[:3]),
        HypencoderIndexer(index.path, model) >> HypencoderRetriever() % 10 >> index.scorer(model),
    ]
    (tmp_path / "runs").mkdir()
    table = pt.Experiment(systems, topics, qrels, METRICS, save_dir=str(tmp_path / "runs"))
    assert list(table["name"]) == list(map(str, systems))
    assert {path.name for path in (tmp_path / "runs").glob("*.res.gz")} == {f"{system}.res.gz" for system in systems}
    assert [repr(system) for system in systems if ok_filename(repr(system))] == []


def test_experiment_validation_refuses_impossible_pipelines(index, model, topics, qrels):
    for impossible in (index.scorer(model), index.retriever(model) >> index.retriever(model), model.query_encoder()):
        with pytest.raises(ValueError, match="Validation Report"):
            pt.Experiment([impossible], topics, qrels, METRICS, validate="error")


def test_equal_transformers_have_equal_rows_in_an_experiment(index, model, topics, qrels):
    table = pt.Experiment([index.retriever(model), index.retriever(model)], topics, qrels, METRICS)
    assert table.iloc[0].equals(table.iloc[1])


# Running and tuning


def test_lists_and_iterators_of_dictionaries_are_searched(retriever, topics, full):
    records = topics.to_dict("records")
    listed = retriever(records)
    assert isinstance(listed, list)
    for found in (listed, retriever.transform_iter(iter(records))):
        assert_same_results(pd.DataFrame(found).astype({"score": np.float32}), full)


def test_transform_gen_yields_batches(retriever, topics, full):
    batches = list(retriever.transform_gen(topics, batch_size=2))
    assert [batch["qid"].nunique() for batch in batches] == [2, 2, 1]
    assert_same_results(pd.concat(batches), full)


@pytest.mark.parametrize(
    ("option", "values"), [("num_results", [1, 2, 10]), ("qnet_width", [1, 5, None]), ("precision", ["bf16", "fp32"])]
)
def test_grid_scan_equals_separate_experiments(index, model, retriever, topics, qrels, option, values):
    pipeline = retriever % 50
    table = pt.GridScan(pipeline, {retriever: {option: values}}, topics, qrels, METRICS)
    separate = pt.Experiment([index.retriever(model, **{option: value}) % 50 for value in values], topics, qrels, METRICS)
    names = [str(metric) for metric in METRICS]
    np.testing.assert_allclose(table[names].astype(float), separate[names].astype(float))
    assert [value for value in table[f"tran_0_{option}"] if not pd.isna(value)] == [
        value for value in values if value is not None
    ]


def test_grid_search_sets_the_best_option(retriever, topics, qrels):
    best = pt.GridSearch(
        retriever, {retriever: {"num_results": [1, 40, 5], "algorithm": ["exhaustive"]}}, topics, qrels, "recall_50"
    )
    assert best is retriever and retriever.num_results == 40


def test_grid_scan_refuses_unknown_options(retriever, topics, qrels):
    with pytest.raises(ValueError, match="temperature"):
        pt.GridScan(retriever, {retriever: {"temperature": [1]}}, topics, qrels, METRICS)


@pytest.mark.slow
def test_parallel_returns_the_same_results(index, model, topics, full):
    pipeline = (index.retriever(model, num_results=50) >> index.scorer(model)).parallel(2)
    assert_same_results(pipeline(topics), index.scorer(model)(full[full["rank"] < 50]))


# Arguments: pickling, equality, representation


OBJECTS = {
    "encoder": lambda index, model: model,
    "index": lambda index, model: index,
    "retriever": lambda index, model: index.retriever(model),
    "retriever, recorded model": lambda index, model: index.retriever(),
    "scorer": lambda index, model: index.scorer(model),
    "text scorer": lambda index, model: model.text_scorer(),
    "document encoder": lambda index, model: model.doc_encoder(),
    "query encoder": lambda index, model: model.query_encoder(),
    "vector loader": lambda index, model: index.vec_loader(),
    "pipeline": lambda index, model: HypencoderIndexer(index.path, model) >> HypencoderRetriever() % 10 >> index.scorer(model),
}


def use(name: str, thing, topics: pd.DataFrame, docs: list[dict[str, str]]):
    """Return a frame that an object computes, to compare it with that of an equal object."""
    if name == "encoder":
        return pd.DataFrame(thing.encode_docs([doc["text"] for doc in docs[:3]]))
    if name == "index":
        return pd.DataFrame(thing.vectors)
    frame = topics.merge(pd.DataFrame(docs[:9]), how="cross")
    found = thing(topics if "retriever" in name or name == "pipeline" else frame)
    return found.map(lambda value: value.sum() if isinstance(value, np.ndarray) else value)


def through_joblib(thing, tmp_path):
    joblib.dump(thing, tmp_path / "thing.joblib")
    return joblib.load(tmp_path / "thing.joblib")


@pytest.mark.parametrize("name", OBJECTS)
def test_pickled_objects_are_small_and_equal(index, model, topics, docs, tmp_path, name):
    thing = OBJECTS[name](index, model)
    expected = use(name, thing, topics, docs)  # opens networks and memory maps
    assert len(pickle.dumps(thing)) < 4000
    for again in (pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing), copy.copy(thing), through_joblib(thing, tmp_path)):
        assert again == thing and hash(again) == hash(thing) and again is not thing
        pd.testing.assert_frame_equal(use(name, again, topics, docs), expected)


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_of_equal_arguments_are_equal(index, model, topics, docs, name):
    one, two = OBJECTS[name](index, model), OBJECTS[name](index, model)
    use(name, one, topics, docs)
    assert one == two and hash(one) == hash(two) and len({one, two}) == 1
    assert one != "something else"


@pytest.mark.parametrize(
    "options",
    [
        {"num_results": 10},
        {"batch_size": 1},
        {"algorithm": "graph"},
        {"device": "cpu"},
        {"precision": "bf16"},
        {"qnet_width": 3},
        {"allowed_docnos": ["d001", "d002"]},
        {"allowed_docnos": {"d001"}},
        {"allowed_docnos": pd.Series(["d001"])},
        {"allowed_docnos": pd.Index(["d001"])},
        {"allowed_docnos": np.array(["d001"])},
        {"allowed_docnos": {"d001": 1}.keys()},
        {"excluded_docnos": ["d001"]},
        {"mask": [True, False]},
        {"mask": np.array([True, False])},
        {"mask": np.array([False, True])},
        {"ignore_same_id": True},
        {"drop_query_vec": True},
        {"graph_k": 100},
        {"verbose": True},
        {"index": "other.hyp"},
        {"model": Hypencoder("nobody/something")},
        {"model": BiEncoder("nobody/nothing")},
        {"model": Hypencoder("nobody/nothing", query_max_length=3)},
    ],
    ids=str,
)
def test_different_arguments_make_different_transformers(options):
    arguments = {"index": "some.hyp", "model": Hypencoder("nobody/nothing")}
    plain, one, two = (HypencoderRetriever(**(arguments | more)) for more in ({}, options, options))
    assert one == two and hash(one) == hash(two) and repr(one) == repr(two)
    assert one != plain and repr(one) != repr(plain)
    plain.set_parameter(*next(iter(options.items())))
    assert plain == one


def test_transformers_of_different_classes_differ():
    model = Hypencoder("nobody/nothing")
    assert HypencoderScorer(None, model) != model.text_scorer()
    assert HypencoderRetriever("a.hyp") != HypencoderScorer("a.hyp")
    assert model.doc_encoder() != model.query_encoder()


def test_representation_is_short_and_shows_non_default_arguments():
    model = Hypencoder("jfkback/hypencoder.6_layer", device="cuda")
    docnos = {f"docno {i}" for i in range(1000)}
    retriever = HypencoderRetriever("msmarco.hyp", model, num_results=100, allowed_docnos=docnos)
    assert "num_results=100" in repr(retriever) and "<1000 items, " in repr(retriever) and "batch_size" not in repr(retriever)
    pipeline = HypencoderIndexer("msmarco.hyp") >> HypencoderRetriever()
    for short in (
        retriever,
        HypencoderScorer("msmarco.hyp", model),
        model.doc_encoder(),
        model.query_encoder(),
        model,
        pipeline,
    ):
        assert len(repr(short)) < 200 and "\n" not in repr(short)
    for docnos in (
        list("abcde"),
        np.arange(50).astype(str),
        pd.Series(list("abcde")),
        pd.Index(list("abcde")),
        dict.fromkeys("abcde"),
    ):
        assert " items, " in repr(HypencoderRetriever(allowed_docnos=docnos))


# Inspection: never opens an index or loads a model, so neither needs to exist


MODEL = Hypencoder("nobody/nothing")


TRANSFORMERS = {
    "retriever": HypencoderRetriever("nowhere.hyp", MODEL),
    "graph retriever": HypencoderRetriever("nowhere.hyp", MODEL, algorithm="graph"),
    "retriever without vectors": HypencoderRetriever("nowhere.hyp", drop_query_vec=True, ignore_same_id=True),
    "unbound retriever": HypencoderRetriever(),
    "scorer": HypencoderScorer("nowhere.hyp", MODEL),
    "scorer of text": HypencoderScorer(model=MODEL, text_field=["title", "body"]),
    "text scorer": MODEL.text_scorer(),
    "encoder": MODEL,
    "bi-encoder": BiEncoder("nobody/nothing"),
    "document encoder": MODEL.doc_encoder(),
    "query encoder": MODEL.query_encoder(),
    "vector loader": VecLoader("nowhere.hyp"),
    "bi-encoder's text scorer": BiEncoder("nobody/nothing").text_scorer(),
    "pipeline": HypencoderIndexer("nowhere.hyp", MODEL) >> HypencoderRetriever(),
    "longer pipeline": HypencoderIndexer("nowhere.hyp", MODEL)
    >> HypencoderRetriever() % 10
    >> HypencoderScorer("nowhere.hyp", MODEL),
}


RANKED = ["docno", "docid", "score", "rank"]


TestIndex = pt.testing.transformer_test_class(lambda: HypencoderIndex("nowhere.hyp"))
TestEncoderBeforeIndex = pt.testing.transformer_test_class(lambda: MODEL >> HypencoderIndex("nowhere.hyp"))
TestGraphRetriever = pt.testing.transformer_test_class(lambda: TRANSFORMERS["graph retriever"])
TestRetriever = pt.testing.transformer_test_class(lambda: TRANSFORMERS["retriever"])
TestUnboundRetriever = pt.testing.transformer_test_class(lambda: TRANSFORMERS["unbound retriever"])
TestScorer = pt.testing.transformer_test_class(lambda: TRANSFORMERS["scorer"])
TestScorerOfText = pt.testing.transformer_test_class(lambda: TRANSFORMERS["scorer of text"])
TestTextScorer = pt.testing.transformer_test_class(lambda: TRANSFORMERS["text scorer"])
TestEncoder = pt.testing.transformer_test_class(lambda: TRANSFORMERS["encoder"])
TestBiEncoder = pt.testing.transformer_test_class(lambda: TRANSFORMERS["bi-encoder"])
TestSearchWithQueryVectors = pt.testing.transformer_test_class(lambda: MODEL.query_encoder() >> TRANSFORMERS["retriever"])
TestDocEncoder = pt.testing.transformer_test_class(lambda: TRANSFORMERS["document encoder"])
TestQueryEncoder = pt.testing.transformer_test_class(lambda: TRANSFORMERS["query encoder"])
TestVecLoader = pt.testing.transformer_test_class(lambda: TRANSFORMERS["vector loader"])
TestIndexedPipeline = pt.testing.transformer_test_class(lambda: TRANSFORMERS["pipeline"])
TestLongerPipeline = pt.testing.transformer_test_class(lambda: TRANSFORMERS["longer pipeline"])


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("retriever", ["qid", "query"], ["qid", "query", *RANKED]),
        ("retriever", ["qid", "query_vec"], ["qid", "query_vec", *RANKED]),
        ("graph retriever", ["qid", "query"], ["qid", "query", *RANKED]),
        ("retriever without vectors", ["qid", "query"], ["qid", "query", *RANKED]),
        ("unbound retriever", ["qid", "query"], ["qid", "query", *RANKED]),
        ("scorer", ["qid", "docno", "query"], ["qid", "docno", "query", "score", "rank"]),
        ("scorer", ["qid", "docno", "query_vec"], ["qid", "docno", "query_vec", "score", "rank"]),
        (
            "scorer of text",
            ["qid", "docno", "query", "title", "body"],
            ["qid", "docno", "query", "title", "body", "score", "rank"],
        ),
        ("text scorer", ["qid", "docno", "query", "text"], ["qid", "docno", "query", "text", "score", "rank"]),
        ("text scorer", ["qid", "docno", "query_vec", "doc_vec"], ["qid", "docno", "query_vec", "doc_vec", "score", "rank"]),
        ("encoder", ["qid", "query"], ["qid", "query", "query_vec"]),
        ("encoder", ["docno", "text"], ["docno", "text", "doc_vec"]),
        ("bi-encoder", ["qid", "docno", "query", "text"], ["qid", "docno", "query", "text", "score", "rank"]),
        ("document encoder", ["docno", "text"], ["docno", "text", "doc_vec"]),
        ("query encoder", ["qid", "query"], ["qid", "query", "query_vec"]),
        ("vector loader", ["docno"], ["docno", "doc_vec"]),
        ("vector loader", ["docid"], ["docid", "doc_vec"]),
        ("pipeline", ["qid", "query"], ["qid", "query", *RANKED]),
        ("longer pipeline", ["qid", "query_vec"], ["qid", "query_vec", *RANKED]),
    ],
)
def test_inspected_inputs_and_outputs(name, inputs, outputs):
    assert inputs in pt.inspect.transformer_inputs(TRANSFORMERS[name])
    assert pt.inspect.transformer_outputs(TRANSFORMERS[name], inputs) == outputs
    assert pt.inspect.transformer_outputs(TRANSFORMERS[name], [*inputs, "more"]) == [*inputs, "more", *outputs[len(inputs) :]]


@pytest.mark.parametrize("name", ["encoder", "query encoder"])
def test_inspection_of_query_encoder_before_retriever_wants_qid_and_query(name):
    pipeline = TRANSFORMERS[name] >> TRANSFORMERS["retriever"]
    assert pt.inspect.transformer_inputs(pipeline)[0] == ["qid", "query"]
    assert pt.inspect.transformer_outputs(pipeline, ["qid", "query"]) == ["qid", "query", "query_vec", *RANKED]


def test_encoder_scores_candidates_in_schematics(bm25):
    loaded = bm25 >> pt.apply.text(lambda row: "")
    drawn = pt.schematic.transformer_schematic(loaded >> MODEL, input_columns=["qid", "query"])
    assert {"score", "rank"} <= set(drawn["transformers"][-1]["output_columns"])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_inspection_refuses_what_transform_refuses(name):
    with pytest.raises(pt.validate.InputValidationError):
        pt.inspect.transformer_outputs(TRANSFORMERS[name], ["something"])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_attributes_are_the_constructor_arguments(name):
    transformer = TRANSFORMERS[name]
    attributes = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(transformer)}
    assert type(transformer)(**attributes) == transformer
    again = pt.inspect.transformer_apply_attributes(transformer)
    assert again == transformer and again is not transformer


def test_applied_attributes_replace_arguments():
    retriever = TRANSFORMERS["retriever"]
    changed = pt.inspect.transformer_apply_attributes(retriever, num_results=3, index="other.hyp", algorithm="graph")
    assert changed == HypencoderRetriever("other.hyp", MODEL, num_results=3, algorithm="graph")
    assert retriever == HypencoderRetriever("nowhere.hyp", MODEL)


@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if "pipeline" not in name])
def test_transformers_have_no_subtransformers(name):
    assert pt.inspect.subtransformers(TRANSFORMERS[name]) == {}


def test_schematics_tell_searches_and_models_apart():
    def label(model, algorithm: str) -> str:
        return pt.schematic.transformer_schematic(HypencoderRetriever("x.hyp", model, algorithm=algorithm))["label"]

    labels = [label(model, algorithm) for model in (MODEL, BiEncoder("nobody/nothing")) for algorithm in ALGORITHMS]
    assert len(set(labels)) == 2 * len(ALGORITHMS) and max(map(len, labels)) <= 20
    assert label(MODEL, "exhaustive") == label(None, "exhaustive") == "Hypencoder"
    assert label(MODEL, "graph") == "Hypencoder graph" and label(BiEncoder("a"), "graph") == "BiEncoder graph"


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_schematic_and_notebook_draw_every_transformer(name):
    transformer = TRANSFORMERS[name]
    label = pt.schematic.transformer_schematic(transformer).get("label")
    html = pt.schematic.draw(transformer)
    assert label is None or label in html
    assert "schematic" in transformer._repr_html_() and "<div" in html


def test_schematic_of_pipeline_shows_every_stage(index, model, bm25):
    retriever, scorer = index.retriever(model), index.scorer(model)
    html = pt.schematic.draw(retriever % 10 >> scorer >> index.vec_loader())
    assert all(label in html for label in ("Hypencoder", "% 10", "HypencoderScorer", "VecLoader"))
    for pipeline in (retriever + bm25, retriever | bm25, bm25 >> scorer**scorer, model.query_encoder() >> retriever):
        assert "<div" in pipeline._repr_html_()
    searching = HypencoderIndexer("nowhere.hyp", model) >> HypencoderRetriever() % 7 >> scorer
    assert all(label in searching._repr_html_() for label in ("Hypencoder", "% 7", "HypencoderScorer"))
    indexing = pt.schematic.draw(model.doc_encoder() >> HypencoderIndexer("nowhere.hyp"))
    assert "DocEncoder" in indexing and "HypencoderIndexer" in indexing


def test_inspection_loads_no_model_and_example_index_is_removed_at_exit(index, golden):
    script = f"""
import pickle, sys
import pandas as pd
import pyterrier as pt
pt.documentation._cached_objects_inv = {{}}
from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderIndexer, HypencoderRetriever, HypencoderScorer
from pyterrier_hypencoder.transformers.vec_loader import VecLoader
model = Hypencoder({str(golden / "tiny_6l_cls_shared")!r})
index = HypencoderIndex({str(index.path)!r})
transformers = [index.retriever(model), index.retriever(), index.scorer(model), index.scorer(), index.vec_loader(),
                model.text_scorer(), model.doc_encoder(), model.query_encoder(), index.retriever(model) % 10,
                HypencoderIndexer(index.path, model) >> HypencoderRetriever()]
example = HypencoderIndex.example()
first_stage = pt.Transformer.from_df(pd.DataFrame({{"qid": ["q"], "docno": ["d1"], "score": [1.0], "rank": [0]}}))
transformers += [example.retriever(), example.scorer(), example.vec_loader(), HypencoderRetriever.example(),
                 HypencoderScorer.example(), VecLoader.example()]
for transformer in transformers:
    for columns in pt.inspect.transformer_inputs(transformer):
        pt.inspect.transformer_outputs(transformer, columns)
        transformer(pd.DataFrame(columns=columns))
    pt.schematic.draw(transformer), transformer._repr_html_(), repr(transformer), hash(transformer)
    assert transformer.compile() == transformer.compile() == pickle.loads(pickle.dumps(transformer.compile()))
assert "HypencoderIndexer" in pt.schematic.draw(model.doc_encoder() >> HypencoderIndexer.example())
assert "HypencoderScorer" in pt.schematic.draw(first_stage >> example.scorer())
assert "QueryEncoder" in pt.schematic.draw(model.query_encoder() >> example.retriever() % 10)
found = [name for name in ("transformers", "triton", "faiss", "pyterrier_dr") if name in sys.modules]
assert not found, found
print(example.path)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    assert path.name == "example.hyp" and not path.parent.exists()
