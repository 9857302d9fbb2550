"""Building the neighbour graph: its rows and files, options, interrupted builds, and graphs made while indexing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_checkpoints import FOLDERS, Golden
from indexes import V1_INDEX, find_true_neighbours, make_clusters, read_tree, write_index

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer
from pyterrier_hypencoder.index import approximate_neighbours, nearest, staging
from pyterrier_hypencoder.index.graph_builder import build_graph, open_or_build_graph
from pyterrier_hypencoder.index.layout import EDGES_FILE, WEIGHTS_FILE
from pyterrier_hypencoder.index.nearest import NeighbourFinder
from pyterrier_hypencoder.index.neighbour_graph import open_graph
from pyterrier_hypencoder.index.reader import IndexReader
from pyterrier_hypencoder.index.staging import StagedDirectory, get_staging_path

RANDOM = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def small(tmp_path) -> IndexReader:
    return write_index(tmp_path / "small.hyp", make_clusters(300))


def list_graphs(index: Path) -> list[str]:
    return sorted(path.name for path in index.glob("*corpusgraph*"))


# Rows


@pytest.mark.parametrize("name", sorted(name for name, folder in FOLDERS.items() if (folder / "graph.jsonl").exists()))
def test_graphs_match_the_released_code(name, tmp_path):
    golden = Golden(FOLDERS[name])
    vectors = golden.arrays["doc_emb_batch8"].numpy()
    docnos = [doc["docno"] for doc in golden.texts["docs"]]
    graph = build_graph(write_index(tmp_path / "golden.hyp", vectors, docnos=docnos), 10)
    lines = (golden.folder / "graph.jsonl").read_text().splitlines()
    assert len(lines) == len(docnos)
    exact = vectors.astype(np.float64)
    for docid, expected in enumerate(map(json.loads, lines)):
        found = graph.neighbours(expected["item_id"]).tolist()
        away = dict(zip(docnos, np.linalg.norm(exact - exact[docid], axis=1), strict=True))
        # The released code compares in float32 and breaks ties arbitrarily.
        for ours, theirs in zip(found, expected["neighbors"], strict=True):
            assert ours == theirs or abs(away[ours] - away[theirs]) < 1e-5


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(
    "vectors",
    [make_clusters(300), 1e4 * RANDOM.standard_normal((150, 8)), np.ones((50, 3)), 1e-4 * RANDOM.standard_normal((50, 3))],
    ids=["clusters", "distances over float16", "equal vectors", "small distances"],
)
def test_weights_are_negative_distances(tmp_path, vectors, dtype):
    reader = write_index(tmp_path / "x.hyp", vectors.clip(-65504, 65504), dtype=dtype)
    graph = build_graph(reader, 10)
    np.testing.assert_array_equal(graph.edges_data, find_true_neighbours(reader.vectors, 10))
    exact = np.asarray(reader.vectors, dtype=np.float64)
    distances = np.linalg.norm(exact[:, None] - exact[graph.edges_data], axis=2).clip(max=65504)
    np.testing.assert_allclose(graph.weights_data, -distances, rtol=1e-3, atol=6e-8)
    assert np.isfinite(graph.weights_data).all()
    assert not np.signbit(graph.weights_data[graph.weights_data == 0]).any()


def test_huge_vectors_give_a_valid_graph(tmp_path):
    graph = build_graph(write_index(tmp_path / "x.hyp", 1e38 * RANDOM.uniform(-1, 1, (50, 8))), 10)
    assert graph.edges_data.max() < 50 and np.isfinite(graph.weights_data).all()


@pytest.mark.parametrize("k", [1, 2, 9, 10, 11, 30])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 11])
def test_missing_neighbours_are_the_document_itself(tmp_path, n, k):
    vectors = RANDOM.standard_normal((n, 4))
    graph = build_graph(write_index(tmp_path / "x.hyp", vectors), k)
    assert graph.path.name == f"corpusgraph_k{k}" and graph.edges_data.shape == (n, k) and len(graph) == n
    np.testing.assert_array_equal(graph.edges_data, find_true_neighbours(vectors.astype(np.float32), k))
    own = graph.edges_data == np.arange(n)[:, None]
    assert own.sum() == n * max(0, k - n + 1)
    assert not graph.weights_data[own].any() and not np.signbit(graph.weights_data[own]).any()


def test_the_committed_index_of_version_1_gets_a_graph(tmp_path):
    shutil.copytree(V1_INDEX, tmp_path / "v1.hyp")
    reader = IndexReader(tmp_path / "v1.hyp")  # the distances of one of its documents exceed float16
    graph = build_graph(reader, 5)
    expected, exact = find_true_neighbours(reader.vectors, 5), np.asarray(reader.vectors, dtype=np.float64)
    np.testing.assert_array_equal(np.delete(graph.edges_data, 3, axis=0), np.delete(expected, 3, axis=0))
    found, true = (np.linalg.norm(exact[3] - exact[ids[3]], axis=1) for ids in (graph.edges_data, expected))
    np.testing.assert_allclose(found, true, rtol=1e-5)  # that document is almost equally far from all others
    assert sorted(graph.edges_data[3].tolist()) == sorted(expected[3].tolist())
    assert graph.weights_data.min() == -65504
    assert list(graph.neighbours("d1")) == list(reader.docnos.at(graph.neighbours(0)))


def test_a_smaller_graph_is_the_beginning_of_a_larger_one(small):
    edges = {k: np.array(build_graph(small, k).edges_data) for k in (40, 7, 1)}
    np.testing.assert_array_equal(edges[40][:, :7], edges[7])
    np.testing.assert_array_equal(edges[40][:, :1], edges[1])


@pytest.mark.parametrize("batch_size", [7, 299, 300, 301])
def test_the_batch_size_does_not_change_the_graph(small, batch_size):
    expected = read_tree(build_graph(small, 12).path)
    assert read_tree(build_graph(small, 12, batch_size=batch_size).path) == expected


@pytest.mark.parametrize("builder", ["hnsw", "nn_descent"])
def test_approximate_graphs_store_their_recall(tmp_path, builder):
    reader = write_index(tmp_path / "x.hyp", make_clusters(1300), dtype="fp16")
    graph = open_or_build_graph(reader, 10, builder=builder)
    expected = find_true_neighbours(reader.vectors, 10)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(graph.edges_data, expected, strict=True)])
    assert found > 0.97
    assert graph.meta["builder"] == builder and graph.meta["options"] and graph.meta["recall_documents"] == 1000
    assert abs(graph.meta["recall"] - found) < 0.01
    own = graph.edges_data == np.arange(1300)[:, None]
    assert not own.any() and (np.diff(graph.weights_data.astype(np.float64), axis=1) <= 0).all()
    assert not get_staging_path(graph.path).exists()


@pytest.mark.parametrize("builder", ["hnsw", "nn_descent"])
def test_graphs_of_few_documents_are_exact(small, builder):
    graph = open_or_build_graph(small, 5, builder=builder)
    assert graph.meta["builder"] == "exact" and "recall" not in graph.meta
    np.testing.assert_array_equal(graph.edges_data, find_true_neighbours(small.vectors, 5))


# Files


def test_a_graph_has_exactly_the_documented_files_and_metadata(small):
    graph = open_or_build_graph(small, 6)
    path = small.path / "corpusgraph_k6"
    assert graph.path == path
    rows = {"edges.u32.np", "weights.f16.np"}
    assert set(read_tree(path)) == {"pt_meta.json", "docnos.npids", *rows, *(f"checksums.{name}.u8" for name in rows)}
    assert os.readlink(path / "docnos.npids") == "../docnos.npids"
    meta = json.loads((path / "pt_meta.json").read_text())
    assert meta.pop("written_by").startswith("pyterrier-hypencoder ")
    assert len(meta["index"].pop("fingerprint")) == 32
    assert set(meta.pop("checksums")["files"]) == {f"checksums.{name}.u8" for name in rows} and meta.pop("checksum")
    assert meta == {
        "type": "corpus_graph",
        "format": "np_topk",
        "package_hint": "pyterrier-adaptive",
        "doc_count": 300,
        "k": 6,
        "distance": "l2",
        "builder": "exact",
        "options": {},
        "index": {"doc_count": 300, "vec_size": 16, "dtype": "f4"},
    }
    assert (path / "edges.u32.np").read_bytes() == find_true_neighbours(small.vectors, 6).astype("<u4").tobytes()
    assert graph.edges_data.dtype == np.uint32 and graph.weights_data.dtype == np.float16
    assert not graph.edges_data.flags.writeable
    names = ["checksums.vecs.f4.u8", "corpusgraph_k6", "docnos.npids", "pt_meta.json", "vecs.f4"]
    assert sorted(file.name for file in small.path.iterdir()) == names


def test_docnos_are_copied_if_links_are_not_supported(small, monkeypatch):
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    copy = open_or_build_graph(small, 3).path / "docnos.npids"
    assert not copy.is_symlink() and copy.read_bytes() == (small.path / "docnos.npids").read_bytes()


# Opening what exists


def test_a_graph_is_built_once_and_opens_for_fewer_neighbours(small, monkeypatch):
    whole = open_or_build_graph(small, 20)
    monkeypatch.setattr(NeighbourFinder, "find", lambda *_: pytest.fail("built again"))
    for k in (20, 19, 1):
        graph = open_or_build_graph(small, k)
        assert graph.k == k and graph.path == whole.path
        np.testing.assert_array_equal(graph.edges_data, whole.edges_data[:, :k])
        np.testing.assert_array_equal(graph.weights_data, whole.weights_data[:, :k])
        np.testing.assert_array_equal(open_graph(small, k).edges_data, graph.edges_data)


def test_an_exact_graph_replaces_an_approximate_one_but_not_the_other_way(tmp_path, monkeypatch):
    reader = write_index(tmp_path / "x.hyp", make_clusters(1300))
    assert build_graph(reader, 4).meta["builder"] == "exact"
    monkeypatch.setitem(nearest.EXACT_UP_TO, "cpu", 1299)
    assert build_graph(reader, 4, device="cpu").meta["builder"] == "hnsw"
    assert open_or_build_graph(reader, 4).meta["builder"] == "hnsw"
    assert open_or_build_graph(reader, 4, builder="exact").meta["builder"] == "exact"
    assert open_or_build_graph(reader, 4, builder="hnsw").meta["builder"] == "exact"  # better than what was requested
    assert list_graphs(reader.path) == ["corpusgraph_k4"]


def test_opening_a_graph_deletes_the_leftovers_of_its_build(small):
    path = open_or_build_graph(small, 4).path
    get_staging_path(path).mkdir()
    (get_staging_path(path) / "hnsw.faiss").write_bytes(b"large")
    open_or_build_graph(small, 4)
    assert list_graphs(small.path) == ["corpusgraph_k4"]


# Options


@pytest.mark.parametrize("k", [0, -1, 2.0, "10", True])
def test_k_must_be_a_positive_integer(small, k):
    for use in (open_or_build_graph, open_graph, build_graph):
        with pytest.raises(ValueError, match="k must be a positive integer"):
            use(small, k)
    assert not list_graphs(small.path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 10_001}, "k must be at most 10,000 neighbours, got 10001"),
        ({"builder": "annoy"}, "builder must be one of 'auto', 'exact', 'hnsw', 'nn_descent', got 'annoy'"),
        ({"device": "tpu"}, "device.*tpu"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
    ],
)
def test_invalid_options_are_errors_and_write_nothing(small, options, message):
    with pytest.raises(ValueError, match=message):
        build_graph(small, **{"k": 3, **options})
    assert not list_graphs(small.path)


def test_verbose_shows_progress(small, capfd):
    open_or_build_graph(small, 3, verbose=True)
    assert "300/300" in capfd.readouterr().err


# Interrupted builds


class StopError(Exception):
    """Ends a build."""


def stop_after(monkeypatch: Any, batches: int) -> None:
    """End builds after so many batches of rows."""
    append, calls = StagedDirectory.append, []

    def count(self: StagedDirectory, *rows: Any) -> None:
        if len(calls) == batches:
            raise StopError
        calls.append(append(self, *rows))

    monkeypatch.setattr(StagedDirectory, "append", count)


def interrupt(reader: IndexReader, monkeypatch: Any, *, batches: int = 2, **options: Any) -> Path:
    """Stop a build of six neighbours after some batches, and return its staging directory."""
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(StopError):
            build_graph(reader, 6, **options)
    path = reader.path / "corpusgraph_k6"
    assert not path.exists()
    return get_staging_path(path)


@pytest.mark.parametrize("batches", [1, 4, 7])
def test_a_resumed_build_has_the_bytes_of_an_uninterrupted_one(small, tmp_path, monkeypatch, batches):
    shutil.copytree(small.path, tmp_path / "y.hyp")
    expected = read_tree(build_graph(IndexReader(tmp_path / "y.hyp"), 6).path)
    left = interrupt(small, monkeypatch, batches=batches, batch_size=40)
    for name in (EDGES_FILE, WEIGHTS_FILE):
        with open(left / "new" / name, "ab") as file:
            file.write(b"half a row")
    rows = []
    find = NeighbourFinder.find
    monkeypatch.setattr(NeighbourFinder, "find", lambda self, docids: rows.extend(docids) or find(self, docids))
    assert read_tree(open_or_build_graph(small, 6).path) == expected
    assert rows == list(range(40 * batches, 300)) and not left.exists()


def test_a_build_that_fails_before_its_first_batch_leaves_nothing(small, monkeypatch):
    assert not interrupt(small, monkeypatch, batches=0).exists()


def test_a_build_killed_before_it_records_a_batch_is_resumed_with_the_same_bytes(small, tmp_path, monkeypatch):
    """The rows of the third batch are on the disk, but not counted."""
    shutil.copytree(small.path, tmp_path / "y.hyp")
    record, calls = StagedDirectory._record, []

    def die(self: StagedDirectory) -> None:
        if len(calls) == 3:
            raise StopError
        calls.append(record(self))

    with monkeypatch.context() as patch:
        patch.setattr(StagedDirectory, "_record", die)
        with pytest.raises(StopError):
            build_graph(small, 6, batch_size=30)
    left = get_staging_path(small.path / "corpusgraph_k6")
    assert json.loads((left / "state.json").read_text())["count"] == 60
    assert (left / "new" / "edges.u32.np").stat().st_size == 90 * 6 * 4
    expected = read_tree(build_graph(IndexReader(tmp_path / "y.hyp"), 6).path)
    assert read_tree(open_or_build_graph(small, 6).path) == expected


@pytest.mark.parametrize("builder", ["hnsw", "nn_descent"])
def test_a_resumed_approximate_build_reuses_what_it_built_first(tmp_path, monkeypatch, builder):
    reader = write_index(tmp_path / "x.hyp", make_clusters(1300))
    interrupt(reader, monkeypatch, batches=0, builder=builder)
    monkeypatch.setattr(approximate_neighbours, "replace_file", lambda *_: pytest.fail("built again"))
    assert open_or_build_graph(reader, 6, builder=builder).meta["recall"] > 0.97


def test_a_build_of_an_older_index_is_started_again(small, tmp_path, monkeypatch):
    left = interrupt(small, monkeypatch, batch_size=50)
    other = write_index(tmp_path / "y.hyp", make_clusters(300) + 1)
    shutil.copytree(left, tmp_path / "y.hyp" / left.name)
    np.testing.assert_array_equal(open_or_build_graph(other, 6).edges_data, find_true_neighbours(other.vectors, 6))


def test_a_build_with_other_options_is_started_again(tmp_path, monkeypatch):
    reader = write_index(tmp_path / "x.hyp", make_clusters(1300))
    left = interrupt(reader, monkeypatch, builder="hnsw", batch_size=50)
    assert (left / "hnsw.faiss").exists()
    graph = open_or_build_graph(reader, 6, builder="exact")
    np.testing.assert_array_equal(graph.edges_data, find_true_neighbours(reader.vectors, 6))
    assert not left.exists()


@pytest.mark.parametrize("name", ["new/edges.u32.np", "new/weights.f16.np", "state.json"])
def test_a_damaged_interrupted_build_is_started_again(small, monkeypatch, name):
    (interrupt(small, monkeypatch, batch_size=50) / name).unlink()
    np.testing.assert_array_equal(open_or_build_graph(small, 6).edges_data, find_true_neighbours(small.vectors, 6))


def test_a_build_killed_between_its_two_renames_is_finished(small, monkeypatch):
    expected = read_tree(build_graph(small, 6).path)

    def die(new: Path, path: Path, old: Path) -> None:
        os.rename(path, old)
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(staging, "put_in_place", die)
        patch.setattr(StagedDirectory, "abandon", StagedDirectory.close)  # a killed process cleans up nothing
        with pytest.raises(StopError):
            build_graph(small, 6)
    assert not (small.path / "corpusgraph_k6").exists()
    monkeypatch.setattr(NeighbourFinder, "find", lambda *_: pytest.fail("found again"))
    assert read_tree(open_or_build_graph(small, 6).path) == expected
    assert list_graphs(small.path) == ["corpusgraph_k6"]


def test_a_second_build_is_refused(small):
    staged = StagedDirectory(small.path / "corpusgraph_k6", facts={"k": 6}, files=())
    with pytest.raises(FileExistsError, match="corpusgraph_k6 is being built by another process or thread. Wait until"):
        open_or_build_graph(small, 6)
    staged.abandon()
    assert open_or_build_graph(small, 6).k == 6


# While indexing


def index_vectors(path: Path, vectors: np.ndarray, **options: Any) -> HypencoderIndex:
    docs = [{"docno": f"d{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]
    return HypencoderIndexer(path, dtype="fp32", **options).index(docs)


def test_indexer_with_graph_k_builds_a_graph(tmp_path, monkeypatch):
    index = index_vectors(tmp_path / "x.hyp", make_clusters(300), graph_k=7)
    np.testing.assert_array_equal(open_graph(index.reader, 7).edges_data, find_true_neighbours(index.vectors, 7))
    monkeypatch.setattr(NeighbourFinder, "find", lambda *_: pytest.fail("built again"))
    index_vectors(tmp_path / "x.hyp", make_clusters(300), mode="resume", graph_k=7)


def test_indexer_keeps_the_vectors_if_the_graph_fails_and_resumes_with_the_graph(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(NeighbourFinder, "find", lambda *_: (_ for _ in ()).throw(StopError))
        with pytest.raises(StopError):
            index_vectors(tmp_path / "x.hyp", make_clusters(300), graph_k=7)
    assert not (tmp_path / "x.hyp").exists()
    index = index_vectors(tmp_path / "x.hyp", make_clusters(300), mode="resume", graph_k=7)
    np.testing.assert_array_equal(open_graph(index.reader, 7).edges_data, find_true_neighbours(index.vectors, 7))


def test_overwriting_indexer_builds_the_graph_again(tmp_path):
    index_vectors(tmp_path / "x.hyp", make_clusters(300), graph_k=7)
    index = index_vectors(tmp_path / "x.hyp", make_clusters(300) + 1, mode="overwrite", graph_k=7)
    np.testing.assert_array_equal(open_graph(index.reader, 7).edges_data, find_true_neighbours(index.vectors, 7))


@pytest.mark.parametrize("k", [0, "7", 10_001])
def test_indexer_checks_graph_k_before_it_starts(tmp_path, k):
    with pytest.raises(ValueError, match="k must be"):
        index_vectors(tmp_path / "x.hyp", make_clusters(30), graph_k=k)
    assert not list(tmp_path.iterdir())
