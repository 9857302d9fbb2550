"""Putting a directory in place: there is always a directory of that name."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

import pytest

from pyterrier_hypencoder.index import rename
from pyterrier_hypencoder.index.rename import exchange, put_in_place

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="exchanging names needs Linux")


def make(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.mark.parametrize("can_exchange", [True, False])
def test_put_in_place_replaces_a_directory_and_keeps_the_old_one(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(rename, "exchange", lambda first, second: False)
    new, path, old = make(tmp_path / "new", "new"), make(tmp_path / "x", "old"), tmp_path / "old"
    put_in_place(new, path, old)
    assert (path / "file").read_text() == "new" and (old / "file").read_text() == "old" and not new.exists()


def test_put_in_place_needs_no_old_directory(tmp_path):
    put_in_place(make(tmp_path / "new", "new"), tmp_path / "x", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@linux
def test_exchange_leaves_no_moment_without_a_directory(tmp_path):
    first, second = make(tmp_path / "a", "a"), make(tmp_path / "b", "b")
    missing, stop = [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if not os.path.exists(first / "file"):
                missing.append(1)

    thread = threading.Thread(target=watch)
    thread.start()
    results = {exchange(second, first) for _ in range(2000)}
    stop.set()
    thread.join()
    assert results == {True} and not missing


@linux
def test_a_failing_exchange_is_an_error_that_names_the_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="x") as caught:
        exchange(tmp_path / "missing", tmp_path / "x")
    assert caught.value.errno == errno.ENOENT and caught.value.filename == str(tmp_path / "x")
