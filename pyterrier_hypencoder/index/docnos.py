"""Docnos of an index: the lookup between docnos and docids, and the detection of duplicates while indexing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from npids import Lookup
from npids.builder import InvLookupBuilder
from npids.codecs import FwdFixedBytes, InvHash
from npids.utils import FileManager

from .reading import check_regular_file

MAX_DOCNO_BYTES = 4096  # a longer docno is a mistake in the data
_MAX_BLOCK = 2**16
"""Largest number of docnos in a block of the file."""
_MAX_PADDING = 4
"""Largest size of a block, relative to the size of its docnos."""


def get_max_file_size(count: int) -> int:
    """Return the largest number of bytes that the file of some docnos can have."""
    return count * (_MAX_PADDING * MAX_DOCNO_BYTES + 64) + 2**20


_ADVICE = "Copy the index again or rebuild it."


class Docnos:
    """Docnos of an index, held in memory (npids reads the whole file).

    Args:
        path: File in the format of npids.
        count: Expected number of docnos.

    Raises:
        ValueError: If the file is missing, damaged or has another number of docnos.

    Example:
        >>> from pyterrier_hypencoder import HypencoderIndex
        >>> docnos = HypencoderIndex.example().docnos
        >>> list(docnos)
        ['d1', 'd2', 'd3']
        >>> docnos.find(["d3", "unknown"]).tolist()
        [2, -1]
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        if not path.exists():
            raise ValueError(f"Docnos in {path} are missing. {_ADVICE}")
        check_regular_file(path)
        try:
            self._lookup = Lookup(path)
            _check_sizes(self._lookup)
            found = len(self._lookup)
            ends = np.array([0, found - 1])
            if not np.array_equal(self.find(self.at(ends)), ends):
                raise LookupError("the first or last docno is not found")
        except (MemoryError, OSError):
            raise
        except Exception as err:  # npids raises struct, JSON and key errors, among others
            raise ValueError(f"Docnos in {path} are damaged ({err!r}). {_ADVICE}") from err
        if found != count:
            raise ValueError(f"{path} must have {count} docnos, got {found}. {_ADVICE}")

    def __len__(self) -> int:
        return len(self._lookup)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 10_000):
            yield from self.at(np.arange(start, min(start + 10_000, len(self))))

    def at(self, docids: np.ndarray) -> np.ndarray:
        """Return the docnos of docids.

        Args:
            docids: Array of any shape.

        Returns:
            Array of str objects, of the same shape.
        """
        unique, places = np.unique(np.asarray(docids).ravel(), return_inverse=True)
        found = np.empty(len(unique), dtype=object)
        for rows, names in _read_blocks(self._lookup.fwd, unique):
            try:
                found[rows] = [name.decode() for name in names.tolist()]  # np.char.decode takes twice as long
            except UnicodeDecodeError as err:
                raise ValueError(f"Docnos in {self.path} are damaged ({err}). {_ADVICE}") from err
        return found[places].reshape(np.shape(docids))

    def find(self, docnos: Sequence[str] | np.ndarray) -> np.ndarray:
        """Return the docids of docnos.

        Args:
            docnos: N docnos.

        Returns:
            Array of shape (N,) and type int64; -1 for unknown docnos.
        """
        names = [_encode_key(str(docno)) for docno in docnos]
        sizes = np.fromiter((len(name).bit_length() for name in names), dtype=np.int64, count=len(names))
        found = np.empty(len(names), dtype=np.int64)
        for size in np.unique(sizes):  # by length, because an array of strings takes the space of the longest one
            rows = np.flatnonzero(sizes == size)
            keys = np.array([names[row] for row in rows.tolist()], dtype="S")
            try:
                found[rows] = _find(self._lookup, keys)
            except IndexError as err:  # the hash table has numbers beyond the last docid
                raise ValueError(f"Docnos in {self.path} are damaged ({err}). {_ADVICE}") from err
        return found

    def require(self, docnos: Sequence[str] | np.ndarray) -> np.ndarray:
        """Return the docids of docnos that must all be in the index.

        Args:
            docnos: N docnos.

        Returns:
            Array of shape (N,) and type int64.

        Raises:
            ValueError: If a docno is unknown.
        """
        docids = self.find(docnos)
        if (docids < 0).any():
            unknown = sorted({str(docnos[i]) for i in np.flatnonzero(docids < 0).tolist()})
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ValueError(
                f"docno must be in the index {self.path.parent}, got unknown docnos: {', '.join(unknown[:5])}{more}. "
                "Check that the candidates come from the same collection."
            )
        return docids


def _encode_key(docno: str) -> bytes:
    """Return the bytes of a docno to look up. Strings that no docno can be become bytes that no docno has."""
    return b"\xff" if "\0" in docno else docno.encode(errors="surrogatepass")


def _read_blocks(lookup: Any, docids: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the docnos of ascending docids block by block: their positions, and the docnos as bytes."""
    blocks = np.searchsorted(lookup.offsets, docids, "right") - 1
    starts = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(docids)]
    for start, stop in zip(starts[:-1], starts[1:], strict=True):
        if start < stop:
            block = blocks[start]
            yield slice(start, stop), lookup.codecs[block]._lookup(docids[start:stop] - lookup.offsets[block])


class _CutBlocks:
    """Docnos cut to a number of bytes, as the hash table of npids reads them.

    Args:
        lookup: The blocks of docnos.
        width: Number of bytes. One more than the keys that are looked up keeps longer docnos different from them.
    """

    def __init__(self, lookup: Any, width: int) -> None:
        self._lookup = lookup
        self._dtype = f"S{width}"

    def lookup(self, docids: np.ndarray, as_bytes: bool = True) -> np.ndarray:
        """Return the docnos of docids (N,), as bytes."""
        unique, places = np.unique(docids, return_inverse=True)
        found = np.empty(len(unique), dtype=self._dtype)
        for rows, names in _read_blocks(self._lookup, unique):
            found[rows] = names
        return found[places]


def _find(lookup: Lookup, keys: np.ndarray) -> np.ndarray:
    """Return the docids of docnos that are given as an array of bytes; -1 for unknown docnos."""
    table = lookup.inv.codec
    codec = InvHash(table.hash_offsets, table.dids, table.hash_bits)
    codec.fwd = _CutBlocks(lookup.fwd, keys.itemsize + 1)
    return codec._lookup(keys)


def _check_sizes(lookup: Lookup) -> None:
    """Check that the file is complete; npids itself trusts the headers of a truncated file."""
    index = lookup.inv.codec
    blocks = all(len(block.ctxt) == len(block) for block in lookup.fwd.codecs)
    buckets = len(index.hash_offsets) == (1 << index.hash_bits) + 1 and index.hash_offsets[-1] == len(index.dids)
    if not (blocks and buckets and len(index.dids) == len(lookup)):
        raise EOFError("truncated file")


class DuplicateChecker:
    """Check that every document has its own docno, while documents are added.

    It keeps 8 bytes per document: hashes in sorted runs that are merged as they grow.

    Args:
        docnos: Function that returns the docnos that are already stored. They are read only if two hashes are equal.
    """

    def __init__(self, docnos: Callable[[], Iterator[str]]) -> None:
        self._docnos = docnos
        self._runs: list[np.ndarray] = []

    def add(self, docnos: Sequence[str]) -> None:
        """Remember the docnos of a batch."""
        self._runs.append(np.sort(_hash_docnos(docnos)))
        while len(self._runs) > 1 and len(self._runs[-2]) <= len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]

    def check(self, docnos: Sequence[str]) -> None:
        """Check the docnos of a batch.

        Raises:
            ValueError: If a docno is not a usable string, or is repeated in this batch or an earlier one.
        """
        for docno in docnos:
            if not _is_usable(docno):
                raise ValueError(
                    f"docno must be a non-empty string of at most {MAX_DOCNO_BYTES} bytes, got {docno!r}. "
                    "Give every document a docno, and convert numbers with str()."
                )
        repeated = _find_repeated(docnos) + self._find_stored(docnos)
        if repeated:
            raise ValueError(f"docno must be unique, got {repeated[0]!r} twice. Remove or rename one of the documents.")

    def _find_stored(self, docnos: Sequence[str]) -> list[str]:
        """Return the docnos of a batch that are already stored."""
        hashes = _hash_docnos(docnos)
        hits = np.zeros(len(docnos), dtype=bool)
        for run in self._runs:
            hits |= run[np.minimum(np.searchsorted(run, hashes), len(run) - 1)] == hashes
        if not hits.any():
            return []
        suspects = {docnos[i] for i in np.flatnonzero(hits).tolist()}
        return [docno for docno in self._docnos() if docno in suspects]


def _find_repeated(docnos: Sequence[str]) -> list[str]:
    """Return the docnos that occur earlier in the same batch."""
    seen: set[str] = set()
    repeated = []
    for docno in docnos:
        if docno in seen:
            repeated.append(docno)
        seen.add(docno)
    return repeated


def _is_usable(docno: Any) -> bool:
    if not isinstance(docno, str) or not docno or "\0" in docno:
        return False
    try:
        return len(docno.encode()) <= MAX_DOCNO_BYTES
    except UnicodeEncodeError:  # an unpaired surrogate
        return False


def _hash_docnos(docnos: Sequence[str]) -> np.ndarray:
    return np.fromiter((hash(docno) for docno in docnos), dtype=np.int64, count=len(docnos))


def write_docnos(path: Path, docnos: Iterable[str]) -> None:
    """Write the lookup file; an existing file is replaced.

    The file has one codec for all docnos, because the codecs of npids for numbers read "07" as "7". All docnos of a block
    take the space of its longest one, so a block ends before its padding is several times as long as its docnos.

    Args:
        path: File to write.
        docnos: Docnos in the order of their docids.
    """
    path.unlink(missing_ok=True)  # npids would append
    file = FileManager(path, "a")
    try:
        block: list[bytes] = []
        used = longest = 0
        for name in map(str.encode, docnos):
            size = max(longest, len(name)) * (len(block) + 1)
            if len(block) == _MAX_BLOCK or size > _MAX_PADDING * (used + len(name)):
                _write_block(file, block)
                block, used, longest = [], 0, 0
            block.append(name)
            used, longest = used + len(name), max(longest, len(name))
        _write_block(file, block)
    finally:
        file.close()
    InvLookupBuilder.build(path)


def _write_block(file: FileManager, block: list[bytes]) -> None:
    """Write docnos without their common prefix, each in the space of the longest one."""
    longest = max(map(len, block))
    prefix: bytes = os.path.commonprefix([min(block), max(block)])[: longest - 1]  # type: ignore[assignment]
    while prefix.decode(errors="ignore").encode() != prefix:  # the prefix ends inside a character
        prefix = prefix[:-1]
    config = {"format": FwdFixedBytes.NAME, "length": longest, "prefix": prefix.decode()}
    file.write_header(0, len(block), config)
    file.write(b"".join(name[len(prefix) :].ljust(longest - len(prefix), b"\0") for name in block))
