"""Finding nearest documents: exact and approximate builders, ties, duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from indexes import find_true_neighbours, make_clusters

from pyterrier_hypencoder.index import approximate_neighbours, exact_neighbours, nearest
from pyterrier_hypencoder.index.approximate_neighbours import HnswSearch
from pyterrier_hypencoder.index.distinct import DistinctVectors
from pyterrier_hypencoder.index.exact_neighbours import CpuExactSearch, GpuExactSearch
from pyterrier_hypencoder.index.nearest import NeighbourFinder

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(7)
# Arithmetic on these is exact in float32, or only equal vectors have equal distances.
TIES = {
    "clusters with duplicates": make_clusters(700),
    "lattice": RANDOM.integers(0, 2, (600, 8)),
    "fine lattice": RANDOM.integers(0, 2, (600, 20)),
    "equal distances": np.eye(150),
    "all equal": np.ones((200, 8)),
    "all zero": np.zeros((40, 3)),
    "half zero": np.where(np.arange(300)[:, None] % 2, RANDOM.standard_normal((300, 6)), 0),
    "minus zero": np.where(np.arange(60)[:, None] % 2, 0.0, -0.0) * np.ones((60, 2)),
}
ROUNDED = {
    "random": RANDOM.standard_normal((500, 24)),
    "near each other": 1 + 1e-3 * RANDOM.standard_normal((400, 32)),
    "far from zero": 1000 + 1e-2 * RANDOM.standard_normal((300, 16)),
    "one dimension": RANDOM.standard_normal((100, 1)),
    "outlier": RANDOM.standard_normal((300, 16)) * np.where(np.arange(300)[:, None], 1, 1e4),
}
OVERFLOWING = {
    "huge": 1e38 * RANDOM.uniform(-1, 1, (150, 8)),
    "tiny": 1e-38 * RANDOM.standard_normal((150, 8)),
    "all sizes": np.exp(30 * RANDOM.standard_normal((150, 4)).clip(-2.5, 2.5)),
}


def find_all(
    vectors: np.ndarray, k: int, *, builder: str = "exact", folder: Path = Path(), step: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return neighbours and distances of all documents, found in batches."""
    finder = NeighbourFinder(DistinctVectors(vectors), k, builder=builder, device=CPU)
    finder.prepare(folder)
    step = step or len(vectors)
    parts = [finder.find(np.arange(i, min(i + step, len(vectors)))) for i in range(0, len(vectors), step)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def measure(vectors: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Return the distances of neighbours in float64."""
    exact = np.asarray(vectors, dtype=np.float64)
    return np.linalg.norm(exact[:, None] - exact[neighbours], axis=2)


# Exact


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_exact_builder_breaks_ties_by_docid(kind, dtype):
    vectors = np.asarray(TIES[kind]).astype(dtype)
    neighbours, distances = find_all(vectors, 10)
    expected = find_true_neighbours(vectors, 10)
    np.testing.assert_array_equal(neighbours, expected)
    np.testing.assert_allclose(distances, measure(vectors, expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu code"])
def test_exact_builder_has_recall_1_up_to_ties(monkeypatch, kind, dtype, gpu):
    vectors = np.asarray(ROUNDED[kind]).clip(-65504, 65504).astype(dtype)
    if gpu:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**40))
        monkeypatch.setattr(nearest, "CpuExactSearch", lambda vectors: GpuExactSearch(vectors, CPU))
    neighbours, distances = find_all(vectors, 10)
    found = measure(vectors, neighbours)
    assert (found <= measure(vectors, find_true_neighbours(vectors, 10)) * (1 + 1e-5) + 1e-7).all()
    np.testing.assert_allclose(distances, found, rtol=1e-5, atol=1e-7)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert (neighbours != np.arange(len(vectors))[:, None]).all()
    assert all(len(set(row)) == 10 for row in neighbours.tolist())


@pytest.mark.parametrize("kind", OVERFLOWING)
def test_exact_builder_returns_documents_if_distances_overflow_float32(kind):
    vectors = OVERFLOWING[kind].astype(np.float32)
    neighbours, distances = find_all(vectors, 10)
    assert not np.isnan(distances).any() and (neighbours < len(vectors)).all()
    for docid, row in enumerate(neighbours.tolist()):
        found = [neighbour for neighbour in row if neighbour >= 0]
        assert len(set(found)) == len(found) and docid not in found
        assert row[: len(found)] == found  # missing neighbours come last


@pytest.mark.parametrize("step", [1, 7, 299, 300])
@pytest.mark.parametrize("kind", ["random", "clusters with duplicates", "lattice"])
def test_batches_tiles_and_pieces_do_not_change_the_result(monkeypatch, step, kind):
    vectors = np.asarray((ROUNDED | TIES)[kind])[:300].astype(np.float32)
    expected = find_all(vectors, 12)
    monkeypatch.setattr(exact_neighbours, "_CPU_TILE_BYTES", 37 * 16 * 4)
    monkeypatch.setattr(nearest, "_PIECE_BYTES", 11 * 16 * 8)
    for found, same in zip(find_all(vectors, 12, step=step), expected, strict=True):
        np.testing.assert_array_equal(found, same)


def test_permuting_documents_permutes_neighbours():
    vectors, order = RANDOM.standard_normal((200, 8)).astype(np.float32), RANDOM.permutation(200)
    neighbours, permuted = find_all(vectors, 9)[0], find_all(vectors[order], 9)[0]
    np.testing.assert_array_equal(order[permuted], neighbours[order])


@pytest.mark.parametrize("k", [1, 2, 9, 10, 11, 30])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 11])
def test_missing_neighbours_are_minus_one_with_infinite_distance(n, k):
    vectors = RANDOM.standard_normal((n, 4)).astype(np.float32)
    neighbours, distances = find_all(vectors, k)
    assert neighbours.shape == distances.shape == (n, k)
    assert ((neighbours < 0).sum(axis=1) == max(0, k - n + 1)).all()
    assert (np.isinf(distances) == (neighbours < 0)).all()
    padded = np.where(neighbours < 0, np.arange(n)[:, None], neighbours)
    np.testing.assert_array_equal(padded, find_true_neighbours(vectors, k))


def test_find_accepts_documents_in_any_order():
    vectors = make_clusters(200)
    finder = NeighbourFinder(DistinctVectors(vectors), 5, builder="exact", device=CPU)
    finder.prepare(Path())
    docids = np.array([7, 3, 3, 199, 0])
    np.testing.assert_array_equal(finder.find(docids)[0], find_true_neighbours(vectors, 5)[docids])


def test_find_before_prepare_is_an_error():
    finder = NeighbourFinder(DistinctVectors(make_clusters(50)), 5, builder="exact", device=CPU)
    with pytest.raises(RuntimeError, match="prepare"):
        finder.find(np.arange(3))


# On a GPU


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("held", [True, False])
def test_gpu_search_finds_the_same_when_run_on_a_cpu(monkeypatch, dtype, held):
    vectors = make_clusters(500).astype(dtype)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30 if held else 0, 2**40))
    monkeypatch.setattr(exact_neighbours, "_GPU_TILE_VECTORS", 64)
    finder = NeighbourFinder(DistinctVectors(vectors), 10, builder="exact", device=CPU)
    finder._search = GpuExactSearch(finder._vectors, CPU)
    assert (finder._search._tiles is not None) == held
    np.testing.assert_array_equal(finder.find(np.arange(500))[0], find_true_neighbours(vectors, 10))


def test_gpu_search_changes_no_global_switch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**40))
    before, values = torch.backends.cuda.matmul.allow_tf32, []
    addmm = torch.addmm

    def record(*args: Any, **options: Any) -> torch.Tensor:
        values.append(torch.backends.cuda.matmul.allow_tf32)
        return addmm(*args, **options)

    monkeypatch.setattr(torch, "addmm", record)
    GpuExactSearch(DistinctVectors(make_clusters(50).astype(np.float16)), CPU).search(np.arange(5), 3)
    assert values == [before]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["random", "clusters with duplicates", "half zero", "all equal"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_gpu_finds_the_same_as_cpu(kind, dtype):
    vectors = np.asarray((ROUNDED | TIES)[kind]).astype(dtype)
    finder = NeighbourFinder(DistinctVectors(vectors), 10, builder="exact", device=torch.device("cuda"))
    finder.prepare(Path())
    for found, expected in zip(finder.find(np.arange(len(vectors))), find_all(vectors, 10), strict=True):
        np.testing.assert_array_equal(found, expected)


# Approximate


@pytest.mark.parametrize("builder", ["hnsw", "nn_descent"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_approximate_builders_find_nearly_all_neighbours(tmp_path, builder, dtype):
    vectors = make_clusters(1300).astype(dtype)
    neighbours, distances = find_all(vectors, 10, builder=builder, folder=tmp_path)
    expected = find_true_neighbours(vectors, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(neighbours, expected, strict=True)]) > 0.97
    assert (neighbours != np.arange(1300)[:, None]).all() and (np.diff(distances, axis=1) >= 0).all()
    np.testing.assert_allclose(distances, measure(vectors, neighbours), rtol=1e-5, atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("builder", ["hnsw", "nn_descent"])
def test_approximate_builders_reuse_what_they_have_built(tmp_path, monkeypatch, builder):
    vectors = make_clusters(1300)
    first = find_all(vectors, 10, builder=builder, folder=tmp_path)
    monkeypatch.setattr(approximate_neighbours, "replace_file", lambda *_: pytest.fail("built again"))
    for found, expected in zip(find_all(vectors, 10, builder=builder, folder=tmp_path), first, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_hnsw_with_many_copies_of_one_vector_keeps_recall(tmp_path):
    """HNSW over all documents, copies included, has a recall of 0.64 here."""
    vectors = RANDOM.standard_normal((3000, 16)).astype(np.float32)
    copies = np.sort(RANDOM.permutation(3000)[:1900])
    vectors[copies] = vectors[copies[0]]
    neighbours, _ = find_all(vectors, 10, builder="hnsw", folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hnsw.faiss", "hnsw.json"]
    found, expected = measure(vectors, neighbours), measure(vectors, find_true_neighbours(vectors, 10))
    assert (found <= expected + 1e-5).mean() > 0.99
    np.testing.assert_array_equal(neighbours[copies[:20]], find_true_neighbours(vectors, 10)[copies[:20]])


def test_hnsw_rows_with_too_few_candidates_are_compared_exactly(tmp_path, monkeypatch):
    vectors, search = make_clusters(1300), HnswSearch.search

    def drop_candidates(self: Any, groups: np.ndarray, k: int) -> np.ndarray:
        found = search(self, groups, k)
        found[::3, 4:] = -1
        return found

    monkeypatch.setattr(HnswSearch, "search", drop_candidates)
    neighbours, _ = find_all(vectors, 8, builder="hnsw", folder=tmp_path)
    expected = find_true_neighbours(vectors, 8)
    assert np.mean([len(set(a) & set(b)) / 8 for a, b in zip(neighbours, expected, strict=True)]) > 0.97


# The choice of the builder


@pytest.mark.parametrize("builder", ["hnsw", "nn_descent"])
def test_few_vectors_are_always_compared_exactly(builder):
    finder = NeighbourFinder(DistinctVectors(make_clusters(300)), 5, builder=builder, device=CPU)
    finder.prepare(Path("does not exist"))
    assert finder.builder == "exact" and finder.options == {}


@pytest.mark.parametrize(
    ("device", "limit", "builder"), [("cpu", 1300, "exact"), ("cpu", 1299, "hnsw"), ("cuda", 1299, "hnsw")]
)
def test_auto_builder_depends_on_the_number_of_documents(monkeypatch, device, limit, builder):
    monkeypatch.setitem(nearest.EXACT_UP_TO, device, limit)
    finder = NeighbourFinder(DistinctVectors(make_clusters(1300)), 5, builder="auto", device=torch.device(device))
    assert finder.builder == builder and bool(finder.options) == (builder == "hnsw")


def test_cpu_search_holds_small_collections_in_memory(monkeypatch):
    vectors = DistinctVectors(make_clusters(100))
    assert CpuExactSearch(vectors)._tiles is not None
    monkeypatch.setattr(exact_neighbours, "_CPU_TILE_BYTES", 640)
    assert CpuExactSearch(vectors)._tiles is None
