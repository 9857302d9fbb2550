"""Surrogate search: what it finds, what it says of itself, and where it gives way to another search."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.graph import draw_entry_points
from pyterrier_hypencoder.search.surrogate import FAILED, SETTLED, fit, make_exact_scan, surrogate_search

N, D, Q = 3000, 16, 3


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Documents in clusters, as those of text are."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, D))
    return (centres[rng.integers(0, 40, N)] + 0.5 * rng.normal(size=(N, D))).astype(np.float32)


def bent(seed: int = 0) -> scoring.Scorer:
    """Inner products, bent by a network beside them that is small."""
    spec = QNetSpec((D, 24, 1), do_residual=False, inner_product_skip=True, skip_gate=0.3, normalize_input=True)
    generator = torch.Generator().manual_seed(seed)
    return scoring.make_scorer(QNets.unflatten(torch.randn(Q, spec.size, generator=generator), spec), device="cpu")


def far_from_linear(layers: int = 6) -> scoring.Scorer:
    spec = QNetSpec((*[D] * (layers + 1), 1), normalize_input=True)
    generator = torch.Generator().manual_seed(1)
    return scoring.make_scorer(QNets.unflatten(torch.randn(Q, spec.size, generator=generator), spec), device="cpu")


def search(score, vectors, k=10, *, n_initial=100, n_per_round=100, **options):
    return surrogate_search(
        score, vectors, draw_entry_points(len(vectors), n_initial), Q, k, n_per_round=n_per_round, **options
    )


def recall(found, expected) -> float:
    pairs = zip(found.docids, expected.docids, strict=True)
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in pairs]))


def test_a_q_net_near_a_linear_one_is_found_out_with_few_evaluations(vectors):
    score = bent()
    found = search(score, vectors, 50)
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) >= 0.98
    assert found.stats["n_scored"].max() < N / 2
    assert not found.stats["fell_back"].any() and (found.stats["last_yield"] < SETTLED).all()


@pytest.mark.parametrize("with_graph", [False, True])
def test_a_q_net_far_from_linear_is_noticed(vectors, with_graph):
    score = far_from_linear()
    distances = torch.cdist(torch.from_numpy(vectors), torch.from_numpy(vectors)).fill_diagonal_(torch.inf)
    graph = distances.topk(30, largest=False).indices.numpy().astype(np.uint32) if with_graph else None
    fallback = "graph" if with_graph else "exhaustive"
    found = search(score, vectors, 100, n_initial=40, n_per_round=20, fallback=fallback, neighbours=graph)
    expected = exhaustive_search(score, vectors, Q, 100)
    assert found.stats["fell_back"].all() and (found.stats["last_yield"] > FAILED).all()
    if with_graph:
        assert recall(found, expected) >= 0.75 and (found.stats["n_scored"] < N).all()
    else:
        assert [row.tolist() for row in found.docids] == [row.tolist() for row in expected.docids]
        assert (found.stats["n_scored"] >= N).all()


def test_any_one_of_several_needs(vectors, monkeypatch):
    """The best of several inner products: no linear function ranks as it does, and several do."""

    class Either:
        needs = torch.randn(Q, 4, D, generator=torch.Generator().manual_seed(2))

        def __call__(self, block):
            return torch.einsum("qmd,nd->qmn", self.needs, block).amax(1)

        def each(self, block, counts):
            parts = block.split(list(counts))
            return torch.cat([(need @ part.T).amax(0) for need, part in zip(self.needs, parts, strict=True)])

        def select(self, queries):
            chosen = Either()
            chosen.needs = self.needs[queries]
            return chosen

    expected = exhaustive_search(Either(), vectors, Q, 300)
    monkeypatch.setattr("pyterrier_hypencoder.search.surrogate.FAILED", 1.0)  # none gives way to another search
    several = search(Either(), vectors, 300, n_per_round=80)
    monkeypatch.setattr("pyterrier_hypencoder.search.surrogate._WHOLE_ROUNDS", 100)
    one = search(Either(), vectors, 300, n_per_round=80)
    assert several.stats["n_scored"].mean() <= 1.1 * one.stats["n_scored"].mean()
    assert recall(several, expected) > recall(one, expected) + 0.02


def test_every_document_a_seed_is_exhaustive(vectors):
    score = far_from_linear()
    found = search(score, vectors, 20, n_initial=N)
    assert [row.tolist() for row in found.docids] == [row.tolist() for row in exhaustive_search(score, vectors, Q, 20).docids]
    assert found.stats["n_scored"].tolist() == [N] * Q and not found.stats["fell_back"].any()


def test_scores_are_the_q_nets(vectors):
    score = bent()
    found = search(score, vectors)
    exact = score(torch.from_numpy(vectors)).numpy()
    for q in range(Q):
        np.testing.assert_allclose(found.scores[q], exact[q, found.docids[q]], rtol=1e-4, atol=1e-4)
        assert len(set(found.docids[q].tolist())) == 10


def test_a_monotone_bend_of_the_scores_changes_nothing(vectors):
    score = bent()

    class Cubed:
        def __call__(self, block):
            return score(block) ** 3

        def each(self, block, counts):
            return score.each(block, counts) ** 3

        def select(self, queries):
            raise AssertionError("no query should fail")

    assert [row.tolist() for row in search(Cubed(), vectors).docids] == [row.tolist() for row in search(score, vectors).docids]


def test_permuting_documents_permutes_results(vectors):
    order = np.random.default_rng(5).permutation(N)
    place, seeds, score = np.argsort(order), draw_entry_points(N, 100), bent()
    expected = surrogate_search(score, vectors, seeds, Q, 10, n_per_round=100)
    found = surrogate_search(score, vectors[order], place[seeds], Q, 10, n_per_round=100)
    assert [order[row].tolist() for row in found.docids] == [row.tolist() for row in expected.docids]


def test_a_batch_is_its_queries_one_by_one(vectors):
    score = bent()
    whole = search(score, vectors)
    for q in range(Q):
        single = surrogate_search(score.select([q]), vectors, draw_entry_points(N, 100), 1, 10, n_per_round=100)
        assert single.docids[0].tolist() == whole.docids[q].tolist()


def test_a_query_vector_in_place_of_the_first_fit(vectors):
    score = bent()
    start = score._nets.query_vectors
    found = search(score, vectors, 50, n_initial=20, start=start)
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) >= 0.98


def steps(directions: list[torch.Tensor], monotone) -> scoring.Scorer:
    """A function of the inner products with some directions, each (Q, D)."""

    class Steps:
        def __call__(self, rows):
            return monotone(torch.stack([direction @ rows.float().T for direction in directions]))

        def each(self, rows, counts):
            parts = zip(rows.float().split(list(counts)), range(Q), strict=True)
            return torch.cat([monotone(torch.stack([d[q : q + 1] @ part.T for d in directions]))[0] for part, q in parts])

        def select(self, queries):
            return steps([direction[list(queries)] for direction in directions], monotone)

    return Steps()


def test_a_query_vector_that_ranks_as_the_q_net_does_is_enough(vectors):
    start = torch.randn(Q, D, generator=torch.Generator().manual_seed(5))
    score = steps([start], lambda values: torch.tanh(values[0] / 20))
    found = search(score, vectors, 50, n_per_round=250, start=start)
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) == 1
    assert found.stats["n_scored"].tolist() == [350] * Q and found.stats["n_rounds"].tolist() == [2] * Q
    assert found.stats["last_yield"].tolist() == [0] * Q
    few = search(score, vectors, 50, n_per_round=190, start=start)  # the best 100 are not among the 95 that it likes best
    assert few.stats["n_rounds"].tolist() == [3] * Q
    many = search(score, vectors, 101, n_per_round=250, start=start)  # which are more than the best that are looked at
    assert (many.stats["n_scored"] > 350 + 101).all()


def test_a_query_vector_is_not_enough_where_seeds_speak_against_it(vectors):
    start, other = torch.randn(2, Q, D, generator=torch.Generator().manual_seed(6))
    score = steps([start, other], lambda values: values.amax(dim=0))
    whole = exhaustive_search(score, vectors, Q, N)
    seeds = [docids[1000:1100] for docids in whole.docids]  # none of which is among the best
    found = surrogate_search(score, vectors, seeds, Q, 50, start=start, n_per_round=250)
    assert (found.stats["n_rounds"] > 2).all()
    found = search(score, vectors, 50, n_per_round=250, start=start)
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) >= 0.98


def test_a_query_vector_is_not_enough_where_its_best_documents_are_not_the_q_nets(vectors):
    start = torch.randn(1, D, generator=torch.Generator().manual_seed(7)).expand(Q, D)
    edge = float(np.sort(vectors @ start[0].numpy())[-200])
    score = steps([start], lambda values: torch.where(values[0] > edge, edge - (values[0] - edge), values[0]))
    found = search(score, vectors, 50, n_per_round=250, start=start)
    alone = search(score, vectors, 50, n_per_round=250, start=start, max_rounds=1)
    assert (found.stats["n_rounds"] > 2).all() and (alone.stats["last_yield"] > SETTLED).all()
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) >= recall(alone, exhaustive_search(score, vectors, Q, 50))


def test_seeds_of_several_sizes_and_a_query_vector_that_is_enough(vectors):
    start = torch.randn(Q, D, generator=torch.Generator().manual_seed(5))
    score = steps([start], lambda values: values[0])
    seeds = [draw_entry_points(N, size, seed=size) for size in (16, 60, 100)]
    found = surrogate_search(score, vectors, seeds, Q, 50, start=start, n_per_round=250)
    assert found.stats["n_scored"].tolist() == [266, 310, 350]
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) == 1


def test_only_documents_that_may_be_returned(vectors):
    score = bent()
    allowed = [np.arange(0, N, 5), None, np.array([3, 2000])]
    found = search(score, vectors, 10, allowed=allowed)
    expected = exhaustive_search(score, vectors, Q, 10, allowed=allowed)
    assert [row.tolist() for row in found.docids] == [row.tolist() for row in expected.docids]


def test_a_walk_after_it_goes_over_documents_that_may_not_be_returned():
    rng = np.random.default_rng(0)
    line = np.linspace(0, 1, 200)[:, None] * np.ones((1, D), np.float32) + 1e-3 * rng.normal(size=(200, D))
    vectors = line.astype(np.float32)
    nearest = np.clip(np.arange(200)[:, None] + np.array([-1, 1]), 0, 199).astype(np.uint32)
    score = scoring.make_scorer(QNets.linear(torch.ones(Q, D)), device="cpu")
    allowed = np.append(np.arange(0, 150), 199)  # 199 is reached over those in between
    options = {"max_rounds": 1, "n_per_round": 16, "polish": True, "neighbours": nearest, "max_iter": 100, "n_candidates": 4}
    start = -torch.ones(Q, D)  # leads away from it
    found = search(score, vectors, 5, n_initial=16, start=start, allowed=[allowed] * Q, **options)
    assert [row.tolist()[0] for row in found.docids] == [199] * Q


def test_rounds_that_find_nothing_new_are_not_counted(vectors):
    found = surrogate_search(bent(), vectors[:30], np.arange(30), Q, 5)
    assert found.stats["n_rounds"].tolist() == [1] * Q and found.stats["n_scored"].tolist() == [30] * Q


@pytest.mark.parametrize("max_rounds", [1, 2, 3])
def test_rounds_are_bounded(vectors, max_rounds):
    found = search(bent(), vectors, 10, max_rounds=max_rounds, n_per_round=20, n_initial=20)
    ended = ~found.stats["fell_back"]
    assert (found.stats["n_rounds"][ended] <= max_rounds + 2).all()


def test_vectors_that_are_all_equal():
    found = search(bent(), np.ones((500, D), np.float32), 5)
    assert [row.tolist() for row in found.docids] == [[0, 1, 2, 3, 4]] * Q or all(len(row) == 5 for row in found.docids)
    assert all(np.isfinite(row).all() for row in found.scores)


@pytest.mark.parametrize("documents", [1, 2, 17])
def test_collections_of_hardly_any_documents(vectors, documents):
    found = search(bent(), vectors[:documents], 10)
    assert [len(row) for row in found.docids] == [min(10, documents)] * Q


def test_half_precision_vectors_and_memory_maps(vectors, tmp_path):
    np.save(tmp_path / "v.npy", vectors.astype(np.float16))
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    score = bent()
    expected = exhaustive_search(score, mapped, Q, 20)
    assert recall(search(score, mapped, 20), expected) >= 0.95
    one = surrogate_search(score.select([0]), mapped, draw_entry_points(N, 100), 1, 20, n_per_round=100)
    assert recall(one, expected.select([0])) >= 0.95


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("queries", [1, 3])
def test_the_scan_is_the_inner_product(monkeypatch, vectors, dtype, queries):
    monkeypatch.setattr("pyterrier_hypencoder.search.surrogate._PRODUCTS", 1000 * queries)
    functions = 1e6 * torch.randn(queries, D, generator=torch.Generator().manual_seed(0))
    met = torch.zeros(queries, N, dtype=torch.bool)
    met[:, ::2] = True
    values, docids = make_exact_scan(vectors.astype(dtype))(functions, 7, met)
    products = (functions @ torch.from_numpy(vectors.astype(dtype)).float().T).masked_fill(met, -torch.inf)
    expected = products.topk(7, dim=1)
    torch.testing.assert_close(values.sort(dim=1, descending=True).values, expected.values, rtol=5e-3, atol=0)
    assert not met.gather(1, docids).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("queries", [1, 3])
def test_a_scan_on_a_gpu_of_vectors_that_lie_elsewhere(vectors, queries):
    functions, met = torch.randn(queries, D), torch.zeros(queries, N, dtype=torch.bool)
    values, docids = make_exact_scan(vectors)(functions.cuda(), 10, met.cuda())
    assert values.is_cuda and docids.is_cuda
    expected = make_exact_scan(vectors)(functions, 10, met)[1]
    assert docids.cpu().sort(dim=1).values.tolist() == expected.sort(dim=1).values.tolist()


def test_the_fit_of_linear_scores_is_their_direction(vectors):
    direction = torch.randn(1, D, generator=torch.Generator().manual_seed(0))
    rows = torch.from_numpy(vectors[:400]).unsqueeze(0)
    scores = (rows @ direction.unsqueeze(-1)).squeeze(-1)
    assert torch.cosine_similarity(fit(rows, scores, 1e-3), direction) > 0.97
    hidden = torch.cat([scores, torch.full((1, 5), -torch.inf)], dim=1)
    padded = torch.cat([rows, 1e3 * torch.ones(1, 5, D)], dim=1)
    torch.testing.assert_close(fit(padded, hidden, 0.05), fit(rows, scores, 0.05), rtol=1e-3, atol=1e-4)


def test_a_last_walk_over_the_graph_finds_more(vectors):
    score, expected = bent(), exhaustive_search(bent(), vectors, Q, 50)
    distances = torch.cdist(torch.from_numpy(vectors), torch.from_numpy(vectors)).fill_diagonal_(torch.inf)
    graph = distances.topk(10, largest=False).indices.numpy().astype(np.uint32)
    few = {"n_initial": 40, "n_per_round": 20, "max_rounds": 1}
    plain = search(score, vectors, 50, **few)
    polished = search(score, vectors, 50, polish=True, neighbours=graph, **few)
    assert recall(polished, expected) > recall(plain, expected)
    assert plain.stats["n_scored"].tolist() == [60] * Q and (polished.stats["n_scored"] > 60).all()
    with pytest.raises(ValueError, match="polish"):
        search(score, vectors, 50, polish=True)
