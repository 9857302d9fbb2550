"""Guards around reading: damage names the file, and problems of the machine keep their own type."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from pyterrier_hypencoder.index import reading
from pyterrier_hypencoder.index.reading import check_regular_file, guard_reading, parse_json


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("deep"),
        TypeError("a"),
        AttributeError("a"),
        KeyError("a"),
        IndexError("a"),
        RuntimeError("size mismatch"),
        Exception("expected value at line 1"),
        ValueError("a"),
        OSError("not a folder containing a config.json"),
        json.JSONDecodeError("a", "b", 0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_damage_is_one_error_that_names_the_file(error):
    with pytest.raises(ValueError, match=f"some/file cannot be read .*{type(error).__name__}"), guard_reading("some/file"):
        raise error


def raise_wrapped(error):
    try:
        raise error
    except Exception:
        raise ValueError("Can't load the model")  # noqa: B904


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), MemoryError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError),
        (torch.OutOfMemoryError("CUDA out of memory."), MemoryError),
        (Exception("Cannot allocate memory (os error 12)"), OSError),
        (OSError(errno.EMFILE, "Too many open files", "x"), OSError),
        (Exception("Too many open files (os error 24)"), OSError),
        (PermissionError(errno.EACCES, "Permission denied", "x"), OSError),
        (ConnectionError("unreachable"), OSError),
        (TimeoutError("slow"), OSError),
    ],
    ids=str,
)
def test_problems_of_the_machine_are_never_called_damage(error, expected, wrap):
    with pytest.raises(expected) as info, guard_reading("some/file"):
        if wrap:
            raise_wrapped(error)
        raise error
    assert not isinstance(info.value, ValueError)
    assert "some/file" in str(info.value) or isinstance(error, MemoryError)


def test_panics_of_rust_are_damage():
    class PanicException(BaseException):
        pass

    with pytest.raises(ValueError, match="PanicException"), guard_reading("some/file"):
        raise PanicException("index out of bounds")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ImportError("needs sentencepiece"), FileNotFoundError("x")])
def test_other_errors_pass(error):
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind), guard_reading("some/file"):
        raise error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a":' * 100_000, "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "must contain an object, got list"),
        (b" " * (2**26 + 1), "must have at most 67,108,864 bytes"),
    ],
    ids=["cut", "deep list", "deep object", "binary", "list", "large"],
)
def test_damaged_json_is_an_error_that_names_the_file(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.json .*{message}"):
        parse_json(tmp_path / "x.json")


def test_json_has_limits_of_size_depth_and_type(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('{"a": ' * 60 + "1" + "}" * 60)
    assert "a" in parse_json(path)
    path.write_text('{"a": ' * 70 + "1" + "}" * 70)
    with pytest.raises(ValueError, match=r"a\.json must be nested at most"):
        parse_json(path)
    with pytest.raises(ValueError, match=r"a\.json must contain a list, got dict"):
        parse_json(path, list)
    monkeypatch.setattr(reading, "MAX_JSON_BYTES", 5)
    with pytest.raises(ValueError, match=r"a\.json must have at most 5 bytes"):
        parse_json(path)


def test_only_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a directory"), ("/dev/zero", "a device")):
        with pytest.raises(ValueError, match=f"must be a file, got {kind}"):
            check_regular_file(path)
    with pytest.raises(FileNotFoundError):
        check_regular_file(tmp_path / "nothing")
