"""Tests of the example collection and of the BM25 baseline, neither of which needs Java or a network."""

import importlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import nDCG

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCS = [
    {"docno": "none", "title": "", "text": ""},
    {"docno": "stop", "title": "the", "text": "of and"},
    {"docno": "one", "title": "Zebras", "text": "a cat"},
    {"docno": "two", "title": "Birds", "text": "cats"},
    {"docno": "three", "title": "", "text": "a cat meets a dog"},
]


@pytest.fixture(scope="module", autouse=True)
def _examples_path():
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def apidocs(_examples_path):
    return importlib.import_module("shared.apidocs")


@pytest.fixture(scope="module")
def collection(apidocs):
    return apidocs.build()


@pytest.fixture(scope="module")
def texts(collection):
    return {doc["docno"]: doc["text"] for doc in collection.docs}


@pytest.fixture(scope="module")
def bm25(_examples_path):
    pytest.importorskip("bm25s")
    pytest.importorskip("Stemmer")
    return importlib.import_module("shared.bm25").BM25


def queries(*texts):
    return pd.DataFrame({"qid": [f"q{i}" for i in range(len(texts))], "query": pd.Series(texts, dtype=str)})


def words(text):
    return re.findall(r"[^\W_]+", text.lower())


# --- The collection ---


def test_collection_size(collection, texts):
    assert len(collection.docs) >= 3000
    assert len(texts) == len(collection.docs), "docnos are unique"
    assert len(collection.topics) == 500
    assert collection.topics["qid"].is_unique
    assert collection.topics["query"].str.lower().is_unique


def test_collection_is_sorted_and_typed(collection, texts):
    assert list(texts) == sorted(texts)
    assert collection.topics["qid"].is_monotonic_increasing
    assert list(collection.topics.columns) == ["qid", "query"]
    assert list(collection.qrels.columns) == ["qid", "docno", "label"]
    assert collection.qrels["label"].tolist() == [1] * len(collection.qrels)


def test_topics_are_short_plain_text(collection):
    for query in collection.topics["query"]:
        assert 5 <= len(query.split()) <= 25, query
        assert words(query) == query.lower().split(), query


def test_relevant_documents(collection, texts):
    queries = dict(zip(collection.topics["qid"], collection.topics["query"], strict=True))
    relevant = collection.qrels.groupby("qid")["docno"].agg(list).to_dict()
    assert relevant.keys() == queries.keys()
    for qid, docnos in relevant.items():
        assert 1 <= len(set(docnos)) == len(docnos) <= 10
        for docno in docnos:
            assert f" {' '.join(words(queries[qid]))} " not in f" {' '.join(words(texts[docno]))} "


def test_no_near_duplicates(texts):
    assert len({tuple(text.lower().split()[:25]) for text in texts.values()}) == len(texts)
    assert min(len(text.split()) for text in texts.values()) >= 15


def test_docnos_are_public_names_of_the_listed_libraries(apidocs, texts):
    allowed = {*sys.stdlib_module_names, *apidocs.LIBRARIES}
    for docno in texts:
        assert docno.isascii()
        assert all(part.isidentifier() and not part.startswith("_") for part in docno.split(".")), docno
        assert docno.split(".")[0] in allowed, docno


@pytest.mark.parametrize(
    "docno", ["builtins.sorted", "textwrap.TextWrapper", "numpy.einsum", "scipy.optimize.brentq", "torch.topk"]
)
def test_known_documents(texts, docno):
    assert docno in texts


def test_written_collection_does_not_depend_on_the_process(collection, tmp_path):
    collection.write(tmp_path / "here")
    command = [sys.executable, str(EXAMPLES / "shared" / "apidocs.py"), str(tmp_path / "there")]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    run = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    for name in ("docs.jsonl", "topics.tsv", "qrels.txt"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


def test_second_build_is_the_same(apidocs, collection):
    again = apidocs.build()
    assert again.docs == collection.docs
    pd.testing.assert_frame_equal(again.topics, collection.topics)
    pd.testing.assert_frame_equal(again.qrels, collection.qrels)


def test_written_collection_can_be_read(collection, texts, tmp_path):
    collection.write(tmp_path)
    topics = pt.io.read_topics(str(tmp_path / "topics.tsv"), format="singleline", tokenise=False)
    pd.testing.assert_frame_equal(topics, collection.topics, check_dtype=False)
    qrels = pt.io.read_qrels(str(tmp_path / "qrels.txt"))
    assert qrels[["qid", "docno", "label"]].values.tolist() == collection.qrels.values.tolist()
    assert pd.read_json(tmp_path / "docs.jsonl", lines=True, dtype=False)["docno"].tolist() == list(texts)


def test_too_few_topics(apidocs, monkeypatch):
    monkeypatch.setattr(apidocs, "_documentation", lambda: {"a.b": "Do something nice.\n\n" + "word " * 30})
    with pytest.raises(RuntimeError, match="Only 0 of 500 topics"):
        apidocs.build()


def test_missing_library(apidocs, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        apidocs.build()


@pytest.mark.parametrize(
    ("doc", "summary", "text"),
    [
        ("Do it.\n\nLike this.", "Do it.", "Like this."),
        ("Do it, e.g. Now. Or\nlater.", "Do it, e.g. Now.", "Or later."),
        ("f(x,\n  y=(1, 2)) -> (int, int)\nf(x)\n\nDo it\n\nLike this.", "Do it", "Like this."),
        ("D.f(x) -> v.  Do it.", "Do it.", ""),
        ("f(x) -- do it", "do it", ""),
        ("f(x)\n--\n\nDo it.", "Do it.", ""),
        ("f(x) is a call.\n\nMore.", "f(x) is a call.", "More."),
        (".. deprecated:: 1.0\n   Do not.", "", "Do not."),
        ("Use :class:`~a.B` and ``c``.\n\nNotes\n-----\nSome.", "Use a.B and c.", "Notes Some."),
        ("Do it.\n\n>>> f(\n... 1)\n0.123\n0.456\n\nMore.", "Do it.", ">>> f( ... 1) More."),
        ("Do it.\n\nOne of {'b', 'a'}.", "Do it.", "One of {'a', 'b'}."),
    ],
)
def test_split(apidocs, doc, summary, text):
    assert apidocs.split(doc) == (summary, text)


# --- BM25 ---


def test_bm25_finds_documentation(bm25, collection):
    retriever = bm25().index(collection.docs)
    result = pt.Experiment([retriever], collection.topics, collection.qrels, [nDCG @ 10], names=["BM25"])
    assert 0.40 < result["nDCG@10"].item() < 0.65


def test_bm25_ranks(bm25):
    results = bm25().index(DOCS)(queries("cats", "dogs and"))
    assert list(results.columns) == ["qid", "query", "docno", "score", "rank"]
    # "one" and "two" have the same score, and stay in the order of the documents
    assert results["docno"].tolist()[:3] == ["one", "two", "three"]
    assert results["rank"].tolist()[:3] == [0, 1, 2]
    assert results["score"].gt(0).all()
    assert set(results.loc[results["qid"] == "q1", "docno"]) == {"three"}


def test_bm25_joins_fields(bm25):
    retriever = bm25(text_field=["title", "text"]).index(iter(DOCS))
    assert set(retriever.search("zebra dog")["docno"]) == {"one", "three"}


def test_bm25_parameters_matter(bm25):
    scores = [bm25(**kw).index(DOCS).search("cat")["score"].tolist() for kw in ({}, {"k1": 2.0}, {"b": 1.0})]
    assert scores[0] != scores[1] != scores[2] != scores[0]


@pytest.mark.parametrize("query", ["", "  ", "the and of", "unknownword", "?!"])
def test_bm25_without_results(bm25, query):
    results = bm25().index(DOCS)(queries(query, "dog"))
    assert results["qid"].tolist() == ["q1"]


@pytest.mark.parametrize("docs", [[], DOCS[:1], DOCS[:2]])
def test_bm25_without_words_to_index(bm25, docs):
    assert len(bm25().index(docs)(queries("", "cat"))) == 0


@pytest.mark.parametrize("inputs", [queries(), queries(""), pd.DataFrame(columns=["qid", "query"])])
def test_bm25_empty_results_are_typed(bm25, inputs):
    retriever = bm25().index(DOCS)
    expected = retriever(queries("cat")).dtypes[["docno", "score", "rank"]]
    results = retriever(inputs)
    assert len(results) == 0
    assert results.dtypes[["docno", "score", "rank"]].equals(expected)


def test_bm25_keeps_query_columns(bm25):
    inputs = queries("cat", "dog").assign(extra=[1, 2], rank=7)
    results = bm25().index(DOCS)(inputs)
    assert results["extra"].tolist() == [1, 1, 1, 2]
    assert results["rank"].tolist() == [0, 1, 2, 0]
    assert inputs["rank"].tolist() == [7, 7]


def test_bm25_rank_cutoff(bm25):
    retriever = bm25().index(DOCS)
    pipeline = (retriever % 2).compile()
    assert isinstance(pipeline, bm25) and pipeline.num_results == 2 and retriever.num_results == 1000
    pd.testing.assert_frame_equal(pipeline.search("cat"), retriever.search("cat")[:2])
    assert pipeline.fuse_rank_cutoff(5) is pipeline


def test_bm25_pickles(bm25):
    retriever = bm25(num_results=2).index(DOCS)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(retriever)).search("cat"), retriever.search("cat"))


def test_bm25_can_be_inspected(bm25, monkeypatch):
    monkeypatch.setattr("pyterrier.documentation._cached_objects_inv", {})  # it would be fetched otherwise
    retriever = bm25(5, k1=1.2)
    assert pt.inspect.transformer_inputs(retriever) == [["qid", "query"]]
    assert pt.inspect.transformer_outputs(retriever, ["qid", "query"]) == ["qid", "query", "docno", "score", "rank"]
    attributes = {attribute.name: attribute.value for attribute in pt.inspect.transformer_attributes(retriever)}
    assert attributes == {"num_results": 5, "k1": 1.2, "b": 0.4, "text_field": "text", "verbose": False}
    assert pt.schematic.transformer_schematic(retriever)["label"] == "BM25"
    assert "BM25" in pt.schematic.draw(retriever)


def test_bm25_errors(bm25):
    with pytest.raises(RuntimeError, match="index"):
        bm25()(queries("cat"))
    with pytest.raises(pt.validate.InputValidationError):
        bm25().index(DOCS)(queries("cat")[["qid"]])


def test_bm25_is_quiet(bm25, capfd, caplog):
    bm25().index(DOCS).search("cat")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
