"""Small files: JSON facts, atomic replacement, fsync."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

META_FILE = "pt_meta.json"


def identity(path: Path, file: str = META_FILE) -> tuple[str, int, int]:
    """What changes when an index, or one of the files in it, is replaced by another one of the same name."""
    try:
        stat = os.stat(path / file)
    except OSError:
        return str(path), 0, 0
    return str(path), stat.st_ino, stat.st_mtime_ns


def read_meta(path: Path) -> dict[str, Any]:
    """What the ``pt_meta.json`` of a directory says.

    Raises:
        OSError: where there is none.
        ValueError: where it is no JSON object.
    """
    try:
        meta = json.loads((path / META_FILE).read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"expected JSON in {path / META_FILE}, found something else ({err}); is it complete?") from err
    if not isinstance(meta, dict):
        raise ValueError(f"expected a JSON object in {path / META_FILE}, found {type(meta).__name__}")
    return meta


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a file as a whole: a reader sees the old one or the new one."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as out:
        json.dump(value, out, indent=2)
        out.flush()
        os.fsync(out.fileno())
    os.replace(part, path)
    fsync(path.parent)


def put(part: Path, file: Path) -> None:
    """Gives a file that has been written its name, once it is on the disk."""
    fsync(part)
    os.replace(part, file)


def fsync(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
