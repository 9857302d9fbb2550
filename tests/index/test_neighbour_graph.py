"""Opening the neighbour graph: which graph is opened, lookups, damage, graphs of other indexes."""

from __future__ import annotations

import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import lz4.frame
import numpy as np
import pytest
from indexes import edit_meta, find_true_neighbours, make_clusters, write_index

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.index.graph_builder import build_graph, open_or_build_graph
from pyterrier_hypencoder.index.neighbour_graph import NeighbourGraph, find_graph, has_graph, open_graph
from pyterrier_hypencoder.index.reader import IndexReader


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def small(tmp_path) -> IndexReader:
    return write_index(tmp_path / "small.hyp", make_clusters(300))


# Which graph


def test_the_smallest_sufficient_graph_is_opened(small):
    for k in (3, 30, 8):
        build_graph(small, k)
    found = [open_graph(small, k).path.name for k in (1, 3, 4, 8, 9)]
    assert found == [f"corpusgraph_k{k}" for k in (3, 3, 8, 8, 30)]
    assert has_graph(small, 30) and not has_graph(small, 31) and find_graph(small, 31) is None


def test_a_graph_of_all_documents_opens_for_any_k(tmp_path):
    reader = write_index(tmp_path / "x.hyp", np.random.default_rng(7).standard_normal((5, 3)))
    assert open_or_build_graph(reader, 4).k == 4
    assert open_graph(reader, 100).edges_data.shape == (5, 4) and has_graph(reader, 100)
    assert open_or_build_graph(reader, 100).k == 4
    assert [path.name for path in tmp_path.glob("x.hyp/corpus*")] == ["corpusgraph_k4"]


def test_a_missing_graph_is_an_error_that_says_how_to_build_one(small):
    with pytest.raises(FileNotFoundError, match=r"at least 9 neighbours, got no graph. Build one with .*corpus_graph\(9\)"):
        open_graph(small, 9)
    build_graph(small, 4)
    build_graph(small, 8)
    with pytest.raises(FileNotFoundError, match="got only graphs with 4, 8. Build one with .* graph_k=9"):
        open_graph(small, 9)


def test_more_neighbours_than_a_graph_has_are_an_error(small):
    path = build_graph(small, 5).path
    with pytest.raises(ValueError, match="k must be at most 5, the number of neighbours in .*, got 6. Build a larger graph"):
        NeighbourGraph(path, small, 6)
    with pytest.raises(FileNotFoundError, match="There is no graph at .*corpusgraph_k6. Build it with"):
        NeighbourGraph(path.with_name("corpusgraph_k6"), small)


# Using a graph


def test_to_limit_k_returns_the_same_graph_with_fewer_neighbours(small):
    graph = build_graph(small, 6)
    fewer = graph.to_limit_k(2)
    assert fewer == open_graph(small, 2) and fewer.k == 2 and graph.k == 6
    np.testing.assert_array_equal(fewer.edges_data, graph.edges_data[:, :2])
    np.testing.assert_array_equal(fewer.neighbours("d7"), graph.neighbours("d7")[:2])
    with pytest.raises(ValueError, match="k must be at most 2, the neighbours of this graph, got 3"):
        fewer.to_limit_k(3)
    with pytest.raises(ValueError, match="k must be a positive integer, got 0"):
        graph.to_limit_k(0)


def test_default_graph_is_the_one_that_is_there(tmp_path):
    reader = write_index(tmp_path / "x.hyp", make_clusters(160))
    with pytest.raises(FileNotFoundError, match=r"got no graph. Build one with .*corpus_graph\(100\)"):
        open_graph(reader, None)
    assert not has_graph(reader, None)
    for k in (3, 7):
        build_graph(reader, k)
    assert has_graph(reader, None) and open_graph(reader, None).k == 7
    build_graph(reader, 120)
    assert open_graph(reader, None).k == 100


def test_neighbours_accepts_docids_and_docnos(small):
    graph = build_graph(small, 4)
    np.testing.assert_array_equal(graph.neighbours(7), graph.edges_data[7])
    assert list(graph.neighbours("d7")) == [f"d{docid}" for docid in graph.edges_data[7]]
    docnos, weights = graph.neighbours("d7", weights=True)
    assert list(docnos) == list(graph.neighbours("d7")) and weights.tolist() == graph.weights_data[7].tolist()
    with pytest.raises(ValueError, match="docno must be in the index .*, got unknown docnos: nope"):
        graph.neighbours("nope")
    for docid in (-1, 300):
        with pytest.raises(IndexError, match=f"document must be a docid from 0 to 299, got {docid}"):
            graph.neighbours(docid)


def test_a_graph_is_pickled_as_its_path(small):
    graph = build_graph(small, 4)
    again = pickle.loads(pickle.dumps(graph))
    assert again == graph and hash(again) == hash(graph) and again != open_graph(small, 3)
    np.testing.assert_array_equal(again.edges_data, graph.edges_data)
    assert len(pickle.dumps(graph)) < 1000 and repr(graph) == "NeighbourGraph('corpusgraph_k4', k=4)"


def test_a_graph_opens_in_a_moved_copied_or_packed_index(small, tmp_path):
    build_graph(small, 4)
    small.path.rename(tmp_path / "moved.hyp")
    shutil.copytree(tmp_path / "moved.hyp", tmp_path / "copied.hyp", symlinks=True)
    package = HypencoderIndex(tmp_path / "moved.hyp").build_package(str(tmp_path / "x.tar.lz4"), verbose=False)
    with lz4.frame.open(package) as packed, tarfile.open(fileobj=packed) as files:
        files.extractall(tmp_path / "unpacked.hyp", filter="data")
    for name in ("moved.hyp", "copied.hyp", "unpacked.hyp"):
        reader = IndexReader(tmp_path / name)
        np.testing.assert_array_equal(open_graph(reader, 4).edges_data, find_true_neighbours(reader.vectors, 4))


# Damage, and graphs of other indexes


def change_meta(**changes: Any) -> Any:
    def damage(path: Path) -> None:
        edit_meta(path, **changes)

    return damage


def truncate(name: str) -> Any:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-1])


def write_wrong_docid(path: Path) -> None:
    """Damage a graph of an earlier version, which has no checksums."""
    edit_meta(path, checksums="gone")
    edges = np.fromfile(path / "edges.u32.np", dtype="<u4")
    edges[-2] = 300
    edges.tofile(path / "edges.u32.np")


EDGES = r"is damaged: edges.u32.np {}, expected 6000 bytes \(300 rows of 5 numbers\). Copy .* or rebuild it"
OTHER = "belongs to another index or an older state of this one"
DAMAGES = {
    "edges cut": (truncate("edges.u32.np"), EDGES.format("has 5999 bytes")),
    "edges missing": (lambda p: (p / "edges.u32.np").unlink(), EDGES.format("is missing")),
    "weights cut": (truncate("weights.f16.np"), "weights.f16.np has 2999 bytes, expected 3000 bytes"),
    "meta missing": (lambda p: (p / "pt_meta.json").unlink(), "is damaged: it has no pt_meta.json. Delete .* build it again"),
    "meta cut": (truncate("pt_meta.json"), "pt_meta.json is not valid JSON"),
    "another format": (change_meta(format="jsonl"), "type corpus_graph and format np_topk, got corpus_graph and jsonl"),
    "another type": (change_meta(type="dense_index"), "got dense_index and np_topk"),
    "no k": (change_meta(k="gone"), "k in .*pt_meta.json must be a positive integer, got None"),
    "another k": (change_meta(k=6), "edges.u32.np has 6000 bytes, expected 7200 bytes"),
    "another count": (change_meta(doc_count=299), OTHER),
    "of no index": (change_meta(index="gone"), f"{OTHER}: it was built for an unknown index"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_graph_is_an_error_that_names_the_damage(small, damage):
    make_damage, message = DAMAGES[damage]
    make_damage(build_graph(small, 5).path)
    for use in (open_or_build_graph, open_graph):
        with pytest.raises(ValueError, match=message):
            use(small, 5)


@pytest.mark.parametrize(
    "use", [lambda graph: graph.edges[250:], lambda graph: graph.edges_data, lambda graph: graph.verify()]
)
def test_wrong_docids_of_a_graph_without_checksums_are_found_when_they_are_read(small, use):
    write_wrong_docid(build_graph(small, 5).path)
    graph = open_graph(small, 5)
    assert graph.edges[:250].shape == (250, 5)  # opening has read nothing, and these are not damaged
    with pytest.raises(ValueError, match="edges.u32.np contains docid 300, expected docids below 300. Delete"):
        use(graph)


def test_opening_a_graph_reads_no_edges(small):
    graph = build_graph(small, 5)
    edit_meta(graph.path, checksums="gone")
    (graph.path / "edges.u32.np").write_bytes(b"\xff" * 6000)
    assert open_graph(small, 5).edges.shape == (300, 5)


@pytest.mark.parametrize("change", ["one number", "one docno", "fewer", "dtype"])
def test_a_graph_of_an_older_index_is_refused(small, tmp_path, change):
    graph, vectors = build_graph(small, 5).path, np.array(small.vectors)
    docnos = [f"d{i}" for i in range(300)]
    if change == "one number":
        vectors[123, 4] += 0.5
    elif change == "one docno":
        docnos[299] = "another"
    elif change == "fewer":
        vectors, docnos = vectors[:299], docnos[:299]
    dtype = "fp16" if change == "dtype" else "fp32"
    other = write_index(tmp_path / "x.hyp", vectors, docnos=docnos, dtype=dtype)
    shutil.copytree(graph, tmp_path / "x.hyp" / graph.name)
    for use in (open_or_build_graph, open_graph):
        with pytest.raises(ValueError, match=f"{OTHER}: .* Delete .* and build it again"):
            use(other, 5)


def test_overwriting_an_index_removes_its_graphs(small):
    build_graph(small, 5)
    again = write_index(small.path, make_clusters(200), mode="overwrite")
    assert not has_graph(again, 5)
    assert open_or_build_graph(again, 5).edges_data.shape == (200, 5)
