"""Small files: metadata, atomic replacement, fsync, paths."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .layout import META_FILE
from .reading import find_environment_error, parse_json


def read_file_version(path: Path, file: str = META_FILE) -> tuple[str, int, int]:
    """Return a value that changes if a file of an index is replaced.

    Args:
        path: Index directory.
        file: Name of the file.

    Returns:
        The path, and the inode and modification time of the file (0 if it is missing).
    """
    try:
        found = os.stat(path / file)
    except OSError:
        return str(path), 0, 0
    return str(path), found.st_ino, found.st_mtime_ns


def resolve_path(path: Any) -> Any:
    """Return a path as an absolute :class:`~pathlib.Path`, with ``~`` expanded; other values are returned unchanged.

    Transformers resolve paths when they are made, so a later change of the working directory does not matter. Symbolic
    links are not resolved.

    Example:
        >>> resolve_path("/data/../x.hyp").as_posix()
        '/x.hyp'
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        return path
    return Path(os.path.abspath(os.path.expanduser(os.fspath(path))))


def read_meta(path: Path) -> dict[str, Any]:
    """Read the ``pt_meta.json`` of a directory; see :func:`~pyterrier_hypencoder.index.reading.parse_json`."""
    return parse_json(path / META_FILE)


def write_json(path: Path, value: dict[str, Any], **options: Any) -> None:
    """Replace a JSON file atomically: a reader sees the old content or the new one.

    Args:
        path: The file.
        value: Its content.
        **options: Further options of ``json.dumps``.
    """
    with replace_file(path) as part:
        part.write_text(json.dumps(value, indent=2, **options), encoding="utf-8")
    fsync(path.parent)


@contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Yield a path to write to. The file gets its name when it is complete and on the disk.

    Raises:
        OSError: If it cannot be written. The error names the file, and nothing half-written is left.
    """
    part = file.with_name(file.name + ".part")
    try:
        with name_file(file):
            yield part
            _flush(part)
            os.replace(part, file)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def name_file(file: Path) -> Iterator[None]:
    """Let errors of writing name the file, such as a full disk. Libraries wrap them in exceptions of many types."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as err:
        if isinstance(err, OSError) and err.filename is not None:
            raise
        if isinstance(err, OSError) and err.errno is not None:
            problem: OSError | MemoryError | None = OSError(err.errno, err.strerror, str(file))
        else:
            problem = find_environment_error(err, file)
        if problem is None:
            raise
        raise problem from err


def fsync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk. Windows cannot do this for directories."""
    if os.name != "nt" or not path.is_dir():
        with name_file(path):
            _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
