"""Algorithm 1: the laws, the reference, and the released code's runs."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from golden_checkpoints import FOLDERS, Golden

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.graph import (
    VARIANTS,
    count_entry_points,
    draw_entry_points,
    graph_search,
    reference_graph_search,
)

SPEC = QNetSpec((12, 12, 12, 1))


class World:
    """Random documents, their graph, and random q-nets."""

    def __init__(self, documents: int = 300, neighbours: int = 6, queries: int = 4, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.vectors = rng.normal(size=(documents, 12)).astype(np.float32)
        self.distances = ((self.vectors[:, None] - self.vectors[None]) ** 2).sum(-1)
        np.fill_diagonal(self.distances, np.inf)
        self.graph = np.argsort(self.distances, axis=1)[:, :neighbours].astype(np.uint32)
        generator = torch.Generator().manual_seed(seed)
        self.qnets = QNets.unflatten(torch.randn(queries, SPEC.size, generator=generator), SPEC)
        self.score = scoring.make_scorer(self.qnets, device="cpu")

    def search(self, entries, k, *, queries=None, **options):
        score = self.score if queries is None else self.score.select(queries)
        number = len(self.qnets) if queries is None else len(queries)
        return graph_search(score, self.vectors, self.graph, entries, number, k, **options)

    def everything(self, k):
        return exhaustive_search(self.score, self.vectors, len(self.qnets), k)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def ids(results) -> list[list[int]]:
    return [found.tolist() for found in results.docids]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize(("k", "n_candidates", "max_iter"), itertools.product([1, 3, 40], [1, 4, 25], [1, 3, 16]))
@pytest.mark.parametrize("seed", [0, 1])
def test_the_fast_path_is_the_reference(seed, k, n_candidates, max_iter, early_stop, variant):
    world = World(seed=seed)
    options = {"n_candidates": n_candidates, "max_iter": max_iter, "early_stop": early_stop, "variant": variant}
    entries = draw_entry_points(300, 7, seed)
    found = world.search(entries, k, **options)
    for q in range(4):
        single = world.score.select([q])
        expected = reference_graph_search(single, world.vectors, world.graph, entries.tolist(), k, **options)
        assert found.docids[q].tolist() == [docid for _, docid in expected]
        np.testing.assert_allclose(found.scores[q], [score for score, _ in expected], atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ties_are_broken_as_in_the_reference(variant):
    world, rng = World(documents=120), np.random.default_rng(3)
    values = torch.from_numpy(rng.integers(0, 4, 120).astype(np.float32))

    class Given:
        """A document's vector is its number, and its score is one of four."""

        def __call__(self, vectors):
            return values[vectors[:, 0].long()].unsqueeze(0)

        def each(self, vectors, counts):
            return values[vectors[:, 0].long()]

    numbers = np.arange(120, dtype=np.float32)[:, None]
    for k, n_candidates in itertools.product([1, 5, 30], [1, 6]):
        entries = draw_entry_points(120, 5, k)
        options = {"n_candidates": n_candidates, "max_iter": 8, "variant": variant}
        found = graph_search(Given(), numbers, world.graph, entries, 1, k, **options)
        expected = reference_graph_search(Given(), numbers, world.graph, entries.tolist(), k, **options)
        assert found.docids[0].tolist() == [docid for _, docid in expected]


@pytest.mark.parametrize("k", [1, 10, 300, 1000])
def test_every_document_an_entry_point_is_exhaustive(world, k):
    found = world.search(np.arange(300), k, max_iter=1, n_candidates=1)
    assert ids(found) == ids(world.everything(k))
    assert found.stats["n_scored"].tolist() == [300] * 4 and found.stats["n_rounds"].tolist() == [1] * 4


def test_a_complete_graph_is_exhaustive():
    world = World(documents=60, neighbours=59)
    found = world.search(np.array([5]), 20, max_iter=2, n_candidates=1)
    assert ids(found) == ids(world.everything(20))
    assert found.stats["n_scored"].tolist() == [60] * 4


def test_no_document_is_evaluated_twice(world):
    class Counting:
        def __init__(self, score):
            self.score, self.seen = score, []

        def __call__(self, vectors):
            self.seen.append(vectors)
            return self.score(vectors)

        def each(self, vectors, counts):
            self.seen.append(vectors)
            return self.score.each(vectors, counts)

    counting = Counting(world.score.select([0]))
    found = graph_search(counting, world.vectors, world.graph, draw_entry_points(300, 9), 1, 10, n_candidates=4)
    rows = torch.cat(counting.seen)
    assert len(torch.unique(rows, dim=0)) == len(rows) == found.stats["n_scored"][0]


def test_a_batch_is_its_queries_one_by_one(world):
    whole = world.search(draw_entry_points(300, 9), 10, n_candidates=4)
    own = [draw_entry_points(300, 5, seed) for seed in range(4)]
    each = world.search(own, 10, n_candidates=4)
    for q in range(4):
        assert ids(world.search(draw_entry_points(300, 9), 10, queries=[q], n_candidates=4))[0] == ids(whole)[q]
        single = world.search(own[q], 10, queries=[q], n_candidates=4)
        assert ids(single)[0] == ids(each)[q]
        assert single.stats["n_scored"][0] == each.stats["n_scored"][q]


@pytest.mark.parametrize("early_stop", [True, False])
def test_more_rounds_never_lose(world, early_stop):
    before = np.full((4, 10), -np.inf)
    for rounds in range(1, 12):
        found = world.search(draw_entry_points(300, 9), 10, n_candidates=3, max_iter=rounds, early_stop=early_stop)
        scores = np.array([np.pad(row, (0, 10 - len(row)), constant_values=-np.inf) for row in found.scores])
        assert (scores >= before).all()
        before = scores


def test_permuting_documents_permutes_results(world):
    order = np.random.default_rng(5).permutation(300)
    place = np.argsort(order)  # document d is at place[d]
    permuted = World()
    permuted.vectors, permuted.graph = world.vectors[order], place[world.graph.astype(np.int64)][order].astype(np.uint32)
    entries = draw_entry_points(300, 9)
    expected = world.search(entries, 10, n_candidates=4)
    found = permuted.search(place[entries], 10, n_candidates=4)
    assert [order[row].tolist() for row in found.docids] == ids(expected)


def test_documents_that_may_not_be_returned_are_walked_over(world):
    allowed = [np.arange(0, 300, 3), None, np.empty(0, np.int64), np.array([7])]
    found = world.search(np.arange(300), 10, allowed=allowed)
    assert ids(found) == ids(exhaustive_search(world.score, world.vectors, 4, 10, allowed=allowed))
    walked = world.search(draw_entry_points(300, 9), 10, allowed=allowed, n_candidates=8)
    assert all(set(row) <= set(range(0, 300, 3)) for row in ids(walked)[:1]) and ids(walked)[2] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_walk_goes_on_as_it_would_if_all_documents_could_be_returned(world, variant):
    entries, allowed = draw_entry_points(300, 9), np.setdiff1d(np.arange(300), draw_entry_points(300, 9))
    options = {"n_candidates": 8, "variant": variant}
    free = world.search(entries, 10, **options)
    limited = world.search(entries, 10, allowed=[allowed] * 4, **options)
    assert limited.stats["n_scored"].tolist() == free.stats["n_scored"].tolist()
    for row, others in zip(ids(limited), ids(free), strict=True):
        assert len(row) == 10 and not set(row) & set(entries.tolist())
        assert [docid for docid in others if docid in allowed] == [docid for docid in row if docid in others]


def test_documents_of_queries_own_are_evaluated_in_pieces(world, monkeypatch):
    expected = world.search(draw_entry_points(300, 9), 10, n_candidates=8)
    monkeypatch.setattr("pyterrier_hypencoder.search.documents._EVALUATED_BYTES", 28 * world.vectors.shape[1])
    assert ids(world.search(draw_entry_points(300, 9), 10, n_candidates=8)) == ids(expected)


@pytest.mark.parametrize("entries", [[np.array([3]), np.empty(0, np.int64), np.array([1, 2]), np.array([0, 0])]])
def test_queries_may_begin_with_few_documents_or_none(world, entries):
    found = world.search(entries, 5)
    assert ids(found)[1] == [] and found.stats["n_scored"][1] == 0 and len(ids(found)[3]) == 5


def test_a_collection_of_one_document():
    world = World(documents=2, neighbours=1)
    found = graph_search(world.score, world.vectors[:1], np.zeros((1, 1), np.uint32), np.array([0]), 4, 10)
    assert ids(found) == [[0]] * 4


def test_entry_points():
    assert draw_entry_points(100, 1000).tolist() == list(range(100))
    assert (
        draw_entry_points(1000, 10).tolist() == draw_entry_points(1000, 10).tolist() != draw_entry_points(1000, 10, 1).tolist()
    )
    assert [count_entry_points(n, 500) for n in (1, 499, 500, 10_000, 0.5, 1.0, 0.0001)] == [1, 499, 500, 500, 250, 500, 1]


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_the_released_runs(name):
    """The released code's approximate runs, from its own entry points, over its own graph and vectors."""
    numbers = Golden(FOLDERS[name])
    folder = numbers.folder if (numbers.folder / "graph.jsonl").exists() else numbers.folder.parent / "tiny_6l_cls_shared"
    docnos = [doc["docno"] for doc in numbers.texts["docs"]]
    place = {docno: docid for docid, docno in enumerate(docnos)}
    rows = [json.loads(line) for line in (folder / "graph.jsonl").read_text().splitlines()]
    graph = np.zeros((len(docnos), 10), np.uint32)
    for row in rows:
        graph[place[row["item_id"]]] = [place[neighbour] for neighbour in row["neighbors"]]
    vectors, qnets = numbers.arrays["doc_emb_batch8"].float().numpy(), numbers.qnets()
    for run, expected in numbers.facts["approx_expected_all"].items():
        facts = numbers.facts["approx"][run]
        parameters = facts["params"]
        found = graph_search(
            scoring.make_scorer(qnets, device="cpu"),
            vectors,
            graph,
            np.array([place[docno] for docno in facts["entry_ids"]]),
            5,
            facts["top_k"],
            n_candidates=parameters["ncandidates"],
            max_iter=parameters["max_iter"],
            early_stop=parameters["early_stop"],
        )
        for q, qid in enumerate(expected):
            assert [docnos[docid] for docid in found.docids[q]] == [docno for docno, _ in expected[qid]], (run, qid)
            np.testing.assert_allclose(found.scores[q], [score for _, score in expected[qid]], atol=2e-3)
