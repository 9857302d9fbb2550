"""Atomic, resumable building of a directory: the index and the neighbour graph are both written this way."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .checksums import OWN_KEY, TABLE_KEY, get_sums_name, make_table, seal_meta, write_block_sums
from .files import name_file, read_meta, write_json
from .layout import META_FILE
from .reading import parse_json
from .rename import put_in_place

logger = logging.getLogger(__name__)

NEW = "new"
"""Folder in the staging directory that becomes the finished directory."""
OLD = "old"
"""Folder in the staging directory that holds the replaced directory until it is deleted."""
STATE_FILE = "state.json"


def get_staging_path(path: Path) -> Path:
    """Return the directory in which another directory is built. Symbolic links are followed."""
    path = path.resolve()
    return path.with_name(path.name + ".partial")


def get_lock_path(path: Path) -> Path:
    """Return the file that is locked while a directory is built."""
    path = path.resolve()
    return path.with_name(f".{path.name}.lock")


def is_unfinished(path: Path) -> bool:
    """Return True if the build of a directory was started but not completed."""
    return (get_staging_path(path) / NEW).is_dir() and not _is_published(path)


def _is_published(path: Path) -> bool:
    """Return True if the last build of a directory was put in place, but killed before it deleted the replaced one."""
    try:
        completed = parse_json(get_staging_path(path) / STATE_FILE).get("completed")
        return completed is not None and read_meta(path).get(OWN_KEY) == completed
    except (OSError, ValueError):
        return False


def find_folder(path: Path) -> Path:
    """Return the directory to read: the path itself, or the replaced directory in the moment in which there is no other.

    Linux has no such moment; see :func:`~pyterrier_hypencoder.index.rename.put_in_place`.
    """
    old = get_staging_path(path) / OLD
    if path.exists() or not (old / META_FILE).exists():
        return path
    logger.warning("%s is being replaced; reading its previous state in %s", path, old)
    return old


def discard_leftovers(path: Path) -> None:
    """Delete the staging directory and the lock file of a build that was killed after it had put its result in place."""
    folder = get_staging_path(path)
    if (folder.is_dir() or get_lock_path(path).exists()) and not is_unfinished(path):
        with suppress(OSError), lock(path):  # somebody else is building, or the directory is read-only
            if not is_unfinished(path):  # nobody has started another build
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of a directory that is built, and delete the lock file afterwards.

    The lock file stands beside the directories that a build creates and removes. Whoever locks a file that was deleted in
    the meantime tries again, so two builds never hold the lock at the same time.

    Raises:
        FileExistsError: If another process or thread is building the directory.
    """
    file = get_lock_path(path)
    held = FileLock(file, thread_local=False, is_singleton=False)
    try:
        held.acquire(blocking=False)
    except Timeout as err:
        raise FileExistsError(
            f"{path} is being built by another process or thread. Wait until it has finished, or choose another path."
        ) from err
    try:
        yield
    finally:
        with suppress(OSError):  # Windows cannot delete an open file, and the lock file does no harm
            file.unlink(missing_ok=True)
        held.release()


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

    The file ``.NAME.lock`` is locked during the build. The staging directory ``NAME.partial`` contains:

    - ``state.json``: facts of the build, number of rows, sizes of the files
    - ``new/``: becomes the finished directory
    - ``old/``: the replaced directory, until it is deleted
    - other files that only the build needs

    Args:
        path: Final path of the directory. If it is a symbolic link, its target is replaced.
        facts: JSON values that a resumed build must share with the interrupted one.
        files: Files to append to, relative to the staging directory.
        resume: If True, continue an interrupted build if there is one. If False, discard it.

    Raises:
        FileExistsError: If another process or thread is building the same directory.
        OSError: If the directory cannot be written. The error names the file.
        ValueError: If the interrupted build has other facts or is damaged.
    """

    def __init__(self, path: Path, *, facts: dict[str, Any], files: Sequence[str], resume: bool = True) -> None:
        self.path, self.facts = path.resolve(), facts
        self.written_by = describe_package()  # not in finish(), where a failure would cost the whole build
        self.folder = get_staging_path(path)
        self.new = self.folder / NEW
        self.count = 0
        """Number of rows that are safely stored."""
        self._old = self.folder / OLD
        self._state_file = self.folder / STATE_FILE
        self._names = tuple(files)
        self._files: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = ExitStack()
        self._lock.enter_context(lock(path))
        try:
            self.folder.mkdir(exist_ok=True)
            unfinished = is_unfinished(path)
            self._restore_old()
            sizes = self._read_state() if resume and unfinished else None
            if sizes is None:
                self._clear()
            self._open(sizes or {})
        except BaseException:
            self.close()
            raise

    def _restore_old(self) -> None:
        """Undo the first of the two renames that replace a directory if the second one is missing."""
        if os.path.lexists(self._old):
            if self.new.is_dir() and not self.path.exists():
                os.rename(self._old, self.path)
            else:
                shutil.rmtree(self._old, ignore_errors=True)

    def _read_state(self) -> dict[str, int] | None:
        """Return the file sizes of an interrupted build and set the count; None if there is nothing to resume."""
        if not self._state_file.exists():
            return None
        try:
            state = parse_json(self._state_file)
            facts, count = state["facts"], int(state["count"])
            sizes = {name: int(size) for name, size in state["sizes"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as err:
            raise ValueError(self._describe_damage(f"{self._state_file} cannot be read ({err!r})")) from err
        if not count and facts != self.facts:
            return None
        check_same_build(self.path, facts, self.facts)
        for name in self._names:
            file = self.folder / name
            found = file.stat().st_size if file.exists() else 0
            if found < sizes.get(name, 0):
                raise ValueError(self._describe_damage(f"{file} has {found} bytes, expected at least {sizes[name]}"))
        self.count = count
        return sizes

    def _describe_damage(self, problem: str) -> str:
        return f"The unfinished build of {self.path} is damaged: {problem}. Start again with mode='overwrite'."

    def _clear(self) -> None:
        """Delete everything and make an empty directory."""
        self._state_file.unlink(missing_ok=True)  # first: if the process dies in between, nothing is resumed
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self.new.mkdir()

    def _open(self, sizes: Mapping[str, int]) -> None:
        for name in self._names:
            self._files[name] = open(self.folder / name, "ab")
            self._files[name].truncate(sizes.get(name, 0))  # drop what was written after the last recorded batch
        self._record()

    def _record(self) -> None:
        self._sizes = {name: file.tell() for name, file in self._files.items()}
        self._write_state({})

    def _write_state(self, more: dict[str, Any]) -> None:
        write_json(self._state_file, {"facts": self.facts, "count": self.count, "sizes": self._sizes, **more})

    def append(self, rows: int, data: Mapping[str, bytes]) -> None:
        """Append a batch of rows to the files, and return when it is safely stored.

        Args:
            rows: Number of rows.
            data: Bytes to append, by file.
        """
        for name, content in data.items():
            with name_file(self.folder / name):
                self._files[name].write(content)
                self._files[name].flush()
        for name in data:
            with name_file(self.folder / name):
                os.fsync(self._files[name].fileno())
        self.count += rows
        self._record()

    def complete(self, meta: dict[str, Any], *, checked: Sequence[str] = (), checked_rows: Sequence[str] = ()) -> None:
        """Write the checksums and the metadata. The directory is complete then, but does not have its name yet.

        Args:
            meta: Content of ``pt_meta.json``; ``written_by`` and checksums are added.
            checked: Files that readers check as a whole.
            checked_rows: Files that readers check block by block.
        """
        self._close_files()
        for name in checked_rows:
            write_block_sums(self.new / name)
        table = make_table(self.new, [*checked, *map(get_sums_name, checked_rows)])
        sealed = seal_meta({**meta, "written_by": self.written_by, TABLE_KEY: table})
        write_json(self.new / META_FILE, sealed)
        self._write_state({"completed": sealed[OWN_KEY]})

    def publish(self) -> None:
        """Put the complete directory in place, and delete the staging directory with what it replaces."""
        put_in_place(self.new, self.path, self._old)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def finish(self, meta: dict[str, Any], *, checked: Sequence[str] = (), checked_rows: Sequence[str] = ()) -> None:
        """Complete the directory and put it in place; see :meth:`complete`."""
        self.complete(meta, checked=checked, checked_rows=checked_rows)
        self.publish()

    def abandon(self) -> None:
        """Stop after an error: keep what a resumed build can use; if there is nothing, delete the staging directory."""
        self._close_files()
        self._restore_old()
        if not self.count and not self._has_other_files():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def close(self) -> None:
        """Close the files and release the lock; everything on the disk stays as it is."""
        self._close_files()
        self._lock.close()

    def _close_files(self) -> None:
        for file in self._files.values():
            with suppress(OSError):  # the disk is full, which append() has reported
                file.close()

    def _has_other_files(self) -> bool:
        known = {STATE_FILE, NEW, OLD, *self._names}
        return any(entry.name not in known and entry.suffix != ".part" for entry in self.folder.iterdir())
