"""The inner-product index: what it finds, when it is built again, and surrogate search over it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from pyterrier_hypencoder import HypencoderIndexer
from pyterrier_hypencoder.index import inner_product
from pyterrier_hypencoder.index.inner_product import FACTS_FILE, INDEX_FILE, InnerProductIndex
from pyterrier_hypencoder.transformers import retriever

N, D = 2000, 16


def docs(seed: int):
    vectors = np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)
    return [{"docno": f"d{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]


@pytest.fixture
def index(tmp_path):
    return HypencoderIndexer(tmp_path / "x.hyp").index(docs(0))


def found_of(index, queries, k, met):
    """What a scan finds, and the share of the best that it is."""
    values, docids = index.inner_product_index()(queries, k, met)
    products = (queries @ torch.from_numpy(index.vectors.astype(np.float32)).T).masked_fill(met, -torch.inf)
    best = products.topk(k, dim=1).indices
    share = np.mean([len(set(a.tolist()) & set(b.tolist())) / k for a, b in zip(docids, best, strict=True)])
    return values, products.gather(1, docids), share


def test_it_finds_most_of_the_best_of_what_was_not_met(index):
    queries = torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    met = torch.zeros(3, N, dtype=torch.bool)
    met[:, ::2] = True
    met[0, :400] = True
    values, products, share = found_of(index, queries, 50, met)
    torch.testing.assert_close(values, products, rtol=1e-2, atol=1e-2)  # as precise as half of a float
    assert bool((values.diff(dim=1) <= 0).all()) and share > 0.95


def test_the_very_best_may_have_been_met(index):
    queries = torch.randn(2, D, generator=torch.Generator().manual_seed(1))
    met = torch.zeros(2, N, dtype=torch.bool)
    met.scatter_(1, (queries @ torch.from_numpy(index.vectors.astype(np.float32)).T).topk(300, dim=1).indices, True)
    assert found_of(index, queries, 50, met)[2] > 0.9


@pytest.mark.parametrize(("dtype", "unit"), [("fp16", 1.0), ("fp32", 1.0), ("fp32", 1e6)])
def test_lengths_may_differ(tmp_path, dtype, unit):
    lengths = unit * np.exp(0.5 * np.random.default_rng(2).normal(size=N))
    scaled = [doc | {"doc_vec": doc["doc_vec"] * np.float32(length)} for doc, length in zip(docs(0), lengths, strict=True)]
    index = HypencoderIndexer(tmp_path / "x.hyp", dtype=dtype).index(scaled)
    queries = torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    assert found_of(index, queries, 50, torch.zeros(3, N, dtype=torch.bool))[2] > 0.95


@pytest.mark.parametrize("shared", [1.0, 3.0])
def test_what_all_vectors_share_hides_none(tmp_path, shared):
    rest = np.array([doc["doc_vec"] for doc in docs(0)])
    common = shared * np.sqrt(D) * np.eye(D, dtype=np.float32)[3]
    index = HypencoderIndexer(tmp_path / "x.hyp").index(
        {"docno": f"d{i}", "doc_vec": vector + common} for i, vector in enumerate(rest)
    )
    queries = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
    values, products, share = found_of(index, queries, 50, torch.zeros(20, N, dtype=torch.bool))
    torch.testing.assert_close(values, products, rtol=1e-2, atol=0.05)
    assert share > 0.95


def test_one_vector_far_from_all_others_costs_them_nothing(tmp_path):
    far = docs(0)
    far[7] = far[7] | {"doc_vec": far[7]["doc_vec"] * 1000}
    index = HypencoderIndexer(tmp_path / "x.hyp").index(far)
    queries = torch.randn(3, D, generator=torch.Generator().manual_seed(0))
    assert found_of(index, queries, 50, torch.zeros(3, N, dtype=torch.bool))[2] > 0.9


@pytest.mark.parametrize("count", [1, 2, 300])
def test_vectors_that_are_all_equal(tmp_path, count):
    same = [{"docno": f"d{i}", "doc_vec": np.ones(D, np.float32)} for i in range(count)]
    scan = HypencoderIndexer(tmp_path / "x.hyp").index(same).inner_product_index()
    met = torch.zeros(1, count, dtype=torch.bool)
    values, docids = scan(torch.ones(1, D), 5, met)
    real = docids[values > -torch.inf].tolist()
    assert len(set(real)) == len(real) == min(5, count)
    torch.testing.assert_close(values[values > -torch.inf], torch.full((len(real),), float(D)), rtol=1e-2, atol=0)
    met[0, 1:] = True
    values, docids = scan(torch.ones(1, D), 5, met)
    assert docids[values > -torch.inf].tolist() == [0]


def test_many_copies_of_one_vector_do_not_hide_the_others(tmp_path):
    copied = docs(0)
    for place in range(0, N, 3):
        copied[place] = copied[place] | {"doc_vec": copied[1]["doc_vec"]}
    index = HypencoderIndexer(tmp_path / "x.hyp").index(copied)
    queries = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
    queries[0] = torch.from_numpy(copied[1]["doc_vec"])  # likes the copies best
    values, docids = index.inner_product_index()(queries, 50, torch.zeros(20, N, dtype=torch.bool))
    products = queries @ torch.from_numpy(index.vectors.astype(np.float32)).T
    best = products.topk(50, dim=1).values
    torch.testing.assert_close(values, products.gather(1, docids), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(values[0], best[0], rtol=1e-2, atol=1e-2)
    assert sum(values[0].diff() == 0) > 40 and all(len(set(ids)) == 50 for ids in docids.tolist())
    assert float((values >= best[:, -1:] - 0.01).float().mean()) > 0.95


def test_more_than_there_are(index):
    met = torch.ones(1, N, dtype=torch.bool)
    met[0, 7] = False
    values, docids = InnerProductIndex(index.reader)(torch.ones(1, D), 10 * N, met)
    assert values.shape == docids.shape == (1, N)
    assert docids[values > -torch.inf].tolist() == [7]


def test_it_is_built_once_and_again_when_the_index_has_changed(index):
    InnerProductIndex(index.reader)
    file = index.path / INDEX_FILE
    first = file.stat().st_mtime_ns
    InnerProductIndex(index.reader)
    assert file.stat().st_mtime_ns == first
    (index.path / FACTS_FILE).write_text("{}")
    InnerProductIndex(index.reader)
    assert file.stat().st_mtime_ns > first


def test_those_who_come_while_it_is_built_wait(index, monkeypatch):
    built = []
    build = inner_product._build

    def slowly(*arguments):
        time.sleep(0.3)
        built.append(build(*arguments))

    monkeypatch.setattr(inner_product, "_build", slowly)
    with ThreadPoolExecutor(4) as pool:
        scans = list(pool.map(lambda _: InnerProductIndex(index.reader), range(4)))
    assert len(built) == 1
    queries, met = torch.ones(1, D), torch.zeros(1, N, dtype=torch.bool)
    assert len({tuple(scan(queries, 5, met)[1][0].tolist()) for scan in scans}) == 1


def test_large_collections_are_searched_over_it(index, monkeypatch):
    topics = pd.DataFrame({"qid": ["1", "2"], "query_vec": list(np.random.default_rng(1).normal(size=(2, D)))})
    expected = index.retriever(num_results=20)(topics)
    monkeypatch.setattr(retriever, "SCANNED", N - 1)
    found = index.retriever(num_results=20, algorithm="surrogate", n_initial=50, device="cpu")(topics)
    assert (index.path / INDEX_FILE).is_file()
    both = expected.merge(found, on=["qid", "docno"])
    assert len(both) >= 0.9 * len(expected)


def test_it_is_asked_where_there_is_one_and_it_costs_less(index, monkeypatch):
    asked = []
    scan = InnerProductIndex.__call__
    monkeypatch.setattr(InnerProductIndex, "__call__", lambda *arguments: asked.append(1) or scan(*arguments))
    monkeypatch.setattr(inner_product, "_WORTH", 5)
    topics = pd.DataFrame({"qid": ["1"], "query_vec": list(np.random.default_rng(1).normal(size=(1, D)))})
    surrogate = index.retriever(num_results=20, algorithm="surrogate", n_initial=50, device="cpu")
    surrogate(topics)
    assert not asked and not (index.path / INDEX_FILE).exists()
    index.inner_product_index()
    surrogate(topics)
    assert asked
    asked.clear()
    few = [f"d{i}" for i in range(0, N, 5)]  # of which the index would find hardly any
    found = index.retriever(num_results=20, algorithm="surrogate", n_initial=50, device="cpu", allowed_docnos=few)(topics)
    assert not asked
    pd.testing.assert_frame_equal(found, index.retriever(num_results=20, allowed_docnos=few)(topics)[found.columns])
    surrogate.allowed_docnos = [f"d{i}" for i in range(N)]
    surrogate(topics)
    assert asked


def test_whether_it_costs_less(index):
    scan, met = index.inner_product_index(), torch.zeros(2, N, dtype=torch.bool)
    assert scan.is_worth_it(1, 50, met) and scan.is_worth_it(2, 30, met)
    assert not scan.is_worth_it(1, 70, met) and not scan.is_worth_it(2, 40, met)
    met[1, :40] = True
    assert not scan.is_worth_it(1, 50, met) and scan.is_worth_it(1, 20, met)


def test_an_index_that_is_replaced_meanwhile_has_none_of_the_old_vectors(index, monkeypatch):
    build = inner_product._build

    def overtaken(reader, verbose):
        HypencoderIndexer(index.path, mode="overwrite").index(docs(5))
        build(reader, verbose)  # which still reads the old vectors

    monkeypatch.setattr(inner_product, "_build", overtaken)
    InnerProductIndex(index.reader)
    assert not inner_product.is_built(index.reader)
    monkeypatch.setattr(inner_product, "_build", build)
    assert found_of(index, torch.ones(1, D), 50, torch.zeros(1, N, dtype=torch.bool))[2] > 0.9


@pytest.mark.parametrize("name", inner_product._FILES)
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_file_cut_short_is_no_index(index, name, kept):
    index.inner_product_index()
    whole = (index.path / name).read_bytes()
    (index.path / name).write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=f"inner-product index of {N} documents .*remove {FACTS_FILE} there"):
        index.inner_product_index()
    (index.path / FACTS_FILE).unlink()
    assert found_of(index, torch.ones(1, D), 50, torch.zeros(1, N, dtype=torch.bool))[2] > 0.9


def test_a_build_that_was_killed_is_begun_anew(index, monkeypatch):
    put = inner_product._put
    for name in inner_product._FILES:

        def killed(file, at=name):
            if file.name == at:
                raise KeyboardInterrupt
            return put(file)

        monkeypatch.setattr(inner_product, "_put", killed)
        with pytest.raises(KeyboardInterrupt):
            index.inner_product_index()
        assert not inner_product.is_built(index.reader)
    monkeypatch.setattr(inner_product, "_put", put)
    assert found_of(index, torch.ones(1, D), 50, torch.zeros(1, N, dtype=torch.bool))[2] > 0.9
