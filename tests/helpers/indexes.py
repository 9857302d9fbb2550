"""Small index directories for tests, written without an encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyterrier_hypencoder.index.reader import IndexReader
from pyterrier_hypencoder.index.writer import IndexWriter

V1_INDEX = Path(__file__).parents[1] / "fixtures" / "v1.hyp"


def read_tree(folder: Path) -> dict[str, bytes | None]:
    """Return the content of everything below a folder; None for folders. Lock files are left out: they have no content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.suffix != ".lock"
    }


def edit_meta(folder: Path, **changes: Any) -> None:
    """Change the metadata of a directory, and switch their checksum off. A value ``"gone"`` removes a key."""
    meta = json.loads((folder / "pt_meta.json").read_text()) | changes | {"checksum": None}
    meta = {key: value for key, value in meta.items() if value != "gone"}
    (folder / "pt_meta.json").write_text(json.dumps(meta))


def write_index(
    path: Path, vectors: Any, *, docnos: Sequence[str] | None = None, dtype: str = "fp32", mode: str = "create"
) -> IndexReader:
    """Write an index of vectors; document i is called d<i> unless docnos are given."""
    vectors = np.asarray(vectors, dtype=np.float32)
    writer = IndexWriter(path, mode=mode, dtype=dtype, facts={"model": None, "text_field": None})
    writer.add(docnos or [f"d{i}" for i in range(len(vectors))], vectors)
    writer.finish()
    return IndexReader(path)


def make_clusters(n: int, size: int = 16) -> np.ndarray:
    """Return shuffled groups of near vectors; a fifth of them are vectors that occur five times."""
    rng = np.random.default_rng(n)
    centres = rng.standard_normal((n // 40 + 1, size))
    vectors = centres[rng.integers(0, len(centres), n)] + 0.5 * rng.standard_normal((n, size))
    vectors[: n // 5] = np.repeat(vectors[: n // 25 + 1], 5, axis=0)[: n // 5]
    return vectors[rng.permutation(n)].astype(np.float32)


def find_true_neighbours(vectors: np.ndarray, k: int) -> np.ndarray:
    """Return the nearest other documents by brute force in float64, with ties by docid, padded with the document itself."""
    exact = np.asarray(vectors, dtype=np.float64)
    rows = []
    for i, vector in enumerate(exact):
        distances = np.sqrt(np.square(exact - vector).sum(axis=1))
        order = np.lexsort((np.arange(len(exact)), distances))
        row = order[order != i][:k].tolist()
        rows.append(row + [i] * (k - len(row)))
    return np.array(rows)
