"""Document numbers: the lookup docno <-> docid, and the detection of repeated ones while building it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from npids import Lookup
from npids.codecs import FwdFixedBytes

_LONGEST = 4096  # bytes; anything longer is a mistake in the data


class Docnos:
    """The docnos of an index, in memory (npids reads the whole file).

    Args:
        path: the npids file.
        count: how many there must be.

    Raises:
        ValueError: where the file is missing or damaged.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        try:
            self._lookup = Lookup(path)
            _check_sizes(self._lookup)
            found = len(self._lookup)
            ends = np.array([0, found - 1])
            if not np.array_equal(self.find(self.at(ends)), ends):
                raise LookupError("docnos do not find themselves")
        except Exception as err:  # npids has no errors of its own: struct, JSON and key errors among others
            raise ValueError(
                f"expected docnos in {path}, found a missing or damaged file ({err!r}); copy or build the index again"
            ) from err
        if found != count:
            raise ValueError(f"expected {count} docnos in {path}, found {found}; copy or build the index again")

    def __len__(self) -> int:
        return len(self._lookup)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 10_000):
            yield from self.at(np.arange(start, min(start + 10_000, len(self))))

    def at(self, docids: np.ndarray) -> np.ndarray:
        """The docnos (str objects) of some docids, in an array of the same shape."""
        found = self._lookup.fwd.lookup(np.asarray(docids).ravel()) if np.size(docids) else np.empty(0)
        return found.astype(object).reshape(np.shape(docids))

    def find(self, docnos: Sequence[str] | np.ndarray) -> np.ndarray:
        """The docids (int64) of some docnos; -1 for unknown ones."""
        if not len(docnos):
            return np.empty(0, dtype=np.int64)
        return self._lookup.inv.lookup(np.asarray(docnos, dtype=str)).astype(np.int64)

    def require(self, docnos: Sequence[str] | np.ndarray) -> np.ndarray:
        """As :meth:`find`, for docnos that must all be there.

        Raises:
            ValueError: naming some of the unknown ones.
        """
        docids = self.find(docnos)
        if (docids < 0).any():
            unknown = sorted({str(docnos[i]) for i in np.flatnonzero(docids < 0).tolist()})
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise ValueError(
                f"docno: expected documents of the index {self.path.parent}, found unknown ones: {', '.join(unknown[:5])}"
                f"{more}; was the candidate list made from another collection?"
            )
        return docids


def _check_sizes(lookup: Lookup) -> None:
    """Checks that all is there to the last byte; npids itself believes the headers of a file that was cut short."""
    index = lookup.inv.codec
    blocks = all(len(block.ctxt) == len(block) for block in lookup.fwd.codecs)
    buckets = len(index.hash_offsets) == (1 << index.hash_bits) + 1 and index.hash_offsets[-1] == len(index.dids)
    if not (blocks and buckets and len(index.dids) == len(lookup)):
        raise EOFError("cut short")


class Seen:
    """Finds repeated docnos at once, in 8 bytes a document: sorted runs of hashes, merged as they grow.

    Args:
        docnos: gives the docnos that are already stored, to tell a repeated one from two of equal hash.
    """

    def __init__(self, docnos: Callable[[], Iterator[str]]) -> None:
        self._docnos = docnos
        self._runs: list[np.ndarray] = []

    def add(self, docnos: Sequence[str]) -> None:
        """Remembers a batch."""
        self._runs.append(np.sort(_hashes(docnos)))
        while len(self._runs) > 1 and len(self._runs[-2]) <= len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]

    def check(self, docnos: Sequence[str]) -> None:
        """Checks a batch.

        Raises:
            ValueError: for a docno that is no usable string, is repeated within the batch, or was seen before.
        """
        for docno in docnos:
            if not _usable(docno):
                raise ValueError(
                    f"docno: expected a non-empty string of at most {_LONGEST} bytes, found {docno!r}; give every document one"
                )
        within: set[str] = set()
        repeated = [docno for docno in docnos if docno in within or within.add(docno)]  # type: ignore[func-returns-value]
        hashes = _hashes(docnos)
        hits = np.zeros(len(docnos), dtype=bool)
        for run in self._runs:
            hits |= run[np.minimum(np.searchsorted(run, hashes), len(run) - 1)] == hashes
        if hits.any():
            suspects = {docnos[i] for i in np.flatnonzero(hits).tolist()}
            repeated += [docno for docno in self._docnos() if docno in suspects]
        if repeated:
            raise ValueError(
                f"docno: expected every document to have its own, found {repeated[0]!r} twice; remove or rename one of them"
            )


def _usable(docno: Any) -> bool:
    if not isinstance(docno, str) or not docno or "\0" in docno:
        return False
    try:
        return len(docno.encode()) <= _LONGEST
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _hashes(docnos: Sequence[str]) -> np.ndarray:
    return np.fromiter((hash(docno) for docno in docnos), dtype=np.int64, count=len(docnos))


class _FixedBytes(FwdFixedBytes):
    """The docno codec of npids for any docnos.

    Its own version fails where all docnos of a block are one string (a collection of a single document) and where the
    common prefix would end inside a character. The file format is the same.
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
    """Writes the lookup; what a killed build left there is replaced."""
    path.unlink(missing_ok=True)  # npids would append
    with Lookup.builder(path) as builder:
        # One codec for all docnos: those for numbers take "07" for "7", and cannot look up an empty string.
        builder.formats = {FwdFixedBytes.NAME: _FixedBytes()}
        builder.seeded_formats = builder.formats.copy()
        for docno in docnos:
            builder.add(docno)
