"""Checksums of checkpoints: a file is damaged if it is no longer the one that was saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..index.files import write_json
from ..index.reading import check_regular_file, make_error, parse_json
from .model_files import find_file

CHECKSUM_FILE = "checksums.json"
_ALGORITHM = "xxh3_128"
_BLOCK = 2**22


def compute_checksum(path: Path) -> str:
    """Return the checksum of a file, as 32 hexadecimal digits. It takes about 0.1 seconds per gigabyte in memory."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_checksums(directory: Path, names: Iterable[str], others: Path | None = None) -> None:
    """Write the checksums of files into ``checksums.json`` beside them.

    Args:
        directory: Directory of the checkpoint.
        names: Names of the files. Files that do not exist are left out.
        others: Directory of the files that the first one lacks.
    """
    files = {}
    for name in sorted(names):
        if found := next((folder / name for folder in (directory, others) if folder and (folder / name).is_file()), None):
            files[name] = compute_checksum(found)
    write_json(directory / CHECKSUM_FILE, {"algorithm": _ALGORITHM, "files": files})


def verify_checksums(name_or_path: str, revision: str | None = None, only: str | None = None) -> None:
    """Check the files of a checkpoint against the checksums that were saved with it. Without checksums, nothing is checked.

    Args:
        name_or_path: Directory or hub id.
        revision: Branch, tag or commit on the hub.
        only: Name of the only file to check; None for all.

    Raises:
        ValueError: If a file differs or is missing.
    """
    path = find_file(name_or_path, CHECKSUM_FILE, revision)
    if path is None:
        return
    stored = parse_json(path)
    files = stored.get("files")
    if stored.get("algorithm") != _ALGORITHM or not isinstance(files, dict):
        raise make_error(f"{path} must have the algorithm {_ALGORITHM!r} and files. Copy it again, or delete it.")
    for name, expected in files.items():
        if only not in (None, name):
            continue
        file = None if Path(name).name != name else find_file(name_or_path, name, revision)
        if file is None:
            raise make_error(f"{path} lists {name}, but {name_or_path!r} has no such file. Copy the checkpoint again.")
        check_regular_file(file)
        if compute_checksum(file) != expected:
            raise make_error(
                f"{file} is not the file that was saved: its checksum differs from the one in {path}. Copy the checkpoint "
                f"again. If you have changed the file on purpose, delete {CHECKSUM_FILE}."
            )
