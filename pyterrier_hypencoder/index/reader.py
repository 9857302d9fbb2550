"""The index directory, opened for reading."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from .docnos import Docnos
from .files import META_FILE, read_meta
from .writer import _NUMPY, DOCNOS_FILE, FORMAT_VERSION, staging_path


class IndexReader:
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


def fingerprint_index(reader: IndexReader) -> dict[str, Any]:
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
