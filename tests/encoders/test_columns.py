"""Columns and arguments with texts: lists of strings, and nothing that passes for one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyterrier_hypencoder import HypencoderIndexer
from pyterrier_hypencoder.encoders.columns import join_text, list_text_fields, list_texts, read_queries, read_texts

TEXTS = ["planet orbit", "court"]
LISTS = {
    "tuple": tuple(TEXTS),
    "array": np.array(TEXTS),
    "array of objects": np.array(TEXTS, dtype=object),
    "series": pd.Series(TEXTS, index=[5, 3]),
    "index": pd.Index(TEXTS),
    "strings of numpy": [np.str_(text) for text in TEXTS],
    "dictionary values": dict(enumerate(TEXTS)).values(),
}


@pytest.mark.parametrize("name", [*LISTS, "generator", "iterator"])
def test_texts_may_be_any_ordered_collection(model, name):
    def make():
        return {"generator": (text for text in TEXTS), "iterator": iter(TEXTS)}.get(name, LISTS.get(name))

    np.testing.assert_allclose(model.encode_docs(make()), model.encode_docs(TEXTS), atol=1e-6)
    found, expected = (model.encode_queries(texts).flatten().numpy() for texts in (make(), TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-6)


WRONG = {
    "string": "planet",
    "bytes": b"planet",
    "set": {"a", "b"},
    "mapping": {"a": 1},
    "keys": {"a": 1}.keys(),
    "frame": pd.DataFrame({"text": TEXTS}),
    "number": 5,
    "nothing": None,
    "array without dimension": np.array("planet"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_list_of_texts_is_an_error(model, name):
    for encode in (model.encode_docs, model.encode_queries):
        with pytest.raises(ValueError, match="list"):
            encode(WRONG[name])


@pytest.mark.parametrize("texts", [[["a"]], [b"a"], [None], np.array([["a"], ["b"]]), [{"text": "a"}], ["a", 1.5]])
def test_items_that_are_no_strings_are_an_error(model, texts):
    with pytest.raises(ValueError, match="must be a string"):
        model.encode_docs(texts)


SURROGATE = "broken \ud83d text"


def test_lone_surrogates_are_an_error_that_names_the_document_or_query(model, tmp_path):
    for encode in (model.encode_docs, model.encode_queries):
        with pytest.raises(ValueError, match=r"valid Unicode, got '\\ud83d' at position 7"):
            encode(["fine", SURROGATE])
    docs = [{"docno": "good", "text": "fine"}, {"docno": "bad-one", "text": SURROGATE}]
    frame = pd.DataFrame(docs, dtype=object)
    with pytest.raises(ValueError, match="bad-one"):
        HypencoderIndexer(tmp_path / "x.hyp", model).index(docs)
    with pytest.raises(ValueError, match="bad-one"):
        model.text_scorer()(frame.assign(qid="1", query="a"))
    with pytest.raises(ValueError, match="bad-query"):
        model.query_encoder()(pd.DataFrame({"qid": ["bad-query"], "query": [SURROGATE]}, dtype=object))
    with pytest.raises(ValueError, match="bad-one"):
        read_texts(frame, "text")
    assert join_text({"docno": "1", "text": "\U0001f680 fine"}, ["text"]) == "\U0001f680 fine"
    assert read_queries(pd.DataFrame({"query": ["日本 🚀"]})) == ["日本 🚀"]


@pytest.mark.parametrize("value", [{"title": 2.0, "text": 1.0}, {"title", "text"}, iter(["text"]), [], [1], None, 5])
def test_text_field_must_be_a_name_or_a_list_of_names(value):
    with pytest.raises(ValueError, match="text_field"):
        list_text_fields(value)


def test_list_texts_copies_nothing_else():
    assert list_texts(np.array([1, 2])) == [1, 2]
    assert list_texts([]) == []
