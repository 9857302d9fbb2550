"""Checksums: every changed byte is noticed, blocks are checked once, and metadata protect themselves."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexes import edit_meta, read_tree, write_index

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.index import checksums
from pyterrier_hypencoder.index.checksums import CheckedRows, get_sums_name, map_checked_rows, write_block_sums
from pyterrier_hypencoder.index.graph_builder import build_graph
from pyterrier_hypencoder.index.neighbour_graph import NeighbourGraph
from pyterrier_hypencoder.index.reader import IndexReader


def make_rows(path: Path, shape: tuple[int, int], columns: int | None = None) -> tuple[CheckedRows, np.ndarray]:
    """Write rows of float32 with their checksums, and map them."""
    rows = np.random.default_rng(0).normal(size=shape).astype("<f4")
    rows.tofile(path / "rows")
    write_block_sums(path / "rows")
    names = [get_sums_name("rows")]
    meta = {"checksums": checksums.make_table(path, names)}
    return map_checked_rows(path, "rows", meta, shape, "<f4", columns), rows


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


# Shapes whose rows are smaller and larger than a block, and end inside one
SHAPES = [(1, 1), (3, 5), (1000, 33), (70_000, 1), (5, 20_000), (2, 40_000), (9, 2**14)]


@pytest.mark.parametrize("shape", SHAPES)
def test_checked_rows_return_the_rows_of_the_array(tmp_path, shape):
    checked, rows = make_rows(tmp_path, shape)
    last = shape[0] - 1
    keys: list[Any] = [0, -1, last, slice(None), slice(1, 1), slice(0, 2), slice(None, None, -2), slice(last, None)]
    keys += [np.array([last, 0, last]), np.array([-1]), np.array([[0], [last]]), np.empty(0, dtype=np.int64), [0, last]]
    for key in keys:
        np.testing.assert_array_equal(make_rows(tmp_path, shape)[0][key], rows[key])
        np.testing.assert_array_equal(checked[key], rows[key])
    assert (len(checked), checked.shape, checked.dtype) == (len(rows), rows.shape, rows.dtype)
    np.testing.assert_array_equal(np.asarray(checked), rows)
    assert np.asarray(checked, dtype=np.float64).dtype == np.float64


@pytest.mark.parametrize("shape", SHAPES)
def test_checked_rows_notice_a_changed_byte_of_a_requested_row(tmp_path, shape):
    make_rows(tmp_path, shape)
    size = shape[1] * 4
    for row in {0, shape[0] // 2, shape[0] - 1}:
        for offset in {0, size // 2, size - 1}:
            _, rows = make_rows(tmp_path, shape)
            flip(tmp_path / "rows", row * size + offset)
            meta = {"checksums": checksums.make_table(tmp_path, [get_sums_name("rows")])}
            for key in (row, row - shape[0], slice(row, row + 1), slice(None), np.array([row]), slice(None, None, -1)):
                checked = map_checked_rows(tmp_path, "rows", meta, shape, "<f4")
                with pytest.raises(ValueError, match=r"rows is damaged: the checksum of rows \d+ to \d+ does not match. Copy"):
                    checked[key]
                with pytest.raises(ValueError, match="is damaged"):  # and again
                    checked[key]


def test_checked_rows_read_other_blocks_of_a_damaged_file(tmp_path):
    _, rows = make_rows(tmp_path, (50_000, 4))
    flip(tmp_path / "rows", 0)
    meta = {"checksums": checksums.make_table(tmp_path, [get_sums_name("rows")])}
    checked = map_checked_rows(tmp_path, "rows", meta, rows.shape, "<f4")
    np.testing.assert_array_equal(checked[40_000:], rows[40_000:])
    with pytest.raises(ValueError, match="the checksum of rows 0 to 4095 does not match"):
        checked.check()


def test_checked_rows_hash_each_block_once(tmp_path, monkeypatch):
    checked, _ = make_rows(tmp_path, (50_000, 4))
    hashed, digest = [], checksums.xxhash.xxh3_64_intdigest
    monkeypatch.setattr(checksums.xxhash, "xxh3_64_intdigest", lambda data: hashed.append(1) or digest(data))
    for _ in range(3):
        checked[10]
        checked[np.array([10, 11, 12_345])]
    assert len(hashed) == 2
    checked.check()
    checked.check()
    assert len(hashed) == 50_000 * 16 // 65_536 + 1


def test_checked_rows_can_leave_out_columns(tmp_path):
    checked, rows = make_rows(tmp_path, (1000, 33), columns=5)
    assert checked.shape == (1000, 5)
    np.testing.assert_array_equal(checked[np.array([3, 999])], rows[[3, 999], :5])
    np.testing.assert_array_equal(checked.check(), rows[:, :5])


# Files of an index


@pytest.fixture
def index(tmp_path) -> Path:
    vectors = np.random.default_rng(0).normal(size=(300, 16))
    reader = write_index(tmp_path / "x.hyp", vectors, dtype="fp16")
    build_graph(reader, 5)
    HypencoderIndex(reader.path).inner_product_index()
    return reader.path


def test_verify_accepts_an_undamaged_index(index):
    before = read_tree(index)
    HypencoderIndex(index, verify=True).verify()
    assert read_tree(index) == before


def test_a_changed_byte_in_any_file_is_noticed_by_verify(index):
    rng = np.random.default_rng(1)
    files = [file for file in sorted(index.rglob("*")) if file.is_file() and not file.is_symlink() and file.suffix != ".lock"]
    assert len(files) == 14
    for file in files:
        content = file.read_bytes()
        for position in {0, len(content) - 1, *rng.integers(0, len(content), 10).tolist()}:
            flip(file, position)
            if file.name == "inner_product.json":
                with suppress(ValueError):  # or else the inner-product index counts as not built
                    HypencoderIndex(index, verify=True)
            else:
                with pytest.raises(ValueError, match=r"\.hyp"):
                    HypencoderIndex(index, verify=True)
            file.write_bytes(content)
    HypencoderIndex(index, verify=True)


@pytest.mark.parametrize("name", ["docnos.npids", "vecs.f4", "checksums.vecs.f4.u8"])
def test_a_file_of_another_index_of_the_same_size_is_noticed(tmp_path, name):
    ones, twos = (write_index(tmp_path / f"{i}.hyp", np.full((9, 4), i), docnos=[f"{i}{j}" for j in range(9)]) for i in (1, 2))
    (ones.path / name).write_bytes((twos.path / name).read_bytes())
    with pytest.raises(ValueError, match=rf"{name.removeprefix('checksums.')[:4]}.* is damaged"):
        IndexReader(ones.path).vectors[:]


def test_swapped_graph_files_are_noticed(index):
    other = write_index(index.parent / "y.hyp", np.random.default_rng(1).normal(size=(300, 16)), dtype="fp16")
    graph = build_graph(other, 5).path
    for name in ("edges.u32.np", "weights.f16.np"):
        (index / "corpusgraph_k5" / name).write_bytes((graph / name).read_bytes())
    opened = NeighbourGraph(index / "corpusgraph_k5", IndexReader(index))
    for use in (lambda: opened.edges[7], lambda: opened.edges_data, lambda: opened.weights_data, lambda: opened.neighbours(3)):
        with pytest.raises(ValueError, match=r"corpusgraph_k5/\w+\.\w+\.np is damaged: the checksum of rows"):
            use()


@pytest.mark.parametrize("folder", ["", "corpusgraph_k5"])
def test_edited_metadata_are_noticed_and_accepted_if_their_checksum_is_null(index, folder):
    meta = json.loads((index / folder / "pt_meta.json").read_text())
    (index / folder / "pt_meta.json").write_text(json.dumps(meta | {"note": "mine"}))
    with pytest.raises(ValueError, match="was edited: its checksum does not match.* set 'checksum' to null"):
        HypencoderIndex(index, verify=True)
    edit_meta(index / folder)
    HypencoderIndex(index, verify=True)


@pytest.mark.parametrize("table", [[], {"files": []}, {"files": {}, "algorithm": "md5", "block_bytes": 7}])
def test_unknown_checksums_are_an_error(index, table):
    edit_meta(index, checksums=table)
    with pytest.raises(ValueError, match="checksums"):
        HypencoderIndex(index)


def test_an_index_without_checksums_opens_with_a_note(tmp_path, caplog):
    reader = write_index(tmp_path / "x.hyp", np.ones((3, 4)))
    edit_meta(reader.path, checksums="gone")
    (reader.path / get_sums_name("vecs.f4")).unlink()
    for _ in range(2):
        np.testing.assert_array_equal(IndexReader(reader.path).vectors[:], np.ones((3, 4)))
    notes = [record.message for record in caplog.records if "has no checksums because an earlier version" in record.message]
    assert len(notes) == 1
