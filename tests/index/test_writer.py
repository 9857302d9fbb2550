"""The index directory: what is in it, that damage is noticed on opening, and that a build is all or nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyterrier_hypencoder.index.files import identity
from pyterrier_hypencoder.index.reader import IndexReader
from pyterrier_hypencoder.index.writer import IndexWriter, discard_leftovers, is_index, is_unfinished, staging_path

FIXTURE = Path(__file__).parents[1] / "fixtures" / "v1.hyp"
DOCNOS = ["d1", "07", "7", "日本 語", "été", "d10"]
VECTORS = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
FACTS = {"model": {"class": "Hypencoder", "name": "m", "revision": None, "fingerprint": "f"}, "text_field": ["title", "text"]}


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is below a folder; locks aside, which say nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != "lock"
    }


def begun(
    path: Path, n: int = 6, *, mode: str = "create", dtype: str = "fp16", facts: Any = FACTS, batch: int = 2
) -> IndexWriter:
    """A build of n documents in batches."""
    writer = IndexWriter(path, mode=mode, dtype=dtype, facts=facts)
    for start in range(writer.count, n, batch):
        writer.check(DOCNOS[start : start + batch])
        writer.add(DOCNOS[start : start + batch], VECTORS[start : start + batch])
    return writer


def built(path: Path, **options: Any) -> Path:
    begun(path, **options).finish()
    return path


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def index(tmp_path) -> Path:
    return built(tmp_path / "x.hyp")


# What is on disk


@pytest.mark.parametrize(("dtype", "suffix"), [("fp16", "f2"), ("fp32", "f4")])
def test_an_index_is_exactly_what_the_design_says(tmp_path, dtype, suffix):
    path = built(tmp_path / "x.hyp", dtype=dtype)
    assert set(tree(tmp_path)) == {"x.hyp", "x.hyp/pt_meta.json", "x.hyp/docnos.npids", f"x.hyp/vecs.{suffix}"}
    meta = json.loads((path / "pt_meta.json").read_text())
    assert meta.pop("written_by").startswith("pyterrier-hypencoder ")
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


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_reader_gives_back_what_was_written(tmp_path, dtype):
    reader = IndexReader(built(tmp_path / "x.hyp", dtype=dtype))
    np.testing.assert_array_equal(reader.vectors, VECTORS.astype(reader.vectors.dtype))
    assert list(reader.docnos) == DOCNOS
    assert not reader.vectors.flags.writeable


def test_the_committed_index_of_version_1_is_read():
    reader = IndexReader(FIXTURE)
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


def test_todays_index_is_that_of_version_1(tmp_path):
    reader = IndexReader(FIXTURE)
    writer = IndexWriter(tmp_path / "x.hyp", mode="create", dtype="fp16", facts={"model": None, "text_field": None})
    writer.add(list(reader.docnos), reader.vectors)
    writer.finish()
    now, then = tree(tmp_path / "x.hyp"), tree(FIXTURE)
    metas = [json.loads(files.pop("pt_meta.json") or b"") | {"written_by": None} for files in (now, then)]
    assert metas[0] == metas[1] and list(metas[0]) == list(metas[1])
    assert now == then


def test_batches_leave_no_trace(tmp_path):
    indexes = [tree(built(tmp_path / f"{batch}.hyp", batch=batch)) for batch in (1, 4, 6)]
    assert indexes[0] == indexes[1] == indexes[2]


def test_identity_changes_when_an_index_is_replaced(index):
    before = identity(index)
    assert identity(index) == before
    built(index, mode="overwrite")
    assert identity(index) != before
    shutil.rmtree(index)
    assert identity(index) != before


# Opening what is no index, or a damaged one


def vecs(change: Any) -> Any:
    def damage(path: Path) -> None:
        (path / "vecs.f2").write_bytes(change((path / "vecs.f2").read_bytes()))

    return damage


def docnos(change: Any) -> Any:
    def damage(path: Path) -> None:
        (path / "docnos.npids").write_bytes(change((path / "docnos.npids").read_bytes()))

    return damage


def meta(**changes: Any) -> Any:
    def damage(path: Path) -> None:
        facts = json.loads((path / "pt_meta.json").read_text()) | changes
        (path / "pt_meta.json").write_text(json.dumps({key: value for key, value in facts.items() if value != "gone"}))

    return damage


def raw_meta(text: bytes) -> Any:
    return lambda path: (path / "pt_meta.json").write_bytes(text)


BYTES = r"expected .*vecs.f2 to have 48 bytes \(6 vectors of 4\), found {}; the index is damaged or incomplete: copy or build"
DAMAGES = {
    "vectors cut": (vecs(lambda b: b[:-1]), BYTES.format(47)),
    "vectors empty": (vecs(lambda b: b""), BYTES.format(0)),
    "vectors grown": (vecs(lambda b: b + b"\0"), BYTES.format(49)),
    "vectors missing": (lambda p: (p / "vecs.f2").unlink(), BYTES.format("no such file")),
    "vectors renamed": (lambda p: (p / "vecs.f2").rename(p / "vecs.f4"), BYTES.format("no such file")),
    "docnos missing": (lambda p: (p / "docnos.npids").unlink(), "docnos in .*missing or damaged.*copy or build"),
    "docnos cut": (docnos(lambda b: b[:-1]), "docnos in .*missing or damaged"),
    "docnos halved": (docnos(lambda b: b[: len(b) // 2]), "docnos in .*missing or damaged"),
    "docnos empty": (docnos(lambda b: b""), "docnos in .*missing or damaged"),
    "docnos text": (docnos(lambda b: b"d1\nd2\n" * 50), "docnos in .*missing or damaged"),
    "meta missing": (lambda p: (p / "pt_meta.json").unlink(), "found no pt_meta.json there; is it the right directory"),
    "meta empty": (raw_meta(b""), "expected JSON in .*pt_meta.json, found something else .*is it complete"),
    "meta cut": (raw_meta(b'{"type": "dense_'), "expected JSON in .*pt_meta.json"),
    "meta binary": (raw_meta(b"\xff\xfe\x00"), "expected JSON in .*pt_meta.json"),
    "meta a list": (raw_meta(b"[1]"), "expected a JSON object in .*pt_meta.json, found list"),
    "another type": (meta(type="sparse_index"), "expected an index of type dense_index .*found sparse_index and hypencoder"),
    "a FlexIndex": (meta(format="flex"), "found dense_index and flex; .*from_flex"),
    "no format": (meta(format="gone"), "found dense_index and None"),
    "newer": (meta(format_version=2, written_by="p 9"), "format version 1 .*found version 2, written by p 9; upgrade"),
    "version 0": (meta(format_version=0), "format version 1 .*found version 0"),
    "version text": (meta(format_version="1"), "format version 1 .*found version '1'"),
    "no version": (meta(format_version="gone"), "format version 1 .*found version None"),
    "count too small": (meta(doc_count=5), r"to have 40 bytes \(5 vectors of 4\), found 48"),
    "count too large": (meta(doc_count=7), "to have 56 bytes .*found 48"),
    "count 0": (meta(doc_count=0), r"expected doc_count, vec_size \(above 0\) and dtype .*found 0, 4 and f2; copy or build"),
    "count text": (meta(doc_count="6"), "expected doc_count, vec_size"),
    "no count": (meta(doc_count="gone"), "expected doc_count, vec_size .*found None"),
    "size negative": (meta(vec_size=-4), "expected doc_count, vec_size .*found 6, -4"),
    "size and count swapped": (meta(vec_size=6, doc_count=4), "expected 4 docnos in .*found 6"),
    "another dtype": (meta(dtype="f4"), "expected .*vecs.f4 to have 96 bytes"),
    "unknown dtype": (meta(dtype="i1"), r"dtype \(f2 or f4\) .*found 6, 4 and i1"),
}


@pytest.mark.filterwarnings("ignore:magic header not found")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_says_what_is_wrong(index, damage):
    spoil, message = DAMAGES[damage]
    spoil(index)
    before = tree(index)
    with pytest.raises(ValueError, match=message):
        IndexReader(index)
    assert tree(index) == before


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected an index at .*x.hyp, found nothing; build it with"):
        IndexReader(tmp_path / "x.hyp")


@pytest.mark.parametrize("kind", ["empty", "files", "file"])
def test_something_else_there_is_an_error(tmp_path, kind):
    path = tmp_path / "x.hyp"
    path.write_text("mine") if kind == "file" else path.mkdir()
    if kind == "files":
        (path / "notes.txt").write_text("mine")
    assert not is_index(path)
    with pytest.raises(ValueError, match="found no pt_meta.json there; is it the right directory"):
        IndexReader(path)


def test_an_unfinished_build_is_named_where_there_is_no_index(tmp_path):
    begun(tmp_path / "x.hyp").abandon()
    with pytest.raises(FileNotFoundError, match="an unfinished build of it is there: finish it with mode='resume'"):
        IndexReader(tmp_path / "x.hyp")


# Writing: options, places, batches


@pytest.mark.parametrize("option", [{"mode": "append"}, {"mode": None}, {"dtype": "f2"}, {"dtype": "int8"}, {"dtype": None}])
def test_unknown_options_are_errors_and_make_nothing(tmp_path, option):
    (name, value), *_ = option.items()
    with pytest.raises(ValueError, match=rf"{name} must be one of .*, got {value!r}"):
        IndexWriter(tmp_path / "x.hyp", **{"mode": "create", "dtype": "fp16", "facts": {}, **option})
    assert not tree(tmp_path)


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
@pytest.mark.parametrize("kind", ["empty", "files", "file", "other format", "damaged"])
def test_what_is_no_index_is_never_touched(tmp_path, mode, kind):
    path = tmp_path / "x.hyp"
    path.write_text("mine") if kind == "file" else path.mkdir()
    if kind != "file":
        names = {"empty": [], "files": ["notes.txt"]}.get(kind, ["pt_meta.json"])
        for name in names:
            (path / name).write_text('{"type": "dense_index", "format": "flex"}' if kind == "other format" else "mine")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"expected .*x\.hyp, found .* give another\s+path"):
        IndexWriter(path, mode=mode, dtype="fp16", facts=FACTS)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("mode", ["create", "resume"])
def test_an_index_is_replaced_only_where_asked_for(index, mode):
    before = tree(index.parent)
    with pytest.raises(FileExistsError, match="expected nothing at .*x.hyp.* pass mode='overwrite' to replace an index"):
        IndexWriter(index, mode=mode, dtype="fp16", facts=FACTS)
    assert tree(index.parent) == before


def test_an_interrupted_build_is_replaced_only_where_asked_for(tmp_path):
    begun(tmp_path / "x.hyp", 4).abandon()
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="what an interrupted build left; pass mode='resume' .*or mode='overwrite'"):
        IndexWriter(tmp_path / "x.hyp", mode="create", dtype="fp16", facts=FACTS)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_overwriting_begins_anew(index, dtype):
    begun(index, 4, mode="overwrite", dtype="fp32").abandon()
    built(index, mode="overwrite", dtype=dtype, batch=3)
    assert tree(index) == tree(built(index.with_name("y.hyp"), dtype=dtype))


def test_overwriting_replaces_an_index_of_a_newer_format(index):
    meta(format_version=2)(index)
    built(index, mode="overwrite")
    assert list(IndexReader(index).docnos) == DOCNOS


def test_overwriting_leaves_other_files_alone(index):
    for name in ("x.hyp.old", "x.hyp.bak", "x"):
        shutil.copytree(index, index.with_name(name))
    before = {name: files for name, files in tree(index.parent).items() if not name.startswith("x.hyp/")}
    built(index, mode="overwrite", dtype="fp32")
    assert {name: files for name, files in tree(index.parent).items() if not name.startswith("x.hyp/")} == before


def test_the_old_index_is_readable_until_the_new_one_is_complete(index):
    before = tree(index)
    writer = begun(index, mode="overwrite", dtype="fp32")
    assert tree(index) == before
    old = IndexReader(index)
    writer.finish()
    np.testing.assert_array_equal(old.vectors, VECTORS.astype(np.float16))  # still mapped
    np.testing.assert_array_equal(IndexReader(index).vectors, VECTORS)


def test_missing_parent_folders_are_made(tmp_path):
    assert len(IndexReader(built(tmp_path / "a" / "b" / "x.hyp")).docnos) == 6


def test_no_documents_are_an_error_and_leave_nothing(tmp_path):
    writer = begun(tmp_path / "x.hyp", 0)
    with pytest.raises(ValueError, match="expected at least one document, found none; nothing was written"):
        writer.finish()
    writer.abandon()
    assert not tree(tmp_path)


NAN, INF, LARGE = (np.array([[1, 1, 1, 1], [1, value, 1, 1]], dtype=np.float32) for value in (np.nan, -np.inf, 65520.0))


@pytest.mark.parametrize("stored", [0, 2])
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (NAN, "document 'b': expected numbers finite in float16, found NaN or infinity; look at the document and the model"),
        (INF, "document 'b': .* look at the document and the model"),
        (LARGE, "document 'b': .* pass dtype='fp32'"),
        (VECTORS[:1], r"expected vectors of shape \(2, .*\), found \(1, 4\); do all documents come from one model"),
        (VECTORS[:3], r"expected vectors of shape \(2, .*\), found \(3, 4\)"),
        (VECTORS[0], r"expected vectors of shape \(2, .*\), found \(4,\)"),
        (VECTORS[:2, None], r"expected vectors of shape \(2, .*\), found \(2, 1, 4\)"),
        (VECTORS[:2, :0], r"expected vectors of shape \(2, .*\), found \(2, 0\)"),
    ],
)
def test_vectors_that_cannot_be_stored_are_errors(tmp_path, vectors, message, stored):
    writer = begun(tmp_path / "x.hyp", stored)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=message):
        writer.add(["a", "b"], vectors)
    assert tree(tmp_path) == before
    writer.abandon()


def test_vectors_of_another_size_than_before_are_an_error(tmp_path):
    writer = begun(tmp_path / "x.hyp", 2)
    with pytest.raises(ValueError, match=r"expected vectors of shape \(2, 4\), found \(2, 3\)"):
        writer.add(["a", "b"], VECTORS[:2, :3])
    writer.abandon()


def test_the_largest_fp16_and_any_fp32_are_stored(tmp_path):
    for dtype, largest in (("fp16", 65504.0), ("fp32", 3e38)):
        writer = IndexWriter(tmp_path / dtype, mode="create", dtype=dtype, facts={})
        writer.add(["a"], np.array([[largest, -largest]], dtype=np.float32))
        writer.finish()
        np.testing.assert_array_equal(IndexReader(tmp_path / dtype).vectors, np.array([[largest, -largest]], dtype=np.float32))


# Resuming


@pytest.mark.parametrize("n", range(0, 7, 2))
@pytest.mark.parametrize("times", [1, 3])
def test_a_resumed_build_is_the_uninterrupted_one(tmp_path, n, times):
    expected = tree(built(tmp_path / "y.hyp"))
    begun(tmp_path / "x.hyp", n).abandon()
    for _ in range(times - 1):
        begun(tmp_path / "x.hyp", n, mode="resume").abandon()
    assert tree(built(tmp_path / "x.hyp", mode="resume")) == expected
    assert not staging_path(tmp_path / "x.hyp").exists()


def test_what_was_written_after_the_last_whole_batch_is_cut_off(tmp_path):
    expected = tree(built(tmp_path / "y.hyp"))
    path, staging = tmp_path / "x.hyp", staging_path(tmp_path / "x.hyp")
    for n, mode in ((2, "create"), (4, "resume"), (6, "resume")):
        begun(path, n, mode=mode).abandon()
        for name in ("index/vecs.f2", "docnos.jsonl"):
            with open(staging / name, "ab") as file:
                file.write(b'"half a docno\x00\xff')
        (staging / "state.json.part").write_text("{")
        (staging / "index" / "docnos.npids").write_bytes(b"half")
    assert tree(built(path, mode="resume")) == expected


def test_repeated_docnos_are_found_after_resuming(tmp_path):
    begun(tmp_path / "x.hyp", 4).abandon()
    writer = begun(tmp_path / "x.hyp", 4, mode="resume")
    with pytest.raises(ValueError, match="found '07' twice"):
        writer.check(["new", "07"])
    writer.abandon()


@pytest.mark.parametrize(
    "options",
    [{"dtype": "fp32"}, {"facts": FACTS | {"model": None}}, {"facts": FACTS | {"text_field": "text"}}],
    ids=["dtype", "model", "text_field"],
)
def test_a_build_is_resumed_with_the_options_it_was_begun_with(tmp_path, options):
    begun(tmp_path / "x.hyp", 4).abandon()
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="expected to resume the build of .*; use the same model, dtype and text field"):
        begun(tmp_path / "x.hyp", mode="resume", **options)
    assert tree(tmp_path) == before
    built(tmp_path / "x.hyp", mode="resume")  # and is not locked


@pytest.mark.parametrize("name", ["index/vecs.f2", "docnos.jsonl"])
@pytest.mark.parametrize("left", [None, 7])
def test_a_damaged_interrupted_build_is_not_resumed(tmp_path, name, left):
    begun(tmp_path / "x.hyp", 4).abandon()
    file = staging_path(tmp_path / "x.hyp") / name
    file.unlink() if left is None else os.truncate(file, left)
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="bytes in .*, found fewer; .* pass mode='overwrite' to begin anew"):
        begun(tmp_path / "x.hyp", mode="resume")
    assert tree(tmp_path) == before
    built(tmp_path / "x.hyp", mode="overwrite")


def test_an_interrupted_build_without_batches_may_change_its_options(tmp_path):
    os.makedirs(staging_path(tmp_path / "x.hyp") / "index")
    (staging_path(tmp_path / "x.hyp") / "index" / "vecs.f2").write_bytes(b"half a batch")
    assert tree(built(tmp_path / "x.hyp", mode="resume", dtype="fp32")) == tree(built(tmp_path / "y.hyp", dtype="fp32"))


@pytest.mark.parametrize("mode", ["create", "resume"])
def test_what_a_build_left_after_its_index_was_in_place_is_no_build(index, mode):
    begun(index, mode="overwrite").abandon()
    shutil.rmtree(index)
    os.rename(staging_path(index) / "index", index)  # as finish() does, which then dies
    assert not is_unfinished(index)
    shutil.rmtree(index)  # nor is it when the index is removed: its vectors went with it
    assert tree(built(index, mode=mode)) == tree(built(index.with_name("y.hyp")))


def test_leftovers_are_discarded_and_unfinished_builds_are_not(index):
    begun(index, 4, mode="overwrite").abandon()
    before = tree(index.parent)
    discard_leftovers(index)
    assert tree(index.parent) == before
    shutil.rmtree(staging_path(index) / "index")
    discard_leftovers(index)
    assert not staging_path(index).exists()


def test_an_overwriting_build_that_died_between_its_two_renames_is_undone(index):
    before = tree(index)
    begun(index, mode="overwrite", dtype="fp32").abandon()
    os.rename(index, staging_path(index) / "old")
    begun(index, mode="resume", dtype="fp32").abandon()
    assert tree(index) == before
    built(index, mode="resume", dtype="fp32")
    assert tree(index.parent).keys() == {"x.hyp", "x.hyp/pt_meta.json", "x.hyp/docnos.npids", "x.hyp/vecs.f4"}


def test_an_old_index_survives_a_rename_that_fails(index, monkeypatch):
    before, rename, writer = tree(index), os.replace, begun(index, mode="overwrite", dtype="fp32")

    def replace(source: Any, target: Any) -> None:
        if Path(source).name == "index":
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="no"):
        writer.finish()
    writer.abandon()
    assert tree(index) == before


@pytest.mark.parametrize("mode", ["overwrite", "resume"])
def test_one_build_at_a_time(tmp_path, mode):
    writer = begun(tmp_path / "x.hyp", 2)
    before = tree(tmp_path)
    with pytest.raises(RuntimeError, match="expected to be alone in building .*x.hyp, found another process at it; wait"):
        begun(tmp_path / "x.hyp", mode=mode)
    assert tree(tmp_path) == before
    writer.abandon()
    built(tmp_path / "x.hyp", mode=mode)
