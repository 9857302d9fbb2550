"""The rows of a graph while it is being built: locked, resumable, and put in place by one rename."""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from .files import META_FILE, fsync, write_json
from .writer import DOCNOS_FILE

EDGES_FILE, WEIGHTS_FILE = "edges.u32.np", "weights.f16.np"
EDGE, WEIGHT = np.dtype("<u4"), np.dtype("<f2")
_LARGEST = float(np.finfo(np.float16).max)


def staging_path(path: Path) -> Path:
    """Where a graph is built before it appears under its name."""
    return path.with_name(f".{path.name}.part")


class Staging:
    """A graph that is being built; rows that :meth:`add` returns from survive the death of the process.

    They are appended, which reports a full disk where writing to a memory map would kill the process. What another build
    has left, or one of another state of the index, is removed.

    Args:
        path: the graph's directory, inside that of its index.
        facts: what its ``pt_meta.json`` says and a resumed build must agree on; ``k`` among them.

    Raises:
        RuntimeError: while another process builds the same graph.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts, self.folder = path, facts, staging_path(path)
        self._graph = self.folder / "graph"  # becomes the graph by one rename
        self._state_file = self.folder / "state.json"
        self._widths = {EDGES_FILE: facts["k"] * EDGE.itemsize, WEIGHTS_FILE: facts["k"] * WEIGHT.itemsize}  # bytes of a row
        self.folder.mkdir(exist_ok=True)
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout as err:
            raise RuntimeError(f"expected to be alone in building {path}, found another process at it; wait") from err
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> None:
        stored = self._stored()
        if stored is None:
            for entry in self.folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != "lock":
                    entry.unlink()
        self.count = stored or 0
        """Rows that are safely stored."""
        self._graph.mkdir(exist_ok=True)
        self._files = {name: open(self._graph / name, "ab") for name in self._widths}
        for name, file in self._files.items():
            file.truncate(self.count * self._widths[name])  # what came after the last rows that count
        self._note()

    def _stored(self) -> int | None:
        """Rows to go on after; None where there is nothing to go on with."""
        try:
            state = json.loads(self._state_file.read_text())
            whole = [(self._graph / name).stat().st_size >= state["rows"] * width for name, width in self._widths.items()]
        except FileNotFoundError:
            return None
        return state["rows"] if state["facts"] == self.facts and all(whole) else None

    def _note(self) -> None:
        write_json(self._state_file, {"facts": self.facts, "rows": self.count})

    def add(self, docids: np.ndarray, neighbours: np.ndarray, distances: np.ndarray) -> None:
        """Stores the next rows.

        Args:
            docids: the documents, (n,).
            neighbours: (n, k); -1 for none, where the document itself is put.
            distances: (n, k).
        """
        none = neighbours < 0
        weights = np.where(none, 0, 0 - np.minimum(distances, _LARGEST))
        self._files[EDGES_FILE].write(np.where(none, docids[:, None], neighbours).astype(EDGE).tobytes())
        self._files[WEIGHTS_FILE].write(weights.astype(WEIGHT).tobytes())
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.count += len(docids)
        self._note()

    def edges(self) -> np.ndarray:
        """What is stored of the edges, (n, k)."""
        return np.memmap(self._graph / EDGES_FILE, dtype=EDGE, mode="r", shape=(self.count, self.facts["k"]))

    def finish(self, facts: dict[str, Any]) -> None:
        """Completes the graph and puts it in place, with further facts about it."""
        self._close()
        _link(self._graph / DOCNOS_FILE, self.path.parent / DOCNOS_FILE)
        meta = {
            "type": "corpus_graph",
            "format": "np_topk",
            "package_hint": "pyterrier-adaptive",
            "doc_count": self.count,
            **self.facts,
            **facts,
            "written_by": f"pyterrier-hypencoder {version('pyterrier-hypencoder')}",
        }
        write_json(self._graph / META_FILE, meta)
        if self.path.exists():
            os.replace(self.path, self.folder / "old")
        os.replace(self._graph, self.path)
        fsync(self.path.parent)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        self._lock.release()


def _link(link: Path, target: Path) -> None:
    """A relative link from inside the graph to a file of its index; a copy where there are no links."""
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(Path("..") / target.name)
    except OSError:
        shutil.copyfile(target, link)
        fsync(link)
