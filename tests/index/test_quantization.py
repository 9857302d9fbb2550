"""Vectors in int8: their values, files and sizes, resumed builds, damage, and everything that reads them."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexes import make_clusters, read_tree, write_index

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.index import quantization, staging
from pyterrier_hypencoder.index.distinct import DistinctVectors
from pyterrier_hypencoder.index.graph_builder import build_graph
from pyterrier_hypencoder.index.inner_product import build_inner_product_index
from pyterrier_hypencoder.index.reader import IndexReader, fingerprint_index
from pyterrier_hypencoder.index.staging import get_staging_path
from pyterrier_hypencoder.index.writer import IndexWriter

FACTS = {"model": None, "text_field": None}
VECTORS = np.random.default_rng(0).standard_normal((700, 24)).astype(np.float32)


def start(path: Path, n: int = len(VECTORS), *, mode: str = "create", dtype: str = "int8", batch: int = 100) -> IndexWriter:
    """Add the first n vectors in batches, except those that are stored."""
    writer = IndexWriter(path, mode=mode, dtype=dtype, facts=FACTS)
    for first in range(writer.count, n, batch):
        rows = VECTORS[first : min(first + batch, n)]
        writer.add([f"d{first + i}" for i in range(len(rows))], rows)
    return writer


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(quantization, "_BLOCK_BYTES", 50 * 24 * 4)


@pytest.fixture
def index(tmp_path) -> Path:
    start(tmp_path / "x.hyp").finish()
    return tmp_path / "x.hyp"


# Files and values


def test_int8_index_has_the_documented_files_and_sizes(index):
    files = read_tree(index)
    assert set(files) == {"pt_meta.json", "docnos.npids", "vecs.i1", "scales.f4", "checksums.vecs.i1.u8"}
    assert (len(files["vecs.i1"] or b""), len(files["scales.f4"] or b"")) == (700 * 24, 2 * 24 * 4)
    reader = IndexReader(index)
    assert reader.meta["dtype"] == "i1"
    assert set(reader.meta["checksums"]["files"]) == {"docnos.npids", "scales.f4", "checksums.vecs.i1.u8"}
    assert [entry.name for entry in index.parent.iterdir()] == ["x.hyp"]


def test_int8_vectors_differ_by_at_most_half_a_step_of_their_dimension(tmp_path):
    vectors = VECTORS * np.logspace(-3, 3, 24, dtype=np.float32) + np.arange(24, dtype=np.float32) * 50
    reader = write_index(tmp_path / "x.hyp", vectors, dtype="int8")
    rounded = vectors.astype(np.float16).astype(np.float64)
    steps = (rounded.max(axis=0) - rounded.min(axis=0)) / 255
    assert (
        np.abs(np.asarray(reader.vectors) - rounded).max(axis=0) <= steps * 0.5001 + np.abs(rounded).max(axis=0) * 1e-6
    ).all()


def test_int8_dimensions_that_never_change_are_exact(tmp_path):
    vectors = VECTORS.copy()
    vectors[:, 3], vectors[:, 5] = 0, 0.25
    stored = np.asarray(write_index(tmp_path / "x.hyp", vectors, dtype="int8").vectors)
    assert (stored[:, 3] == 0).all() and (stored[:, 5] == 0.25).all()
    single = write_index(tmp_path / "y.hyp", VECTORS[:1], dtype="int8")
    np.testing.assert_array_equal(single.vectors, VECTORS[:1].astype(np.float16))


def test_int8_handles_the_largest_numbers_of_fp16(tmp_path):
    vectors = np.array([[65504, 6e-8], [-65504, 0], [0, 0]], dtype=np.float32)
    np.testing.assert_allclose(write_index(tmp_path / "x.hyp", vectors, dtype="int8").vectors, vectors, rtol=1e-2, atol=300)


@pytest.mark.parametrize("n", [1, 40, 700])
def test_int8_rows_are_selected_like_those_of_an_array(tmp_path, n):
    rows = write_index(tmp_path / "x.hyp", VECTORS[:n], dtype="int8").vectors
    everything = np.asarray(rows)
    keys: list[Any] = [
        0,
        -1,
        slice(None),
        slice(1, 1),
        slice(None, None, -2),
        np.array([n - 1, 0, 0]),
        np.array([[0], [n - 1]]),
    ]
    for key in keys:
        np.testing.assert_array_equal(rows[key], everything[key])
        assert rows[key].dtype == np.float32
    assert (len(rows), rows.shape, rows.dtype, everything.shape) == (n, (n, 24), np.float32, (n, 24))
    assert np.asarray(rows, dtype=np.float16).dtype == np.float16


def test_int8_finds_the_best_100_documents(tmp_path):
    vectors = np.random.default_rng(1).standard_normal((5000, 128)).astype(np.float32)
    queries = np.random.default_rng(2).standard_normal((50, 128)).astype(np.float32)
    stored = np.asarray(write_index(tmp_path / "x.hyp", vectors, dtype="int8").vectors)
    best, found = (np.argsort(-(queries @ rows.T), axis=1)[:, :100] for rows in (vectors, stored))
    assert np.mean([len(np.intersect1d(*pair)) for pair in zip(best, found, strict=True)]) >= 99


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_int8_refuses_vectors_that_are_not_finite(tmp_path, value):
    vectors = VECTORS.copy()
    vectors[7, 2] = value
    with pytest.raises(ValueError, match="vector of document 'd7' must be finite in float16, got NaN or infinity"):
        write_index(tmp_path / "x.hyp", vectors, dtype="int8")


def test_int8_warns_of_vectors_that_an_outlier_makes_indistinguishable(tmp_path, caplog):
    vectors = VECTORS.copy()
    with caplog.at_level(logging.WARNING):
        write_index(tmp_path / "x.hyp", vectors, dtype="int8")
        assert not caplog.records
        vectors[0] = 60_000
        write_index(tmp_path / "y.hyp", vectors, dtype="int8")
    assert "699 of 700 vectors lost most of their length in int8" in caplog.text


# Resumed builds


def test_int8_index_does_not_depend_on_batches_and_blocks(tmp_path, monkeypatch):
    trees = []
    for name, batch, block in (("a", 7, 4), ("b", 700, 4 * 24 * 13), ("c", 64, 2**22)):
        monkeypatch.setattr(quantization, "_BLOCK_BYTES", block)
        start(tmp_path / name, batch=batch).finish()
        trees.append(read_tree(tmp_path / name))
    assert trees[0] == trees[1] == trees[2]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("place", ["batches", "scales.f4", "vecs.i1", "checksums", "metadata", "complete"])
def test_int8_build_that_was_killed_is_resumed_with_the_same_bytes(tmp_path, index, monkeypatch, place):
    path = tmp_path / "killed.hyp"
    writer = start(path, 300 if place == "batches" else 700)
    with monkeypatch.context() as patch:

        def kill(*args: Any, **options: Any) -> Any:
            raise Killed

        if place == "scales.f4":
            patch.setattr(quantization, "get_vectors_name", kill)
        elif place == "vecs.i1":
            blocks = iter(range(20))
            count = quantization.count_losses
            patch.setattr(quantization, "count_losses", lambda *rows: kill() if next(blocks) == 3 else count(*rows))
        elif place in ("checksums", "metadata"):
            patch.setattr(staging, "make_table" if place == "checksums" else "write_json", kill)
        if place == "complete":
            writer.complete()
        elif place != "batches":
            with pytest.raises(Killed):
                writer.complete()
    writer._staged.close()
    if place == "vecs.i1":  # a killed process does not delete its half-written file
        (get_staging_path(path) / "new" / "vecs.i1.part").write_bytes(b"half of it" * 10_000)
    start(path, mode="resume").finish()
    assert read_tree(path) == read_tree(index)
    assert {entry.name for entry in tmp_path.iterdir()} == {"x.hyp", "killed.hyp"}


@pytest.mark.parametrize("dtypes", [("int8", "fp16"), ("fp16", "int8")])
def test_int8_build_is_not_resumed_with_another_dtype(tmp_path, dtypes):
    start(tmp_path / "x.hyp", 300, dtype=dtypes[0]).abandon()
    with pytest.raises(ValueError, match=r"was started with .*dtype.* and cannot be resumed with"):
        start(tmp_path / "x.hyp", mode="resume", dtype=dtypes[1])


# Damage


@pytest.mark.parametrize("position", [0, 9_000, 700 * 24 - 1])
def test_int8_notices_a_changed_byte_of_the_vectors_when_it_is_read(index, position):
    data = bytearray((index / "vecs.i1").read_bytes())
    data[position] ^= 1
    (index / "vecs.i1").write_bytes(data)
    reader = IndexReader(index)
    with pytest.raises(ValueError, match=r"vecs\.i1 is damaged: the checksum of rows"):
        reader.vectors[position // 24]
    with pytest.raises(ValueError, match=r"vecs\.i1 is damaged"):
        HypencoderIndex(index, verify=True)


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + b"0000", lambda data: b"?" + data[1:], None])
def test_int8_notices_damaged_scales_when_it_is_opened(index, change):
    file = index / "scales.f4"
    file.unlink() if change is None else file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=r"scales\.f4"):
        HypencoderIndex(index)


# Everything that reads vectors


def test_int8_vectors_are_read_alike_everywhere(index):
    opened = HypencoderIndex(index)
    expected = np.asarray(opened.reader.vectors)
    np.testing.assert_array_equal(opened.vectors[[5, 3]], expected[[5, 3]])
    np.testing.assert_array_equal(opened.np_vecs(), expected)
    np.testing.assert_array_equal(opened.torch_vecs("cpu").numpy(), expected)
    np.testing.assert_array_equal(opened.torch_vecs("cpu", fp16=True).numpy(), expected.astype(np.float16))
    np.testing.assert_array_equal([doc["doc_vec"] for doc in opened.get_corpus_iter(10, 20)], expected[10:20])
    assert type(opened.np_vecs()) is np.ndarray


def test_int8_fingerprint_contains_the_scales(tmp_path):
    readers = [write_index(tmp_path / f"{i}.hyp", VECTORS * 2**i, dtype="int8") for i in range(2)]
    assert readers[0].vectors_file.read_bytes() == readers[1].vectors_file.read_bytes()
    assert fingerprint_index(readers[0]) != fingerprint_index(readers[1])
    for reader in readers:
        del reader.meta["checksums"]
    assert fingerprint_index(readers[0]) != fingerprint_index(readers[1])


def test_int8_graph_and_distinct_vectors_are_those_of_the_vectors_in_float32(tmp_path):
    reader = write_index(tmp_path / "x.hyp", make_clusters(400), dtype="int8")
    plain = write_index(tmp_path / "y.hyp", np.asarray(reader.vectors), dtype="fp32")
    groups = [DistinctVectors(each.vectors.check()) for each in (reader, plain)]
    np.testing.assert_array_equal(groups[0].groups, groups[1].groups)
    assert len(groups[0]) < 400
    for name in ("exact", "hnsw"):
        graphs = [build_graph(each, 8 if name == "exact" else 9, builder=name) for each in (reader, plain)]
        same = np.asarray(graphs[0].edges) == np.asarray(graphs[1].edges)
        assert same.all() if name == "exact" else same.mean() > 0.99


def test_int8_hnsw_indexes_store_fp16(tmp_path):
    sizes = {}
    for dtype in ("int8", "fp16", "fp32"):
        reader = write_index(tmp_path / dtype, VECTORS, dtype=dtype)
        build_inner_product_index(reader)
        sizes[dtype] = (reader.folder / "inner_product.faiss").stat().st_size
    assert sizes["fp32"] - sizes["fp16"] > 700 * 24 and abs(sizes["int8"] - sizes["fp16"]) < 1000
