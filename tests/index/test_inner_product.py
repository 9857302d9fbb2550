"""The inner-product index: what it finds, when it is built, damage, and surrogate search over it."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from indexes import write_index

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.index import inner_product
from pyterrier_hypencoder.index.inner_product import (
    FACTS_FILE,
    INDEX_FILE,
    InnerProductIndex,
    build_inner_product_index,
    is_built,
    open_inner_product_index,
)
from pyterrier_hypencoder.index.reader import IndexReader
from pyterrier_hypencoder.search.allowed import make_allowed
from pyterrier_hypencoder.transformers import batch_search

N, D = 2000, 16
FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


def make_vectors(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)


def make_queries(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def mark_none_seen(n: int) -> torch.Tensor:
    return torch.zeros(n, N, dtype=torch.bool)


def list_seen(mask: torch.Tensor) -> torch.Tensor:
    """Return the docids (Q, n) of documents that are marked (Q, N), filled up with -1."""
    rows = [row.nonzero()[:, 0] for row in mask]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


@pytest.fixture
def reader(tmp_path) -> IndexReader:
    return write_index(tmp_path / "x.hyp", make_vectors(), dtype="fp16")


def compare_with_exact(
    reader: IndexReader, queries: torch.Tensor, k: int, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the values of a search, the true inner products of the documents that it found, and its recall."""
    values, docids = build_inner_product_index(reader)(queries, k, list_seen(seen))
    products = (queries @ torch.from_numpy(np.asarray(reader.vectors, dtype=np.float32)).T).masked_fill(seen, -torch.inf)
    best = products.topk(k, dim=1).indices
    recall = np.mean([len(set(a.tolist()) & set(b.tolist())) / k for a, b in zip(docids, best, strict=True)])
    return values, products.gather(1, docids), float(recall)


# Recall


def test_search_leaves_out_seen_documents(reader):
    seen = mark_none_seen(3)
    seen[:, ::2] = True
    seen[0, :400] = True
    values, products, recall = compare_with_exact(reader, make_queries(3), 50, seen)
    torch.testing.assert_close(values, products, rtol=1e-2, atol=1e-2)  # the precision of float16
    assert bool((values.diff(dim=1) <= 0).all()) and recall > 0.95


def test_search_keeps_recall_if_the_best_documents_were_seen(reader):
    queries, seen = make_queries(2, seed=1), mark_none_seen(2)
    seen.scatter_(
        1, (queries @ torch.from_numpy(np.asarray(reader.vectors, dtype=np.float32)).T).topk(300, dim=1).indices, True
    )
    assert compare_with_exact(reader, queries, 50, seen)[2] > 0.9


@pytest.mark.parametrize(("dtype", "unit"), [("fp16", 1.0), ("fp32", 1.0), ("fp32", 1e6)])
def test_search_keeps_recall_for_vectors_of_different_norms(tmp_path, dtype, unit):
    norms = unit * np.exp(0.5 * np.random.default_rng(2).normal(size=(N, 1)))
    reader = write_index(tmp_path / "x.hyp", make_vectors() * norms, dtype=dtype)
    assert compare_with_exact(reader, make_queries(3), 50, mark_none_seen(3))[2] > 0.95


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_large_common_mean_keeps_recall(tmp_path, scale):
    mean = scale * np.sqrt(D) * np.eye(D, dtype=np.float32)[3]
    reader = write_index(tmp_path / "x.hyp", make_vectors() + mean, dtype="fp16")
    values, products, recall = compare_with_exact(reader, make_queries(20), 50, mark_none_seen(20))
    torch.testing.assert_close(values, products, rtol=1e-2, atol=0.05)
    assert recall > 0.95


def test_one_outlier_keeps_the_recall_of_the_other_vectors(tmp_path):
    vectors = make_vectors()
    vectors[7] *= 1000
    reader = write_index(tmp_path / "x.hyp", vectors, dtype="fp16")
    assert compare_with_exact(reader, make_queries(3), 50, mark_none_seen(3))[2] > 0.9


# Equal vectors


@pytest.mark.parametrize("count", [1, 2, 300])
def test_equal_vectors_are_all_found(tmp_path, count):
    search = build_inner_product_index(write_index(tmp_path / "x.hyp", np.ones((count, D)), dtype="fp16"))
    seen = torch.zeros(1, count, dtype=torch.bool)
    values, docids = search(torch.ones(1, D), 5, list_seen(seen))
    found = docids[values > -torch.inf].tolist()
    assert len(set(found)) == len(found) == min(5, count)
    torch.testing.assert_close(values[values > -torch.inf], torch.full((len(found),), float(D)), rtol=1e-2, atol=0)
    seen[0, 1:] = True
    values, docids = search(torch.ones(1, D), 5, list_seen(seen))
    assert docids[values > -torch.inf].tolist() == [0]


def test_many_copies_of_one_vector_keep_the_recall_of_the_others(tmp_path):
    vectors = make_vectors()
    vectors[::3] = vectors[1]
    reader = write_index(tmp_path / "x.hyp", vectors, dtype="fp16")
    queries = make_queries(20)
    queries[0] = torch.from_numpy(vectors[1])  # the copies are its best documents
    values, docids = build_inner_product_index(reader)(queries, 50, list_seen(mark_none_seen(20)))
    products = queries @ torch.from_numpy(np.asarray(reader.vectors, dtype=np.float32)).T
    best = products.topk(50, dim=1).values
    torch.testing.assert_close(values, products.gather(1, docids), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(values[0], best[0], rtol=1e-2, atol=1e-2)
    assert sum(values[0].diff() == 0) > 40 and all(len(set(ids)) == 50 for ids in docids.tolist())
    assert float((values >= best[:, -1:] - 0.01).float().mean()) > 0.95


def test_k_may_exceed_the_number_of_documents(reader):
    seen = ~mark_none_seen(1)
    seen[0, 7] = False
    values, docids = build_inner_product_index(reader)(torch.ones(1, D), 10 * N, list_seen(seen))
    assert values.shape == docids.shape == (1, N)
    assert docids[values > -torch.inf].tolist() == [7]


# Building and opening


def test_open_never_builds(reader):
    assert open_inner_product_index(reader) is None and not is_built(reader)
    assert not (reader.path / INDEX_FILE).exists()
    build_inner_product_index(reader)
    assert isinstance(open_inner_product_index(reader), InnerProductIndex) and is_built(reader)


def test_build_opens_an_index_that_is_up_to_date(reader):
    build_inner_product_index(reader)
    file = reader.path / INDEX_FILE
    first = file.stat().st_mtime_ns
    build_inner_product_index(reader)
    assert file.stat().st_mtime_ns == first
    (reader.path / FACTS_FILE).write_text("{}")
    build_inner_product_index(reader)
    assert file.stat().st_mtime_ns > first


def test_verbose_shows_progress(reader, capfd):
    build_inner_product_index(reader, verbose=True)
    assert f"{N}/{N}" in capfd.readouterr().err


def test_concurrent_builds_wait_for_the_first_one(reader, monkeypatch):
    built = []
    write_files = inner_product._write_files

    def write_slowly(*arguments: Any) -> None:
        time.sleep(0.3)
        built.append(write_files(*arguments))

    monkeypatch.setattr(inner_product, "_write_files", write_slowly)
    with ThreadPoolExecutor(4) as pool:
        searches = list(pool.map(lambda _: build_inner_product_index(reader), range(4)))
    assert len(built) == 1
    assert len({tuple(search(torch.ones(1, D), 5, list_seen(mark_none_seen(1)))[1][0].tolist()) for search in searches}) == 1


def test_an_index_that_is_replaced_during_a_build_is_not_taken_for_the_built_one(reader, monkeypatch):
    write_files = inner_product._write_files

    def replace_index(old: IndexReader, verbose: bool) -> None:
        write_index(old.path, make_vectors(5), dtype="fp16", mode="overwrite")
        write_files(old, verbose)  # still reads the old vectors

    monkeypatch.setattr(inner_product, "_write_files", replace_index)
    build_inner_product_index(reader)
    new = IndexReader(reader.path)
    assert not is_built(new)
    monkeypatch.setattr(inner_product, "_write_files", write_files)
    assert compare_with_exact(new, torch.ones(1, D), 50, mark_none_seen(1))[2] > 0.9


@pytest.fixture(scope="module")
def built_files(tmp_path_factory) -> tuple[IndexReader, dict[str, bytes]]:
    """An index with an inner-product index, and the content of its files."""
    reader = write_index(tmp_path_factory.mktemp("built") / "x.hyp", make_vectors(), dtype="fp16")
    build_inner_product_index(reader)
    return reader, {name: (reader.path / name).read_bytes() for name in (*inner_product._FILES, FACTS_FILE)}


@pytest.mark.parametrize("name", inner_product._FILES)
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_truncated_file_is_an_error(built_files, name, kept):
    reader, files = built_files
    for other, content in files.items():
        (reader.path / other).write_bytes(content)
    (reader.path / name).write_bytes(files[name][: int(kept * len(files[name]))])
    for use in (open_inner_product_index, build_inner_product_index):
        with pytest.raises(ValueError, match=f"Inner-product index of {N} documents .* is damaged: .* Delete {FACTS_FILE}"):
            use(reader)


def test_a_damaged_index_is_built_again_without_its_facts(reader):
    build_inner_product_index(reader)
    for name in inner_product._FILES:
        (reader.path / name).write_bytes(b"")
    (reader.path / FACTS_FILE).unlink()
    assert compare_with_exact(reader, torch.ones(1, D), 50, mark_none_seen(1))[2] > 0.9


def test_a_file_of_another_index_is_an_error(reader, tmp_path):
    build_inner_product_index(reader)
    other = write_index(tmp_path / "y.hyp", make_vectors()[:100], dtype="fp16")
    build_inner_product_index(other)
    (reader.path / INDEX_FILE).write_bytes((other.path / INDEX_FILE).read_bytes())
    with pytest.raises(ValueError, match="inner_product.faiss is damaged or belongs to another index: its checksum"):
        open_inner_product_index(reader)


def test_a_killed_build_is_started_again(reader, monkeypatch):
    replace_file = inner_product.replace_file
    for name in inner_product._FILES:

        def die(file: Any, at: str = name) -> Any:
            if file.name == at:
                raise KeyboardInterrupt
            return replace_file(file)

        monkeypatch.setattr(inner_product, "replace_file", die)
        with pytest.raises(KeyboardInterrupt):
            build_inner_product_index(reader)
        assert not is_built(reader)
    monkeypatch.setattr(inner_product, "replace_file", replace_file)
    assert compare_with_exact(reader, torch.ones(1, D), 50, mark_none_seen(1))[2] > 0.9


# When it is used


def test_is_worth_it_depends_on_queries_results_seen_documents_and_filters(reader):
    search, seen = build_inner_product_index(reader), torch.full((2, 40), -1)
    assert search.is_worth_it(1, 50, seen) and search.is_worth_it(2, 30, seen)
    assert not search.is_worth_it(1, 70, seen) and not search.is_worth_it(2, 40, seen)
    seen[1] = torch.arange(40)
    assert not search.is_worth_it(1, 50, seen) and search.is_worth_it(1, 20, seen)
    none = torch.full((2, 0), -1)
    assert search.is_worth_it(1, 20, none, make_allowed([None, np.arange(40, N)]))
    assert not search.is_worth_it(1, 50, none, make_allowed([None, np.arange(40, N)]))


def test_search_finds_allowed_documents_only(reader):
    queries, filters = make_queries(3), [np.arange(0, N, 2), None, np.arange(N - 300)]
    values, docids = build_inner_product_index(reader)(queries, 30, torch.full((3, 1), -1), make_allowed(filters))
    products = queries @ torch.from_numpy(np.asarray(reader.vectors, dtype=np.float32)).T
    for q, ids in enumerate(np.arange(N) if ids is None else ids for ids in filters):
        expected = ids[products[q, ids].topk(30).indices.numpy()]
        assert len(set(docids[q].tolist()) & set(expected.tolist())) >= 28
        assert set(docids[q][values[q] > -torch.inf].tolist()) <= set(ids.tolist())


def test_surrogate_search_uses_it_only_if_it_is_built_and_worth_it(reader, monkeypatch):
    calls = []
    search = InnerProductIndex.__call__
    monkeypatch.setattr(InnerProductIndex, "__call__", lambda *arguments: calls.append(1) or search(*arguments))
    monkeypatch.setattr(inner_product, "VECTORS_PER_VISIT", 5)
    monkeypatch.setattr(batch_search, "EXHAUSTIVE_IF_LINEAR", ())
    topics = pd.DataFrame({"qid": ["1"], "query_vec": list(np.random.default_rng(1).normal(size=(1, D)))})
    index = HypencoderIndex(reader.path)
    surrogate = index.retriever(num_results=20, algorithm="surrogate", n_initial=50, device="cpu")
    surrogate(topics)
    assert not calls and not (reader.path / INDEX_FILE).exists()
    index.inner_product_index()
    surrogate(topics)
    assert calls
    calls.clear()
    few = [f"d{i}" for i in range(0, N, 5)]  # HNSW would find hardly any of them
    found = index.retriever(num_results=20, algorithm="surrogate", n_initial=50, device="cpu", allowed_docnos=few)(topics)
    assert not calls
    pd.testing.assert_frame_equal(found, index.retriever(num_results=20, allowed_docnos=few)(topics)[found.columns])
    surrogate.allowed_docnos = [f"d{i}" for i in range(N)]
    surrogate(topics)
    assert calls


def test_surrogate_search_over_it_finds_the_exhaustive_results(reader, monkeypatch):
    monkeypatch.setattr(inner_product, "VECTORS_PER_VISIT", 5)
    monkeypatch.setattr(batch_search, "EXHAUSTIVE_IF_LINEAR", ())
    topics = pd.DataFrame({"qid": ["1", "2"], "query_vec": list(np.random.default_rng(1).normal(size=(2, D)))})
    index = HypencoderIndex(reader.path)
    expected = index.retriever(num_results=20)(topics)
    index.inner_product_index()
    found = index.retriever(num_results=20, algorithm="surrogate", n_initial=50, device="cpu")(topics)
    assert len(expected.merge(found, on=["qid", "docno"])) >= 0.9 * len(expected)


# HNSW search


def find_best(reader: IndexReader, queries: torch.Tensor, k: int, allowed: np.ndarray) -> list[set[int]]:
    products = (queries @ torch.from_numpy(np.asarray(reader.vectors, dtype=np.float32)).T).numpy()
    return [set(allowed[np.argsort(-row[allowed])[:k]].tolist()) for row in products]


@pytest.mark.parametrize("share", [1, 2, 5])
def test_find_returns_the_best_allowed_documents(reader, share):
    queries, allowed = make_queries(5), np.arange(0, N, share)
    index = build_inner_product_index(reader)
    found = index.find(queries, 20, 200 * share, None if share == 1 else allowed)
    assert all(len(set(docids.tolist())) == len(docids) == 20 for docids in found)
    best = find_best(reader, queries, 20, allowed)
    assert np.mean([len(set(a.tolist()) & b) / 20 for a, b in zip(found, best, strict=True)]) > 0.95


def test_more_candidates_find_more_of_the_best_documents(reader):
    queries, index = make_queries(20), build_inner_product_index(reader)
    best = find_best(reader, queries, 5, np.arange(N))
    recalls = [
        np.mean([len(set(a.tolist()) & b) / 5 for a, b in zip(index.find(queries, 5, width, None), best, strict=True)])
        for width in (5, 200)
    ]
    assert recalls[0] < recalls[1] and recalls[1] > 0.95


def test_find_lists_allowed_documents_among_equal_vectors(tmp_path):
    vectors = np.repeat(np.eye(3, dtype=np.float32), 100, axis=0)
    index = build_inner_product_index(write_index(tmp_path / "x.hyp", vectors, dtype="fp16"))
    query = torch.tensor([[2.0, 1.0, 0.0]])
    assert sorted(index.find(query, 150, 150)[0].tolist())[:100] == list(range(100))
    assert index.find(query, 3, 10, np.array([7, 99, 120, 250]))[0].tolist()[:2] == [7, 99]


@pytest.mark.parametrize("version", ["1.11", "1.15"])
def test_index_written_by_another_faiss_can_be_opened_and_searched(version, tmp_path):
    path = shutil.copytree(FIXTURES / f"hnsw_{version}.hyp", tmp_path / "x.hyp")
    index, queries = HypencoderIndex(path), np.random.default_rng(1).normal(size=(3, 4))
    assert is_built(index.reader)
    topics = pd.DataFrame({"qid": list("abc"), "query_vec": list(queries)})
    found, expected = (index.retriever(num_results=5, algorithm=name)(topics) for name in ("hnsw", "exhaustive"))
    assert found["docno"].tolist() == expected["docno"].tolist()
