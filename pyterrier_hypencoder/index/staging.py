"""Atomic, resumable building of a directory: the index and the neighbour graph are both written this way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .files import fsync, write_json
from .layout import META_FILE

NEW = "new"
"""Folder in the staging directory that becomes the finished directory."""
OLD = "old"
"""Folder in the staging directory that holds the replaced directory until it is deleted."""
LOCK_FILE, STATE_FILE = "lock", "state.json"


def get_staging_path(path: Path) -> Path:
    """Return the directory in which another directory is built."""
    return path.with_name(path.name + ".partial")


def is_unfinished(path: Path) -> bool:
    """Return True if the build of a directory was started but not completed."""
    return (get_staging_path(path) / NEW).is_dir()


def discard_leftovers(path: Path) -> None:
    """Delete the staging directory of a build that was killed after it had put its result in place."""
    folder = get_staging_path(path)
    if folder.is_dir() and not is_unfinished(path):
        with suppress(Timeout), FileLock(folder / LOCK_FILE).acquire(blocking=False):
            shutil.rmtree(folder, ignore_errors=True)


def check_same_build(path: Path, started: dict[str, Any], facts: dict[str, Any]) -> None:
    """Check that a build is resumed with the facts it was started with.

    Args:
        path: Directory that is built.
        started: Facts of the interrupted build.
        facts: Facts of this build.

    Raises:
        ValueError: If they differ.
    """
    started = {key: started.get(key) for key in facts}
    if started != facts:
        raise ValueError(
            f"The build of {path} was started with {started} and cannot be resumed with {facts}. "
            "Use the same model, dtype and text field, or start again with mode='overwrite'."
        )


def describe_package() -> str:
    """Return the name and version of this package, for the metadata of the files that it writes."""
    try:
        return f"pyterrier-hypencoder {version('pyterrier-hypencoder')}"
    except PackageNotFoundError:  # a source tree that was never installed
        return "pyterrier-hypencoder (unknown version)"


class StagedDirectory:
    """Build a directory in a staging directory next to it, and put it in place by one rename.

    Rows are appended to a few files. When :meth:`append` returns, they are on the disk, and ``state.json`` holds the new
    sizes of the files. Resuming a killed build truncates the files to these sizes, so the result has the same bytes as an
    uninterrupted build. Appending also reports a full disk, where writing to a memory map would kill the process.

    The staging directory ``NAME.partial`` contains:

    - ``lock``: held by the process that builds
    - ``state.json``: facts of the build, number of rows, sizes of the files
    - ``new/``: becomes the finished directory
    - ``old/``: the replaced directory, until it is deleted
    - other files that only the build needs

    Args:
        path: Final path of the directory.
        facts: JSON values that a resumed build must share with the interrupted one.
        files: Files to append to, relative to the staging directory.
        resume: If True, continue an interrupted build if there is one. If False, discard it.

    Raises:
        RuntimeError: If another process is building the same directory.
        ValueError: If the interrupted build has other facts or is damaged.
    """

    def __init__(self, path: Path, *, facts: dict[str, Any], files: Sequence[str], resume: bool = True) -> None:
        self.path, self.facts = path, facts
        self.written_by = describe_package()  # not in finish(), where a failure would cost the whole build
        self.folder = get_staging_path(path)
        self.new = self.folder / NEW
        self.count = 0
        """Number of rows that are safely stored."""
        self._old = self.folder / OLD
        self._state_file = self.folder / STATE_FILE
        self._names = tuple(files)
        self._files: dict[str, Any] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / LOCK_FILE)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as err:
            raise RuntimeError(f"Another process is building {path}. Wait until it has finished.") from err
        try:
            self._restore_old()
            sizes = self._read_state() if resume else None
            if sizes is None:
                self._clear()
            self._open(sizes or {})
        except BaseException:
            self.close()
            raise

    def _restore_old(self) -> None:
        """Undo the first of the two renames that replace a directory if the second one is missing."""
        if os.path.lexists(self._old):
            if is_unfinished(self.path) and not self.path.exists():
                os.replace(self._old, self.path)
            else:
                shutil.rmtree(self._old, ignore_errors=True)

    def _read_state(self) -> dict[str, int] | None:
        """Return the file sizes of an interrupted build and set the count; None if there is nothing to resume."""
        if not self.new.is_dir() or not self._state_file.exists():
            return None
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))
            facts, count, sizes = state["facts"], state["count"], state["sizes"]
        except (ValueError, KeyError, TypeError) as err:
            raise ValueError(self._describe_damage(f"{self._state_file} cannot be read ({err!r})")) from err
        if not count and facts != self.facts:
            return None
        check_same_build(self.path, facts, self.facts)
        for name in self._names:
            file = self.folder / name
            found = file.stat().st_size if file.exists() else 0
            if found < sizes[name]:
                raise ValueError(self._describe_damage(f"{file} has {found} bytes, expected at least {sizes[name]}"))
        self.count = count
        return sizes

    def _describe_damage(self, problem: str) -> str:
        return f"The unfinished build of {self.path} is damaged: {problem}. Start again with mode='overwrite'."

    def _clear(self) -> None:
        """Delete everything but the lock and make an empty directory."""
        self._state_file.unlink(missing_ok=True)  # first: if the process dies in between, nothing is resumed
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK_FILE:
                entry.unlink()
        self.new.mkdir()

    def _open(self, sizes: Mapping[str, int]) -> None:
        for name in self._names:
            self._files[name] = open(self.folder / name, "ab")
            self._files[name].truncate(sizes.get(name, 0))  # drop what was written after the last recorded batch
        self._record()

    def _record(self) -> None:
        sizes = {name: file.tell() for name, file in self._files.items()}
        write_json(self._state_file, {"facts": self.facts, "count": self.count, "sizes": sizes})

    def append(self, rows: int, data: Mapping[str, bytes]) -> None:
        """Append a batch of rows to the files, and return when it is safely stored.

        Args:
            rows: Number of rows.
            data: Bytes to append, by file.
        """
        for name, content in data.items():
            self._files[name].write(content)
        for name in data:
            self._files[name].flush()
            os.fsync(self._files[name].fileno())
        self.count += rows
        self._record()

    def finish(self, meta: dict[str, Any]) -> None:
        """Write the metadata and put the directory in place.

        Args:
            meta: Content of ``pt_meta.json``; ``written_by`` is added.
        """
        self._close_files()
        write_json(self.new / META_FILE, {**meta, "written_by": self.written_by})
        if self.path.exists():
            os.replace(self.path, self._old)
        os.replace(self.new, self.path)
        fsync(self.path.parent)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def abandon(self) -> None:
        """Stop after an error: keep what a resumed build can use; if there is nothing, delete the staging directory."""
        self._close_files()
        self._restore_old()
        if not self.count and not self._has_other_files():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def close(self) -> None:
        """Close the files and release the lock; everything on the disk stays as it is."""
        self._close_files()
        self._lock.release()

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()

    def _has_other_files(self) -> bool:
        known = {LOCK_FILE, STATE_FILE, NEW, OLD, *self._names}
        return any(entry.name not in known and entry.suffix != ".part" for entry in self.folder.iterdir())
