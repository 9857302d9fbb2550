"""Writing an index directory: its files, options, bad vectors, overwriting and resuming."""

from __future__ import annotations

import errno
import json
import os
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexes import V1_INDEX, edit_meta, read_tree

from pyterrier_hypencoder.index import staging
from pyterrier_hypencoder.index.reader import IndexReader
from pyterrier_hypencoder.index.staging import get_staging_path
from pyterrier_hypencoder.index.writer import IndexWriter, is_index

DOCNOS = ["d1", "07", "7", "日本 語", "été", "d10"]
VECTORS = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
FACTS = {"model": {"class": "Hypencoder", "name": "m", "revision": None, "options": {}}, "text_field": ["title", "text"]}


def start(
    path: Path, n: int = 6, *, mode: str = "create", dtype: str = "fp16", facts: Any = FACTS, batch: int = 2
) -> IndexWriter:
    """Add n documents in batches, except those that are stored."""
    writer = IndexWriter(path, mode=mode, dtype=dtype, facts=facts)
    for first in range(writer.count, n, batch):
        writer.check(DOCNOS[first : first + batch])
        writer.add(DOCNOS[first : first + batch], VECTORS[first : first + batch])
    return writer


def build(path: Path, **options: Any) -> Path:
    start(path, **options).finish()
    return path


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def index(tmp_path) -> Path:
    return build(tmp_path / "x.hyp")


# Files


@pytest.mark.parametrize(("dtype", "suffix"), [("fp16", "f2"), ("fp32", "f4")])
def test_an_index_has_exactly_the_documented_files_and_metadata(tmp_path, dtype, suffix):
    path = build(tmp_path / "x.hyp", dtype=dtype)
    assert {entry.name for entry in tmp_path.iterdir()} == {"x.hyp"}
    assert set(read_tree(path)) == {"pt_meta.json", "docnos.npids", f"vecs.{suffix}", f"checksums.vecs.{suffix}.u8"}
    meta = json.loads((path / "pt_meta.json").read_text())
    assert meta.pop("written_by").startswith("pyterrier-hypencoder ")
    assert len(meta.pop("checksum")) == 16
    checksums = meta.pop("checksums")
    assert set(checksums.pop("files")) == {"docnos.npids", f"checksums.vecs.{suffix}.u8"}
    assert checksums == {"algorithm": "xxh3_64", "block_bytes": 65536}
    assert meta == {
        "type": "dense_index",
        "format": "hypencoder",
        "package_hint": "pyterrier-hypencoder",
        "format_version": 1,
        "doc_count": 6,
        "vec_size": 4,
        "dtype": suffix,
        **FACTS,
    }
    assert (path / f"vecs.{suffix}").read_bytes() == VECTORS.astype(f"<{suffix}").tobytes("C")


def test_an_index_has_the_bytes_of_the_committed_index_of_version_1(tmp_path):
    reader = IndexReader(V1_INDEX)
    writer = IndexWriter(tmp_path / "x.hyp", mode="create", dtype="fp16", facts={"model": None, "text_field": None})
    writer.add(list(reader.docnos), np.asarray(reader.vectors))
    writer.finish()
    new, old = read_tree(tmp_path / "x.hyp"), read_tree(V1_INDEX)
    metas = [json.loads(files.pop("pt_meta.json") or b"") | {"written_by": None} for files in (new, old)]
    assert all(metas[0].pop(key) for key in ("checksum", "checksums")) and new.pop("checksums.vecs.f2.u8")
    assert metas[0] == metas[1] and list(metas[0]) == list(metas[1])
    assert new == old


def test_the_batch_size_does_not_change_the_index(tmp_path):
    indexes = [read_tree(build(tmp_path / f"{batch}.hyp", batch=batch)) for batch in (1, 4, 6)]
    assert indexes[0] == indexes[1] == indexes[2]


def test_missing_package_metadata_cannot_fail_a_build(tmp_path, monkeypatch):
    def fail(name: str) -> str:
        raise PackageNotFoundError(name)

    writer = start(tmp_path / "x.hyp")
    monkeypatch.setattr(staging, "version", fail)
    writer.finish()
    assert IndexReader(tmp_path / "x.hyp").meta["written_by"].startswith("pyterrier-hypencoder ")
    assert IndexReader(build(tmp_path / "y.hyp")).meta["written_by"] == "pyterrier-hypencoder (unknown version)"


def test_missing_parent_directories_are_created(tmp_path):
    assert len(IndexReader(build(tmp_path / "a" / "b" / "x.hyp")).docnos) == 6
    assert [entry.name for entry in (tmp_path / "a" / "b").iterdir()] == ["x.hyp"]


# Options and places


@pytest.mark.parametrize("option", [{"mode": "append"}, {"mode": None}, {"dtype": "f2"}, {"dtype": "int4"}, {"dtype": None}])
def test_unknown_options_are_errors_and_write_nothing(tmp_path, option):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=rf"{name} must be one of '.*', got {value!r}"):
        IndexWriter(tmp_path / "x.hyp", **{"mode": "create", "dtype": "fp16", "facts": {}, **option})
    assert not read_tree(tmp_path)


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
@pytest.mark.parametrize("kind", ["files", "file", "other format", "damaged"])
def test_other_files_at_the_path_are_never_touched(tmp_path, mode, kind):
    path = tmp_path / "x.hyp"
    path.write_text("mine") if kind == "file" else path.mkdir()
    if kind != "file":
        name = "notes.txt" if kind == "files" else "pt_meta.json"
        (path / name).write_text('{"type": "dense_index", "format": "flex"}' if kind == "other format" else "mine")
    assert not is_index(path)
    before = read_tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"x\.hyp (already )?exists.* [cC]hoose another path"):
        IndexWriter(path, mode=mode, dtype="fp16", facts=FACTS)
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("mode", ["create", "resume"])
def test_an_index_is_replaced_only_with_mode_overwrite(index, mode):
    before = read_tree(index.parent)
    with pytest.raises(FileExistsError, match=r"x\.hyp already exists. Pass mode='overwrite' to replace an index"):
        IndexWriter(index, mode=mode, dtype="fp16", facts=FACTS)
    assert read_tree(index.parent) == before


def test_mode_create_does_not_replace_an_interrupted_build(tmp_path):
    start(tmp_path / "x.hyp", 4).abandon()
    before = read_tree(tmp_path)
    with pytest.raises(FileExistsError, match="contains an interrupted build. Pass mode='resume' .*or mode='overwrite'"):
        IndexWriter(tmp_path / "x.hyp", mode="create", dtype="fp16", facts=FACTS)
    assert read_tree(tmp_path) == before


# Overwriting


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_overwrite_ignores_an_interrupted_build(index, dtype):
    start(index, 4, mode="overwrite", dtype="fp32").abandon()
    build(index, mode="overwrite", dtype=dtype, batch=3)
    assert read_tree(index) == read_tree(build(index.with_name("y.hyp"), dtype=dtype))


def test_overwrite_replaces_an_index_of_a_newer_format(index):
    edit_meta(index, format_version=2)
    build(index, mode="overwrite")
    assert list(IndexReader(index).docnos) == DOCNOS


def test_overwrite_leaves_files_with_similar_names_alone(index):
    for name in ("x.hyp.old", "x.hyp.bak", "x"):
        shutil.copytree(index, index.with_name(name))
    before = {name: files for name, files in read_tree(index.parent).items() if not name.startswith("x.hyp/")}
    build(index, mode="overwrite", dtype="fp32")
    assert {name: files for name, files in read_tree(index.parent).items() if not name.startswith("x.hyp/")} == before


def test_overwrite_replaces_index_only_when_complete(index):
    before = read_tree(index)
    writer = start(index, mode="overwrite", dtype="fp32")
    assert read_tree(index) == before
    old = IndexReader(index)
    writer.finish()
    np.testing.assert_array_equal(old.vectors, VECTORS.astype(np.float16))  # still mapped
    np.testing.assert_array_equal(IndexReader(index).vectors, VECTORS)


def test_overwrite_killed_between_its_two_renames_is_undone(index):
    before = read_tree(index)
    start(index, mode="overwrite", dtype="fp32").abandon()
    os.rename(index, get_staging_path(index) / "old")
    start(index, mode="resume", dtype="fp32").abandon()
    assert read_tree(index) == before
    build(index, mode="resume", dtype="fp32")
    assert [entry.name for entry in index.parent.iterdir()] == ["x.hyp"]
    assert read_tree(index) == read_tree(build(index.with_name("y.hyp"), dtype="fp32"))


# Documents


def test_an_index_without_documents_is_an_error_and_leaves_nothing(tmp_path):
    writer = start(tmp_path / "x.hyp", 0)
    with pytest.raises(ValueError, match="An index needs at least one document, got none. Nothing was written"):
        writer.finish()
    writer.abandon()
    assert not read_tree(tmp_path)


NAN, INF, LARGE = (np.array([[1, 1, 1, 1], [1, value, 1, 1]], dtype=np.float32) for value in (np.nan, -np.inf, 65520.0))


@pytest.mark.parametrize("stored", [0, 2])
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (NAN, "document 'b' must be finite in float16, got NaN or infinity. Check the document and the model"),
        (INF, "document 'b' .* Check the document and the model"),
        (LARGE, "document 'b' .* Pass dtype='fp32'"),
        (VECTORS[:1], r"must have shape \(2, .*\), got \(1, 4\). Use one model for all documents"),
        (VECTORS[:3], r"must have shape \(2, .*\), got \(3, 4\)"),
        (VECTORS[0], r"must have shape \(2, .*\), got \(4,\)"),
        (VECTORS[:2, None], r"must have shape \(2, .*\), got \(2, 1, 4\)"),
        (VECTORS[:2, :0], r"must have shape \(2, .*\), got \(2, 0\)"),
    ],
)
def test_vectors_that_cannot_be_stored_are_errors(tmp_path, vectors, message, stored):
    writer = start(tmp_path / "x.hyp", stored)
    before = read_tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        writer.add(["a", "b"], vectors)
    assert read_tree(tmp_path) == before
    writer.abandon()


def test_vectors_of_another_size_than_before_are_an_error(tmp_path):
    writer = start(tmp_path / "x.hyp", 2)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"must have shape \(2, 4\), got \(2, 3\)"):
            writer.add(["a", "b"], VECTORS[:2, :3])
        writer.abandon()
        writer = start(tmp_path / "x.hyp", 2, mode="resume")
    writer.abandon()


def test_the_largest_numbers_of_each_dtype_are_stored(tmp_path):
    for dtype, largest in (("fp16", 65504.0), ("fp32", 3e38)):
        writer = IndexWriter(tmp_path / dtype, mode="create", dtype=dtype, facts={})
        writer.add(["a"], np.array([[largest, -largest]], dtype=np.float32))
        writer.finish()
        np.testing.assert_array_equal(IndexReader(tmp_path / dtype).vectors, np.array([[largest, -largest]], dtype=np.float32))


def test_vectors_that_vanish_in_fp16_are_counted_in_a_warning(tmp_path, caplog):
    for dtype, scale in (("fp16", 1e-9), ("fp32", 1e-9), ("fp16", 1e-3)):
        writer = IndexWriter(tmp_path / f"{dtype}{scale}", mode="create", dtype=dtype, facts={})
        writer.add(["a", "b", "zero"], np.array([[1, 0.5], [scale, scale], [0, 0]], dtype=np.float32))
        writer.finish()
    warnings = [record.message for record in caplog.records if "lost most of their length" in record.message]
    assert warnings == [
        "1 of 3 vectors lost most of their length in float16: their numbers are too small for it. Pass dtype='fp32'."
    ]


def test_a_full_disk_names_the_file_and_leaves_a_build_to_resume(tmp_path, monkeypatch):
    writer = start(tmp_path / "x.hyp", 4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match=r"No space left on device: .*x\.hyp\.partial/new/vecs\.f2"):
            writer.add(DOCNOS[4:], VECTORS[4:])
        writer.abandon()
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / ".x.hyp.lock").exists()
    assert read_tree(build(tmp_path / "x.hyp", mode="resume")) == read_tree(build(tmp_path / "y.hyp"))


# Paths


def test_an_empty_directory_is_a_place_for_an_index(tmp_path):
    for mode in ("create", "overwrite", "resume"):
        path = tmp_path / mode
        path.mkdir()
        assert list(IndexReader(build(path, mode=mode)).docnos) == DOCNOS
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["create", "overwrite", "resume"]


def test_overwriting_a_link_replaces_its_target(index, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.hyp"
    link.symlink_to(index)
    build(link, n=4, mode="overwrite")
    assert link.is_symlink() and len(IndexReader(index).docnos) == len(IndexReader(link).docnos) == 4
    assert [entry.name for entry in (tmp_path / "elsewhere").iterdir()] == ["link.hyp"]
    with pytest.raises(FileExistsError, match="already exists"):
        build(link)


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
def test_a_link_to_nothing_is_refused(tmp_path, mode):
    (tmp_path / "x.hyp").symlink_to(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="x.hyp is a symbolic link to .*missing, which does not exist. Delete"):
        build(tmp_path / "x.hyp", mode=mode)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.hyp"]


def test_a_place_without_write_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match="An index cannot be written to this directory. Choose another path: ") as caught:
        build(tmp_path / "a" / "x.hyp")
    assert caught.value.filename == str(tmp_path) and not list(tmp_path.iterdir())


# Resuming


@pytest.mark.parametrize("n", range(0, 7, 2))
@pytest.mark.parametrize("times", [1, 3])
def test_a_resumed_build_has_the_bytes_of_an_uninterrupted_one(tmp_path, n, times):
    expected = read_tree(build(tmp_path / "y.hyp"))
    start(tmp_path / "x.hyp", n).abandon()
    for _ in range(times - 1):
        start(tmp_path / "x.hyp", n, mode="resume").abandon()
    assert read_tree(build(tmp_path / "x.hyp", mode="resume")) == expected
    assert not get_staging_path(tmp_path / "x.hyp").exists()


def test_bytes_after_the_last_stored_batch_are_dropped(tmp_path):
    expected = read_tree(build(tmp_path / "y.hyp"))
    path, folder = tmp_path / "x.hyp", get_staging_path(tmp_path / "x.hyp")
    for n, mode in ((2, "create"), (4, "resume"), (6, "resume")):
        start(path, n, mode=mode).abandon()
        for name in ("new/vecs.f2", "docnos.jsonl"):
            with open(folder / name, "ab") as file:
                file.write(b'"half a docno\x00\xff')
        (folder / "state.json.part").write_text("{")
        (folder / "new" / "docnos.npids").write_bytes(b"half")
    assert read_tree(build(path, mode="resume")) == expected


def test_repeated_docnos_are_found_after_resuming(tmp_path):
    start(tmp_path / "x.hyp", 4).abandon()
    writer = start(tmp_path / "x.hyp", 4, mode="resume")
    with pytest.raises(ValueError, match="got '07' twice"):
        writer.check(["new", "07"])
    writer.abandon()


@pytest.mark.parametrize(
    "options",
    [{"dtype": "fp32"}, {"facts": FACTS | {"model": None}}, {"facts": FACTS | {"text_field": "text"}}],
    ids=["dtype", "model", "text_field"],
)
def test_resuming_with_other_options_is_an_error(tmp_path, options):
    start(tmp_path / "x.hyp", 4).abandon()
    before = read_tree(tmp_path)
    with pytest.raises(ValueError, match="The build of .* cannot be resumed with .* Use the same model, dtype and text field"):
        start(tmp_path / "x.hyp", mode="resume", **options)
    assert read_tree(tmp_path) == before
    build(tmp_path / "x.hyp", mode="resume")  # the lock was released


@pytest.mark.parametrize("name", ["new/vecs.f2", "docnos.jsonl"])
@pytest.mark.parametrize("left", [None, 7])
def test_a_damaged_interrupted_build_is_not_resumed(tmp_path, name, left):
    start(tmp_path / "x.hyp", 4).abandon()
    file = get_staging_path(tmp_path / "x.hyp") / name
    file.unlink() if left is None else os.truncate(file, left)
    before = read_tree(tmp_path)
    with pytest.raises(ValueError, match="is damaged: .* bytes, expected at least .* Start again with mode='overwrite'"):
        start(tmp_path / "x.hyp", mode="resume")
    assert read_tree(tmp_path) == before
    build(tmp_path / "x.hyp", mode="overwrite")


def test_an_interrupted_build_with_unreadable_docnos_releases_its_lock(tmp_path):
    start(tmp_path / "x.hyp", 4).abandon()
    file = get_staging_path(tmp_path / "x.hyp") / "docnos.jsonl"
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(ValueError):
        start(tmp_path / "x.hyp", mode="resume")
    build(tmp_path / "x.hyp", mode="overwrite")


def test_an_interrupted_build_without_batches_may_change_its_options(tmp_path):
    os.makedirs(get_staging_path(tmp_path / "x.hyp") / "new")
    (get_staging_path(tmp_path / "x.hyp") / "new" / "vecs.f2").write_bytes(b"half a batch")
    resumed = build(tmp_path / "x.hyp", mode="resume", dtype="fp32")
    assert read_tree(resumed) == read_tree(build(tmp_path / "y.hyp", dtype="fp32"))


@pytest.mark.parametrize("mode", ["create", "resume"])
def test_leftovers_of_a_finished_build_do_not_count_as_an_interrupted_one(index, mode):
    start(index, mode="overwrite").abandon()
    shutil.rmtree(index)
    os.rename(get_staging_path(index) / "new", index)  # finish() does this, and is then killed
    shutil.rmtree(index)
    assert read_tree(build(index, mode=mode)) == read_tree(build(index.with_name("y.hyp")))


@pytest.mark.parametrize("mode", ["overwrite", "resume"])
def test_a_second_writer_is_refused(tmp_path, mode):
    writer = start(tmp_path / "x.hyp", 2)
    before = read_tree(tmp_path)
    with pytest.raises(FileExistsError, match="x.hyp is being built by another process or thread. Wait until it has"):
        start(tmp_path / "x.hyp", mode=mode)
    assert read_tree(tmp_path) == before
    writer.abandon()
    build(tmp_path / "x.hyp", mode=mode)
