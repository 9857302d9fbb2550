"""Opening an index directory: checks and memory maps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from .docnos import Docnos
from .files import read_meta
from .layout import DOCNOS_FILE, FORMAT_VERSION, META_FILE, STORED_DTYPES, get_vectors_name
from .staging import is_unfinished


class IndexReader:
    """An opened index directory. The vectors are memory-mapped, never copied.

    Args:
        path: Index directory.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If the directory is not an index, has another format version, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta = _read_checked_meta(path)
        """Content of ``pt_meta.json``."""
        self.doc_count: int = self.meta["doc_count"]
        """Number of documents, N."""
        self.vec_size: int = self.meta["vec_size"]
        """Dimensions of the document vectors, D."""
        dtype = STORED_DTYPES[self.meta["dtype"]]
        shape = (self.doc_count, self.vec_size)
        _check_size(self.vectors_file, shape, dtype)
        self.vectors = np.memmap(self.vectors_file, dtype=dtype, mode="r", shape=shape)
        """Document vectors, a read-only array of shape (N, D) and type float16 or float32."""
        self.docnos = Docnos(path / DOCNOS_FILE, self.doc_count)
        """Lookup between docnos and docids."""

    @property
    def vectors_file(self) -> Path:
        """File with the document vectors."""
        return self.path / get_vectors_name(self.meta["dtype"])


def fingerprint_index(reader: IndexReader) -> dict[str, Any]:
    """Return the fingerprint of an index: its size, and a hash of its vectors and docnos.

    Files over 16 MiB are hashed in 1,024 evenly spaced pieces, so this takes less than a second for any index.
    """
    digest = blake2b(digest_size=16)
    for file in (reader.vectors_file, reader.path / DOCNOS_FILE):
        for piece in _read_pieces(file):
            digest.update(piece)
    return {key: reader.meta[key] for key in ("doc_count", "vec_size", "dtype")} | {"fingerprint": digest.hexdigest()}


def _read_pieces(file: Path, number: int = 1024, size: int = 16 * 1024) -> Iterator[bytes]:
    """Yield the content of a file in pieces: all of it up to ``number * size`` bytes, else a sample."""
    with open(file, "rb") as data:
        total = os.fstat(data.fileno()).st_size
        starts = range(0, total, size) if total <= number * size else np.linspace(0, total - size, number, dtype=int).tolist()
        for start in starts:
            data.seek(start)
            yield data.read(size)


def _read_checked_meta(path: Path) -> dict[str, Any]:
    if not path.exists():
        advice = (
            "Finish its interrupted build with mode='resume'." if is_unfinished(path) else "Build it with HypencoderIndexer."
        )
        raise FileNotFoundError(f"There is no index at {path}. {advice}")
    if not (path / META_FILE).is_file():
        raise ValueError(f"{path} is not an index: it has no {META_FILE}. Check the path.")
    meta = read_meta(path)
    if (meta.get("type"), meta.get("format")) != ("dense_index", "hypencoder"):
        raise ValueError(
            f"{path} must have type dense_index and format hypencoder, got {meta.get('type')} and {meta.get('format')}. "
            "HypencoderIndex.from_flex copies the vectors of a pyterrier_dr FlexIndex."
        )
    if meta.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"Index at {path} must have format version {FORMAT_VERSION}, got {meta.get('format_version')!r}, written by "
            f"{meta.get('written_by', 'a newer pyterrier-hypencoder')}. Upgrade pyterrier-hypencoder."
        )
    doc_count, vec_size, dtype = meta.get("doc_count"), meta.get("vec_size"), meta.get("dtype")
    if dtype not in STORED_DTYPES or not all(isinstance(count, int) and count > 0 for count in (doc_count, vec_size)):
        raise ValueError(
            f"{path / META_FILE} must have a positive doc_count and vec_size and dtype {' or '.join(STORED_DTYPES)}, got "
            f"{doc_count}, {vec_size} and {dtype}. Copy the index again or rebuild it."
        )
    return meta


def _check_size(file: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    expected = shape[0] * shape[1] * dtype.itemsize
    found = f"has {file.stat().st_size} bytes" if file.is_file() else "is missing"
    if found != f"has {expected} bytes":
        raise ValueError(
            f"Index at {file.parent} is damaged: {file.name} {found}, expected {expected} bytes ({shape[0]} vectors of "
            f"{shape[1]} dimensions). Copy the index again or rebuild it."
        )
