"""Opening an index directory: values, damage, other directories, fingerprints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexes import V1_INDEX, edit_meta, read_tree, write_index

from pyterrier_hypencoder.index.graph_builder import build_graph
from pyterrier_hypencoder.index.reader import IndexReader, fingerprint_index
from pyterrier_hypencoder.index.writer import IndexWriter, is_index

DOCNOS = ["d1", "07", "7", "日本 語", "été", "d10"]
VECTORS = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def index(tmp_path) -> Path:
    return write_index(tmp_path / "x.hyp", VECTORS, docnos=DOCNOS, dtype="fp16").path


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_reader_returns_what_was_written(tmp_path, dtype):
    reader = write_index(tmp_path / "x.hyp", VECTORS, docnos=DOCNOS, dtype=dtype)
    np.testing.assert_array_equal(reader.vectors, VECTORS.astype(reader.vectors.dtype))
    assert list(reader.docnos) == DOCNOS
    assert (reader.doc_count, reader.vec_size) == (6, 4)
    assert not reader.vectors.map.flags.writeable


def test_the_committed_index_of_version_1_opens():
    reader = IndexReader(V1_INDEX)
    expected = [
        [0, 1, -2, 0.5],
        [1.5, -0.25, 3, 4],
        [0.1, 0.2, 0.3, 0.4],
        [65504, -65504, 6e-8, 0],
        [1e-3, 2e-3, -3e-3, 4e-3],
        [-1, -1, -1, -1],
    ]
    np.testing.assert_array_equal(reader.vectors, np.array(expected, dtype=np.float16))
    assert list(reader.docnos) == DOCNOS
    np.testing.assert_array_equal(reader.docnos.find([*DOCNOS, "日本", "007"]), [0, 1, 2, 3, 4, 5, -1, -1])


# Damage


def change_vectors(change: Any) -> Any:
    def damage(path: Path) -> None:
        (path / "vecs.f2").write_bytes(change((path / "vecs.f2").read_bytes()))

    return damage


def change_docnos(change: Any) -> Any:
    def damage(path: Path) -> None:
        (path / "docnos.npids").write_bytes(change((path / "docnos.npids").read_bytes()))

    return damage


def change_meta(**changes: Any) -> Any:
    def damage(path: Path) -> None:
        edit_meta(path, **changes)

    return damage


def replace_meta(text: bytes) -> Any:
    return lambda path: (path / "pt_meta.json").write_bytes(text)


BYTES = r"x.hyp is damaged: vecs.f2 {}, expected 48 bytes \(6 rows of 4 numbers\). Copy the directory again or rebuild it"
COUNTS = r"must have a positive doc_count and vec_size and dtype f2 or f4 or i1, got {}. Copy the index again or rebuild it"
DAMAGES = {
    "vectors cut": (change_vectors(lambda b: b[:-1]), BYTES.format("has 47 bytes")),
    "vectors empty": (change_vectors(lambda b: b""), BYTES.format("has 0 bytes")),
    "vectors grown": (change_vectors(lambda b: b + b"\0"), BYTES.format("has 49 bytes")),
    "vectors missing": (lambda p: (p / "vecs.f2").unlink(), BYTES.format("is missing")),
    "vectors renamed": (lambda p: (p / "vecs.f2").rename(p / "vecs.f4"), BYTES.format("is missing")),
    "docnos missing": (lambda p: (p / "docnos.npids").unlink(), "docnos.npids"),
    "docnos cut": (
        change_docnos(lambda b: b[:-1]),
        "docnos.npids is damaged or belongs to another index: its checksum does not match. Copy",
    ),
    "docnos halved": (
        change_docnos(lambda b: b[: len(b) // 2]),
        "docnos.npids is damaged or belongs to another index: its checksum does not match. Copy",
    ),
    "docnos empty": (
        change_docnos(lambda b: b""),
        "docnos.npids is damaged or belongs to another index: its checksum does not match. Copy",
    ),
    "docnos text": (
        change_docnos(lambda b: b"d1\nd2\n" * 50),
        "docnos.npids is damaged or belongs to another index: its checksum does not match. Copy",
    ),
    "meta missing": (lambda p: (p / "pt_meta.json").unlink(), "is not an index: it has no pt_meta.json. Check the path"),
    "meta empty": (replace_meta(b""), "pt_meta.json is not valid JSON .* copy it again"),
    "meta cut": (replace_meta(b'{"type": "dense_'), "pt_meta.json is not valid JSON"),
    "meta binary": (replace_meta(b"\xff\xfe\x00"), "pt_meta.json is not valid JSON"),
    "meta a list": (replace_meta(b"[1]"), "pt_meta.json must contain an object, got list"),
    "another type": (change_meta(type="sparse_index"), "must have type dense_index .*, got sparse_index and hypencoder"),
    "a FlexIndex": (change_meta(format="flex"), "got dense_index and flex. HypencoderIndex.from_flex"),
    "no format": (change_meta(format="gone"), "got dense_index and None"),
    "newer": (change_meta(format_version=2, written_by="p 9"), "format version 1, got 2, written by p 9. Upgrade"),
    "version 0": (change_meta(format_version=0), "format version 1, got 0"),
    "version text": (change_meta(format_version="1"), "format version 1, got '1'"),
    "no version": (change_meta(format_version="gone"), "format version 1, got None"),
    "count too small": (change_meta(doc_count=5), r"has 48 bytes, expected 40 bytes \(5 rows of 4 numbers\)"),
    "count too large": (change_meta(doc_count=7), "has 48 bytes, expected 56 bytes"),
    "count 0": (change_meta(doc_count=0), COUNTS.format("0, 4 and f2")),
    "count text": (change_meta(doc_count="6"), COUNTS.format("6, 4 and f2")),
    "no count": (change_meta(doc_count="gone"), COUNTS.format("None, 4 and f2")),
    "size negative": (change_meta(vec_size=-4), COUNTS.format("6, -4 and f2")),
    "size and count swapped": (change_meta(vec_size=6, doc_count=4), "must have 4 docnos, got 6"),
    "another dtype": (change_meta(dtype="f4"), "vecs.f4 is missing, expected 96 bytes"),
    "unknown dtype": (change_meta(dtype="i2"), COUNTS.format("6, 4 and i2")),
}


@pytest.mark.filterwarnings("ignore:magic header not found")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_an_error_that_names_the_damage(index, damage):
    make_damage, message = DAMAGES[damage]
    make_damage(index)
    before = read_tree(index)
    with pytest.raises(ValueError, match=message):
        IndexReader(index)
    assert read_tree(index) == before


# Other directories


def test_a_missing_index_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no index at .*x.hyp. Build it with HypencoderIndexer"):
        IndexReader(tmp_path / "x.hyp")


@pytest.mark.parametrize("kind", ["empty", "files", "file"])
def test_other_files_at_the_path_are_an_error(tmp_path, kind):
    path = tmp_path / "x.hyp"
    path.write_text("mine") if kind == "file" else path.mkdir()
    if kind == "files":
        (path / "notes.txt").write_text("mine")
    assert not is_index(path)
    message = "must be the directory of an index, got a file. A package" if kind == "file" else "it has no pt_meta.json. Check"
    with pytest.raises(ValueError, match=message):
        IndexReader(path)


def test_a_missing_index_with_an_interrupted_build_says_how_to_finish_it(tmp_path):
    writer = IndexWriter(tmp_path / "x.hyp", mode="create", dtype="fp16", facts={})
    writer.add(DOCNOS, VECTORS)
    writer.abandon()
    with pytest.raises(FileNotFoundError, match="no index at .* Finish its interrupted build with mode='resume'"):
        IndexReader(tmp_path / "x.hyp")


# Fingerprints


def test_fingerprint_index_does_not_depend_on_the_path(index, tmp_path):
    expected = fingerprint_index(IndexReader(index))
    shutil.copytree(index, tmp_path / "y.hyp")
    assert fingerprint_index(IndexReader(tmp_path / "y.hyp")) == expected
    assert expected | {"fingerprint": ""} == {"doc_count": 6, "vec_size": 4, "dtype": "f2", "fingerprint": ""}


def test_fingerprint_index_sees_every_number_and_docno(tmp_path):
    other = VECTORS.copy()
    other[3, 2] += 0.5
    cases = [(VECTORS, DOCNOS), (other, DOCNOS), (VECTORS, [*DOCNOS[:5], "d11"]), (VECTORS[:5], DOCNOS[:5])]
    readers = [
        write_index(tmp_path / f"{i}.hyp", vectors, docnos=docnos, dtype="fp16") for i, (vectors, docnos) in enumerate(cases)
    ]
    assert len({fingerprint_index(reader)["fingerprint"] for reader in readers}) == len(cases)


# Imports


def test_opening_an_index_and_a_graph_does_not_load_faiss(tmp_path):
    reader = write_index(tmp_path / "x.hyp", VECTORS)
    build_graph(reader, 3)
    script = f"""
import pathlib, pkgutil, sys
from importlib import import_module
from pyterrier_hypencoder import index
for module in pkgutil.iter_modules(index.__path__):
    import_module(f"{{index.__name__}}.{{module.name}}")
from pyterrier_hypencoder.index.neighbour_graph import open_graph
from pyterrier_hypencoder.index.reader import IndexReader
assert open_graph(IndexReader(pathlib.Path({str(reader.path)!r})), 3).k == 3
print("faiss" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"
