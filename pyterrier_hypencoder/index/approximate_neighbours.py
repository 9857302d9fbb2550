"""Find approximate nearest neighbours for building a neighbour graph, with faiss: HNSW and NN-descent.

Both first build an index, which is kept in the staging directory of the graph, so a resumed build uses it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt

from .checksums import hash_file
from .distinct import DistinctVectors
from .files import replace_file, write_json
from .reading import parse_json

_TILE_BYTES = 32 * 2**20  # float32 vectors that are added at once


class HnswSearch:
    """HNSW index of faiss. Vectors that are stored as float16 stay float16, and int8 becomes float16.

    Args:
        vectors: Distinct vectors to search.
        options: ``M``, ``efConstruction`` and ``efSearch``.
        folder: Directory that holds the index; it is built if it is not there.
        verbose: If True, show the progress of building.
    """

    def __init__(self, vectors: DistinctVectors, options: dict[str, int], folder: Path, verbose: bool) -> None:
        import faiss

        self._vectors = vectors
        self._index = _load_or_build(
            folder / "hnsw.faiss",
            lambda: _build_hnsw(vectors, options, verbose),
            lambda index, path: faiss.write_index(index, str(path)),
            lambda path: faiss.read_index(str(path)),
        )

    def search(self, groups: np.ndarray, k: int) -> np.ndarray:
        """Return the nearest groups of some groups.

        Args:
            groups: Groups whose vectors are the queries, shape (Q,).
            k: Number of results.

        Returns:
            Groups, shape (Q, K); -1 if fewer were found.
        """
        return self._index.search(self._vectors.take(groups).astype(np.float32), k)[1]


def _load_or_build(file: Path, build: Callable[[], Any], save: Callable[[Any, Path], Any], load: Callable[[Path], Any]) -> Any:
    """Load what an interrupted build has written if it is undamaged, or build it and save it.

    Args:
        file: The file.
        build: Builds the value.
        save: Writes the value to a path.
        load: Reads the value from a path. It is not called for damaged files, because faiss can crash on them.
    """
    facts = file.with_suffix(".json")
    try:
        if parse_json(facts).get("checksum") == hash_file(file):
            return load(file)
    except (FileNotFoundError, ValueError):
        pass
    value = build()
    with replace_file(file) as part:
        save(value, part)
    write_json(facts, {"checksum": hash_file(file)})
    return load(file)


def _build_hnsw(vectors: DistinctVectors, options: dict[str, int], verbose: bool) -> Any:
    import faiss

    index: Any = faiss.index_factory(vectors.size, f"HNSW{options['M']},{vectors.faiss_storage}")
    index.is_trained = True  # SQfp16 has no parameters to train
    index.hnsw.efConstruction, index.hnsw.efSearch = options["efConstruction"], options["efSearch"]
    with pt.tqdm(total=len(vectors), desc="HNSW", unit="doc", disable=not verbose) as progress:
        for _, tile in vectors.iter_tiles(_TILE_BYTES):
            index.add(tile)
            progress.update(len(tile))
    return index


class NNDescentSearch:
    """Neighbour lists made by NN-descent of faiss. Building needs all vectors in memory, in float32.

    Args:
        vectors: Distinct vectors to search.
        options: ``K``, ``L`` and ``iter``.
        folder: Directory that holds the neighbour lists; they are built if they are not there.
        verbose: If True, show when building starts and ends.
    """

    def __init__(self, vectors: DistinctVectors, options: dict[str, int], folder: Path, verbose: bool) -> None:
        self._neighbours = _load_or_build(
            folder / "nn_descent.npy",
            lambda: _run_nn_descent(vectors, options, verbose),
            _save_array,
            lambda path: np.load(path, mmap_mode="r", allow_pickle=False),
        )

    def search(self, groups: np.ndarray, k: int) -> np.ndarray:
        """Return the neighbour lists of some groups; see :meth:`HnswSearch.search`."""
        return np.asarray(self._neighbours[groups, :k], dtype=np.int64)


def _run_nn_descent(vectors: DistinctVectors, options: dict[str, int], verbose: bool) -> np.ndarray:
    import faiss

    with pt.tqdm(total=len(vectors), desc="NN-descent", unit="doc", disable=not verbose) as progress:
        index = faiss.IndexNNDescentFlat(vectors.size, options["K"])
        index.nndescent.L, index.nndescent.iter = options["L"], options["iter"]
        index.add(np.concatenate([tile for _, tile in vectors.iter_tiles(_TILE_BYTES)]))
        progress.update(len(vectors))
    return faiss.vector_to_array(index.nndescent.final_graph).reshape(len(vectors), -1)


def _save_array(array: np.ndarray, path: Path) -> None:
    with open(path, "wb") as out:  # np.save would add a suffix to the path
        np.save(out, array)
