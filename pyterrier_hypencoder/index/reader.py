"""Opening an index directory: checks and memory maps."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..scoring.resident import share_resident_rows
from ..scoring.rows import Rows
from .checksums import CheckedRows, check_file, check_meta, has_checksums, map_checked_rows
from .docnos import Docnos, get_max_file_size
from .files import read_file_version, read_meta
from .layout import DOCNOS_FILE, FORMAT_VERSION, META_FILE, SCALES_FILE, STORED_DTYPES, get_vectors_name
from .quantization import ScaledRows, open_scaled_rows
from .staging import find_folder, is_unfinished

logger = logging.getLogger(__name__)

_ATTEMPTS = 20
"""Attempts to open an index that is replaced at the same time."""


class IndexReader:
    """An opened index directory. The vectors are memory-mapped, never copied.

    All files are of the same state of the index, also if it is replaced while it is opened or later.

    Args:
        path: Index directory.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If the directory is not an index, has another format version, or is damaged.
        OSError: If a file cannot be read for another reason, such as missing permissions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for attempt in range(_ATTEMPTS):
            self.version = read_file_version(path)
            """Changes if the index is replaced."""
            try:
                self._open()
            except (OSError, ValueError):
                if self.is_current() or attempt == _ATTEMPTS - 1:
                    raise
                continue
            if self.is_current():
                break
        self.resident = share_resident_rows(path, self.version)
        """The arrays on GPUs, which all readers of this state of the index share."""

    def get_vectors(self, device: torch.device) -> Rows:
        """Return the vectors for a search on a device.

        On a GPU they are copied on first use and stay there, if they fit into its free memory; see
        :mod:`pyterrier_hypencoder.scoring.resident`.

        Args:
            device: Device that scores the vectors.

        Returns:
            (N, D), a tensor on the GPU or else :attr:`vectors`.
        """
        return self.resident.get("vectors", self.vectors, device)

    def is_current(self) -> bool:
        """Return True if the index has not been replaced since it was opened."""
        return read_file_version(self.path) == self.version

    def _open(self) -> None:
        self.folder = find_folder(self.path)
        """The directory that is read. It differs from the path only while the index is being replaced, but not on Linux."""
        self.meta = _read_checked_meta(self.folder)
        """Content of ``pt_meta.json``."""
        self.doc_count: int = self.meta["doc_count"]
        """Number of documents, N."""
        self.vec_size: int = self.meta["vec_size"]
        """Dimensions of the document vectors, D."""
        shape, dtype = (self.doc_count, self.vec_size), STORED_DTYPES[self.meta["dtype"]]
        rows = map_checked_rows(self.folder, self.vectors_file.name, self.meta, shape, dtype)
        is_scaled = dtype.kind == "i"
        self.vectors: CheckedRows | ScaledRows = open_scaled_rows(self.folder, rows, self.meta) if is_scaled else rows
        """Document vectors, (N, D), float16 or float32. Each block is checked when it is first read."""
        check_file(self.folder, DOCNOS_FILE, self.meta, get_max_file_size(self.doc_count))
        self.docnos = Docnos(self.folder / DOCNOS_FILE, self.doc_count)
        """Lookup between docnos and docids."""
        if not has_checksums(self.meta):
            _note_missing_checksums(self.path)

    @property
    def vectors_file(self) -> Path:
        """File with the document vectors."""
        return self.folder / get_vectors_name(self.meta["dtype"])


@cache  # once per index
def _note_missing_checksums(path: Path) -> None:
    logger.warning(
        "%s has no checksums because an earlier version wrote it, so damage that file sizes do not show is not noticed", path
    )


def fingerprint_index(reader: IndexReader) -> dict[str, Any]:
    """Return the fingerprint of an index: its size, and a hash of its vectors and docnos.

    The hash is computed from the checksums. In indexes of earlier versions, which have none, files over 16 MiB are hashed in
    1,024 evenly spaced pieces.
    """
    digest = blake2b(digest_size=16)
    if has_checksums(reader.meta):
        digest.update(repr(sorted(reader.meta["checksums"]["files"].items())).encode())
    else:
        scales = [reader.folder / SCALES_FILE] if isinstance(reader.vectors, ScaledRows) else []
        for file in (reader.vectors_file, reader.folder / DOCNOS_FILE, *scales):
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
            "Finish its interrupted build with mode='resume'."
            if is_unfinished(path)
            else "Build it with HypencoderIndexer(path, model).index(docs)."
        )
        raise FileNotFoundError(f"There is no index at {path}. {advice}")
    if path.is_file():
        raise ValueError(
            f"{path} must be the directory of an index, got a file. A package of build_package() is unpacked with "
            "HypencoderIndex.from_package(package, path)."
        )
    if not (path / META_FILE).exists():
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
    check_meta(path / META_FILE, meta)
    doc_count, vec_size, dtype = meta.get("doc_count"), meta.get("vec_size"), meta.get("dtype")
    if str(dtype) not in STORED_DTYPES or not all(type(count) is int and count > 0 for count in (doc_count, vec_size)):
        raise ValueError(
            f"{path / META_FILE} must have a positive doc_count and vec_size and dtype {' or '.join(STORED_DTYPES)}, got "
            f"{doc_count}, {vec_size} and {dtype}. Copy the index again or rebuild it."
        )
    record = meta.get("model")
    if record is not None and not (isinstance(record, dict) and {"class", "name", "options"} <= set(record)):
        raise ValueError(
            f"model in {path / META_FILE} must be a record of a model, got {record!r:.80}. Copy the index again or rebuild it."
        )
    return meta
