"""Indexers: invalid documents and options, streaming, overwriting, resuming. An incomplete index never has its final name."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import resource
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from indexes import read_tree
from indexing import Doc, FakeModel, build, count_stored, make_texts, make_vectors, replace_at
from processes import run_in_child

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderIndexer
from pyterrier_hypencoder.index.staging import get_staging_path
from pyterrier_hypencoder.transformers.indexer import DocumentIndexer


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Skip fsync, which takes most of the time and does not matter for the death of a process."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


# Documents


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_batch_size_does_not_change_the_index(tmp_path, size):
    index = HypencoderIndex(build(tmp_path / "x.hyp", make_texts(130), FakeModel(), batch_size=size))
    assert list(index.docnos) == [doc["docno"] for doc in make_texts(130)]
    expected = FakeModel().encode_docs([doc["text"] for doc in make_texts(130)])
    np.testing.assert_array_equal(index.vectors, expected)


def test_documents_can_be_a_frame_a_list_or_a_generator(tmp_path):
    docs = make_vectors()
    trees = [read_tree(build(tmp_path / str(i), it)) for i, it in enumerate((docs, iter(docs), pd.DataFrame(docs)))]
    assert trees[0] == trees[1] == trees[2]


def test_text_fields_are_joined_and_some_can_be_missing(tmp_path):
    model = FakeModel()
    docs = [
        {"docno": "1", "title": "a", "text": "b "},
        {"docno": "2", "title": None, "text": "b"},
        {"docno": "3", "text": ""},
        {"docno": "4", "title": " a", "text": float("nan")},
    ]
    build(tmp_path / "x.hyp", docs, model, text_field=["title", "text"])
    assert model.texts == ["a b", "b", "", "a"]


def test_doc_vec_takes_precedence_over_the_model(tmp_path):
    model = FakeModel()
    index = HypencoderIndex(build(tmp_path / "x.hyp", make_vectors(), model))
    assert not model.texts and index.meta["model"] == model.record() and index.meta["text_field"] is None


DOCNO = "docno must be a non-empty string .* Give every document a docno"
TEXT = "Document 'bad' must have a string in text, got .*Give every document a text .*or name the right fields in text_field"
VECTOR = r"doc_vec of document 'bad' must be a vector of .* numbers, got "
NOT_FINITE = "document 'bad' must be finite in float16, got NaN or infinity. "
INVALID = {
    "docno empty": ({"docno": "", "text": "t"}, DOCNO),
    "docno None": ({"docno": None, "text": "t"}, DOCNO),
    "docno a number": ({"docno": 12, "text": "t"}, DOCNO),
    "docno NaN": ({"docno": float("nan"), "text": "t"}, DOCNO),
    "docno too long": ({"docno": "x" * 5000, "text": "t"}, DOCNO),
    "docno missing": ({"text": "t"}, r"Document \d+ must be a dictionary with a docno, got \['text'\]"),
    "docno repeated": ({"docno": "d3", "text": "t"}, "docno must be unique, got 'd3' twice. Remove or"),
    "no dictionary": ("d1", r"Document \d+ must be a dictionary with a docno, got 'd1'"),
    "text missing": ({"docno": "bad", "title": "t"}, TEXT),
    "text None": ({"docno": "bad", "text": None}, TEXT),
    "text NaN": ({"docno": "bad", "text": float("nan")}, TEXT),
    "text NA": ({"docno": "bad", "text": pd.NA}, TEXT),
    "text a number": ({"docno": "bad", "text": 3}, TEXT),
    "text bytes": ({"docno": "bad", "text": b"t"}, TEXT),
    "text a list": ({"docno": "bad", "text": ["t"]}, TEXT),
    "vector missing": ({"docno": "bad", "text": "t"}, VECTOR + "None"),
    "vector a number": ({"docno": "bad", "doc_vec": 3.0}, VECTOR + "3.0"),
    "vector text": ({"docno": "bad", "doc_vec": "1 2 3"}, VECTOR + "'1 2 3'"),
    "vector of text": ({"docno": "bad", "doc_vec": ["a"] * 8}, VECTOR),
    "vector too short": ({"docno": "bad", "doc_vec": np.ones(7)}, VECTOR + r"shape \(7,\)"),
    "vector too long": ({"docno": "bad", "doc_vec": [1.0] * 9}, VECTOR + r"shape \(9,\)"),
    "vector empty": ({"docno": "bad", "doc_vec": []}, VECTOR + r"shape \(0,\)"),
    "vector nested": ({"docno": "bad", "doc_vec": np.ones((1, 8))}, VECTOR + r"shape \(1, 8\)"),
    "vector ragged": ({"docno": "bad", "doc_vec": [[1.0], [1.0, 2.0]]}, VECTOR),
    "vector with NaN": ({"docno": "bad", "doc_vec": [np.nan] + [0] * 7}, NOT_FINITE + "Check the document"),
    "vector with infinity": ({"docno": "bad", "doc_vec": [np.inf] + [0] * 7}, NOT_FINITE + "Check the document"),
    "vector too large": ({"docno": "bad", "doc_vec": [1e5] + [0] * 7}, NOT_FINITE + "Pass dtype='fp32'"),
}


def surround(name: str, at: int) -> list[Doc]:
    """Return valid documents of the same kind, with the invalid one at a position."""
    return replace_at(make_vectors() if name.startswith("vector") else make_texts(), at, INVALID[name][0])


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("at", [10, 128, 150], ids=["first batch", "start of a batch", "within a batch"])
def test_invalid_document_is_an_error_and_changes_no_index(tmp_path, name, at):
    message = INVALID[name][1]
    build(tmp_path / "x.hyp", make_vectors(20, 4), dtype="fp32")
    before = read_tree(tmp_path)
    docs = surround(name, at)
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "new.hyp", docs, FakeModel())
    assert not (tmp_path / "new.hyp").exists()
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "x.hyp", docs, FakeModel(), mode="overwrite")
    assert {name: data for name, data in read_tree(tmp_path).items() if ".partial" not in name} == before
    for path in (tmp_path / "new.hyp", tmp_path / "x.hyp"):
        assert count_stored(path) == at // 64 * 64
        assert get_staging_path(path).exists() == (at >= 64)


@pytest.mark.parametrize("name", sorted(INVALID.keys() - {"docno repeated", "vector too short", "vector too long"}))
def test_invalid_first_document_is_an_error_and_leaves_no_files(tmp_path, name):
    with pytest.raises(ValueError, match="must be|must have|has no"):
        build(tmp_path / "x.hyp", [INVALID[name][0]], FakeModel() if name != "vector missing" else None)
    assert not read_tree(tmp_path)


@pytest.mark.parametrize("name", ["docno empty", "docno repeated", "text None", "vector too short", "vector with NaN"])
def test_resume_after_a_corrected_document_gives_the_same_bytes(tmp_path, name):
    docs = surround(name, 150)
    mended = replace_at(docs, 150, {**docs[149], "docno": "mended"})
    with pytest.raises(ValueError):
        build(tmp_path / "x.hyp", docs, FakeModel())
    model = FakeModel()
    assert read_tree(build(tmp_path / "x.hyp", mended, model, mode="resume")) == read_tree(
        build(tmp_path / "y.hyp", mended, FakeModel())
    )
    assert model.texts == ([] if "doc_vec" in docs[0] else [doc["text"] for doc in mended[128:]])
    assert {path.name for path in tmp_path.iterdir()} == {"x.hyp", "y.hyp"}


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
@pytest.mark.parametrize("nothing", [[], iter(()), pd.DataFrame(columns=["docno", "text"])], ids=["list", "iterator", "frame"])
def test_no_documents_are_an_error(tmp_path, mode, nothing):
    build(tmp_path / "x.hyp", make_vectors(3))
    before = read_tree(tmp_path)
    for path in [tmp_path / "new.hyp", *([tmp_path / "x.hyp"] if mode != "create" else [])]:
        with pytest.raises(ValueError, match="There are no documents, expected at least one. Nothing was written"):
            build(path, nothing, FakeModel(), mode=mode)
    assert read_tree(tmp_path) == before


def test_texts_without_a_model_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"Document 'd0' has no doc_vec, only \['docno', 'text'\]. Pass a model"):
        build(tmp_path / "x.hyp", make_texts())
    assert not read_tree(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mode": "append"}, "mode must be one of 'create', 'overwrite', 'resume', got 'append'"),
        ({"dtype": "int4"}, "dtype must be one of 'fp16', 'fp32', 'int8', got 'int4'"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": -1}, "batch_size must be a positive integer, got -1"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer, got 1.5"),
        ({"batch_size": True}, "batch_size must be a positive integer, got True"),
        ({"text_field": []}, "text_field must be the name of a field or a list of names"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_invalid_options_are_errors_and_change_no_index(tmp_path, option, message, there):
    if there:
        build(tmp_path / "x.hyp", make_texts(), FakeModel())
    before = read_tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "x.hyp", make_texts(), FakeModel(), **{"mode": "overwrite" if there else "create", **option})
    assert read_tree(tmp_path) == before


def test_index_method_takes_no_options(tmp_path):
    with pytest.raises(TypeError, match=r"index\(\) takes no options, got \['threads'\]. Pass them to HypencoderIndexer"):
        HypencoderIndexer(tmp_path / "x.hyp").index(make_vectors(), threads=2)


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_other_files_are_never_overwritten(tmp_path, mode, kind):
    path = tmp_path / "x.hyp"
    if kind == "folder":
        path.mkdir()
    (path / "notes.txt" if kind == "folder" else path).write_text("mine")
    before = read_tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"x\.hyp (already )?exists.* [cC]hoose another path"):
        build(path, make_vectors(), mode=mode)
    assert read_tree(tmp_path) == before


def test_create_refuses_an_existing_index(tmp_path):
    path = build(tmp_path / "x.hyp", make_vectors())
    before = read_tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"x\.hyp already exists. Pass mode='overwrite' to replace an index"):
        build(path, make_vectors(300))
    assert read_tree(tmp_path) == before


def test_doc_vec_is_recorded_with_the_model_of_the_indexer(model, docs, tmp_path):
    index = (model.doc_encoder() >> HypencoderIndexer(tmp_path / "x.hyp", model)).index(docs)
    assert index.meta["model"]["fingerprint"] == model.fingerprint
    assert index.model() == Hypencoder(model.name_or_path, doc_max_length=64, query_max_length=32)
    wrong = [{"docno": "d", "doc_vec": np.ones(7, np.float32)}]
    with pytest.raises(ValueError, match="24 numbers"):
        HypencoderIndexer(tmp_path / "y.hyp", model).index(wrong)


@pytest.mark.parametrize("wrong", ["jfkback/hypencoder.6_layer", 3])
def test_indexer_with_invalid_model_or_path_says_what_to_pass(tmp_path, docs, wrong):
    with pytest.raises(ValueError, match=r"model must be .*Hypencoder\(.*BiEncoder\("):
        HypencoderIndexer(tmp_path / "x.hyp", wrong).index(docs)
    for path in ("", model_as_path := Hypencoder("x")):
        with pytest.raises(ValueError, match="path must be the name of the index directory"):
            HypencoderIndexer(path).index(docs)
    assert model_as_path is not None and not list(tmp_path.iterdir())


# Everything that can fail is resolved before the first document is encoded


class CountingStream:
    """A stream of documents that counts how many were read."""

    def __init__(self, docs: list[Doc]) -> None:
        self.docs = docs
        self.read = 0

    def __iter__(self) -> Iterator[Doc]:
        for doc in self.docs:
            self.read += 1
            yield doc


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "append"},
        {"dtype": "int4"},
        {"batch_size": 0},
        {"text_field": []},
        {"graph_k": 0},
        {"graph_k": 10_001},
        {"model": "jfkback/hypencoder.6_layer"},
    ],
    ids=str,
)
def test_invalid_options_are_found_by_the_constructor_and_before_the_stream_is_read(tmp_path, options):
    stream = CountingStream(make_texts())
    message = f"{'k' if 'graph_k' in options else next(iter(options))} must be"
    with pytest.raises(ValueError, match=message):
        HypencoderIndexer(**{"path": tmp_path / "x.hyp", "model": FakeModel(), **options})
    indexer = HypencoderIndexer(tmp_path / "x.hyp", FakeModel())
    setattr(indexer, *next(iter(options.items())))
    with pytest.raises(ValueError, match=message):
        indexer.index(stream)
    assert stream.read == 0 and not list(tmp_path.iterdir())


def test_missing_faiss_is_found_before_the_stream_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    stream = CountingStream(make_vectors())
    with pytest.raises(ImportError, match="graph_k requires faiss: pip install faiss-cpu"):
        HypencoderIndexer(tmp_path / "x.hyp", graph_k=5).index(stream)
    assert stream.read == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("problem", ["existing index", "interrupted build", "broken model"])
def test_no_document_is_encoded_if_the_build_cannot_start(tmp_path, monkeypatch, problem):
    path, model, stream = tmp_path / "x.hyp", FakeModel(), CountingStream(make_texts())
    if problem == "existing index":
        build(path, make_texts(3), FakeModel())
    elif problem == "interrupted build":
        with pytest.raises(ValueError):
            build(path, replace_at(make_texts(), 150, {"docno": ""}), FakeModel())
    else:
        monkeypatch.setattr(model, "record", lambda: json.loads("not JSON"))
    with pytest.raises((FileExistsError, ValueError)):
        HypencoderIndexer(path, model).index(stream)
    assert stream.read == (1 if problem == "broken model" else 0) and not model.texts


def test_indexing_needs_neither_entry_points_nor_package_metadata(tmp_path, monkeypatch):
    """They are missing in a source tree that was never installed."""

    def find_nothing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **kwargs: importlib.metadata.EntryPoints())
    monkeypatch.setattr("pyterrier.utils.entry_points", lambda group: ())
    monkeypatch.setattr(importlib.metadata, "version", find_nothing)
    monkeypatch.setattr("pyterrier_hypencoder.index.staging.version", find_nothing)
    index = HypencoderIndexer(tmp_path / "x.hyp", FakeModel(), graph_k=2).index(make_texts(20))
    assert isinstance(index, HypencoderIndex) and len(index) == 20
    assert len(index.corpus_graph(2)) == 20


def test_class_without_open_index_cannot_be_instantiated(tmp_path):
    with pytest.raises(TypeError, match="abstract"):
        DocumentIndexer(tmp_path / "x.hyp")  # type: ignore[abstract]


# Overwriting and resuming


def test_overwrite_replaces_index_only_when_complete(tmp_path):
    path = build(tmp_path / "x.hyp", make_texts(), FakeModel("old"))
    before = read_tree(path)

    def watched() -> Iterator[Doc]:
        for doc in make_texts(300):
            assert read_tree(path) == before
            yield doc

    build(path, watched(), FakeModel("new"), mode="overwrite")
    assert [file.name for file in tmp_path.iterdir()] == ["x.hyp"]
    assert read_tree(path) == read_tree(build(tmp_path / "y.hyp", make_texts(300), FakeModel("new")))


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
def test_interrupted_overwrite_can_be_resumed(tmp_path, mode):
    path, docs = build(tmp_path / "x.hyp", make_texts(), FakeModel("old")), make_texts(200)
    with pytest.raises(ValueError):
        build(path, replace_at(docs, 150, {"docno": ""}), FakeModel("new"), mode="overwrite")
    if mode == "create":
        with pytest.raises(FileExistsError):
            build(path, docs, FakeModel("new"))
        return
    model = FakeModel("new")
    assert read_tree(build(path, docs, model, mode=mode)) == read_tree(build(tmp_path / "y.hyp", docs, FakeModel("new")))
    assert len(model.texts) == {"overwrite": 200, "resume": 72}[mode]
    assert not get_staging_path(path).exists()


@pytest.fixture
def interrupted(tmp_path) -> Path:
    """Return the path of a build of 200 texts that stopped after 128."""
    with pytest.raises(ValueError):
        build(tmp_path / "x.hyp", replace_at(make_texts(), 150, {"docno": ""}), FakeModel())
    assert count_stored(tmp_path / "x.hyp") == 128
    return tmp_path / "x.hyp"


@pytest.mark.parametrize("n", [0, 1, 64, 127, 128, 199])
def test_resume_encodes_only_missing_documents(tmp_path, n):
    with pytest.raises(ValueError):
        build(tmp_path / "x.hyp", replace_at(make_texts(), n, {"docno": ""}), FakeModel())
    model = FakeModel()
    build(tmp_path / "x.hyp", make_texts(), model, mode="resume")
    assert model.texts == [doc["text"] for doc in make_texts()[n // 64 * 64 :]]
    assert read_tree(tmp_path / "x.hyp") == read_tree(build(tmp_path / "y.hyp", make_texts(), FakeModel()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda docs: replace_at(docs, 100, {"docno": "other", "text": "t"}), "expected 'd100' at position 100, got 'other'"),
        (
            lambda docs: docs[1:],
            "must begin with the 128 documents .*expected 'd0' at position 0, got 'd1'",
        ),
        (
            lambda docs: docs[:100],
            "expected 'd100' at position 100, got the end of the stream.* Pass the same documents in the same order, or use",
        ),
        (lambda docs: docs[:50] + docs[51:], "expected 'd50' at position 50, got 'd51'"),
        (lambda docs: replace_at(docs, 100, {"text": "t"}), "Document 100 must be a dictionary with a docno"),
        (lambda docs: [*docs[:150], docs[3]], "got 'd3' twice"),
        (lambda docs: make_vectors(), "The build of .* cannot be resumed with .* Use the same model"),
    ],
)
def test_resume_with_other_documents_is_an_error_and_keeps_the_build(tmp_path, interrupted, change, message):
    before = read_tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        build(interrupted, change(make_texts()), FakeModel(), mode="resume")
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("other", {}),
        ("fake", {"dtype": "fp32"}),
        ("fake", {"text_field": "title"}),
        ("fake", {"text_field": ["text", "title"]}),
    ],
)
def test_resume_with_other_options_is_an_error_and_keeps_the_build(tmp_path, interrupted, model, options, complete):
    if complete:
        build(interrupted, make_texts(), FakeModel(), mode="resume")
    before = read_tree(tmp_path)
    with pytest.raises(
        ValueError,
        match="The build of .* cannot be resumed with .* Use the same model, dtype and text field, or start again with mode=",
    ):
        build(interrupted, make_texts(), FakeModel(model), mode="resume", **options)
    assert read_tree(tmp_path) == before


def test_resume_without_an_interrupted_build_creates_the_index(tmp_path):
    created = read_tree(build(tmp_path / "x.hyp", make_texts(), FakeModel()))
    assert read_tree(build(tmp_path / "y.hyp", make_texts(), FakeModel(), mode="resume")) == created


def test_resume_of_a_complete_index_does_nothing(tmp_path):
    path, model = build(tmp_path / "x.hyp", make_texts(), FakeModel()), FakeModel()
    before, inode = read_tree(tmp_path), path.stat().st_ino
    index = HypencoderIndexer(path, model, mode="resume").index(make_texts())
    assert len(index) == 200 and not model.texts
    assert read_tree(tmp_path) == before and path.stat().st_ino == inode


@pytest.mark.parametrize(
    ("docs", "message"),
    [
        (
            make_texts(201),
            "is complete with 200 documents, got another one, 'd200'. Documents cannot be added to an index",
        ),
        (make_texts(199), "expected 'd199' at position 199, got the end of the stream"),
        (make_texts()[::-1], "expected 'd0' at position 0, got 'd199'"),
    ],
)
def test_resume_of_a_complete_index_with_other_documents_is_an_error(tmp_path, docs, message):
    path = build(tmp_path / "x.hyp", make_texts(), FakeModel())
    before = read_tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        build(path, docs, FakeModel(), mode="resume")
    assert read_tree(tmp_path) == before


def test_keyboard_interrupt_keeps_stored_documents(tmp_path):
    def stopped() -> Iterator[Doc]:
        yield from make_texts()[:150]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "x.hyp", stopped(), FakeModel())
    assert count_stored(tmp_path / "x.hyp") == 128 and not (tmp_path / "x.hyp").exists()
    build(tmp_path / "x.hyp", make_texts(), FakeModel(), mode="resume")


# Streaming


class Counted(dict):
    """A document that a weak reference can point to."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("kind", ["text", "doc_vec"])
def test_at_most_two_batches_of_documents_are_in_memory(tmp_path, kind):
    path, size, alive, most = tmp_path / "x.hyp", 50, weakref.WeakSet(), []

    def stream() -> Iterator[Doc]:
        for pulled, doc in enumerate(make_texts(1000) if kind == "text" else make_vectors(1000)):
            most.append((len(alive), pulled - count_stored(path)))
            counted = Counted(doc)
            alive.add(counted)
            yield counted
            del counted

    gc.collect()
    build(path, stream(), FakeModel(), batch_size=size)
    kept, ahead = map(max, zip(*most, strict=True))
    assert kept <= 2 * size + 2
    assert ahead <= size
    assert len(HypencoderIndex(path)) == 1000


def peak_memory(folder: str, n: int) -> float:
    """Return the peak memory in MiB of a process that indexes n texts, whose vectors have 5 KiB each."""
    os.fsync = lambda file: None
    docs = ({"docno": f"doc{i}", "text": f"short text number {i} about nothing"} for i in range(n))
    HypencoderIndexer(Path(folder) / f"{n}.hyp", FakeModel(vec_size=1280)).index(docs)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def test_memory_does_not_grow_with_the_collection(tmp_path):
    """All vectors together would take 136 MiB more."""
    small, large = run_in_child(peak_memory, str(tmp_path), 4_000), run_in_child(peak_memory, str(tmp_path), 32_000)
    assert large - small < 70
    assert len(HypencoderIndex(tmp_path / "32000.hyp")) == 32_000


# Two writers


def index_elsewhere(path: Path, mode: str) -> None:
    build(path, make_vectors(), mode=mode)


@pytest.mark.parametrize("there", [False, True])
def test_second_writer_is_refused_and_the_first_continues(tmp_path, there):
    path = tmp_path / "x.hyp"
    if there:
        build(path, make_vectors(30))

    def disturbed() -> Iterator[Doc]:
        for position, doc in enumerate(make_vectors()):
            if position in (64, 150):
                before = read_tree(tmp_path)
                for mode in ("overwrite", "resume", "create"):
                    with pytest.raises(FileExistsError, match="already exists|is being built by another process or thread"):
                        run_in_child(index_elsewhere, path, mode)
                assert read_tree(tmp_path) == before
            yield doc

    build(path, disturbed(), mode="overwrite")
    assert read_tree(path) == read_tree(build(tmp_path / "y.hyp", make_vectors()))


def test_progress_bar_counts_stored_documents(model, docs, tmp_path, monkeypatch):
    seen, read = [], []
    encode = type(model).encode_docs

    class Bar:
        def __init__(self, **options):
            seen.append((options["total"], options["disable"]))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def update(self, n=1):
            seen.append(n)

    def encode_plainly(self, texts):
        read.append(list(seen))
        with monkeypatch.context() as plain:
            plain.setattr(pt, "tqdm", bar)
            return encode(self, texts)

    bar = pt.tqdm
    monkeypatch.setattr(type(model), "encode_docs", encode_plainly)
    monkeypatch.setattr(pt, "tqdm", Bar)
    HypencoderIndexer(tmp_path / "x.hyp", model, batch_size=50, verbose=True).index(docs)
    assert seen == [(120, False), 0, 50, 50, 20]
    assert read == [seen[:2], seen[:3], seen[:4]]  # nothing is counted before it is encoded
