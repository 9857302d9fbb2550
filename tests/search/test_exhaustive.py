"""Exhaustive search: laws, on random q-nets and on given scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.search.exhaustive import exhaustive_search


def brute_force(scores: np.ndarray, k: int, allowed=None) -> tuple[list, list]:
    """Sort all documents by score and docid, which is the definition."""
    docids, values = [], []
    for q, row in enumerate(scores):
        candidates = np.arange(len(row)) if allowed is None or allowed[q] is None else np.asarray(allowed[q], dtype=int)
        order = sorted(candidates.tolist(), key=lambda d: (-row[d], d))[:k]
        docids.append(order)
        values.append(row[order].tolist() if order else [])
    return docids, values


def search(scores: np.ndarray, k: int, **options):
    """Search documents with given scores: the vector of a document is its column of scores."""
    vectors = np.ascontiguousarray(scores.T).astype(np.float32)
    return exhaustive_search(lambda block: block.T.contiguous(), vectors, len(scores), k, **options)


def assert_same(results, expected) -> None:
    assert [ids.tolist() for ids in results.docids] == expected[0]
    assert [s.tolist() for s in results.scores] == expected[1]


@pytest.fixture(params=[16, 48, 10**6], ids=lambda size: f"{size} bytes per chunk")
def chunks(request, monkeypatch):
    monkeypatch.setattr("pyterrier_hypencoder.search.passes._CHUNK_BYTES", request.param)


def tied_scores(queries: int, documents: int, levels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, (queries, documents)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 2, 7, 20, 21, 1000])
@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
def test_results_equal_sorting_all_documents(chunks, k, levels):
    scores = tied_scores(3, 20, levels)
    assert_same(search(scores, k), brute_force(scores, k))


@pytest.mark.parametrize("documents", [1, 2, 3])
def test_small_collections(chunks, documents):
    scores = tied_scores(2, documents, 5)
    assert_same(search(scores, 10), brute_force(scores, 10))


def test_a_filter_that_all_queries_share_gives_the_results_of_equal_filters():
    vectors = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).numpy()
    docids = np.arange(0, 50, 3)
    shared, equal = (
        exhaustive_search(lambda rows: rows[:, :3].T, vectors, 3, 5, allowed=allowed)
        for allowed in ([docids] * 3, [docids.copy() for _ in range(3)])
    )
    for one, two in zip(shared.docids + shared.scores, equal.docids + equal.scores, strict=True):
        np.testing.assert_array_equal(one, two)
    assert shared.stats["n_scored"].tolist() == [17] * 3


def test_permuting_documents_permutes_results(chunks):
    scores = np.random.default_rng(1).normal(size=(4, 30)).astype(np.float32)
    order = np.random.default_rng(2).permutation(30)
    found = search(scores[:, order], 10)
    assert [order[ids].tolist() for ids in found.docids] == brute_force(scores, 10)[0]


def test_batch_equals_single_queries(chunks):
    scores = tied_scores(5, 25, 4)
    whole = search(scores, 6)
    for q in range(5):
        vectors = np.ascontiguousarray(scores.T)
        single = exhaustive_search(lambda block, q=q: block[:, q][None], vectors, 1, 6)
        assert single.docids[0].tolist() == whole.docids[q].tolist()


@pytest.mark.parametrize(
    "allowed",
    [
        [[3, 5, 7], [0, 1, 19], [2]],
        [[3, 5, 7], None, []],
        [[], [], []],
        [None, None, None],
        [list(range(20)), [4], None],
    ],
)
@pytest.mark.parametrize("k", [1, 3, 100])
def test_filters_keep_the_best_allowed_documents(chunks, allowed, k):
    scores = tied_scores(3, 20, 6)
    arrays = [None if ids is None else np.asarray(ids, dtype=np.int64) for ids in allowed]
    assert_same(search(scores, k, allowed=arrays), brute_force(scores, k, allowed))


def test_only_allowed_documents_are_scored_if_every_query_has_a_filter():
    scored = []

    def score(block):
        scored.append(len(block))
        return torch.zeros(2, len(block))

    allowed = [np.array([1, 4]), np.array([4, 9])]
    exhaustive_search(score, np.zeros((1000, 3), np.float32), 2, 5, allowed=allowed)
    assert sum(scored) == 3


def test_progress_counts_every_document_once(chunks):
    done = []
    search(tied_scores(2, 20, 3), 5, progress=done.append)
    assert sum(done) == 20


def test_fp16_memory_map_is_searched_and_not_written_to(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float16)
    vectors.tofile(tmp_path / "v")
    mapped = np.memmap(tmp_path / "v", np.float16, "r", shape=(50, 8))
    qnets = QNets.unflatten(torch.randn(2, 80, generator=torch.Generator().manual_seed(0)), QNetSpec((8, 8, 1)))
    found = exhaustive_search(qnets.score, mapped, 2, 50)
    expected = qnets.score(torch.from_numpy(vectors.astype(np.float32))).numpy()
    np.testing.assert_allclose(found.scores[0], np.sort(expected[0])[::-1], rtol=1e-5)
    assert (tmp_path / "v").read_bytes() == vectors.tobytes()


@pytest.mark.parametrize("default", ["float16", "float64", "meta"])
@pytest.mark.parametrize("allowed", [None, [np.arange(0, 40, 3), None], [np.empty(0, np.int64)] * 2])
def test_global_defaults_of_torch_change_no_result(torch_default, default, allowed):
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float16)
    score = scoring.make_scorer(QNets.linear(torch.randn(2, 8)), device="cpu")
    expected = exhaustive_search(score, vectors, 2, 10, allowed=allowed)
    with torch_default(default):
        found = exhaustive_search(score, vectors, 2, 10, allowed=allowed)
    assert all(map(np.array_equal, found.docids, expected.docids))
    assert all(map(np.array_equal, found.scores, expected.scores))
    assert found.stats["n_scored"].tolist() == expected.stats["n_scored"].tolist()
