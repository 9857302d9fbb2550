"""The index directory: its writer (staged, resumable, atomic) and its reader (memory maps, checks); nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from more_itertools import chunked

from ..options import check_choice
from .docnos import Seen, write_docnos
from .files import META_FILE, fsync, read_meta, write_json

FORMAT_VERSION = 1
DOCNOS_FILE = "docnos.npids"
DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {"fp16": ("f2", np.dtype("<f2")), "fp32": ("f4", np.dtype("<f4"))}
_NUMPY = dict(DTYPES.values())


def staging_path(path: Path) -> Path:
    """Where an index is built before it appears under its name."""
    return path.with_name(path.name + ".partial")


def is_index(path: Path) -> bool:
    """Whether a directory says of itself that it is an index of this format."""
    try:
        return read_meta(path).get("format") == "hypencoder"
    except (OSError, ValueError):
        return False


def is_unfinished(path: Path) -> bool:
    """Whether a build of an index was begun and has not put it in place."""
    return (staging_path(path) / "index").is_dir()


def discard_leftovers(path: Path) -> None:
    """Removes what a build left behind that was killed after it had put its index in place."""
    staging = staging_path(path)
    if staging.is_dir() and not is_unfinished(path):
        with suppress(Timeout), FileLock(staging / "lock").acquire(blocking=False):
            shutil.rmtree(staging, ignore_errors=True)


def prepare_metadata(dtype: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What ``pt_meta.json`` says, and a resumed build must agree on."""
    check_choice("dtype", dtype, tuple(DTYPES))
    return {"dtype": DTYPES[dtype][0], **json.loads(json.dumps(facts))}


def check_same_build(path: Path, begun: dict[str, Any], facts: dict[str, Any]) -> None:
    """Checks that a build is resumed as it was begun.

    Raises:
        ValueError: naming both.
    """
    begun = {key: begun.get(key) for key in facts}
    if begun != facts:
        raise ValueError(
            f"expected to resume the build of {path} with {begun}, found {facts}; use the same model, dtype and text field, "
            "or mode='overwrite' to begin anew"
        )


class IndexWriter:
    """Builds an index in a sibling directory and puts it in place by one rename.

    Documents come in batches; each batch that :meth:`add` returns from survives the death of the process, and
    ``mode="resume"`` goes on after it.

    Args:
        path: the index.
        mode: ``create`` (there must be nothing), ``overwrite`` (replaces what is there, when complete) or ``resume`` (of
            either; there may be an index only where it is being overwritten).
        dtype: ``fp16`` or ``fp32``.
        facts: what ``pt_meta.json`` says and a resumed build must agree on (model, text field).

    Raises:
        FileExistsError: where the mode does not allow what is there.
        ValueError: for unknown options, or where a resumed build was begun with other facts.
        RuntimeError: while another process builds the same index.
    """

    def __init__(self, path: Path, *, mode: str, dtype: str, facts: dict[str, Any]) -> None:
        check_choice("mode", mode, ("create", "overwrite", "resume"))
        self.facts = prepare_metadata(dtype, facts)
        self.path = path
        self.staging = staging_path(path)
        suffix, self.dtype = DTYPES[dtype]
        self._index = self.staging / "index"  # becomes the index by one rename
        self._old = self.staging / "old"  # the replaced index, until it is removed
        self._vecs_file = self._index / f"vecs.{suffix}"
        self._docnos_file = self.staging / "docnos.jsonl"  # the docnos while building: one JSON string a line
        self._state_file = self.staging / "state.json"
        self._check_place(mode)
        self._begin(mode)

    def _check_place(self, mode: str) -> None:
        unfinished = is_unfinished(self.path)
        if self.path.exists() and (mode == "create" or (mode == "resume" and not unfinished)):
            raise FileExistsError(
                f"expected nothing at {self.path}, found an index or other files; pass mode='overwrite' to replace an index, "
                "or give another path"
            )
        if self.path.exists() and not is_index(self.path):
            raise FileExistsError(
                f"expected an index to overwrite at {self.path}, found something else, which is left alone; give another "
                "path, or remove it yourself"
            )
        if mode == "create" and unfinished:
            raise FileExistsError(
                f"expected nothing at {self.staging}, found what an interrupted build left; pass mode='resume' to go on "
                "with it, or mode='overwrite' to begin anew"
            )

    def _begin(self, mode: str) -> None:
        self.staging.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.staging / "lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout as err:
            raise RuntimeError(f"expected to be alone in building {self.path}, found another process at it; wait") from err
        try:
            self._put_back()
            if mode == "overwrite" or not is_unfinished(self.path):
                self._state_file.unlink(missing_ok=True)
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _put_back(self) -> None:
        """Undoes the first of the two renames that replace an index, where the second one did not come."""
        if os.path.lexists(self._old):
            if is_unfinished(self.path) and not self.path.exists():
                os.replace(self._old, self.path)
            else:
                shutil.rmtree(self._old, ignore_errors=True)

    def _open(self) -> None:
        self.count, self.vec_size, docno_bytes = self._read_state()
        vec_bytes = self.count * (self.vec_size or 0) * self.dtype.itemsize
        if not self.count:  # whatever is there may be of another dtype
            shutil.rmtree(self._index, ignore_errors=True)
        for file, size in ((self._vecs_file, vec_bytes), (self._docnos_file, docno_bytes)):
            if size > (file.stat().st_size if file.exists() else 0):
                raise ValueError(
                    f"expected {size} bytes in {file} to go on with, found fewer; what an interrupted build left is damaged: "
                    "pass mode='overwrite' to begin anew"
                )
        self._index.mkdir(exist_ok=True)
        self._vecs = open(self._vecs_file, "ab")
        self._docnos = open(self._docnos_file, "ab")
        # What was written after the last batch that counts is cut off again.
        self._vecs.truncate(vec_bytes)
        self._docnos.truncate(docno_bytes)
        self._seen = Seen(self.stored_docnos)
        for docnos in chunked(self.stored_docnos(), 10_000):
            self._seen.add(docnos)

    def _read_state(self) -> tuple[int, int | None, int]:
        """Documents, dimensions and bytes of docnos that are safely stored."""
        if not self._state_file.exists():
            return 0, None, 0
        state = json.loads(self._state_file.read_text())
        check_same_build(self.path, state["facts"], self.facts)
        return state["count"], state["vec_size"], state["docno_bytes"]

    def stored_docnos(self) -> Iterator[str]:
        """The docnos that are already stored, in order."""
        with open(self._docnos_file, encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    def check(self, docnos: Sequence[str]) -> None:
        """Checks the docnos of a batch before work is spent on it.

        Raises:
            ValueError: for an empty, repeated, overlong or non-string docno.
        """
        self._seen.check(docnos)

    def add(self, docnos: Sequence[str], vectors: np.ndarray) -> None:
        """Stores a batch of documents that :meth:`check` has passed.

        Args:
            docnos: n docnos.
            vectors: (n, D).

        Raises:
            ValueError: where vectors have another size than those before, or values that cannot be stored.
        """
        stored = self._checked(docnos, vectors)
        self._vecs.write(stored.tobytes())
        self._docnos.write("".join(json.dumps(docno) + "\n" for docno in docnos).encode())
        for file in (self._vecs, self._docnos):
            file.flush()
            os.fsync(file.fileno())
        self._seen.add(docnos)
        self.count += len(docnos)
        self.vec_size = vectors.shape[1]
        state = {"facts": self.facts, "count": self.count, "vec_size": self.vec_size, "docno_bytes": self._docnos.tell()}
        write_json(self._state_file, state)

    def _checked(self, docnos: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        fits = vectors.ndim == 2 and len(vectors) == len(docnos) and vectors.shape[1] == (self.vec_size or vectors.shape[1])
        if not fits or not vectors.size:
            raise ValueError(
                f"expected vectors of shape ({len(docnos)}, {self.vec_size or 'D'}), found {vectors.shape}; do all "
                "documents come from one model?"
            )
        with np.errstate(over="ignore"):
            stored = vectors.astype(self.dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            docno = docnos[int(np.argmin(finite))]
            advice = "pass dtype='fp32'" if np.isfinite(vectors).all() else "look at the document and the model"
            raise ValueError(f"document {docno!r}: expected numbers finite in {self.dtype}, found NaN or infinity; {advice}")
        return stored

    def finish(self) -> None:
        """Completes the index and puts it in place.

        Raises:
            ValueError: where there are no documents.
        """
        if not self.count:
            raise ValueError("expected at least one document, found none; nothing was written")
        self._vecs.close()
        self._docnos.close()
        write_docnos(self._index / DOCNOS_FILE, self.stored_docnos())
        fsync(self._index / DOCNOS_FILE)
        meta = {
            "type": "dense_index",
            "format": "hypencoder",
            "package_hint": "pyterrier-hypencoder",
            "format_version": FORMAT_VERSION,
            "doc_count": self.count,
            "vec_size": self.vec_size,
            **self.facts,
            "written_by": f"pyterrier-hypencoder {version('pyterrier-hypencoder')}",
        }
        write_json(self._index / META_FILE, meta)
        if self.path.exists():
            os.replace(self.path, self._old)
        os.replace(self._index, self.path)
        fsync(self.path.parent)
        shutil.rmtree(self.staging, ignore_errors=True)
        self._lock.release()

    def abandon(self) -> None:
        """Closes after an error: what was stored stays for ``mode="resume"``; where that is nothing, all is removed."""
        self._vecs.close()
        self._docnos.close()
        self._put_back()
        if not self.count:
            shutil.rmtree(self.staging, ignore_errors=True)
        self._lock.release()
