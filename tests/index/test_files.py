"""Small files: JSON facts, atomic replacement, versions."""

from __future__ import annotations

import os
import shutil

import pytest
from indexes import write_index

from pyterrier_hypencoder.index.files import publish_file, read_file_version, read_meta, write_json


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


def test_publish_file_flushes_before_it_renames(tmp_path, monkeypatch):
    part, file, calls = tmp_path / "x.part", tmp_path / "x", []
    part.write_text("complete")
    monkeypatch.setattr(os, "fsync", lambda _: calls.append(file.exists()))
    publish_file(part, file)
    assert calls == [False] and file.read_text() == "complete" and not part.exists()
