"""Writing an index directory: batches of docnos and vectors, resumable, put in place when complete."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from more_itertools import chunked

from ..options import check_choice
from .docnos import DuplicateChecker, write_docnos
from .files import fsync, name_file, read_meta
from .layout import DOCNOS_FILE, FORMAT_VERSION, SCALES_FILE, STORED_DTYPES, SUFFIXES, get_vectors_name
from .quantization import count_losses, write_int8
from .staging import NEW, StagedDirectory, get_staging_path, is_unfinished, lock

logger = logging.getLogger(__name__)

MODES = ("create", "overwrite", "resume")
STAGED_DOCNOS_FILE = "docnos.jsonl"
"""Docnos while the index is built: one JSON string per line."""
STAGED_VECTORS_FILE = "vecs.f2"
"""Vectors in fp16 while an index in int8 is built, because the scales are known only at the end."""


def is_index(path: Path) -> bool:
    """Return True if the metadata of a directory says that it is an index of this package."""
    try:
        return read_meta(path).get("format") == "hypencoder"
    except (OSError, ValueError):
        return False


def prepare_metadata(dtype: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the part of ``pt_meta.json`` that a resumed build must share with the interrupted one.

    Args:
        dtype: ``fp16``, ``fp32`` or ``int8``.
        facts: Model and text field, as JSON values.

    Raises:
        ValueError: If ``dtype`` is unknown.
    """
    check_choice("dtype", dtype, tuple(SUFFIXES))
    return {"dtype": SUFFIXES[dtype], **json.loads(json.dumps(facts))}


class IndexWriter:
    """Write an index in a staging directory and put it in place by one rename.

    Documents are added in batches. A batch is safely stored when :meth:`add` returns; ``mode="resume"`` continues after the
    last one.

    Args:
        path: Index directory.
        mode: ``create`` (nothing may exist), ``overwrite`` (replaces an existing index when the new one is complete) or
            ``resume`` (continues an interrupted build of either mode).
        dtype: ``fp16``, ``fp32`` or ``int8``.
        facts: Part of ``pt_meta.json`` that a resumed build must share with the interrupted one: model and text field.

    Raises:
        FileExistsError: If the mode does not allow what exists at the path, or the index is being built already.
        ValueError: If an option is unknown, or a build is resumed with other facts.
        FileNotFoundError: If the path is a symbolic link to nothing.
        OSError: If the directory cannot be written.
    """

    def __init__(self, path: Path, *, mode: str, dtype: str, facts: dict[str, Any]) -> None:
        check_choice("mode", mode, MODES)
        self.facts = prepare_metadata(dtype, facts)
        suffix = self.facts["dtype"]
        self._is_int8 = suffix == "i1"
        self.dtype = STORED_DTYPES["f2" if self._is_int8 else suffix]
        """Data type in which batches are stored."""
        self._vectors_file = STAGED_VECTORS_FILE if self._is_int8 else f"{NEW}/{get_vectors_name(suffix)}"
        self._n_losses = 0
        check_place(path, mode)
        files = (self._vectors_file, STAGED_DOCNOS_FILE)
        self._staged = StagedDirectory(path, facts=self.facts, files=files, resume=mode != "overwrite")
        try:
            self.vec_size = self._read_vec_size()
            self._duplicates = DuplicateChecker(self.stored_docnos)
            for docnos in chunked(self.stored_docnos(), 10_000):
                self._duplicates.add(docnos)
        except BaseException:
            self._staged.close()
            raise

    @property
    def count(self) -> int:
        """Number of documents that are safely stored."""
        return self._staged.count

    def _read_vec_size(self) -> int | None:
        """Return the dimensions of the stored vectors; None if there are none."""
        if not self.count:
            return None
        return (self._staged.folder / self._vectors_file).stat().st_size // (self.count * self.dtype.itemsize)

    def stored_docnos(self) -> Iterator[str]:
        """Yield the docnos that are already stored, in order."""
        with open(self._staged.folder / STAGED_DOCNOS_FILE, encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    def check(self, docnos: Sequence[str]) -> None:
        """Check the docnos of a batch before its documents are encoded.

        Raises:
            ValueError: If a docno is empty, repeated, too long or not a string.
        """
        self._duplicates.check(docnos)

    def add(self, docnos: Sequence[str], vectors: np.ndarray) -> None:
        """Store a batch of documents that :meth:`check` has accepted.

        Args:
            docnos: N docnos.
            vectors: Array of shape (N, D).

        Raises:
            ValueError: If the vectors have another size than those before, or values that cannot be stored.
        """
        stored = self._convert(docnos, vectors)
        lines = "".join(json.dumps(docno) + "\n" for docno in docnos)
        self._staged.append(len(docnos), {self._vectors_file: stored.tobytes(), STAGED_DOCNOS_FILE: lines.encode()})
        self._duplicates.add(docnos)
        self.vec_size = vectors.shape[1]

    def _convert(self, docnos: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        """Check vectors and convert them to the data type of the index."""
        expected = (len(docnos), self.vec_size or "D")
        if vectors.ndim != 2 or not vectors.size or vectors.shape != (len(docnos), self.vec_size or vectors.shape[1]):
            raise ValueError(
                f"Document vectors must have shape ({expected[0]}, {expected[1]}), got {vectors.shape}. "
                "Use one model for all documents."
            )
        with np.errstate(over="ignore", under="ignore"):
            stored = vectors.astype(self.dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            docno = docnos[int(np.argmin(finite))]
            advice = "Pass dtype='fp32'." if np.isfinite(vectors).all() else "Check the document and the model."
            raise ValueError(f"The vector of document {docno!r} must be finite in {self.dtype}, got NaN or infinity. {advice}")
        self._n_losses += count_losses(vectors, stored)
        return stored

    def complete(self) -> Path:
        """Write the docnos, the vectors if they become int8, the checksums and the metadata.

        Returns:
            The directory of the complete index, which does not have its final name yet.

        Raises:
            ValueError: If no document was added.
        """
        if not self.count or self.vec_size is None:
            raise ValueError("An index needs at least one document, got none. Nothing was written.")
        docnos_file = self._staged.new / DOCNOS_FILE
        with name_file(docnos_file):
            write_docnos(docnos_file, self.stored_docnos())
        fsync(docnos_file)
        meta = {
            "type": "dense_index",
            "format": "hypencoder",
            "package_hint": "pyterrier-hypencoder",
            "format_version": FORMAT_VERSION,
            "doc_count": self.count,
            "vec_size": self.vec_size,
            **self.facts,
        }
        checked = [DOCNOS_FILE]
        if self._is_int8:
            self._n_losses += write_int8(self._staged.folder / self._vectors_file, self.vec_size, self._staged.new)
            checked.append(SCALES_FILE)
        self._staged.complete(meta, checked=checked, checked_rows=[get_vectors_name(self.facts["dtype"])])
        if self._n_losses:
            logger.warning(
                "%d of %d vectors lost most of their length in %s: their numbers are too small for it. Pass dtype='fp32'.",
                self._n_losses,
                self.count,
                STORED_DTYPES[self.facts["dtype"]],
            )
        return self._staged.new

    def publish(self) -> None:
        """Put the complete index in place."""
        self._staged.publish()

    def finish(self) -> None:
        """Complete the index and put it in place."""
        self.complete()
        self.publish()

    def abandon(self) -> None:
        """Stop after an error: stored documents stay for ``mode="resume"``; if there are none, everything is deleted."""
        self._staged.abandon()


def check_place(path: Path, mode: str) -> None:
    """Check that an index can be written to a path in a mode. An empty directory is replaced.

    Raises:
        FileExistsError: If the mode does not allow what exists there.
        FileNotFoundError: If the path is a symbolic link to nothing.
        PermissionError: If the directory cannot be written.
    """
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a symbolic link to {path.resolve()}, which does not exist. Delete the link.")
    place = path.resolve().parent
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "An index cannot be written to this directory. Choose another path", str(place))
    unfinished = is_unfinished(path)
    taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if taken and (mode == "create" or (mode == "resume" and not unfinished)):
        raise FileExistsError(f"{path} already exists. Pass mode='overwrite' to replace an index, or choose another path.")
    if taken and not is_index(path):
        raise FileExistsError(
            f"{path} exists and is not an index of this package, so it is not overwritten. Choose another path or delete it."
        )
    if mode == "create" and unfinished:
        with lock(path):  # or else it is not interrupted
            raise FileExistsError(
                f"{get_staging_path(path)} contains an interrupted build. Pass mode='resume' to continue it, or "
                "mode='overwrite' to start again."
            )
