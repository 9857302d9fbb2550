"""The staging directory: resumed builds have the same bytes, and nothing incomplete has the final name."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from indexes import read_tree

from pyterrier_hypencoder.index import staging
from pyterrier_hypencoder.index.staging import (
    StagedDirectory,
    check_same_build,
    discard_leftovers,
    get_staging_path,
    is_unfinished,
)

FACTS = {"model": "m", "k": 2}
FILES = ("new/rows.bin", "names.txt")
BATCHES = 3
FINAL_NAMES = {"extra", "pt_meta.json", "rows.bin"}


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "x"


def start(path: Path, batches: int = BATCHES, *, facts: dict[str, Any] = FACTS, resume: bool = True) -> StagedDirectory:
    """Append batches of two rows that are not stored yet; the sizes of rows and names differ."""
    staged = StagedDirectory(path, facts=facts, files=FILES, resume=resume)
    for i in range(staged.count // 2, batches):
        staged.append(2, {"new/rows.bin": bytes([i] * (10 + i)), "names.txt": f"a{i}\nb{'x' * i}\n".encode()})
    return staged


def build(path: Path, **options: Any) -> Path:
    staged = start(path, **options)
    (staged.new / "extra").write_bytes((staged.folder / "names.txt").read_bytes())
    staged.finish({"rows": staged.count})
    return path


# A complete build


def test_finish_puts_the_directory_in_place_and_deletes_the_staging_directory(path):
    build(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["x"]
    assert set(read_tree(path)) == FINAL_NAMES
    assert (path / "rows.bin").read_bytes() == bytes([0] * 10 + [1] * 11 + [2] * 12)
    meta = json.loads((path / "pt_meta.json").read_text())
    assert meta["rows"] == 6 and meta["written_by"].startswith("pyterrier-hypencoder ")


def test_nothing_has_the_final_name_before_finish(path):
    staged = start(path)
    assert not path.exists() and is_unfinished(path)
    assert get_staging_path(path) == path.with_name("x.partial") == staged.folder
    staged.abandon()


def test_metadata_are_written_last(path, monkeypatch):
    written = []
    write_json = staging.write_json

    def record(file: Path, value: dict[str, Any]) -> None:
        written.append((file.name, {entry.name for entry in file.parent.iterdir()}))
        write_json(file, value)

    monkeypatch.setattr(staging, "write_json", record)
    build(path)
    assert [files for name, files in written if name == "pt_meta.json"] == [{"rows.bin", "extra"}]


def test_append_flushes_files_to_the_disk_before_it_records_their_sizes(path, monkeypatch):
    staged, synced = start(path, 0), []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    files = [(staged.folder / name).stat().st_ino for name in FILES]
    staged.append(1, {name: b"row" for name in FILES})
    assert synced[:2] == files and synced[2] == (staged.folder / "state.json").stat().st_ino
    staged.abandon()


def test_an_existing_directory_stays_until_the_new_one_is_complete(path):
    old = read_tree(build(path, batches=1))
    staged = start(path, facts={"model": "other"})
    assert read_tree(path) == old
    staged.finish({})
    assert read_tree(path) != old


def test_the_version_is_read_when_a_build_starts(path, monkeypatch):
    staged = start(path)

    def fail(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(staging, "version", fail)
    staged.finish({})
    assert json.loads((path / "pt_meta.json").read_text())["written_by"].startswith("pyterrier-hypencoder ")


def test_written_by_without_package_metadata_is_plain_text(path, monkeypatch):
    def fail(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(staging, "version", fail)
    build(path)
    assert json.loads((path / "pt_meta.json").read_text())["written_by"] == "pyterrier-hypencoder (unknown version)"


# Resuming


@pytest.mark.parametrize("batches", range(BATCHES + 1))
def test_a_resumed_build_has_the_bytes_of_an_uninterrupted_one(path, batches):
    expected = read_tree(build(path.with_name("y")))
    for _ in range(2):
        staged = start(path, batches)
        staged.append(0, {})
        staged.abandon()
    assert read_tree(build(path)) == expected
    assert not get_staging_path(path).exists()


def test_bytes_after_the_last_recorded_batch_are_dropped(path):
    expected = read_tree(build(path.with_name("y")))
    for batches in (1, 2, 3):
        start(path, batches).abandon()
        folder = get_staging_path(path)
        for name in FILES:
            with open(folder / name, "ab") as file:
                file.write(b"half a row\x00\xff")
        (folder / "state.json.part").write_text("{")
    assert read_tree(build(path)) == expected


def test_resume_false_discards_an_interrupted_build(path):
    start(path, 2).abandon()
    assert read_tree(build(path, resume=False)) == read_tree(build(path.with_name("y")))


def test_other_facts_are_an_error_and_keep_the_interrupted_build(path):
    start(path, 2).abandon()
    before = read_tree(path.parent)
    with pytest.raises(ValueError, match="The build of .* was started with .* and cannot be resumed with .* mode='overwrite'"):
        start(path, facts=FACTS | {"k": 3})
    assert read_tree(path.parent) == before
    build(path)  # the lock was released


def test_other_facts_are_allowed_before_the_first_batch(path):
    staged = start(path, 0)
    (staged.folder / "helper").write_bytes(b"made for the old facts")
    staged.abandon()
    staged = start(path, 1, facts={"k": 9})
    assert not (staged.folder / "helper").exists()
    staged.abandon()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [None, 7])
def test_a_damaged_interrupted_build_is_an_error(path, name, left):
    start(path, 2).abandon()
    file = get_staging_path(path) / name
    file.unlink() if left is None else os.truncate(file, left)
    before = read_tree(path.parent)
    with pytest.raises(
        ValueError, match=rf"is damaged: .* has {left or 0} bytes, expected at least \d+. Start again with mode="
    ):
        start(path)
    assert read_tree(path.parent) == before
    build(path, resume=False)


EARLIER_STATE = '{"facts": {}, "count": 2, "vec_size": 4, "docno_bytes": 9}'


@pytest.mark.parametrize("state", ["", "{", "[]", '{"facts": {}}', EARLIER_STATE])
def test_an_unreadable_state_is_an_error(path, state):
    start(path, 2).abandon()
    (get_staging_path(path) / "state.json").write_text(state)
    with pytest.raises(ValueError, match=r"is damaged: .*state.json cannot be read .* Start again with mode='overwrite'"):
        start(path)
    build(path, resume=False)


def test_the_staging_directory_of_an_earlier_version_is_replaced(path):
    folder = get_staging_path(path)
    (folder / "index").mkdir(parents=True)
    (folder / "index" / "vecs.f2").write_bytes(b"12345678")
    (folder / "state.json").write_text(EARLIER_STATE)
    assert read_tree(build(path)) == read_tree(build(path.with_name("y")))
    assert {entry.name for entry in path.parent.iterdir()} == {"x", "y"}


def test_check_same_build_compares_only_the_given_facts(path):
    check_same_build(path, {"a": 1, "b": 2}, {"a": 1})
    for started in ({"a": 2}, {"b": 1}):
        with pytest.raises(ValueError, match="cannot be resumed"):
            check_same_build(path, started, {"a": 1})


# Errors


def test_abandon_deletes_a_build_without_rows(path):
    staged = start(path, 0)
    staged.abandon()
    assert not read_tree(path.parent)


def test_abandon_keeps_files_that_help_a_resumed_build(path):
    staged = start(path, 0)
    (staged.folder / "helper").write_bytes(b"took hours")
    (staged.folder / "helper.part").write_bytes(b"half")
    staged.abandon()
    staged = start(path, 0)
    assert (staged.folder / "helper").read_bytes() == b"took hours"
    staged.abandon()


def test_abandon_deletes_a_build_with_half_a_file_only(path):
    staged = start(path, 0)
    (staged.folder / "helper.part").write_bytes(b"half")
    staged.abandon()
    assert not read_tree(path.parent)


def test_an_existing_directory_survives_a_failing_rename(path, monkeypatch):
    old = read_tree(build(path, batches=1))
    staged = start(path)

    def fail(new: Path, path: Path, old: Path) -> None:
        os.rename(path, old)
        raise OSError("no")

    monkeypatch.setattr(staging, "put_in_place", fail)
    with pytest.raises(OSError, match="no"):
        staged.finish({})
    staged.abandon()
    assert read_tree(path) == old


def test_a_second_build_is_refused_and_the_first_continues(path):
    staged = start(path, 2)
    before = read_tree(path.parent)
    for resume in (True, False):
        with pytest.raises(FileExistsError, match="x is being built by another process or thread. Wait until it has finished"):
            start(path, resume=resume)
    assert read_tree(path.parent) == before
    staged.abandon()
    build(path)


# Leftovers


def test_a_build_that_died_between_its_two_renames_is_undone(path):
    old = read_tree(build(path, batches=1))
    start(path).abandon()
    os.rename(path, get_staging_path(path) / "old")
    staged = start(path)
    assert read_tree(path) == old
    staged.abandon()
    build(path)
    assert set(read_tree(path.parent)) == {"x", *(f"x/{name}" for name in FINAL_NAMES)}


def test_leftovers_of_a_finished_build_are_not_an_unfinished_build(path):
    start(path).abandon()
    os.rename(get_staging_path(path) / "new", path)  # finish() does this last, before it deletes the rest
    assert not is_unfinished(path)
    shutil.rmtree(path)  # if the result is deleted too, nothing is left to resume
    assert read_tree(build(path)) == read_tree(build(path.with_name("y")))


def test_discard_leftovers_keeps_unfinished_builds(path):
    start(path, 2).abandon()
    before = read_tree(path.parent)
    discard_leftovers(path)
    assert read_tree(path.parent) == before
    shutil.rmtree(get_staging_path(path) / "new")
    discard_leftovers(path)
    assert not get_staging_path(path).exists()


def test_discard_leftovers_keeps_a_locked_directory(path):
    staged = start(path, 2)
    shutil.rmtree(staged.new)
    discard_leftovers(path)
    assert staged.folder.exists()
    staged.close()


# Killed at any file-system call


def kill_at(step: int, folder: str) -> None:
    """Kill this process before its n-th access to the file system below a folder."""
    steps = itertools.count(1)
    events = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in events and (folder in str(args[0]) or event == "os.rmdir") and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def build_and_kill(path: Path, step: int, *, resume: bool) -> bool:
    """Build in a child process that is killed at a step; return False if it finished before."""
    child = os.fork()
    if not child:
        code = 1
        try:
            kill_at(step, str(path))
            build(path, resume=resume)
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"at step {step}: {status}"
    return status != 0


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_build_killed_at_any_file_system_call_is_resumed_with_the_same_bytes(tmp_path, exists, interrupted):
    """The killed build starts from nothing, or discards an interrupted one."""
    new = read_tree(build(tmp_path / "new"))
    old = read_tree(build(tmp_path / "old", batches=1, facts={"k": 1}))
    for step in itertools.count(1):
        path = tmp_path / f"{step}.hyp"
        if exists:
            shutil.copytree(tmp_path / "old", path)
        if interrupted:
            start(path, 2).abandon()
        killed = build_and_kill(path, step, resume=not interrupted)
        if path.exists():
            assert read_tree(path) == new or (exists and read_tree(path) == old), f"at step {step}"
        elif exists:
            assert read_tree(get_staging_path(path) / "old") == old and is_unfinished(path), f"at step {step}"
        build(path)
        assert read_tree(path) == new, f"at step {step}"
        assert {entry.name for entry in tmp_path.glob(f"{step}.hyp*")} == {path.name}, f"at step {step}"
        if not killed:
            break
    assert step > 25
