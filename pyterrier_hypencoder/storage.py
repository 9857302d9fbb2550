"""The index directory: its writer (staged, resumable, atomic) and its reader (memory maps, checks); nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from more_itertools import chunked

from .docnos import Docnos, Seen, write_docnos
from .frames import check_choice

FORMAT_VERSION = 1
META_FILE = "pt_meta.json"
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


def facts_of(dtype: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What ``pt_meta.json`` says, and a resumed build must agree on."""
    check_choice("dtype", dtype, tuple(DTYPES))
    return {"dtype": DTYPES[dtype][0], **json.loads(json.dumps(facts))}


def check_facts(path: Path, begun: dict[str, Any], facts: dict[str, Any]) -> None:
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


class Writer:
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
        self.facts = facts_of(dtype, facts)
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
        check_facts(self.path, state["facts"], self.facts)
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


class Reader:
    """An index directory, opened for reading: checked on opening; the vectors are mapped into memory, never copied.

    Args:
        path: the index.

    Raises:
        FileNotFoundError: where there is no index.
        ValueError: where the directory is no index, one of a newer format, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta = _checked_meta(path)
        self.doc_count: int = self.meta["doc_count"]
        self.vec_size: int = self.meta["vec_size"]
        dtype = _NUMPY[self.meta["dtype"]]
        vecs_file = path / f"vecs.{self.meta['dtype']}"
        _check_size(vecs_file, self.doc_count * self.vec_size * dtype.itemsize, self.meta)
        self.vectors = np.memmap(vecs_file, dtype=dtype, mode="r", shape=(self.doc_count, self.vec_size))
        self.docnos = Docnos(path / DOCNOS_FILE, self.doc_count)


def state_of(reader: Reader) -> dict[str, Any]:
    """What tells an index from another one, or from an older state of itself."""
    digest = blake2b(digest_size=16)
    for file in (reader.path / f"vecs.{reader.meta['dtype']}", reader.path / DOCNOS_FILE):
        for piece in _pieces(file):
            digest.update(piece)
    return {key: reader.meta[key] for key in ("doc_count", "vec_size", "dtype")} | {"fingerprint": digest.hexdigest()}


def _pieces(file: Path, number: int = 1024, size: int = 16 * 1024) -> Iterator[bytes]:
    """A file's bytes: all of them up to 16 MiB, of larger ones so much in pieces from everywhere."""
    with open(file, "rb") as data:
        total = os.fstat(data.fileno()).st_size
        starts = range(0, total, size) if total <= number * size else np.linspace(0, total - size, number, dtype=int).tolist()
        for start in starts:
            data.seek(start)
            yield data.read(size)


def identity(path: Path, file: str = META_FILE) -> tuple[str, int, int]:
    """What changes when an index, or one of the files in it, is replaced by another one of the same name."""
    try:
        stat = os.stat(path / file)
    except OSError:
        return str(path), 0, 0
    return str(path), stat.st_ino, stat.st_mtime_ns


def _checked_meta(path: Path) -> dict[str, Any]:
    if not path.exists():
        hint = "; an unfinished build of it is there: finish it with mode='resume'" if staging_path(path).exists() else ""
        raise FileNotFoundError(f"expected an index at {path}, found nothing{hint}; build it with HypencoderIndexer")
    if not (path / META_FILE).is_file():
        raise ValueError(f"expected an index at {path}, found no {META_FILE} there; is it the right directory?")
    meta = read_meta(path)
    if (meta.get("type"), meta.get("format")) != ("dense_index", "hypencoder"):
        raise ValueError(
            f"expected an index of type dense_index and format hypencoder at {path}, found {meta.get('type')} and "
            f"{meta.get('format')}; vectors of pyterrier_dr are taken over by HypencoderIndex.from_flex"
        )
    if meta.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"expected an index of format version {FORMAT_VERSION} at {path}, found version {meta.get('format_version')!r}, "
            f"written by {meta.get('written_by', 'a newer pyterrier-hypencoder')}; upgrade pyterrier-hypencoder"
        )
    counts = (meta.get("doc_count"), meta.get("vec_size"))
    if meta.get("dtype") not in _NUMPY or not all(isinstance(count, int) and count > 0 for count in counts):
        raise ValueError(
            f"expected doc_count, vec_size (above 0) and dtype ({' or '.join(_NUMPY)}) in {path / META_FILE}, found "
            f"{counts[0]}, {counts[1]} and {meta.get('dtype')}; copy or build the index again"
        )
    return meta


def _check_size(file: Path, expected: int, meta: dict[str, Any]) -> None:
    found = file.stat().st_size if file.is_file() else None
    if found != expected:
        raise ValueError(
            f"expected {file} to have {expected} bytes ({meta['doc_count']} vectors of {meta['vec_size']}), found "
            f"{'no such file' if found is None else found}; the index is damaged or incomplete: copy or build it again"
        )


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
