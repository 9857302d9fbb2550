"""Indexing: bad documents, streaming, interruptions. Nothing half-written ever stands under an index's name."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from processes import PROCESSES, run_in_child

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderIndexer
from pyterrier_hypencoder.index.staging import get_staging_path, is_unfinished
from pyterrier_hypencoder.index.writer import is_index

GOLDEN = Path(__file__).parents[1] / "golden"
Doc = dict[str, Any]


class FakeModel:
    """An encoder that knows no language, and remembers what it was asked."""

    def __init__(self, name: str = "fake", vec_size: int = 8) -> None:
        self.name = name
        self.vec_size = vec_size
        self.texts: list[str] = []

    def encode_docs(self, texts: list[str]) -> np.ndarray:
        self.texts += texts
        digests = np.frombuffer(b"".join(hashlib.sha256(text.encode()).digest() for text in texts), dtype=np.uint8)
        return np.tile(digests.reshape(len(texts), 32), 20)[:, : self.vec_size].astype(np.float32)

    def record(self) -> dict[str, Any]:
        return {"class": "FakeModel", "name": self.name, "revision": None, "fingerprint": self.name, "options": {}}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


def with_texts(n: int = 200) -> list[Doc]:
    return [{"docno": f"d{i}", "text": f"text of document {i}"} for i in range(n)]


def with_vectors(n: int = 200, size: int = 8) -> list[Doc]:
    vectors = np.random.default_rng(n).standard_normal((n, size))
    return [{"docno": f"d{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]


def indexed(path: Path, docs: Iterable[Doc], model: Any = None, **options: Any) -> Path:
    HypencoderIndexer(path, model, **{"batch_size": 64, **options}).index(docs)
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is below a folder; locks aside, which say nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != "lock"
    }


def stored(path: Path) -> int:
    """Documents that an interrupted build has stored."""
    state = get_staging_path(path) / "state.json"
    return json.loads(state.read_text())["count"] if state.exists() else 0


def replaced(docs: list[Doc], at: int, doc: Any) -> list[Doc]:
    return [*docs[:at], doc, *docs[at + 1 :]]


# Documents


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_the_batch_size_changes_nothing(tmp_path, size):
    index = HypencoderIndex(indexed(tmp_path / "x.hyp", with_texts(130), FakeModel(), batch_size=size))
    assert list(index.docnos) == [doc["docno"] for doc in with_texts(130)]
    expected = FakeModel().encode_docs([doc["text"] for doc in with_texts(130)])
    np.testing.assert_array_equal(index.vectors, expected)


def test_documents_may_be_a_frame_a_list_or_a_generator(tmp_path):
    docs = with_vectors()
    trees = [tree(indexed(tmp_path / str(i), it)) for i, it in enumerate((docs, iter(docs), pd.DataFrame(docs)))]
    assert trees[0] == trees[1] == trees[2]


def test_several_fields_are_joined_and_some_may_be_missing(tmp_path):
    model = FakeModel()
    docs = [
        {"docno": "1", "title": "a", "text": "b "},
        {"docno": "2", "title": None, "text": "b"},
        {"docno": "3", "text": ""},
        {"docno": "4", "title": " a", "text": float("nan")},
    ]
    indexed(tmp_path / "x.hyp", docs, model, text_field=["title", "text"])
    assert model.texts == ["a b", "b", "", "a"]


def test_doc_vec_comes_before_the_model(tmp_path):
    model = FakeModel()
    index = HypencoderIndex(indexed(tmp_path / "x.hyp", with_vectors(), model))
    assert not model.texts and index.meta["model"] == model.record() and index.meta["text_field"] is None


DOCNO = "docno must be a non-empty string .* Give every document a docno"
TEXT = "Document 'bad' must have a string in text, got .*Give every document a text .*or name the right fields in text_field"
VECTOR = r"doc_vec of document 'bad' must be a vector of .* numbers, got "
NOT_FINITE = "document 'bad' must be finite in float16, got NaN or infinity. "
BAD = {
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


def around(name: str, at: int) -> list[Doc]:
    """Good documents of the kind that a bad one belongs to, with it among them."""
    return replaced(with_vectors() if name.startswith("vector") else with_texts(), at, BAD[name][0])


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("at", [10, 128, 150], ids=["first batch", "start of a batch", "later"])
def test_a_bad_document_is_an_error_and_leaves_what_existed(tmp_path, name, at):
    message = BAD[name][1]
    indexed(tmp_path / "x.hyp", with_vectors(20, 4), dtype="fp32")
    before = tree(tmp_path)
    docs = around(name, at)
    with pytest.raises(ValueError, match=message):
        indexed(tmp_path / "new.hyp", docs, FakeModel())
    assert not (tmp_path / "new.hyp").exists()
    with pytest.raises(ValueError, match=message):
        indexed(tmp_path / "x.hyp", docs, FakeModel(), mode="overwrite")
    assert {name: data for name, data in tree(tmp_path).items() if ".partial" not in name} == before
    for path in (tmp_path / "new.hyp", tmp_path / "x.hyp"):
        assert stored(path) == at // 64 * 64
        assert get_staging_path(path).exists() == (at >= 64)


@pytest.mark.parametrize("name", sorted(BAD.keys() - {"docno repeated", "vector too short", "vector too long"}))
def test_a_bad_first_document_is_an_error_and_leaves_nothing(tmp_path, name):
    with pytest.raises(ValueError, match="must be|must have|has no"):
        indexed(tmp_path / "x.hyp", [BAD[name][0]], FakeModel() if name != "vector missing" else None)
    assert not tree(tmp_path)


@pytest.mark.parametrize("name", ["docno empty", "docno repeated", "text None", "vector too short", "vector with NaN"])
def test_resuming_after_a_bad_document_was_mended_gives_the_uninterrupted_index(tmp_path, name):
    docs = around(name, 150)
    mended = replaced(docs, 150, {**docs[149], "docno": "mended"})
    with pytest.raises(ValueError):
        indexed(tmp_path / "x.hyp", docs, FakeModel())
    model = FakeModel()
    assert tree(indexed(tmp_path / "x.hyp", mended, model, mode="resume")) == tree(
        indexed(tmp_path / "y.hyp", mended, FakeModel())
    )
    assert model.texts == ([] if "doc_vec" in docs[0] else [doc["text"] for doc in mended[128:]])
    assert {path.name for path in tmp_path.iterdir()} == {"x.hyp", "y.hyp"}


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
@pytest.mark.parametrize("nothing", [[], iter(()), pd.DataFrame(columns=["docno", "text"])], ids=["list", "iterator", "frame"])
def test_no_documents_are_an_error(tmp_path, mode, nothing):
    indexed(tmp_path / "x.hyp", with_vectors(3))
    before = tree(tmp_path)
    for path in (tmp_path / "x.hyp", tmp_path / "new.hyp"):
        with pytest.raises(ValueError, match="There are no documents, expected at least one. Nothing was written"):
            indexed(path, nothing, FakeModel(), mode=mode)
    assert tree(tmp_path) == before


def test_texts_without_a_model_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"Document 'd0' has no doc_vec, only \['docno', 'text'\]. Pass a model"):
        indexed(tmp_path / "x.hyp", with_texts())
    assert not tree(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mode": "append"}, "mode must be one of 'create', 'overwrite', 'resume', got 'append'"),
        ({"dtype": "int8"}, "dtype must be one of 'fp16', 'fp32', got 'int8'"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": -1}, "batch_size must be a positive integer, got -1"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer, got 1.5"),
        ({"batch_size": True}, "batch_size must be a positive integer, got True"),
        ({"text_field": []}, "text_field must be the name of a field or a list of names"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_bad_options_are_errors_and_leave_what_existed(tmp_path, option, message, there):
    if there:
        indexed(tmp_path / "x.hyp", with_texts(), FakeModel())
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        indexed(tmp_path / "x.hyp", with_texts(), FakeModel(), **{"mode": "overwrite" if there else "create", **option})
    assert tree(tmp_path) == before


def test_index_takes_no_options(tmp_path):
    with pytest.raises(TypeError, match=r"index\(\) takes no options, got \['threads'\]. Pass them to HypencoderIndexer"):
        HypencoderIndexer(tmp_path / "x.hyp").index(with_vectors(), threads=2)


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_index_is_left_alone(tmp_path, mode, kind):
    path = tmp_path / "x.hyp"
    if kind == "folder":
        path.mkdir()
    (path / "notes.txt" if kind == "folder" else path).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"x\.hyp (already )?exists.* [cC]hoose another path"):
        indexed(path, with_vectors(), mode=mode)
    assert tree(tmp_path) == before


def test_an_existing_index_is_left_alone(tmp_path):
    path = indexed(tmp_path / "x.hyp", with_vectors())
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"x\.hyp already exists. Pass mode='overwrite' to replace an index"):
        indexed(path, with_vectors(300))
    assert tree(tmp_path) == before


# Overwriting and resuming


def test_overwriting_replaces_only_when_complete(tmp_path):
    path = indexed(tmp_path / "x.hyp", with_texts(), FakeModel("old"))
    before = tree(path)

    def watched() -> Iterator[Doc]:
        for doc in with_texts(300):
            assert tree(path) == before
            yield doc

    indexed(path, watched(), FakeModel("new"), mode="overwrite")
    assert [file.name for file in tmp_path.iterdir()] == ["x.hyp"]
    assert tree(path) == tree(indexed(tmp_path / "y.hyp", with_texts(300), FakeModel("new")))


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
def test_an_interrupted_overwriting_is_gone_on_with(tmp_path, mode):
    """Resuming goes on with the new index, and does not take the old one for it."""
    path, docs = indexed(tmp_path / "x.hyp", with_texts(), FakeModel("old")), with_texts(200)
    with pytest.raises(ValueError):
        indexed(path, replaced(docs, 150, {"docno": ""}), FakeModel("new"), mode="overwrite")
    if mode == "create":
        with pytest.raises(FileExistsError):
            indexed(path, docs, FakeModel("new"))
        return
    model = FakeModel("new")
    assert tree(indexed(path, docs, model, mode=mode)) == tree(indexed(tmp_path / "y.hyp", docs, FakeModel("new")))
    assert len(model.texts) == {"overwrite": 200, "resume": 72}[mode]
    assert not get_staging_path(path).exists()


@pytest.fixture
def interrupted(tmp_path) -> Path:
    """A build of 200 texts that ended after 128."""
    with pytest.raises(ValueError):
        indexed(tmp_path / "x.hyp", replaced(with_texts(), 150, {"docno": ""}), FakeModel())
    assert stored(tmp_path / "x.hyp") == 128
    return tmp_path / "x.hyp"


@pytest.mark.parametrize("n", [0, 1, 64, 127, 128, 199])
def test_resuming_encodes_only_what_is_not_stored(tmp_path, n):
    with pytest.raises(ValueError):
        indexed(tmp_path / "x.hyp", replaced(with_texts(), n, {"docno": ""}), FakeModel())
    model = FakeModel()
    indexed(tmp_path / "x.hyp", with_texts(), model, mode="resume")
    assert model.texts == [doc["text"] for doc in with_texts()[n // 64 * 64 :]]
    assert tree(tmp_path / "x.hyp") == tree(indexed(tmp_path / "y.hyp", with_texts(), FakeModel()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda docs: replaced(docs, 100, {"docno": "other", "text": "t"}), "expected 'd100' at position 100, got 'other'"),
        (
            lambda docs: docs[1:],
            "must begin with the 128 documents .*expected 'd0' at position 0, got 'd1'",
        ),
        (
            lambda docs: docs[:100],
            "expected 'd100' at position 100, got the end of the stream.* Pass the same documents in the same order, or use mode=",
        ),
        (lambda docs: docs[:50] + docs[51:], "expected 'd50' at position 50, got 'd51'"),
        (lambda docs: replaced(docs, 100, {"text": "t"}), "Document 100 must be a dictionary with a docno"),
        (lambda docs: [*docs[:150], docs[3]], "got 'd3' twice"),
        (lambda docs: with_vectors(), "The build of .* cannot be resumed with .* Use the same model"),
    ],
)
def test_resuming_with_another_stream_is_an_error_and_keeps_what_is_stored(tmp_path, interrupted, change, message):
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        indexed(interrupted, change(with_texts()), FakeModel(), mode="resume")
    assert tree(tmp_path) == before


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
def test_resuming_with_other_options_is_an_error_and_keeps_what_is_stored(tmp_path, interrupted, model, options, complete):
    if complete:
        indexed(interrupted, with_texts(), FakeModel(), mode="resume")
    before = tree(tmp_path)
    with pytest.raises(
        ValueError,
        match="The build of .* cannot be resumed with .* Use the same model, dtype and text field, or start again with mode=",
    ):
        indexed(interrupted, with_texts(), FakeModel(model), mode="resume", **options)
    assert tree(tmp_path) == before


def test_resuming_what_was_never_begun_begins_it(tmp_path):
    created = tree(indexed(tmp_path / "x.hyp", with_texts(), FakeModel()))
    assert tree(indexed(tmp_path / "y.hyp", with_texts(), FakeModel(), mode="resume")) == created


def test_resuming_a_complete_index_does_nothing(tmp_path):
    path, model = indexed(tmp_path / "x.hyp", with_texts(), FakeModel()), FakeModel()
    before, inode = tree(tmp_path), path.stat().st_ino
    index = HypencoderIndexer(path, model, mode="resume").index(with_texts())
    assert len(index) == 200 and not model.texts
    assert tree(tmp_path) == before and path.stat().st_ino == inode


@pytest.mark.parametrize(
    ("docs", "message"),
    [
        (
            with_texts(201),
            "is complete with 200 documents, got another one, 'd200'. Documents cannot be added to an index",
        ),
        (with_texts(199), "expected 'd199' at position 199, got the end of the stream"),
        (with_texts()[::-1], "expected 'd0' at position 0, got 'd199'"),
    ],
)
def test_resuming_a_complete_index_with_other_documents_is_an_error(tmp_path, docs, message):
    path = indexed(tmp_path / "x.hyp", with_texts(), FakeModel())
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        indexed(path, docs, FakeModel(), mode="resume")
    assert tree(tmp_path) == before


def test_an_interrupt_keeps_what_is_stored(tmp_path):
    def stopped() -> Iterator[Doc]:
        yield from with_texts()[:150]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        indexed(tmp_path / "x.hyp", stopped(), FakeModel())
    assert stored(tmp_path / "x.hyp") == 128 and not (tmp_path / "x.hyp").exists()
    indexed(tmp_path / "x.hyp", with_texts(), FakeModel(), mode="resume")


# Streaming


class Counted(dict):
    """A document that can be counted while it is alive."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("kind", ["text", "doc_vec"])
def test_documents_are_pulled_and_kept_two_batches_at_most(tmp_path, kind):
    path, size, alive, most = tmp_path / "x.hyp", 50, weakref.WeakSet(), []

    def stream() -> Iterator[Doc]:
        for pulled, doc in enumerate(with_texts(1000) if kind == "text" else with_vectors(1000)):
            most.append((len(alive), pulled - stored(path)))
            counted = Counted(doc)
            alive.add(counted)
            yield counted
            del counted

    gc.collect()
    indexed(path, stream(), FakeModel(), batch_size=size)
    kept, ahead = map(max, zip(*most, strict=True))
    assert kept <= 2 * size + 2
    assert ahead <= size
    assert len(HypencoderIndex(path)) == 1000


def peak_memory(folder: str, n: int) -> float:
    """MiB at most while indexing n texts; runs in a process of its own. All vectors at once would be 2.5 KiB a text."""
    os.fsync = lambda file: None
    docs = ({"docno": f"doc{i}", "text": f"short text number {i} about nothing"} for i in range(n))
    HypencoderIndexer(Path(folder) / f"{n}.hyp", FakeModel(vec_size=640)).index(docs)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def test_memory_does_not_grow_with_the_collection(tmp_path):
    small, large = run_in_child(peak_memory, str(tmp_path), 10_000), run_in_child(peak_memory, str(tmp_path), 100_000)
    assert large - small < 200
    assert len(HypencoderIndex(tmp_path / "100000.hyp")) == 100_000


# Two at once


def index_elsewhere(path: Path, mode: str) -> None:
    indexed(path, with_vectors(), mode=mode)


@pytest.mark.parametrize("there", [False, True])
def test_a_second_writer_gets_an_error_and_the_first_goes_on(tmp_path, there):
    path = tmp_path / "x.hyp"
    if there:
        indexed(path, with_vectors(30))

    def disturbed() -> Iterator[Doc]:
        for position, doc in enumerate(with_vectors()):
            if position in (64, 150):
                before = tree(tmp_path)
                for mode in ("overwrite", "resume"):
                    with pytest.raises(RuntimeError, match="Another process is building .* Wait until it has finished"):
                        run_in_child(index_elsewhere, path, mode)
                with pytest.raises(FileExistsError, match="already exists|interrupted build"):
                    run_in_child(index_elsewhere, path, "create")
                assert tree(tmp_path) == before
            yield doc

    indexed(path, disturbed(), mode="overwrite")
    assert tree(path) == tree(indexed(tmp_path / "y.hyp", with_vectors()))


# Sudden death


def slowly(docs: Iterable[Doc], pause: float, started: Any, finishing: Any) -> Iterator[Doc]:
    """The documents with pauses, and a long one at the end: a build that is to be killed while it streams does not finish."""
    started.set()
    for position, doc in enumerate(docs):
        if position % 16 == 0:
            time.sleep(pause)
        yield doc
    time.sleep(120 if pause else 0)
    finishing.set()


def golden_docs(n: int) -> list[Doc]:
    docs = json.loads((GOLDEN / "texts.json").read_text())["docs"]
    return [
        {"docno": f"{doc['docno']}/{i}", "text": doc["text"]} for i, doc in zip(range(n), itertools.cycle(docs), strict=False)
    ]


def build_slowly(path: Path, kind: str, mode: str, pause: float, started: Any, finishing: Any) -> None:
    if kind == "doc_vec":
        docs, model = with_vectors(3000, 16), None
    else:
        docs, model = golden_docs(640), Hypencoder(str(GOLDEN / "tiny_6l_cls_shared"), device="cpu", doc_max_length=64)
        model.record()  # loads it
    indexed(path, slowly(docs, pause, started, finishing), model, mode=mode)


def build_and_kill(path: Path, kind: str, mode: str, pause: float, after: float | None, *, finish: bool = False) -> int:
    """Builds in a process of its own, killed so many seconds after its stream began (ended); its exit code."""
    started, finishing = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=build_slowly, args=(path, kind, mode, pause, started, finishing))
    process.start()
    if after is not None:
        assert (finishing if finish else started).wait(timeout=120)
        time.sleep(after)
        process.kill()
    process.join(timeout=120)
    assert process.exitcode is not None
    return process.exitcode


def assert_never_half_there(path: Path, old: dict[str, bytes | None] | None, new: dict[str, bytes | None]) -> None:
    """Under its name there is the old index or the new one; or none, where there was none or while it can be put back."""
    if path.exists():
        assert tree(path) in (old, new)
    elif old is not None:
        assert tree(get_staging_path(path) / "old") == old and is_unfinished(path)


@pytest.mark.parametrize(("kind", "pause", "seconds"), [("doc_vec", 0.004, 0.75), ("text", 0.02, 0.8)])
def test_a_build_killed_five_times_and_resumed_is_the_uninterrupted_one(tmp_path, kind, pause, seconds):
    path, whole = tmp_path / "x.hyp", tmp_path / "whole.hyp"
    assert build_and_kill(whole, kind, "create", 0, None) == 0
    rng = random.Random(5)
    for moment in sorted(rng.uniform(0.05, 0.95) * seconds for _ in range(5)):  # the stream alone takes so many seconds
        assert build_and_kill(path, kind, "resume", pause, moment) == -signal.SIGKILL
        assert not path.exists()
    assert stored(path)
    assert build_and_kill(path, kind, "resume", 0, None) == 0
    assert tree(path) == tree(whole)
    assert not get_staging_path(path).exists()


def test_a_build_killed_while_it_finishes_and_resumed_is_the_uninterrupted_one(tmp_path):
    path, whole = tmp_path / "x.hyp", tmp_path / "whole.hyp"
    assert build_and_kill(whole, "doc_vec", "create", 0, None) == 0
    old, rng = tree(indexed(path, with_vectors(30))), random.Random(5)
    for mode in ["overwrite"] + ["resume"] * 4:
        build_and_kill(path, "doc_vec", mode, 0, rng.uniform(0, 0.03), finish=True)
        assert_never_half_there(path, old, tree(whole))
    assert build_and_kill(path, "doc_vec", "resume", 0, None) == 0
    assert tree(path) == tree(whole)
    assert not get_staging_path(path).exists()


def die_at(step: int, folder: str) -> None:
    """Kills this process when it is about to touch the file system below a folder for the so-many-th time."""
    steps = itertools.count(1)
    touches = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in touches and (folder in str(args[0]) or event == "os.rmdir") and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def die_everywhere(folder: Path, there: bool, mode: str, then: str) -> int:
    """Kills a build before each of its touches of the file system in turn, builds again, and compares; the deaths."""
    os.fsync = lambda file: None  # of no matter to the death of a process, and slow
    docs = with_vectors(30, 4)
    old = tree(indexed(folder / "old.hyp", with_vectors(7, 2))) if there else None
    new = tree(indexed(folder / "new.hyp", docs, batch_size=12))
    for step in itertools.count(1):
        path = folder / f"{step}.hyp"
        if there:
            shutil.copytree(folder / "old.hyp", path)
        child = os.fork()
        if not child:
            code = 1
            try:
                die_at(step, str(path))
                indexed(path, docs, mode=mode, batch_size=12)
                code = 0
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), f"at step {step}: {status}"
        assert_never_half_there(path, old, new)
        try:
            indexed(path, docs, mode=then, batch_size=12)
        except FileExistsError:  # it does not take what it finds for nothing
            assert then == "create" and (is_index(path) or is_unfinished(path))
            indexed(path, docs, mode="overwrite", batch_size=12)
        except ValueError:  # it was too early to begin: the old index is all there is
            assert then == "resume" and tree(path) == old and not is_unfinished(path)
            indexed(path, docs, mode="overwrite", batch_size=12)
        assert tree(path) == new, f"at step {step}"
        assert {file.name for file in folder.glob(f"{step}.hyp*")} == {path.name}, f"at step {step}"
        if status == 0:
            return step - 1
    raise AssertionError


@pytest.mark.parametrize(
    ("there", "mode", "then"),
    [
        (False, "create", "resume"),
        (False, "create", "create"),
        (True, "overwrite", "resume"),
        (True, "overwrite", "overwrite"),
    ],
)
def test_a_build_may_die_at_any_touch_of_the_file_system(tmp_path, there, mode, then):
    assert run_in_child(die_everywhere, tmp_path, there, mode, then) > 30
