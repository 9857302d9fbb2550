"""Guards around reading: the kind and size of files, JSON, and the errors that libraries raise for damaged files."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 * 2**20
"""Largest JSON file of a model. The vocabularies of large multilingual tokenizers take 20 to 40 MB."""
_MAX_JSON_DEPTH = 64
_MAX_REASON_LENGTH = 400
# Problems of the machine, which are never reported as damage: memory, open files, permissions, space, network.
_ENVIRONMENT_ERRNOS = {
    getattr(errno, name)
    for name in "EACCES EPERM EMFILE ENFILE ENOMEM ENOSPC EDQUOT EFBIG EIO ESTALE EROFS ETIMEDOUT ECONNREFUSED"
    " ECONNRESET".split()
    if hasattr(errno, name)
}
_FULL_DISK_ERRNOS = {errno.ENOSPC, errno.EFBIG}
_NETWORK_MODULES = {"httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub", "ssl", "socket"}
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|cannot allocate memory", re.IGNORECASE)
_KINDS = {
    "a directory": stat.S_ISDIR,
    "a pipe": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}


_IS_CLEAR = "names_the_file"
"""Attribute of errors that :func:`guard_reading` passes on as they are."""


def make_error(message: str) -> ValueError:
    """Return the error for a file that is damaged, has the wrong kind, or contradicts another one. The message names it."""
    error = ValueError(message)
    setattr(error, _IS_CLEAR, True)
    return error


def check_regular_file(path: str | Path, max_bytes: int | None = None) -> os.stat_result:
    """Check that a path is a regular file, or a link to one, before it is opened. Reading a pipe would never end.

    Args:
        path: The path.
        max_bytes: Largest allowed size; None for no limit.

    Returns:
        Its status, for example its size.

    Raises:
        FileNotFoundError: If there is no such file, or a link leads nowhere.
        ValueError: If it is something else or too large.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for name, test in _KINDS.items() if test(status.st_mode)), "something else")
        raise make_error(f"{path} must be a file, got {kind}. Copy the file again.")
    if max_bytes is not None and status.st_size > max_bytes:
        raise make_error(
            f"{path} must have at most {max_bytes:,} bytes, got {status.st_size:,}. Check that it is the right file."
        )
    return status


def parse_json(path: str | Path, kind: type = dict) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        kind: Expected type of the outermost value: ``dict`` or ``list``.

    Raises:
        ValueError: If the file is too large, is not valid JSON, is nested too deeply, or contains another type.
    """
    check_regular_file(path, MAX_JSON_BYTES)
    with guard_reading(path, "is not valid JSON"):
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise make_error(f"{path} must contain {expected}, got {type(value).__name__}. Check that the file is complete.")
    _check_depth(value, path)
    return value


def _check_depth(value: Any, path: str | Path) -> None:
    level = [value]
    for _ in range(_MAX_JSON_DEPTH):
        level = [item for v in level if isinstance(v, dict | list) for item in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return
    raise make_error(f"{path} must be nested at most {_MAX_JSON_DEPTH} levels deep. Check that it is the right file.")


@contextmanager
def guard_reading(
    path: Any, problem: str = "cannot be read", advice: str = "Check that the file is complete, or copy it again."
) -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into a ValueError that names the file.

    Libraries raise nearly every type of exception for damage. Problems of the machine keep their own type: MemoryError, and
    OSError for permissions, open files and the network.

    Args:
        path: File or directory that is read.
        problem: Description of the problem, for the message.
        advice: Advice to the user, for the message.
    """
    try:
        yield
    except (FileNotFoundError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as err:  # a panic in Rust is no Exception
        if hasattr(err, _IS_CLEAR) or (isinstance(err, ImportError) and err.__context__ is None):
            raise
        if isinstance(err, ImportError):  # transformers tried another library after a file could not be read
            err = err.__context__ or err
        if (problem_of_machine := find_environment_error(err, path)) is not None:
            raise problem_of_machine from err
        # Without its cause, because PyTorch's text recommends to switch off the protection against code.
        raise make_error(f"{path} {problem} ({_describe(err)}). {advice}") from None


def _describe(err: BaseException) -> str:
    """Return the type of an exception and the first line of its message."""
    if "weights_only" in str(err):
        return "it contains objects other than tensors, which are never loaded because they could run code"
    line = next(iter(str(err).strip().splitlines()), "")
    return f"{type(err).__name__}: {line}"[:_MAX_REASON_LENGTH] if line else type(err).__name__


def find_environment_error(err: BaseException, path: Any) -> MemoryError | OSError | None:
    """Return the problem of the machine behind an exception, such as too little memory; None if there is none.

    Args:
        err: The exception. Its causes and contexts are searched, because libraries wrap them.
        path: File that was read or written.
    """
    cause: BaseException | None = err
    for _ in range(20):
        if cause is None:
            break
        text = str(cause)
        if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError | OSError) and _OUT_OF_MEMORY.search(text)):
            return MemoryError(f"Out of memory while reading {path}.")
        code = cause.errno if isinstance(cause, OSError) else None
        if match := re.search(r"\(os error (\d+)\)", text):  # libraries in Rust
            code = int(match[1])
        if code is None:  # faiss
            code = next((full for full in _FULL_DISK_ERRNOS if f"({os.strerror(full)})" in text), None)
        if code is not None and code in _ENVIRONMENT_ERRNOS:
            return OSError(code, os.strerror(code), str(path))
        network = type(cause).__module__.split(".")[0] in _NETWORK_MODULES or isinstance(cause, ConnectionError | TimeoutError)
        if network and "NotFound" not in type(cause).__name__ and "Validation" not in type(cause).__name__:
            return OSError(f"{path} could not be downloaded ({_describe(cause)}). Check the network, or pass a directory.")
        cause = cause.__cause__ or cause.__context__
    return None
