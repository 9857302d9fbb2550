"""VecLoader: add the stored vectors of documents."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.transformers.vec_loader import VecLoader


def test_vec_loader_adds_stored_vectors_and_keeps_the_frame(index):
    frame = pd.DataFrame({"qid": "q", "docno": ["d004", "d119", "d000", "d004"], "score": 1.0}, index=[3, 1, 3, 7])
    before = frame.copy(deep=True)
    found = index.vec_loader()(frame)
    assert list(found.columns) == ["qid", "docno", "score", "doc_vec"]
    vectors = np.stack(found["doc_vec"])
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, index.vectors[[4, 119, 0, 4]].astype(np.float32))
    pd.testing.assert_frame_equal(found.drop(columns="doc_vec"), frame)
    pd.testing.assert_frame_equal(frame, before)


def test_vec_loader_replaces_doc_vec(index):
    found = index.vec_loader()(pd.DataFrame({"docno": ["d001"], "doc_vec": [[1.0]]}))
    np.testing.assert_array_equal(found["doc_vec"][0], index.vectors[1].astype(np.float32))


@pytest.mark.parametrize("given", ["index", "path", "string"])
def test_vec_loader_takes_an_index_or_its_path(index, given):
    loader = VecLoader({"index": index, "path": index.path, "string": str(index.path)}[given])
    np.testing.assert_array_equal(loader(pd.DataFrame({"docno": ["d001"]}))["doc_vec"][0], index.vectors[1])


def test_vec_loader_of_an_empty_frame_adds_the_column():
    found = VecLoader("nowhere.hyp")(pd.DataFrame(columns=["docno"]))
    assert list(found.columns) == ["docno", "doc_vec"] and len(found) == 0


def test_vec_loader_takes_docids_without_docnos(index):
    found = index.vec_loader()(pd.DataFrame({"docid": [119, 0, 119]}, index=[3, 1, 3]))
    assert list(found.columns) == ["docid", "doc_vec"] and found.index.tolist() == [3, 1, 3]
    np.testing.assert_array_equal(np.stack(found["doc_vec"]), index.vectors[[119, 0, 119]].astype(np.float32))


def test_vec_loader_prefers_docnos_to_docids(index):
    """The docids may be those of another index, such as that of BM25."""
    found = index.vec_loader()(pd.DataFrame({"docno": ["d001"], "docid": [7]}))
    np.testing.assert_array_equal(found["doc_vec"][0], index.vectors[1])


@pytest.mark.parametrize(
    ("docid", "message"),
    [(120, "docids must be between 0 and 119"), (-1, "docids must be"), (1.0, "integers, got"), ("1", "integers, got")],
)
def test_vec_loader_refuses_docids_that_are_no_documents(index, docid, message):
    with pytest.raises(ValueError, match=message):
        index.vec_loader()(pd.DataFrame({"docid": [docid]}))


def test_vec_loader_names_unknown_docnos(index):
    with pytest.raises(ValueError, match="unknown docnos: nope"):
        index.vec_loader()(pd.DataFrame({"docno": ["d001", "nope"]}))


def test_vec_loader_needs_docnos(index):
    with pytest.raises(pt.validate.InputValidationError):
        index.vec_loader()(pd.DataFrame({"qid": ["q"]}))


def test_cutoff_is_applied_before_vectors_are_loaded(index, topics, model, monkeypatch):
    loaded = []
    transform = VecLoader.transform
    monkeypatch.setattr(VecLoader, "transform", lambda self, inp: loaded.append(len(inp)) or transform(self, inp))
    pipeline = index.retriever(model, num_results=20) >> index.vec_loader() % 3
    compiled = pipeline.compile()
    expected = pipeline(topics)
    loaded.clear()
    found = compiled(topics)
    assert loaded == [15]
    assert found["docno"].tolist() == expected["docno"].tolist()


def test_example_loads_the_example_vectors():
    found = VecLoader.example()(pd.DataFrame({"docno": ["d1", "d2", "d3"]}))
    np.testing.assert_array_equal(np.stack(found["doc_vec"]), HypencoderIndex.example().vectors)
