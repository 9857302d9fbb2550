"""Docnos of an index: the lookup between docnos and docids, and the detection of duplicates while indexing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from npids import Lookup
from npids.codecs import FwdFixedBytes

MAX_DOCNO_BYTES = 4096  # a longer docno is a mistake in the data


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
        try:
            self._lookup = Lookup(path)
            _check_sizes(self._lookup)
            found = len(self._lookup)
            ends = np.array([0, found - 1])
            if not np.array_equal(self.find(self.at(ends)), ends):
                raise LookupError("the first or last docno is not found")
        except Exception as err:  # npids raises struct, JSON and key errors, among others
            raise ValueError(
                f"Docnos in {path} are missing or damaged ({err!r}). Copy the index again or rebuild it."
            ) from err
        if found != count:
            raise ValueError(f"{path} must have {count} docnos, got {found}. Copy the index again or rebuild it.")

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
        found = self._lookup.fwd.lookup(np.asarray(docids).ravel()) if np.size(docids) else np.empty(0)
        return found.astype(object).reshape(np.shape(docids))

    def find(self, docnos: Sequence[str] | np.ndarray) -> np.ndarray:
        """Return the docids of docnos.

        Args:
            docnos: N docnos.

        Returns:
            Array of shape (N,) and type int64; -1 for unknown docnos.
        """
        if not len(docnos):
            return np.empty(0, dtype=np.int64)
        return self._lookup.inv.lookup(np.asarray(docnos, dtype=str)).astype(np.int64)

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
                    "Give every document a docno."
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


class _FixedBytes(FwdFixedBytes):
    """Docno codec of npids that accepts any docnos.

    The codec of npids fails if all docnos of a block are the same string (a collection of one document) or if their common
    prefix ends inside a character. The file format is unchanged.
    """

    prefix: Any

    def seed(self, id: str) -> bool:
        first = self.prefix is None
        super().seed(id)
        if first:
            self.prefix = self.prefix[:-1]
        while self.prefix.decode(errors="ignore").encode() != self.prefix:
            self.prefix = self.prefix[:-1]
        return True


def write_docnos(path: Path, docnos: Iterable[str]) -> None:
    """Write the lookup file; an existing file is replaced.

    Args:
        path: File to write.
        docnos: Docnos in the order of their docids.
    """
    path.unlink(missing_ok=True)  # npids would append
    with Lookup.builder(path) as builder:
        # Use one codec for all docnos: the codecs for numbers read "07" as "7" and cannot look up an empty string.
        builder.formats = {FwdFixedBytes.NAME: _FixedBytes()}
        builder.seeded_formats = builder.formats.copy()
        for docno in docnos:
            builder.add(docno)
