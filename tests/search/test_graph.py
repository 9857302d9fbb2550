"""Graph search (Algorithm 1): its laws, the readable reference, and the results of the released code."""

from __future__ import annotations

import functools
import itertools
import json

import numpy as np
import pytest
import torch
from golden_checkpoints import FOLDERS, Golden

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.search import graph
from pyterrier_hypencoder.search.entry_points import draw_entry_points
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.graph import PRESETS, VARIANTS, graph_search, reference_graph_search

SPEC = QNetSpec((12, 12, 12, 1))


class World:
    """Random documents, their neighbour graph, and random q-nets."""

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

    def search_exhaustively(self, k):
        return exhaustive_search(self.score, self.vectors, len(self.qnets), k)


@functools.cache
def make_world(seed: int) -> World:
    return World(seed=seed)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


def ids(results) -> list[list[int]]:
    return [found.tolist() for found in results.docids]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize(("k", "n_candidates", "max_iter"), list(itertools.product([1, 3, 40], [1, 4, 25], [1, 3, 16])))
@pytest.mark.parametrize("seed", [0, 1])
def test_graph_search_equals_the_reference(seed, k, n_candidates, max_iter, early_stop, variant):
    world = make_world(seed)
    options = {"n_candidates": n_candidates, "max_iter": max_iter, "early_stop": early_stop, "variant": variant}
    entries = draw_entry_points(300, 7, seed)
    found = world.search(entries, k, **options)
    for q in range(4):
        single = world.score.select([q])
        expected = reference_graph_search(single, world.vectors, world.graph, entries.tolist(), k, **options)
        assert found.docids[q].tolist() == [docid for _, docid in expected]
        np.testing.assert_allclose(found.scores[q], [score for score, _ in expected], atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ties_are_broken_like_in_the_reference(variant):
    world, rng = World(documents=120), np.random.default_rng(3)
    values = torch.from_numpy(rng.integers(0, 4, 120).astype(np.float32))

    class FixedScorer:
        """The vector of a document is its docid, and its score is one of four values."""

        def __call__(self, vectors):
            return values[vectors[:, 0].long()].unsqueeze(0)

        def each(self, vectors, counts):
            return values[vectors[:, 0].long()]

    numbers = np.arange(120, dtype=np.float32)[:, None]
    for k, n_candidates in itertools.product([1, 5, 30], [1, 6]):
        entries = draw_entry_points(120, 5, k)
        options = {"n_candidates": n_candidates, "max_iter": 8, "variant": variant}
        found = graph_search(FixedScorer(), numbers, world.graph, entries, 1, k, **options)
        expected = reference_graph_search(FixedScorer(), numbers, world.graph, entries.tolist(), k, **options)
        assert found.docids[0].tolist() == [docid for _, docid in expected]


@pytest.mark.parametrize("k", [1, 10, 300, 1000])
def test_all_documents_as_entry_points_equal_exhaustive_search(world, k):
    found = world.search(np.arange(300), k, max_iter=1, n_candidates=1)
    assert ids(found) == ids(world.search_exhaustively(k))
    assert found.stats["n_scored"].tolist() == [300] * 4 and found.stats["n_rounds"].tolist() == [1] * 4


def test_complete_graph_equals_exhaustive_search():
    world = World(documents=60, neighbours=59)
    found = world.search(np.array([5]), 20, max_iter=2, n_candidates=1)
    assert ids(found) == ids(world.search_exhaustively(20))
    assert found.stats["n_scored"].tolist() == [60] * 4


def test_no_document_is_scored_twice(world):
    class Counting:
        def __init__(self, score):
            self.score, self.scored = score, []

        def __call__(self, vectors):
            self.scored.append(vectors)
            return self.score(vectors)

        def each(self, vectors, counts):
            self.scored.append(vectors)
            return self.score.each(vectors, counts)

    counting = Counting(world.score.select([0]))
    found = graph_search(counting, world.vectors, world.graph, draw_entry_points(300, 9), 1, 10, n_candidates=4)
    rows = torch.cat(counting.scored)
    assert len(torch.unique(rows, dim=0)) == len(rows) == found.stats["n_scored"][0]


def test_batch_equals_single_queries(world):
    whole = world.search(draw_entry_points(300, 9), 10, n_candidates=4)
    per_query = [draw_entry_points(300, 5, seed) for seed in range(4)]
    each = world.search(per_query, 10, n_candidates=4)
    for q in range(4):
        assert ids(world.search(draw_entry_points(300, 9), 10, queries=[q], n_candidates=4))[0] == ids(whole)[q]
        single = world.search(per_query[q], 10, queries=[q], n_candidates=4)
        assert ids(single)[0] == ids(each)[q]
        assert single.stats["n_scored"][0] == each.stats["n_scored"][q]


@pytest.mark.parametrize("early_stop", [True, False])
def test_more_rounds_never_lower_a_score(world, early_stop):
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


def test_filter_passes_through_excluded_documents(world):
    allowed = [np.arange(0, 300, 3), None, np.empty(0, np.int64), np.array([7])]
    found = world.search(np.arange(300), 10, allowed=allowed)
    assert ids(found) == ids(exhaustive_search(world.score, world.vectors, 4, 10, allowed=allowed))
    found = world.search(draw_entry_points(300, 9), 10, allowed=allowed, n_candidates=8)
    assert all(set(row) <= set(range(0, 300, 3)) for row in ids(found)[:1]) and ids(found)[2] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_filter_does_not_change_which_documents_are_scored(world, variant):
    entries, allowed = draw_entry_points(300, 9), np.setdiff1d(np.arange(300), draw_entry_points(300, 9))
    options = {"n_candidates": 8, "variant": variant}
    free = world.search(entries, 10, **options)
    limited = world.search(entries, 10, allowed=[allowed] * 4, **options)
    assert limited.stats["n_scored"].tolist() == free.stats["n_scored"].tolist()
    for row, others in zip(ids(limited), ids(free), strict=True):
        assert len(row) == 10 and not set(row) & set(entries.tolist())
        assert [docid for docid in others if docid in allowed] == [docid for docid in row if docid in others]


def test_scoring_in_pieces_does_not_change_results(world, monkeypatch):
    expected = world.search(draw_entry_points(300, 9), 10, n_candidates=8)
    monkeypatch.setattr("pyterrier_hypencoder.search.documents._SCORED_BYTES", 28 * world.vectors.shape[1])
    assert ids(world.search(draw_entry_points(300, 9), 10, n_candidates=8)) == ids(expected)


@pytest.mark.parametrize("entries", [[np.array([3]), np.empty(0, np.int64), np.array([1, 2]), np.array([0, 0])]])
def test_queries_with_few_or_no_entry_points(world, entries):
    found = world.search(entries, 5)
    assert ids(found)[1] == [] and found.stats["n_scored"][1] == 0 and len(ids(found)[3]) == 5


def test_collection_of_one_document():
    world = World(documents=2, neighbours=1)
    found = graph_search(world.score, world.vectors[:1], np.zeros((1, 1), np.uint32), np.array([0]), 4, 10)
    assert ids(found) == [[0]] * 4


def test_presets_are_the_settings_of_the_paper():
    settings = {name: [p["initial_candidates"], p["n_candidates"], p["max_iter"]] for name, p in PRESETS.items()}
    assert settings == {"efficient_1": [10_000, 64, 16], "efficient_2": [100_000, 328, 20]}
    assert {preset["algorithm"] for preset in PRESETS.values()} == {"graph"}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_results_equal_the_released_code(name):
    """The golden runs have recorded entry points, a recorded graph and recorded vectors."""
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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("allowed", [None, [np.arange(0, 300, 7)] * 4])
def test_very_large_options_cost_no_more_than_the_collection(world, monkeypatch, variant, allowed):
    """A billion results of 300 documents would be gigabytes."""
    sizes, make_empty = [], graph._make_empty
    monkeypatch.setattr(graph, "_make_empty", lambda n, k, device: sizes.append(k) or make_empty(n, k, device))
    exact = {"n_candidates": 300, "max_iter": 300, "variant": variant, "early_stop": False, "allowed": allowed}
    expected = world.search(draw_entry_points(300, 9), 300, **exact)
    found = world.search(draw_entry_points(300, 9), 10**9, **exact | {"n_candidates": 10**9, "max_iter": 10**9})
    assert ids(found) == ids(expected) and found.stats["n_scored"].tolist() == expected.stats["n_scored"].tolist()
    assert sizes == [300, 300 if allowed is None else 43] * 2


@pytest.mark.parametrize("default", ["float16", "float64", "meta"])
@pytest.mark.parametrize("allowed", [None, [np.arange(0, 300, 3), None, np.empty(0, np.int64), np.array([7])]])
def test_global_defaults_of_torch_change_no_result(world, torch_default, default, allowed):
    expected = world.search(draw_entry_points(300, 9), 10, n_candidates=4, allowed=allowed)
    with torch_default(default):
        found = world.search(draw_entry_points(300, 9), 10, n_candidates=4, allowed=allowed)
    assert ids(found) == ids(expected) and all(map(np.array_equal, found.scores, expected.scores))
