"""Training rows in files: find, read and write them. Training rows in memory: check and shuffle them.

A file has one row per line, in the format of the authors (jfkback/hypencoder-paper, ``train/data_collator.py``)::

    {"query": {"id", "content", "tokenized_content"},
     "items": [{"id", "content", "tokenized_content", "score", "type"}, ...]}

Each text is given as ``content`` or as ``tokenized_content``, which are token ids with the special tokens. Everything else
is optional.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeGuard

import torch

from ..options import list_items

SUFFIXES = (".jsonl", ".jsonl.gz")

Paths = str | Path | Sequence[str | Path]


def list_row_files(paths: Paths) -> list[str]:
    """Return the row files that paths, directories and patterns match.

    Args:
        paths: File, directory or pattern with ``*``, or a list of them. The files of one entry are sorted by name, and so
            are the entries of a set. ``~`` is the home directory.

    Raises:
        FileNotFoundError: If an entry matches no file.
        ValueError: If an entry is not a path.
    """
    entries = [paths] if isinstance(paths, str | os.PathLike) else list_items("paths", paths, str | os.PathLike, "paths")
    if isinstance(paths, Set):  # the order of the files decides which items are sampled
        entries.sort(key=str)
    files = []
    for path in map(os.path.expanduser, entries):
        pattern = os.path.join(glob.escape(str(path)), "*") if os.path.isdir(path) else str(path)
        found = [name for name in sorted(glob.glob(pattern, recursive=True)) if name.endswith(SUFFIXES)]
        found = [str(path)] if os.path.isfile(path) else found
        if not found:
            raise FileNotFoundError(f"No training rows in {str(path)!r}: it matches no {' or '.join(SUFFIXES)} file.")
        files += found
    if not files:
        raise FileNotFoundError("No training rows: the list of paths is empty. Give at least one path.")
    return files


def is_rows(source: Any) -> TypeGuard[Sequence[Any]]:
    """Return True if a source of training rows holds the rows themselves, and False if it holds paths.

    Raises:
        TypeError: If it can be read only once, so training could make only one pass.
    """
    if isinstance(source, str | os.PathLike | Set):
        return False
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__") or isinstance(source, Mapping):
        raise TypeError(f"Training rows must be paths, a list of rows or a datasets.Dataset, got {type(source).__name__}.")
    return len(source) > 0 and isinstance(source[0], Mapping)


def read_rows(rows: Sequence[Any], seed: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield rows in memory like the lines of a file. A worker of a ``DataLoader`` gets its share.

    Args:
        rows: The rows.
        seed: Seed of the order. None keeps the order.
    """
    order = list(range(len(rows)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    worker = torch.utils.data.get_worker_info()
    for i in order if worker is None else order[worker.id :: worker.num_workers]:
        yield {"file": 0, "row": i + 1, "line": rows[i]}


def read_lines(files: list[tuple[int, str]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of numbered files unparsed, and leave out blank lines.

    Args:
        files: Number and path of each file.

    Yields:
        ``file`` (the number), ``row`` (from 1) and ``line`` (bytes).

    Raises:
        ValueError: If a gzipped file is damaged.
    """
    for number, name in files:
        try:
            with gzip.open(name, "rb") if name.endswith(".gz") else open(name, "rb") as lines:
                for row, line in enumerate(lines, start=1):
                    if line.strip():
                        yield {"file": number, "row": row, "line": line}
        except (gzip.BadGzipFile, EOFError, zlib.error) as err:
            raise ValueError(f"{name} is damaged: {err}. Copy or download the file again.") from err


def check_suffix(path: Path) -> None:
    """Check that a path has the suffix of a row file.

    Raises:
        ValueError: If it ends neither in ``.jsonl`` nor in ``.jsonl.gz``.
    """
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"path must end with {' or '.join(SUFFIXES)}, got {path.name!r}.")


def write_row_file(path: Path, rows: Iterable[Mapping[str, Any]], made_from: Mapping[str, Any]) -> None:
    """Write rows to a file, and ``PATH.json`` with the inputs they were made from beside it.

    The file appears under its name when it is complete. If ``rows`` raises an error, nothing is left under either name.

    Args:
        path: File to write, ``.jsonl`` or ``.jsonl.gz``.
        rows: Rows with ``query`` and ``items``.
        made_from: Description of the inputs, for :func:`check_row_file`. Values must be serialisable as JSON.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    n_rows, n_items = 0, 0
    try:
        with open(temporary, "wb") as raw:
            # No name and no time in the gzip header, so equal rows give equal files.
            file = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.name.endswith(".gz") else raw
            for row in rows:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                n_rows, n_items = n_rows + 1, n_items + len(row["items"])
            if file is not raw:
                file.close()
            raw.flush()
            os.fsync(raw.fileno())
        facts = {"made_from": made_from, "rows": n_rows, "items": n_items, "bytes": temporary.stat().st_size}
        _get_facts_path(path).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_row_file(path: Path, made_from: Mapping[str, Any]) -> None:
    """Check that a row file is complete and was made from the given inputs.

    Raises:
        FileExistsError: If it was made from other inputs or has another size, or if ``PATH.json`` cannot be read.
    """
    facts_path = _get_facts_path(path)
    try:
        facts = json.loads(facts_path.read_text(encoding="utf-8"))
        stored, size = facts["made_from"], facts["bytes"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise FileExistsError(
            f"{path} exists, but {facts_path} cannot be read ({err!r}). Move the file away, or give another path."
        ) from err
    differing = [f"{key}={stored.get(key)!r} (now {value!r})" for key, value in made_from.items() if stored.get(key) != value]
    if path.stat().st_size != size:
        differing.append(f"a size of {size} bytes (now {path.stat().st_size})")
    if differing:
        raise FileExistsError(
            f"{path} was made from other inputs: {', '.join(differing)}. Delete it to write it again, or give another path."
        )


def _get_facts_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
