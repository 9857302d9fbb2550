"""The neighbour graph: right in every row, the same however it is built, refused when it is not of its index."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest
import torch
from golden_checkpoints import FOLDERS, Golden
from processes import in_child

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer
from pyterrier_hypencoder.index import nearest as neighbours
from pyterrier_hypencoder.index.graph_builder import build, corpus_graph
from pyterrier_hypencoder.index.nearest import Distinct, Finder
from pyterrier_hypencoder.index.neighbour_graph import NeighbourGraph, open_graph
from pyterrier_hypencoder.index.reader import IndexReader
from pyterrier_hypencoder.index.staging import Staging, staging_path

RANDOM = np.random.default_rng(7)


def indexed(path: Path, vectors: Any, *, dtype: str = "fp32", **options: Any) -> HypencoderIndex:
    """An index of vectors; document i is called d<i>."""
    docs = [{"docno": f"d{i}", "doc_vec": vector} for i, vector in enumerate(np.asarray(vectors, dtype=np.float32))]
    return HypencoderIndexer(path, dtype=dtype, **options).index(docs)


def truth(vectors: np.ndarray, k: int) -> np.ndarray:
    """The neighbours by comparing all in float64, equal distances by docid, padded with the document itself."""
    exact = np.asarray(vectors, dtype=np.float64)
    rows = []
    for i, vector in enumerate(exact):
        distances = np.sqrt(np.square(exact - vector).sum(axis=1))
        order = np.lexsort((np.arange(len(exact)), distances))
        row = order[order != i][:k].tolist()
        rows.append(row + [i] * (k - len(row)))
    return np.array(rows)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def clusters(n: int, size: int = 16) -> np.ndarray:
    """Groups of near vectors, each fifth vector there five times, shuffled."""
    rng = np.random.default_rng(n)
    centres = rng.standard_normal((n // 40 + 1, size))
    vectors = centres[rng.integers(0, len(centres), n)] + 0.5 * rng.standard_normal((n, size))
    vectors[: n // 5] = np.repeat(vectors[: n // 25 + 1], 5, axis=0)[: n // 5]
    return vectors[rng.permutation(n)].astype(np.float32)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def small(tmp_path) -> HypencoderIndex:
    return indexed(tmp_path / "small.hyp", clusters(300))


# What the released code computes


@pytest.mark.parametrize("name", sorted(name for name, folder in FOLDERS.items() if (folder / "graph.jsonl").exists()))
def test_golden_graphs(name, tmp_path):
    golden = Golden(FOLDERS[name])
    vectors = golden.arrays["doc_emb_batch8"].numpy()
    docnos = [doc["docno"] for doc in golden.texts["docs"]]
    docs = [{"docno": docno, "doc_vec": vector} for docno, vector in zip(docnos, vectors, strict=True)]
    graph = HypencoderIndexer(tmp_path / "golden.hyp", dtype="fp32").index(docs).corpus_graph(10)
    lines = (golden.folder / "graph.jsonl").read_text().splitlines()
    assert len(lines) == len(docs)
    exact = vectors.astype(np.float64)
    for docid, expected in enumerate(map(json.loads, lines)):
        found = graph.neighbours(expected["item_id"]).tolist()
        away = dict(zip(docnos, np.linalg.norm(exact - exact[docid], axis=1), strict=True))
        # The released code compares in float32, and leaves documents that are as far in any order.
        for ours, theirs in zip(found, expected["neighbors"], strict=True):
            assert ours == theirs or abs(away[ours] - away[theirs]) < 1e-5


# Right in every row

KINDS = {
    "random": RANDOM.standard_normal((500, 24)),
    "clusters with duplicates": clusters(700),
    "near each other": 1 + 1e-3 * RANDOM.standard_normal((400, 32)),
    "far from zero": 1000 + 1e-2 * RANDOM.standard_normal((300, 16)),
    "a lattice": RANDOM.integers(0, 2, (600, 8)),
    "a finer lattice": RANDOM.integers(0, 2, (600, 20)),
    "all as far": np.eye(150),
    "all equal": np.ones((200, 8)),
    "all zero": np.zeros((40, 3)),
    "half zero": np.where(np.arange(300)[:, None] % 2, RANDOM.standard_normal((300, 6)), 0),
    "minus zero": np.where(np.arange(60)[:, None] % 2, 0.0, -0.0) * np.ones((60, 2)),
    "one dimension": RANDOM.standard_normal((100, 1)),
    "huge": 1e38 * RANDOM.uniform(-1, 1, (150, 8)),
    "tiny": 1e-38 * RANDOM.standard_normal((150, 8)),
    "of all sizes": np.exp(30 * RANDOM.standard_normal((150, 4)).clip(-2.5, 2.5)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_row_is_that_of_comparing_all(tmp_path, kind, dtype):
    if dtype == "fp16" and kind in ("huge", "of all sizes"):
        pytest.skip("not in float16")
    index = indexed(tmp_path / "x.hyp", KINDS[kind], dtype=dtype)
    graph = index.corpus_graph(10)
    expected = truth(index.vectors, 10)
    np.testing.assert_array_equal(graph.edges_data, expected)
    exact = index.vectors.astype(np.float64)
    distances = np.linalg.norm(exact[:, None] - exact[expected], axis=2).clip(max=65504)
    np.testing.assert_allclose(graph.weights_data, -distances, rtol=1e-3, atol=6e-8)
    assert np.isfinite(graph.weights_data).all()


@pytest.mark.parametrize("k", [1, 2, 9, 10, 11, 30])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 11])
def test_few_documents_are_padded_with_the_document_itself(tmp_path, n, k):
    vectors = RANDOM.standard_normal((n, 4))
    graph = indexed(tmp_path / "x.hyp", vectors).corpus_graph(k)
    assert graph.path.name == f"corpusgraph_k{k}" and graph.edges_data.shape == (n, k) and len(graph) == n
    np.testing.assert_array_equal(graph.edges_data, truth(vectors.astype(np.float32), k))
    own = graph.edges_data == np.arange(n)[:, None]
    assert own.sum() == n * max(0, k - n + 1) and (graph.weights_data[own] == 0).all()


def test_the_committed_index_has_a_graph(tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "v1.hyp", tmp_path / "v1.hyp")
    index = HypencoderIndex(tmp_path / "v1.hyp")  # one of its documents is so far that its distances are above fp16
    graph = index.corpus_graph(5)
    np.testing.assert_array_equal(graph.edges_data, truth(index.vectors, 5))
    assert graph.weights_data.min() == -65504 and list(graph.neighbours("d1")) == list(index.docnos.at(graph.neighbours(0)))


def test_a_smaller_graph_is_the_beginning_of_a_larger_one(small):
    edges = {k: np.array(build(small.reader, k).edges_data) for k in (40, 7, 1)}
    np.testing.assert_array_equal(edges[40][:, :7], edges[7])
    np.testing.assert_array_equal(edges[40][:, :1], edges[1])


@pytest.mark.parametrize("batch_size", [1, 7, 299, 300, 301])
def test_batches_and_tiles_leave_no_trace(small, monkeypatch, batch_size):
    expected = tree(build(small.reader, 12).path)
    monkeypatch.setattr(neighbours, "_TILE_BYTES", 37 * 16 * 4)
    monkeypatch.setattr(neighbours, "_PIECE_BYTES", 11 * 16 * 8)
    assert tree(build(small.reader, 12, batch_size=batch_size).path) == expected


def test_permuting_the_documents_permutes_the_graph(tmp_path):
    vectors, order = RANDOM.standard_normal((200, 8)), RANDOM.permutation(200)
    graph = indexed(tmp_path / "x.hyp", vectors).corpus_graph(9)
    permuted = indexed(tmp_path / "y.hyp", vectors[order]).corpus_graph(9)
    np.testing.assert_array_equal(order[permuted.edges_data], graph.edges_data[order])


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("held", [True, False])
def test_what_runs_on_a_gpu_finds_the_same(monkeypatch, dtype, held):
    """The same code on the CPU, for want of a GPU."""
    vectors = clusters(500).astype({"fp16": np.float16, "fp32": np.float32}[dtype])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30 if held else 0, 2**40))
    monkeypatch.setattr(neighbours._ExactOnGpu, "_TILE", 64)
    finder = Finder(vectors, 10, builder="exact", device=torch.device("cpu"), kept=Path())
    finder._source = neighbours._ExactOnGpu(finder.distinct, torch.device("cpu"))
    np.testing.assert_array_equal(finder.find(np.arange(500))[0], truth(vectors, 10))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_gpu_builds_the_same_bytes(tmp_path, kind, dtype):
    if dtype == "fp16" and kind in ("huge", "of all sizes"):
        pytest.skip("not in float16")
    reader = indexed(tmp_path / "x.hyp", KINDS[kind], dtype=dtype).reader
    assert tree(build(reader, 10, device="cpu").path) == tree(build(reader, 10, device="cuda").path)


def test_distinct_vectors():
    vectors = np.array([[1, 0], [2, 0], [1, 0], [0, 3], [2, 0], [1, -0.0]], dtype=np.float32)
    distinct = Distinct(vectors)
    assert distinct.docids.tolist() == [0, 1, 3] and distinct.of.tolist() == [0, 1, 0, 2, 1, 0]
    assert distinct.sizes.tolist() == [3, 2, 1] and distinct.members(0, 2).tolist() == [0, 2]
    assert [(start, tile.tolist()) for start, tile in distinct.tiles(16)] == [(0, [[1, 0], [2, 0]]), (2, [[0, 3]])]


def test_vectors_of_equal_hash_are_still_told_apart(monkeypatch):
    vectors = clusters(100)
    monkeypatch.setattr(neighbours, "_hashes", lambda block: np.arange(len(block)) % 50)
    finder = Finder(vectors, 5, builder="exact", device=torch.device("cpu"), kept=Path())
    assert len(finder.distinct) >= len(np.unique(vectors, axis=0))
    assert (vectors[finder.distinct.docids][finder.distinct.of] == vectors).all()


# Approximate builders


@pytest.mark.parametrize("builder", ["hnsw", "nn_descent"])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_approximate_builders_find_nearly_all_and_say_how_many(tmp_path, builder, dtype):
    index = indexed(tmp_path / "x.hyp", clusters(2500), dtype=dtype)
    graph = index.corpus_graph(10, builder=builder)
    expected = truth(index.vectors, 10)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(graph.edges_data, expected, strict=True)])
    assert found > 0.97
    assert graph.meta["builder"] == builder and graph.meta["options"] and graph.meta["recall_documents"] == 1000
    assert abs(graph.meta["recall"] - found) < 0.01
    own = graph.edges_data == np.arange(2500)[:, None]
    assert not own.any() and (np.diff(graph.weights_data.astype(np.float64), axis=1) <= 0).all()
    assert not staging_path(graph.path).exists()


@pytest.mark.parametrize("builder", ["hnsw", "nn_descent"])
def test_few_vectors_are_compared_exactly_whatever_the_builder(small, builder):
    graph = small.corpus_graph(5, builder=builder)
    assert graph.meta["builder"] == "exact" and "recall" not in graph.meta
    np.testing.assert_array_equal(graph.edges_data, truth(small.vectors, 5))


def test_rows_for_which_too_few_candidates_were_found_are_compared_exactly(tmp_path, monkeypatch):
    index = indexed(tmp_path / "x.hyp", clusters(1500))
    lookup = neighbours._Hnsw.candidates

    def gaps(self: Any, rows: np.ndarray, c: int) -> tuple[np.ndarray, np.ndarray]:
        ids, cut = lookup(self, rows, c)
        ids[::3, 4:] = -1
        return ids, cut

    monkeypatch.setattr(neighbours._Hnsw, "candidates", gaps)
    graph = index.corpus_graph(8, builder="hnsw")
    assert graph.meta["builder"] == "hnsw" and graph.meta["recall"] > 0.97


def test_the_builder_is_chosen_by_size(tmp_path, monkeypatch):
    index = indexed(tmp_path / "x.hyp", clusters(1500))
    assert build(index.reader, 4).meta["builder"] == "exact"
    monkeypatch.setitem(neighbours.EXACT_UP_TO, "cpu", 1499)
    assert build(index.reader, 4, device="cpu").meta["builder"] == "hnsw"
    assert index.corpus_graph(4).meta["builder"] == "hnsw"
    assert index.corpus_graph(4, builder="exact").meta["builder"] == "exact"  # replaces it
    assert index.corpus_graph(4, builder="hnsw").meta["builder"] == "exact"  # which is better than asked for
    assert [path.name for path in Path(str(index.path)).glob("*corpusgraph*")] == ["corpusgraph_k4"]


# On disk


def test_a_graph_is_exactly_what_the_design_says(small):
    graph = small.corpus_graph(6)
    path = Path(str(small.path)) / "corpusgraph_k6"
    assert graph.path == path
    assert set(tree(path)) == {"pt_meta.json", "edges.u32.np", "weights.f16.np", "docnos.npids"}
    assert os.readlink(path / "docnos.npids") == "../docnos.npids"
    meta = json.loads((path / "pt_meta.json").read_text())
    assert meta.pop("written_by").startswith("pyterrier-hypencoder ")
    assert len(meta["index"].pop("fingerprint")) == 32
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
    assert (path / "edges.u32.np").read_bytes() == truth(small.vectors, 6).astype("<u4").tobytes()
    assert graph.edges_data.dtype == np.uint32 and graph.weights_data.dtype == np.float16
    assert not graph.edges_data.flags.writeable
    assert sorted(file.name for file in Path(str(small.path)).iterdir()) == [
        "corpusgraph_k6", "docnos.npids", "pt_meta.json", "vecs.f4",
    ]  # fmt: skip


def test_docnos_are_copied_where_links_are_not_supported(small, monkeypatch):
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    copy = small.corpus_graph(3).path / "docnos.npids"
    assert not copy.is_symlink() and copy.read_bytes() == (Path(str(small.path)) / "docnos.npids").read_bytes()


def test_a_graph_is_built_once_and_serves_for_fewer_neighbours(small, monkeypatch):
    whole = small.corpus_graph(20)
    monkeypatch.setattr(Finder, "find", lambda *_: pytest.fail("built again"))
    for k in (20, 19, 1):
        graph = small.corpus_graph(k)
        assert graph.k == k and graph.path == whole.path
        np.testing.assert_array_equal(graph.edges_data, whole.edges_data[:, :k])
        np.testing.assert_array_equal(graph.weights_data, whole.weights_data[:, :k])
        np.testing.assert_array_equal(open_graph(small.reader, k).edges_data, graph.edges_data)


def test_the_smallest_sufficient_graph_is_opened(small):
    for k in (3, 30, 8):
        build(small.reader, k)
    assert [open_graph(small.reader, k).path.name for k in (1, 3, 4, 8, 9)] == [
        f"corpusgraph_k{k}" for k in (3, 3, 8, 8, 30)
    ]  # fmt: skip


def test_a_complete_graph_serves_for_any_number(tmp_path):
    index = indexed(tmp_path / "x.hyp", RANDOM.standard_normal((5, 3)))
    assert index.corpus_graph(4).k == 4
    assert open_graph(index.reader, 100).edges_data.shape == (5, 4)
    assert [path.name for path in tmp_path.glob("x.hyp/corpus*")] == ["corpusgraph_k4"]


def test_without_a_sufficient_graph_it_says_how_to_build_one(small):
    with pytest.raises(
        FileNotFoundError, match=r"at least 9 neighbours in .*, found none; build one with .*corpus_graph\(9\)"
    ):
        open_graph(small.reader, 9)
    small.corpus_graph(4)
    small.corpus_graph(8)
    with pytest.raises(FileNotFoundError, match="found only those of 4, 8; build one with .* graph_k=9"):
        open_graph(small.reader, 9)


def test_neighbours_by_docid_and_docno(small):
    graph = small.corpus_graph(4)
    np.testing.assert_array_equal(graph.neighbours(7), graph.edges_data[7])
    assert list(graph.neighbours("d7")) == [f"d{docid}" for docid in graph.edges_data[7]]
    docnos, weights = graph.neighbours("d7", weights=True)
    assert list(docnos) == list(graph.neighbours("d7")) and weights.tolist() == graph.weights_data[7].tolist()
    with pytest.raises(ValueError, match="expected documents of the index .*, found unknown ones: nope"):
        graph.neighbours("nope")
    for docid in (-1, 300):
        with pytest.raises(IndexError, match=f"expected a docid from 0 to 299, found {docid}"):
            graph.neighbours(docid)


def test_a_graph_is_pickled_as_its_path(small):
    graph = small.corpus_graph(4)
    again = pickle.loads(pickle.dumps(graph))
    assert again == graph and hash(again) == hash(graph) and again != small.corpus_graph(3)
    np.testing.assert_array_equal(again.edges_data, graph.edges_data)
    assert len(pickle.dumps(graph)) < 1000 and repr(graph) == "NeighbourGraph('corpusgraph_k4', k=4)"


def test_a_graph_goes_with_its_index(small, tmp_path):
    small.corpus_graph(4)
    Path(str(small.path)).rename(tmp_path / "moved.hyp")
    shutil.copytree(tmp_path / "moved.hyp", tmp_path / "copied.hyp", symlinks=True)
    package = HypencoderIndex(tmp_path / "moved.hyp").build_package(str(tmp_path / "x.tar.lz4"), verbose=False)
    with lz4.frame.open(package) as packed, tarfile.open(fileobj=packed) as files:
        files.extractall(tmp_path / "unpacked.hyp", filter="data")
    for name in ("moved.hyp", "copied.hyp", "unpacked.hyp"):
        reader = IndexReader(tmp_path / name)
        np.testing.assert_array_equal(open_graph(reader, 4).edges_data, truth(reader.vectors, 4))


# Options


@pytest.mark.parametrize("k", [0, -1, 2.0, "10", None, True])
def test_k_counts_something(small, k):
    for use in (small.corpus_graph, lambda k: open_graph(small.reader, k), lambda k: build(small.reader, k)):
        with pytest.raises(ValueError, match="k must be a positive integer"):
            use(k)
    assert not list(Path(str(small.path)).glob("*corpusgraph*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 10_001}, "k: expected at most 10,000 neighbours, found 10001"),
        ({"builder": "annoy"}, "builder must be one of 'auto', 'exact', 'hnsw', 'nn_descent', got 'annoy'"),
        ({"device": "tpu"}, "device: expected"),
    ],
)
def test_bad_options_are_errors_and_make_nothing(small, options, message):
    with pytest.raises(ValueError, match=message):
        small.corpus_graph(**{"k": 3, **options})
    assert not list(Path(str(small.path)).glob("*corpusgraph*"))


# Damage, and graphs of other indexes


def edit(**changes: Any) -> Any:
    def damage(path: Path) -> None:
        meta = json.loads((path / "pt_meta.json").read_text()) | changes
        (path / "pt_meta.json").write_text(json.dumps({key: value for key, value in meta.items() if value != "gone"}))

    return damage


def cut(name: str) -> Any:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-1])


def wrong_id(path: Path) -> None:
    edges = np.fromfile(path / "edges.u32.np", dtype="<u4")
    edges[-2] = 300
    edges.tofile(path / "edges.u32.np")


DAMAGES = {
    "edges cut": (cut("edges.u32.np"), r"edges.u32.np to have 6000 bytes \(5 neighbours of 300 documents\), found 5999"),
    "edges missing": (lambda p: (p / "edges.u32.np").unlink(), "edges.u32.np to have 6000 bytes .* found no such file"),
    "weights cut": (cut("weights.f16.np"), "weights.f16.np to have 3000 bytes .*, found 2999"),
    "ids out of range": (wrong_id, "expected docids below 300 in .*edges.u32.np, found 300; the graph is damaged: remove"),
    "meta missing": (lambda p: (p / "pt_meta.json").unlink(), "found no pt_meta.json there; remove .* and build it again"),
    "meta cut": (cut("pt_meta.json"), "expected JSON in .*pt_meta.json"),
    "another format": (edit(format="jsonl"), "of type corpus_graph and format np_topk .*found corpus_graph and jsonl"),
    "another type": (edit(type="dense_index"), "found dense_index and np_topk"),
    "no k": (edit(k="gone"), r"expected k \(above 0\) in .*found None"),
    "another k": (edit(k=6), "edges.u32.np to have 7200 bytes"),
    "another count": (edit(doc_count=299), "found it to be of"),
    "of no index": (edit(index="gone"), "found it to be of an unknown one: of another index, or an older state of this one"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_graph_says_what_is_wrong(small, damage):
    spoil, message = DAMAGES[damage]
    spoil(build(small.reader, 5).path)
    for use in (small.corpus_graph, lambda k: open_graph(small.reader, k)):
        with pytest.raises(ValueError, match=message):
            use(5)


def test_more_neighbours_than_a_graph_has_are_an_error(small):
    path = build(small.reader, 5).path
    with pytest.raises(ValueError, match="k: expected at most the 5 neighbours of .*, found 6; build a graph with more"):
        NeighbourGraph(path, small.reader, 6)
    with pytest.raises(FileNotFoundError, match="expected a graph at .*, found nothing"):
        NeighbourGraph(path.with_name("corpusgraph_k6"), small.reader)


@pytest.mark.parametrize("change", ["one number", "one docno", "fewer", "dtype"])
def test_a_graph_of_an_older_state_is_refused(small, tmp_path, change):
    graph, vectors = build(small.reader, 5).path, np.array(small.vectors)
    docnos = [f"d{i}" for i in range(300)]
    if change == "one number":
        vectors[123, 4] += 0.5
    elif change == "one docno":
        docnos[299] = "another"
    elif change == "fewer":
        vectors = vectors[:299]
    docs = [{"docno": docno, "doc_vec": vector} for docno, vector in zip(docnos, vectors, strict=False)]
    other = HypencoderIndexer(tmp_path / "x.hyp", dtype="fp16" if change == "dtype" else "fp32").index(docs)
    shutil.copytree(graph, tmp_path / "x.hyp" / graph.name)
    for use in (other.corpus_graph, lambda k: open_graph(other.reader, k)):
        with pytest.raises(ValueError, match="of another index, or an older state of this one; remove .* and build it again"):
            use(5)


def test_overwriting_an_index_removes_its_graphs(small):
    small.corpus_graph(5)
    again = indexed(Path(str(small.path)), clusters(200), mode="overwrite")
    assert again.corpus_graph(5).edges_data.shape == (200, 5)


# Killed and resumed


class StopError(Exception):
    """Ends a build."""


def stop_after(monkeypatch: Any, batches: int) -> None:
    """Ends builds after so many batches of rows."""
    add, calls = Staging.add, []

    def counted(self: Staging, *rows: Any) -> None:
        if len(calls) == batches:
            raise StopError
        calls.append(add(self, *rows))

    monkeypatch.setattr(Staging, "add", counted)


@pytest.mark.parametrize("batches", [0, 1, 4, 7])
def test_a_resumed_build_is_the_uninterrupted_one(small, tmp_path, monkeypatch, batches):
    shutil.copytree(Path(str(small.path)), tmp_path / "y.hyp")
    expected = tree(build(IndexReader(tmp_path / "y.hyp"), 6).path)
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(StopError):
            build(small.reader, 6, batch_size=40)
    path = Path(str(small.path)) / "corpusgraph_k6"
    assert not path.exists()
    for name in ("edges.u32.np", "weights.f16.np"):  # what was being written when it died
        with open(staging_path(path) / "graph" / name, "ab") as file:
            file.write(b"half a row")
    rows = []
    find = Finder.find
    monkeypatch.setattr(Finder, "find", lambda self, docids: rows.extend(docids) or find(self, docids))
    assert tree(small.corpus_graph(6).path) == expected
    assert rows == list(range(40 * batches, 300)) and not staging_path(path).exists()


@pytest.mark.parametrize("builder", ["hnsw", "nn_descent"])
def test_what_an_approximate_build_made_first_is_kept(tmp_path, monkeypatch, builder):
    index = indexed(tmp_path / "x.hyp", clusters(1500))
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        with pytest.raises(StopError):
            build(index.reader, 6, builder=builder)
    monkeypatch.setattr(neighbours, "put", lambda *_: pytest.fail("made again"))
    assert index.corpus_graph(6, builder=builder).meta["recall"] > 0.97


def begun(index: HypencoderIndex, monkeypatch: Any, **options: Any) -> Path:
    """What a build of six neighbours has left after two batches."""
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StopError):
            build(index.reader, 6, batch_size=50, **options)
    return staging_path(Path(str(index.path)) / "corpusgraph_k6")


def test_a_build_of_an_older_state_begins_anew(small, tmp_path, monkeypatch):
    left = begun(small, monkeypatch)
    other = indexed(tmp_path / "y.hyp", clusters(300) + 1)
    shutil.copytree(left, tmp_path / "y.hyp" / left.name)
    np.testing.assert_array_equal(other.corpus_graph(6).edges_data, truth(other.vectors, 6))


def test_a_build_with_other_options_begins_anew(tmp_path, monkeypatch):
    index = indexed(tmp_path / "x.hyp", clusters(1500))
    left = begun(index, monkeypatch, builder="hnsw")
    np.testing.assert_array_equal(index.corpus_graph(6, builder="exact").edges_data, truth(index.vectors, 6))
    assert not left.exists()


@pytest.mark.parametrize("name", ["graph/edges.u32.np", "graph/weights.f16.np", "state.json"])
def test_a_damaged_interrupted_build_begins_anew(small, monkeypatch, name):
    (begun(small, monkeypatch) / name).unlink()
    np.testing.assert_array_equal(small.corpus_graph(6).edges_data, truth(small.vectors, 6))


def test_a_build_that_died_between_its_two_renames_is_finished(small, monkeypatch):
    expected = tree(build(small.reader, 6).path)
    rename = os.replace

    def die(source: Any, target: Any) -> None:
        if Path(source).name == "graph":
            raise StopError
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(StopError):
            build(small.reader, 6)
    monkeypatch.setattr(Finder, "find", lambda *_: pytest.fail("found again"))
    assert tree(small.corpus_graph(6).path) == expected
    assert len(list(Path(str(small.path)).glob("*corpusgraph*"))) == 1


def test_one_build_at_a_time(small):
    with Staging(Path(str(small.path)) / "corpusgraph_k6", {"k": 6}):
        with pytest.raises(RuntimeError, match="expected to be alone in building .*corpusgraph_k6, found another process"):
            small.corpus_graph(6)
    assert small.corpus_graph(6).k == 6


def build_and_die(path: Path) -> int:
    """Builds in a process that kills itself while the third batch is being noted; how that ended."""
    child = os.fork()
    if not child:
        note, notes = Staging._note, []

        def die(self: Staging) -> None:
            notes.append(note(self) if len(notes) < 3 else os.kill(os.getpid(), signal.SIGKILL))

        Staging._note = die  # type: ignore[method-assign]
        build(IndexReader(path), 6, batch_size=30)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_killed_build_is_resumed_with_the_same_bytes(small, tmp_path):
    path = Path(str(small.path))
    shutil.copytree(path, tmp_path / "y.hyp")
    assert in_child(build_and_die, path) == -signal.SIGKILL
    left = staging_path(path / "corpusgraph_k6")
    assert json.loads((left / "state.json").read_text())["rows"] == 60
    assert (left / "graph" / "edges.u32.np").stat().st_size == 90 * 6 * 4
    assert tree(small.corpus_graph(6).path) == tree(build(IndexReader(tmp_path / "y.hyp"), 6).path)


# While indexing


def test_the_indexer_builds_a_graph(tmp_path, monkeypatch):
    index = indexed(tmp_path / "x.hyp", clusters(300), graph_k=7)
    np.testing.assert_array_equal(open_graph(index.reader, 7).edges_data, truth(index.vectors, 7))
    monkeypatch.setattr(Finder, "find", lambda *_: pytest.fail("built again"))
    indexed(tmp_path / "x.hyp", clusters(300), mode="resume", graph_k=7)


def test_an_index_stays_when_its_graph_fails_and_resuming_goes_on_with_the_graph(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        with pytest.raises(StopError):
            indexed(tmp_path / "x.hyp", clusters(300), graph_k=7)
    assert len(HypencoderIndex(tmp_path / "x.hyp")) == 300
    index = indexed(tmp_path / "x.hyp", clusters(300), mode="resume", graph_k=7)
    np.testing.assert_array_equal(open_graph(index.reader, 7).edges_data, truth(index.vectors, 7))


def test_an_overwriting_indexer_builds_the_graph_anew(tmp_path):
    indexed(tmp_path / "x.hyp", clusters(300), graph_k=7)
    index = indexed(tmp_path / "x.hyp", clusters(300) + 1, mode="overwrite", graph_k=7)
    np.testing.assert_array_equal(open_graph(index.reader, 7).edges_data, truth(index.vectors, 7))


@pytest.mark.parametrize("k", [0, "7", 10_001])
def test_a_bad_graph_k_is_an_error_before_work_begins(tmp_path, k):
    with pytest.raises(ValueError, match="k: expected"):
        indexed(tmp_path / "x.hyp", clusters(30), graph_k=k)
    assert not list(tmp_path.iterdir())


def test_progress_is_shown(small, capfd):
    corpus_graph(small.reader, 3, verbose=True)
    assert "300/300" in capfd.readouterr().err
