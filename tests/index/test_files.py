"""Small files: JSON facts, atomic replacement, versions."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from indexes import write_index

from pyterrier_hypencoder.index.files import read_file_version, read_meta, replace_file, resolve_path, write_json
from pyterrier_hypencoder.index.reading import parse_json


def test_read_file_version_changes_when_an_index_is_replaced(tmp_path):
    path = tmp_path / "x.hyp"
    write_index(path, [[1.0, 2.0]])
    before = read_file_version(path)
    assert read_file_version(path) == before
    write_index(path, [[1.0, 2.0]], mode="overwrite")
    assert read_file_version(path) != before
    shutil.rmtree(path)
    assert read_file_version(path) == (str(path), 0, 0) != before


def test_read_file_version_of_a_single_file(tmp_path):
    before = read_file_version(tmp_path, "a.json")
    write_json(tmp_path / "a.json", {"a": 1})
    assert read_file_version(tmp_path, "a.json") != before
    assert read_file_version(tmp_path, "b.json") == before


def test_write_json_keeps_the_old_file_if_it_fails(tmp_path, monkeypatch):
    file = tmp_path / "pt_meta.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert read_meta(tmp_path) == {"a": 1}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(file, {"a": 2})
    assert read_meta(tmp_path) == {"a": 1}


def test_replace_file_flushes_before_it_renames(tmp_path, monkeypatch):
    file, calls = tmp_path / "x", []
    monkeypatch.setattr(os, "fsync", lambda _: calls.append(file.exists()))
    with replace_file(file) as part:
        part.write_text("complete")
    assert calls == [False] and file.read_text() == "complete" and not part.exists()


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_no_part(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})

    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device: .*x.json") as caught:
        write_json(file, {"a": 2})
    assert caught.value.filename == str(file)
    assert parse_json(file) == {"a": 1} and [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_resolve_path_is_independent_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert resolve_path("x.hyp") == tmp_path / "x.hyp" == resolve_path(os.path.join("a", "..", "x.hyp"))
    assert resolve_path("~/x.hyp").as_posix() == "/home/me/x.hyp"
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert resolve_path(tmp_path / "link") == tmp_path / "link"
    assert resolve_path(None) is None and resolve_path(3) == 3 and resolve_path("") == ""
