"""Checksums: they find damage that file sizes do not show.

Small files are checked as a whole when they are opened. The rows of a large file are checked in blocks of 64 KiB, each
block when it is read for the first time. The checksums of all blocks are stored beside the file, in an array file
``checksums.NAME.u8``. A table in ``pt_meta.json`` holds the checksums of the small files and of these arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from .files import fsync, name_file
from .reading import check_regular_file

ALGORITHM = "xxh3_64"
BLOCK_BYTES = 2**16
SUMS_DTYPE = np.dtype("<u8")
TABLE_KEY, OWN_KEY = "checksums", "checksum"
"""Keys in ``pt_meta.json``: the table, and the checksum of all other keys."""

Rows = np.ndarray | slice | int | np.integer
"""Rows of an array: a slice, one docid, or an array of docids."""


class CheckedRows:
    """A memory-mapped array whose blocks are checked when they are read for the first time.

    It supports what searches need: ``len``, ``shape``, ``dtype`` and indexing by rows.

    Args:
        rows: The memory map, (N, D).
        file: The file, for error messages.
        sums: Checksums of its blocks; None for files of earlier versions, which have no checksums.
        columns: Number of columns to return; None for all.
    """

    def __init__(self, rows: np.ndarray, file: Path, sums: np.ndarray | None = None, columns: int | None = None) -> None:
        self.map = rows[:, :columns]
        """The memory map, without checks."""
        self.shape: tuple[int, ...] = self.map.shape
        self.dtype: np.dtype[Any] = rows.dtype
        self._file = file
        self._bytes = np.asarray(rows).reshape(-1).view(np.uint8).data
        self._row_bytes = rows.nbytes // len(rows)
        self._sums = sums
        self._checked = np.zeros(0 if sums is None else len(sums), dtype=bool)
        self._is_done = sums is None

    def __len__(self) -> int:
        return len(self.map)

    def __getitem__(self, rows: Rows) -> np.ndarray:
        if not self._is_done:
            self._check_blocks(self._list_blocks(rows))
        return self.map[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        rows = self.check()
        return rows.astype(dtype or self.dtype) if copy or dtype not in (None, self.dtype) else rows

    def check(self) -> np.ndarray:
        """Check all blocks that have not been read yet, and return the memory map.

        Raises:
            ValueError: If a block is damaged.
        """
        if not self._is_done:
            self._check_blocks(np.arange(len(self._checked)))
        return self.map

    def _list_blocks(self, rows: Rows) -> np.ndarray:
        """Return the blocks that hold some rows; blocks may be repeated."""
        if isinstance(rows, slice):
            selected = range(len(self))[rows]
            if not selected:
                return np.empty(0, dtype=np.int64)
            first, last = sorted((selected[0], selected[-1]))
            return np.arange(first * self._row_bytes // BLOCK_BYTES, self._find_last_block(last) + 1)
        docids = np.asarray(rows, dtype=np.int64).ravel() % len(self)
        start, stop = docids * self._row_bytes // BLOCK_BYTES, self._find_last_block(docids)
        return np.concatenate([np.minimum(start + i, stop) for i in range(int((stop - start).max(initial=0)) + 1)])

    def _find_last_block(self, rows: Any) -> Any:
        return ((rows + 1) * self._row_bytes - 1) // BLOCK_BYTES

    def _check_blocks(self, blocks: np.ndarray) -> None:
        if self._sums is None:
            return
        for block in np.unique(blocks[~self._checked[blocks]]).tolist():
            if xxhash.xxh3_64_intdigest(self._bytes[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]) != self._sums[block]:
                first = block * BLOCK_BYTES // self._row_bytes
                last = min(((block + 1) * BLOCK_BYTES - 1) // self._row_bytes, len(self) - 1)
                raise ValueError(
                    f"{self._file} is damaged: the checksum of rows {first} to {last} does not match. Copy the file again or "
                    "rebuild it."
                )
            self._checked[block] = True
        self._is_done = bool(self._checked.all())


def get_sums_name(name: str) -> str:
    """Return the name of the array with the checksums of the blocks of a file."""
    return f"checksums.{name}.u8"


def write_block_sums(file: Path) -> None:
    """Write the checksums of the blocks of a file beside it."""
    sums = []
    with open(file, "rb") as data:
        while block := data.read(BLOCK_BYTES):
            sums.append(xxhash.xxh3_64_intdigest(block))
    target = file.with_name(get_sums_name(file.name))
    with name_file(target):
        target.write_bytes(np.array(sums, dtype=SUMS_DTYPE).tobytes())
    fsync(target)


def hash_file(file: Path) -> str:
    """Return the checksum of a whole file as hexadecimal digits."""
    digest, buffer = xxhash.xxh3_64(), memoryview(bytearray(2**20))  # one buffer: new ones take half of the time
    with open(file, "rb", buffering=0) as data:
        while size := data.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def make_table(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return the entry ``checksums`` of ``pt_meta.json``.

    Args:
        folder: Directory of the files.
        names: Files that are checked as a whole.
    """
    return {
        "algorithm": ALGORITHM,
        "block_bytes": BLOCK_BYTES,
        "files": {name: hash_file(folder / name) for name in names},
    }


def seal_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """Return metadata with a checksum of themselves."""
    return {**meta, OWN_KEY: _hash_meta(meta)}


def check_meta(file: Path, meta: dict[str, Any]) -> None:
    """Check the checksum of metadata. Metadata of earlier versions have none, and null switches the check off.

    Raises:
        ValueError: If the metadata were changed.
    """
    if {OWN_KEY, TABLE_KEY} & set(meta) and meta.get(OWN_KEY, "") not in (None, _hash_meta(meta)):
        raise ValueError(
            f"{file} is damaged or was edited: its checksum does not match. Copy the directory again. If you edited it on "
            f"purpose, set {OWN_KEY!r} to null."
        )


def _hash_meta(meta: dict[str, Any]) -> str:
    content = {key: value for key, value in meta.items() if key != OWN_KEY}
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def check_file(folder: Path, name: str, meta: dict[str, Any], max_bytes: int) -> None:
    """Compare a whole file with its checksum in the metadata of its directory, if there is one.

    Args:
        folder: Directory of the file.
        name: Name of the file.
        meta: Metadata of the directory.
        max_bytes: Largest size that the file can have. A larger one is refused without reading it.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file was changed.
    """
    expected = _read_table(folder, meta).get(name)
    if not os.path.exists(folder / name):
        raise ValueError(f"{folder} is damaged: {name} is missing. Copy the directory again or rebuild it.")
    found = check_regular_file(folder / name).st_size
    if found > max_bytes:
        raise ValueError(
            f"{folder / name} is damaged: it must have at most {max_bytes:,} bytes, got {found:,}. Copy the directory again "
            "or rebuild it."
        )
    if expected is not None and hash_file(folder / name) != expected:
        raise ValueError(
            f"{folder / name} is damaged or belongs to another index: its checksum does not match. Copy the directory again "
            "or rebuild it."
        )


def map_checked_rows(
    folder: Path, name: str, meta: dict[str, Any], shape: tuple[int, int], dtype: Any, columns: int | None = None
) -> CheckedRows:
    """Memory-map an array file after a check of its size.

    Args:
        folder: Directory of the file.
        name: Name of the file.
        meta: Metadata of the directory.
        shape: Expected shape, (N, D).
        dtype: Data type of the numbers.
        columns: Number of columns to return; None for all.

    Raises:
        OSError: If a file exists but cannot be opened.
        ValueError: If the file is missing or has another size, or its checksums are damaged.
    """
    file = folder / name
    expected = shape[0] * shape[1] * np.dtype(dtype).itemsize
    found = f"has {check_regular_file(file).st_size} bytes" if os.path.exists(file) else "is missing"
    if found != f"has {expected} bytes":
        raise ValueError(
            f"{folder} is damaged: {name} {found}, expected {expected} bytes ({shape[0]} rows of {shape[1]} numbers). Copy "
            "the directory again or rebuild it."
        )
    sums = _read_block_sums(folder, get_sums_name(name), meta, -(-expected // BLOCK_BYTES))
    with name_file(file):
        return CheckedRows(np.memmap(file, dtype=dtype, mode="r", shape=shape), file, sums, columns)


def _read_block_sums(folder: Path, name: str, meta: dict[str, Any], number: int) -> np.ndarray | None:
    if name not in _read_table(folder, meta):
        return None
    check_file(folder, name, meta, number * SUMS_DTYPE.itemsize)
    sums = np.fromfile(folder / name, dtype=SUMS_DTYPE)
    if len(sums) != number:
        raise ValueError(
            f"{folder / name} must have {number} checksums, got {len(sums)}. Copy the directory again or rebuild it."
        )
    return sums


def has_checksums(meta: dict[str, Any]) -> bool:
    """Return True if a directory was written with checksums."""
    return TABLE_KEY in meta


def _read_table(folder: Path, meta: dict[str, Any]) -> dict[str, str]:
    """Return the checksums of files by name; nothing for directories of earlier versions."""
    table = meta.get(TABLE_KEY)
    if table is None:
        return {}
    if not isinstance(table, dict) or not isinstance(table.get("files"), dict):
        raise ValueError(f"{TABLE_KEY} in the pt_meta.json of {folder} must be a table of files, got {table!r:.80}.")
    if (table.get("algorithm"), table.get("block_bytes")) != (ALGORITHM, BLOCK_BYTES):
        raise ValueError(
            f"The checksums of {folder} must be {ALGORITHM} of {BLOCK_BYTES} bytes, got {table.get('algorithm')} of "
            f"{table.get('block_bytes')}. Upgrade pyterrier-hypencoder."
        )
    return table["files"]
