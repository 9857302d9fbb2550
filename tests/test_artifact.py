"""HypencoderIndex: opening, sharing, pickling, iterating, factories, examples, and exchange with pyterrier_dr."""

from __future__ import annotations

import inspect
import json
import pickle
import pydoc
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderIndexer, HypencoderRetriever, HypencoderScorer
from pyterrier_hypencoder.transformers.pipeline import IndexedPipeline
from pyterrier_hypencoder.transformers.vec_loader import VecLoader

FIXTURE = Path(__file__).parent / "fixtures" / "v1.hyp"
DOCNOS = ["d1", "07", "7", "日本 語", "été", "d10", *(f"MARCO_{i}" for i in range(300)), " ", "a b"]
VECTORS = np.random.default_rng(2).standard_normal((len(DOCNOS), 8)).astype(np.float32)


def build(path: Path, docnos: list[str], vectors: np.ndarray, **options: Any) -> HypencoderIndex:
    docs = ({"docno": docno, "doc_vec": vector} for docno, vector in zip(docnos, vectors, strict=True))
    index = HypencoderIndexer(path, **options).index(docs)
    assert isinstance(index, HypencoderIndex)
    return index


@pytest.fixture(scope="module", params=["fp16", "fp32"])
def small(request, tmp_path_factory) -> HypencoderIndex:
    return build(tmp_path_factory.mktemp("small") / "x.hyp", DOCNOS, VECTORS, dtype=request.param)


@pytest.fixture(scope="module")
def query_vecs() -> pd.DataFrame:
    vectors = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)
    return pd.DataFrame({"qid": [f"q{i}" for i in range(5)], "query_vec": list(vectors)})


def assert_same_index(found: Any, expected: HypencoderIndex) -> None:
    assert isinstance(found, HypencoderIndex)
    assert found.meta == expected.meta
    assert list(found.docnos) == list(expected.docnos)
    np.testing.assert_array_equal(found.vectors, expected.vectors)


# Opening and sharing


def test_index_has_length_docnos_and_vectors(small):
    assert len(small) == len(DOCNOS) and small.vec_size == 8
    assert list(small.docnos) == DOCNOS
    np.testing.assert_array_equal(small.vectors, VECTORS.astype(small.vectors.dtype))
    assert repr(small).startswith("HypencoderIndex('") and repr(small).endswith(f"{small.path.name}')")
    assert len(repr(small)) < 70


def test_open_index_follows_its_replacement(tmp_path):
    documents = [{"docno": f"d{i}", "doc_vec": np.full(4, i, np.float32)} for i in range(5)]
    index = HypencoderIndexer(tmp_path / "x.hyp").index(documents)
    HypencoderIndexer(tmp_path / "x.hyp", mode="overwrite").index(documents[3:])
    assert len(index) == 2
    assert list(index.docnos) == ["d3", "d4"]
    np.testing.assert_array_equal(index.vectors, [[3] * 4, [4] * 4])


def test_index_of_format_version_1_loads():
    index = pt.Artifact.load(str(FIXTURE))
    assert isinstance(index, HypencoderIndex) and len(index) == 6 and index.model() is None
    assert list(index.docnos) == DOCNOS[:6]


@pytest.mark.parametrize(
    "load", [pt.Artifact.load, HypencoderIndex.load, HypencoderIndex, lambda path: HypencoderIndex(Path(path))]
)
def test_index_loads_from_its_path(small, load):
    assert_same_index(load(str(small.path)), small)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_index_is_pickled_as_its_path(small, protocol):
    data = pickle.dumps(small, protocol)
    assert len(data) < 1000
    assert_same_index(pickle.loads(data), small)


def test_indexes_are_equal_if_their_paths_are(small, tmp_path):
    same, other = HypencoderIndex(small.path), HypencoderIndex(shutil.copytree(small.path, tmp_path / "x.hyp"))
    assert same == small and hash(same) == hash(small)
    assert other != small and small != str(small.path)


def test_meta_is_a_copy(small):
    small.meta["doc_count"] = 1
    assert small.meta["doc_count"] == len(small) == len(DOCNOS)


def test_moved_or_copied_index_loads(small, tmp_path):
    copy = shutil.copytree(small.path, tmp_path / "a" / "y")
    assert_same_index(pt.Artifact.load(str(copy)), small)
    assert_same_index(pt.Artifact.load(str(copy.rename(tmp_path / "z"))), small)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def test_package_is_downloaded_and_opened(small, tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    package = small.build_package(str(tmp_path / "served" / "x.tar.lz4"))
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = pt.Artifact.from_url(f"http://127.0.0.1:{server.server_port}/{Path(package).name}")
    finally:
        server.shutdown()
        server.server_close()
    assert found.path.is_relative_to(tmp_path / "home")
    assert_same_index(found, small)
    contents = json.loads(Path(f"{package}.json").read_text())["contents"]
    assert {file["path"] for file in contents} == {path.name for path in small.path.iterdir()}


@pytest.mark.parametrize("name", ["pt_meta.json", "docnos.npids", "vecs.f2"])
def test_damaged_index_does_not_load(tmp_path, name):
    path = build(tmp_path / "x.hyp", DOCNOS, VECTORS).path
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    for load in (HypencoderIndex, HypencoderIndex.load):
        with pytest.raises(ValueError, match="is damaged|missing or damaged|is not valid JSON"):
            load(str(path))
    with pytest.raises(ValueError):  # PyTerrier has its own message for a damaged pt_meta.json
        pt.Artifact.load(str(path))


def test_missing_index_does_not_load(tmp_path):
    with pytest.raises(ValueError, match="it has no pt_meta.json"):
        HypencoderIndex(tmp_path)


def test_local_package_says_how_to_open_it_and_opens(small, tmp_path):
    package = Path(small.build_package(str(tmp_path / "x.tar.lz4"), verbose=False))
    with pytest.raises(ValueError, match=r"must be the directory .* HypencoderIndex.from_package\(package, path\)"):
        HypencoderIndex(package)
    assert_same_index(HypencoderIndex.from_package(package, tmp_path / "y.hyp"), small)
    with pytest.raises(FileExistsError, match="y.hyp already exists. Choose a new directory"):
        HypencoderIndex.from_package(package, tmp_path / "y.hyp")


@pytest.mark.parametrize("damage", ["cut", "no package", "missing"])
def test_damaged_package_leaves_no_directory(small, tmp_path, damage):
    package = Path(small.build_package(str(tmp_path / "x.tar.lz4"), verbose=False))
    Path(f"{package}.json").unlink()
    if damage == "missing":
        package.unlink()
    else:
        package.write_bytes(package.read_bytes()[:-200] if damage == "cut" else b"hello")
    error, message = (FileNotFoundError, "There is no package at") if damage == "missing" else (ValueError, "be a package of")
    with pytest.raises(error, match=message):
        HypencoderIndex.from_package(package, tmp_path / "y.hyp")
    assert [path.name for path in tmp_path.iterdir()] == ([] if damage == "missing" else ["x.tar.lz4"])


# Before the index is built


def test_index_that_is_not_built_can_be_named_and_built(tmp_path):
    index = HypencoderIndex(tmp_path / "new.hyp")
    retriever, loader = index.retriever(num_results=1), index.vec_loader()
    assert not index.built() and repr(index).endswith("new.hyp')")
    assert index.index([{"docno": "a", "doc_vec": [1.0, 0.0]}, {"docno": "b", "doc_vec": [0.0, 1.0]}]) is index
    assert index.built() and len(index) == 2
    assert retriever(pd.DataFrame({"qid": ["q"], "query_vec": [[0.0, 1.0]]}))["docno"].tolist() == ["b"]
    assert loader(pd.DataFrame({"docno": ["a"]}))["doc_vec"][0].tolist() == [1.0, 0.0]
    with pytest.raises(FileExistsError, match="already exists"):
        index.index([{"docno": "c", "doc_vec": [1.0, 0.0]}])
    index.indexer(mode="overwrite", dtype="fp32").index([{"docno": "c", "doc_vec": [1.0, 0.0]}])
    assert list(index.docnos) == ["c"] and index.meta["dtype"] == "f4"


USES = {
    "len": len,
    "np_vecs": lambda index: index.np_vecs(),
    "torch_vecs": lambda index: index.torch_vecs("cpu"),
    "docnos": lambda index: index.docnos,
    "meta": lambda index: index.meta,
    "model": lambda index: index.model(),
    "corpus_graph": lambda index: index.corpus_graph(1),
    "inner_product_index": lambda index: index.inner_product_index(),
    "verify": lambda index: index.verify(),
    "get_corpus_iter": lambda index: next(index.get_corpus_iter()),
    "mask": lambda index: index.mask(pd.DataFrame({"docno": ["a"]}), "docno == 'a'"),
    "retriever": lambda index: index.retriever()(pd.DataFrame({"qid": ["q"], "query_vec": [[0.0, 1.0]]})),
    "scorer": lambda index: index.scorer()(pd.DataFrame({"qid": ["q"], "docno": ["a"], "query_vec": [[0.0, 1.0]]})),
    "vec_loader": lambda index: index.vec_loader()(pd.DataFrame({"docno": ["a"]})),
    "vec_loader by docid": lambda index: index.vec_loader()(pd.DataFrame({"docid": [0]})),
}


@pytest.mark.parametrize("name", USES)
def test_uses_of_an_index_that_is_not_built_say_how_to_build_it(tmp_path, name):
    index = HypencoderIndex(tmp_path / "new.hyp")
    message = r"There is no index at .*new.hyp. Build it with HypencoderIndexer\(path, model\).index\(docs\)"
    with pytest.raises(FileNotFoundError, match=message):
        USES[name](index)
    assert not list(tmp_path.iterdir())
    index.index([{"docno": "a", "doc_vec": [0.0, 1.0]}, {"docno": "b", "doc_vec": [0.0, 1.0]}])
    USES[name](index)


def test_index_searches_and_re_ranks_with_default_options(small, query_vecs):
    found = small(query_vecs)
    pd.testing.assert_frame_equal(found, small.retriever()(query_vecs))
    pd.testing.assert_frame_equal(small(found), small.scorer()(found))


def test_encoder_before_an_index_indexes_is_recorded_and_searches(model, docs, topics, tmp_path):
    index = HypencoderIndex(tmp_path / "x.hyp")
    for pipeline, options in (
        (model >> index, {}),
        (model.doc_encoder() >> index, {}),
        (model.doc_encoder(text_field="body", batch_size=9) >> index, {"text_field": "body", "batch_size": 9}),
    ):
        assert isinstance(pipeline, IndexedPipeline) and pipeline.indexer == index.indexer(model, **options)
    pipeline = model >> index
    pipeline.index(docs[:20])
    assert index.model(device="cpu") == model
    expected = index.retriever(model)(topics)
    pd.testing.assert_frame_equal(pipeline(topics), expected)
    found = (model.query_encoder() >> index.retriever(device="cpu"))(topics)
    assert found["docno"].tolist() == expected["docno"].tolist()


def test_longer_pipeline_before_an_index_indexes_vectors(model, docs, tmp_path):
    index = HypencoderIndex(tmp_path / "x.hyp")
    pipeline = pt.apply.text(lambda row: row["text"].upper()) >> model.doc_encoder() >> index
    assert pipeline.index(docs[:5]) == index and len(index) == 5 and index.model() is None
    compiled = pipeline.compile()
    assert compiled[-1].indexer == index.indexer(model)


@pytest.mark.parametrize("fp16", [False, True])
def test_vectors_as_numpy_and_torch(small, fp16):
    assert small.np_vecs() is small.vectors or np.shares_memory(small.np_vecs(), small.vectors)
    tensor = small.torch_vecs("cpu", fp16=fp16)
    assert tensor.dtype == (torch.float16 if fp16 else torch.float32) and tensor is small.torch_vecs("cpu", fp16=fp16)
    np.testing.assert_array_equal(tensor.numpy(), small.vectors.astype(np.float16 if fp16 else np.float32))
    tensor[0] = 0  # a copy: the file is read-only
    assert small.vectors[0].any()


def test_torch_vectors_follow_a_replaced_index(tmp_path):
    index = build(tmp_path / "x.hyp", ["a"], np.ones((1, 2), np.float32))
    assert index.torch_vecs("cpu").tolist() == [[1, 1]]
    build(tmp_path / "x.hyp", ["a"], np.zeros((1, 2), np.float32), mode="overwrite")
    assert index.torch_vecs().cpu().tolist() == [[0, 0]] and index.torch_vecs(None).shape == (1, 2)


# Documents


@pytest.mark.parametrize(
    ("start", "stop"), [(None, None), (0, 3), (5, None), (None, 5), (3, 3), (7, 2), (-2, None), (300, 10_000), (10_000, None)]
)
def test_get_corpus_iter_takes_slices(small, start, stop):
    found = list(small.get_corpus_iter(start, stop))
    assert [doc["docno"] for doc in found] == DOCNOS[start:stop]
    assert all(doc["doc_vec"].dtype == np.float32 for doc in found)
    np.testing.assert_array_equal(
        np.array([doc["doc_vec"] for doc in found]).reshape(-1, 8), small.vectors[start:stop].astype(np.float32)
    )


def test_get_corpus_iter_crosses_blocks(tmp_path):
    n = 9000
    vectors = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    index = build(tmp_path / "x.hyp", [f"d{i}" for i in range(n)], vectors, dtype="fp32")
    found = list(index.get_corpus_iter(10, 8990))
    assert [doc["docno"] for doc in found] == [f"d{i}" for i in range(10, 8990)]
    np.testing.assert_array_equal([doc["doc_vec"] for doc in found], vectors[10:8990])


def test_index_rebuilt_from_its_documents_is_the_same(small, tmp_path):
    dtype = {"f2": "fp16", "f4": "fp32"}[small.meta["dtype"]]
    assert_same_index(HypencoderIndexer(tmp_path / "x.hyp", dtype=dtype).index(small.get_corpus_iter()), small)


# Factories


FACTORIES = {
    "retriever": HypencoderRetriever,
    "scorer": HypencoderScorer,
    "vec_loader": VecLoader,
    "indexer": HypencoderIndexer,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_factory_shows_the_arguments_of_its_class(small, name):
    expected = list(inspect.signature(FACTORIES[name]).parameters.values())[1:]
    assert list(inspect.signature(getattr(small, name)).parameters.values()) == expected
    assert list(inspect.signature(getattr(HypencoderIndex, name)).parameters)[0] == "self"
    assert all(parameter.name in pydoc.render_doc(getattr(HypencoderIndex, name)) for parameter in expected)


def test_factories_pass_their_arguments_on(small):
    model, options = Hypencoder("nobody/nothing"), {"batch_size": 3, "qnet_width": 2}
    assert small.retriever(model, num_results=7, **options) == HypencoderRetriever(small, model, num_results=7, **options)
    assert small.retriever(model=model) == HypencoderRetriever(small, model)
    assert small.scorer(model, text_field="body", **options) == HypencoderScorer(small, model, text_field="body", **options)
    assert small.vec_loader() == VecLoader(small)


def test_factories_refuse_unknown_options(small):
    for make in (small.retriever, small.scorer, small.vec_loader, small.indexer):
        with pytest.raises(TypeError, match="n_seeds"):
            make(n_seeds=3)


# Examples


def test_example_index_is_built_once_and_records_no_model():
    index = HypencoderIndex.example()
    assert list(index.docnos) == ["d1", "d2", "d3"] and index.vectors.shape == (3, 4) and index.model() is None
    assert HypencoderIndex.example() == index
    assert HypencoderRetriever.example()._open_reader().path == index.path


def test_example_indexer_builds_again_and_again():
    for n in (1, 2):
        docs = [{"docno": f"x{i}", "doc_vec": [1.0, i]} for i in range(n)]
        assert len(HypencoderIndexer.example().index(docs)) == n


def test_examples_make_a_pipeline():
    frame = pd.DataFrame({"qid": ["q"], "query_vec": [[0.0, 1.0, 0.0, 0.0]]})
    index = HypencoderIndex.example()
    found = (index.retriever(num_results=2) >> index.scorer() >> index.vec_loader())(frame)
    assert found["docno"].tolist() == ["d2", "d3"] and found["doc_vec"][0].tolist() == [0.0, 1.0, 0.0, 0.0]


# pyterrier_dr


@pytest.fixture
def dr() -> Any:
    return pytest.importorskip("pyterrier_dr")


@pytest.mark.parametrize(
    "docnos",
    [
        [f"MARCO_{i}" for i in range(300)],
        [str(i) for i in range(300)],
        [f"{i:05d}" for i in range(300)],
        [*(f"MARCO_{i}" for i in range(270)), *(f"d{i}" for i in range(30))],
    ],
    ids=["prefix", "sequence", "padded", "two kinds"],
)
def test_vectors_survive_a_round_trip_through_flex(dr, tmp_path, docnos):
    index = build(tmp_path / "x.hyp", docnos, VECTORS[:300], dtype="fp32")
    flex = index.to_flex(tmp_path / "x.flex")
    assert isinstance(flex, dr.FlexIndex) and len(flex) == 300
    np.testing.assert_array_equal(flex.payload()[1], VECTORS[:300])
    for source in (flex, str(tmp_path / "x.flex"), tmp_path / "x.flex"):
        assert_same_index(HypencoderIndex.from_flex(source, tmp_path / "y.hyp", mode="overwrite", dtype="fp32"), index)


def test_from_flex_copies_vectors_and_docnos(dr, tmp_path):
    flex = dr.FlexIndex(str(tmp_path / "x.flex"), verbose=False)
    flex.index({"docno": f"d{i}", "doc_vec": vector} for i, vector in enumerate(VECTORS))
    index = HypencoderIndex.from_flex(flex, tmp_path / "x.hyp")
    np.testing.assert_array_equal(index.vectors, VECTORS.astype(np.float16))
    assert list(index.docnos) == [f"d{i}" for i in range(len(VECTORS))]
    with pytest.raises(FileExistsError, match="already exists. Pass mode=.overwrite."):
        HypencoderIndex.from_flex(flex, tmp_path / "x.hyp")


def test_flex_index_ranks_the_same_vectors_alike(dr, tmp_path, small, query_vecs):
    ours = HypencoderRetriever(small, num_results=50)(query_vecs)
    theirs = small.to_flex(tmp_path / "x.flex").np_retriever(num_results=50)(query_vecs)
    theirs = theirs.sort_values(["qid", "rank"], ignore_index=True)
    assert ours["docno"].tolist() == theirs["docno"].tolist()
    assert ours["rank"].tolist() == theirs["rank"].tolist()
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-5, atol=1e-5)


def test_to_flex_does_not_change_an_existing_flex_index(dr, tmp_path, small):
    small.to_flex(tmp_path / "x.flex")
    before = {path.name: path.read_bytes() for path in (tmp_path / "x.flex").iterdir()}
    with pytest.raises(RuntimeError, match="already"):
        small.to_flex(tmp_path / "x.flex")
    assert {path.name: path.read_bytes() for path in (tmp_path / "x.flex").iterdir()} == before


def test_flex_index_is_not_opened_as_an_index(dr, tmp_path, small):
    small.to_flex(tmp_path / "x.flex")
    with pytest.raises(ValueError, match="got dense_index and flex. HypencoderIndex.from_flex"):
        HypencoderIndex(tmp_path / "x.flex")


@pytest.mark.parametrize("source", ["nothing", "ours"])
def test_from_flex_refuses_other_directories(small, tmp_path, source):
    path = small.path if source == "ours" else tmp_path / "nothing"
    with pytest.raises(ValueError, match="Expected a FlexIndex of pyterrier_dr"):
        HypencoderIndex.from_flex(path, tmp_path / "x.hyp")
    assert not (tmp_path / "x.hyp").exists()


def test_missing_pyterrier_dr_names_the_pip_command(monkeypatch, tmp_path, small):
    monkeypatch.setitem(sys.modules, "pyterrier_dr", None)
    with pytest.raises(ImportError, match="pip install pyterrier-dr"):
        small.to_flex(tmp_path / "x.flex")
    with pytest.raises(ImportError, match="pip install pyterrier-dr"):
        HypencoderIndex.from_flex("x.flex", tmp_path / "x.hyp")
    assert not list(tmp_path.iterdir())
