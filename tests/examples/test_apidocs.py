"""Tests of the collection that is built from the documentation of installed libraries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest
from shared import apidocs
from shared.collection import read_collection
from shared.docstrings import split_docstring

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def collection(apidocs_collection):
    return apidocs_collection


@pytest.fixture(scope="module")
def texts(collection):
    return {doc["docno"]: doc["text"] for doc in collection.docs()}


def list_words(text):
    return re.findall(r"[^\W_]+", text.lower())


def test_collection_has_500_topics_and_thousands_of_documents(collection, texts):
    docs = list(collection.docs())
    assert len(docs) >= 3000
    assert len(texts) == len(docs), "docnos are unique"
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
        assert list_words(query) == query.lower().split(), query


def test_relevant_documents_are_few_and_do_not_contain_the_query(collection, texts):
    queries = dict(zip(collection.topics["qid"], collection.topics["query"], strict=True))
    relevant = collection.qrels.groupby("qid")["docno"].agg(list).to_dict()
    assert relevant.keys() == queries.keys()
    for qid, docnos in relevant.items():
        assert 1 <= len(set(docnos)) == len(docnos) <= 10
        for docno in docnos:
            assert f" {' '.join(list_words(queries[qid]))} " not in f" {' '.join(list_words(texts[docno]))} "


def test_documents_are_not_near_duplicates_or_near_empty(texts):
    assert len({tuple(text.lower().split()[:25]) for text in texts.values()}) == len(texts)
    assert min(len(text.split()) for text in texts.values()) >= 15


def test_docnos_are_public_names_of_the_listed_libraries(texts):
    allowed = {*sys.stdlib_module_names, *apidocs.LIBRARIES}
    for docno in texts:
        assert docno.isascii()
        assert all(part.isidentifier() and not part.startswith("_") for part in docno.split(".")), docno
        assert docno.split(".")[0] in allowed, docno


@pytest.mark.parametrize(
    "docno", ["builtins.sorted", "textwrap.TextWrapper", "numpy.einsum", "scipy.optimize.brentq", "torch.topk"]
)
def test_well_known_functions_are_documents(texts, docno):
    assert docno in texts


@pytest.mark.slow
def test_exported_collection_is_identical_in_another_process(collection, tmp_path):
    collection.write(tmp_path / "here")
    command = [sys.executable, str(EXAMPLES / "export_apidocs.py"), str(tmp_path / "there")]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    run = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    for name in ("docs.jsonl", "topics.tsv", "qrels.txt"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name


def test_second_build_is_identical(collection):
    again = apidocs.build_collection()
    assert list(again.docs()) == list(collection.docs())
    pd.testing.assert_frame_equal(again.topics, collection.topics)
    pd.testing.assert_frame_equal(again.qrels, collection.qrels)


def test_written_collection_can_be_read(collection, texts, tmp_path):
    collection.write(tmp_path)
    topics = pt.io.read_topics(str(tmp_path / "topics.tsv"), format="singleline", tokenise=False)
    pd.testing.assert_frame_equal(topics, collection.topics, check_dtype=False)
    qrels = pt.io.read_qrels(str(tmp_path / "qrels.txt"))
    assert qrels[["qid", "docno", "label"]].values.tolist() == collection.qrels.values.tolist()
    assert pd.read_json(tmp_path / "docs.jsonl", lines=True, dtype=False)["docno"].tolist() == list(texts)
    assert list(read_collection(tmp_path).docs()) == list(collection.docs())


def test_too_few_topics_raise(monkeypatch):
    monkeypatch.setattr(apidocs, "read_docstrings", lambda: {"a.b": "Do something nice.\n\n" + "word " * 30})
    with pytest.raises(RuntimeError, match="Only 0 of 500 topics"):
        apidocs.build_collection()


def test_missing_library_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        apidocs.build_collection()


@pytest.mark.parametrize(
    ("docstring", "summary", "text"),
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
def test_split_docstring_returns_summary_and_text(docstring, summary, text):
    assert split_docstring(docstring) == (summary, text)
