"""Small files: JSON facts, atomic replacement, fsync."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .layout import META_FILE


def read_file_version(path: Path, file: str = META_FILE) -> tuple[str, int, int]:
    """Return a value that changes if a file of an index is replaced.

    Args:
        path: Index directory.
        file: Name of the file.

    Returns:
        The path, and the inode and modification time of the file (0 if it is missing).
    """
    try:
        stat = os.stat(path / file)
    except OSError:
        return str(path), 0, 0
    return str(path), stat.st_ino, stat.st_mtime_ns


def read_meta(path: Path) -> dict[str, Any]:
    """Read the ``pt_meta.json`` of a directory.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file does not contain a JSON object.
    """
    file = path / META_FILE
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{file} must contain JSON, but cannot be parsed ({err}). Copy the directory again.") from err
    if not isinstance(meta, dict):
        raise ValueError(f"{file} must contain a JSON object, got {type(meta).__name__}. Copy the directory again.")
    return meta


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file atomically: a reader sees the old content or the new one."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as out:
        json.dump(value, out, indent=2)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, path)
    fsync(path.parent)


def publish_file(part: Path, file: Path) -> None:
    """Flush a written file to the disk, then give it its final name."""
    fsync(part)
    os.replace(part, file)


def fsync(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
