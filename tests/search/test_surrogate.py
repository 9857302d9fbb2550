"""Surrogate search: its results and statistics, when it stops, and when it falls back to exhaustive search."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.search.entry_points import draw_entry_points
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.scan import make_exact_scan
from pyterrier_hypencoder.search.surrogate import CONVERGED_BELOW, FALLBACK_ABOVE, surrogate_search

N, D, Q = 3000, 16, 3


def nearly_linear(seed: int = 0) -> scoring.Scorer:
    """Build q-nets that add a small network to an inner product."""
    spec = QNetSpec((D, 24, 1), do_residual=False, inner_product_skip=True, skip_gate=0.3, normalize_input=True)
    generator = torch.Generator().manual_seed(seed)
    return scoring.make_scorer(QNets.unflatten(torch.randn(Q, spec.size, generator=generator), spec), device="cpu")


def far_from_linear(layers: int = 6) -> scoring.Scorer:
    """Build random deep q-nets."""
    spec = QNetSpec((*[D] * (layers + 1), 1), normalize_input=True)
    generator = torch.Generator().manual_seed(1)
    return scoring.make_scorer(QNets.unflatten(torch.randn(Q, spec.size, generator=generator), spec), device="cpu")


def get_query_vectors(score):
    """Return the query vectors of a scorer's q-nets, (Q, D), or None."""
    found = [network.qnet.query_vectors for network in score._networks]
    return None if found[0] is None else torch.cat(found)


def search(score, vectors, k=10, *, n_initial=100, n_per_round=100, **options):
    return surrogate_search(
        score, vectors, draw_entry_points(len(vectors), n_initial), Q, k, n_per_round=n_per_round, **options
    )


def ids(results) -> list[list[int]]:
    return [docids.tolist() for docids in results.docids]


def recall(found, expected) -> float:
    pairs = zip(found.docids, expected.docids, strict=True)
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in pairs]))


def test_nearly_linear_qnets_need_few_documents(vectors):
    score = nearly_linear()
    found = search(score, vectors, 50)
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) >= 0.98
    assert found.stats["n_scored"].max() < N / 2
    assert not found.stats["fell_back"].any() and (found.stats["last_yield"] < CONVERGED_BELOW).all()


@pytest.mark.parametrize("k", [100, 150])
def test_qnets_far_from_linear_are_searched_exhaustively_with_a_warning(vectors, caplog, k):
    score = far_from_linear()
    with caplog.at_level(logging.WARNING, logger="pyterrier_hypencoder"):
        found = search(score, vectors, k, n_initial=40, n_per_round=20)
    expected = exhaustive_search(score, vectors, Q, k)
    assert ids(found) == ids(expected)
    assert found.stats["fell_back"].all() and (found.stats["last_yield"] > FALLBACK_ABOVE).all()
    assert (found.stats["n_scored"] >= N).all()
    assert [record.getMessage() for record in caplog.records] == [
        "surrogate search: 3 of 3 q-nets are too far from linear, so they score all documents"
    ]


def test_fallback_of_some_queries_keeps_filters_and_the_other_queries(vectors, caplog):
    """The first query is linear. The others rank documents by random numbers."""
    random = torch.rand(N, generator=torch.Generator().manual_seed(0))

    class MixedScorer:
        def __init__(self, queries) -> None:
            self.queries = queries

        def __call__(self, block):
            return torch.stack([self.score_one(q, block) for q in self.queries])

        def each(self, block, counts):
            return torch.cat(
                [self.score_one(q, part) for q, part in zip(self.queries, block.split(list(counts)), strict=True)]
            )

        def score_one(self, query, block):
            return block[:, 0] if query == 0 else random[block[:, 1].mul(1e4).long() % N]

        def select(self, queries):
            return MixedScorer([self.queries[q] for q in queries])

    allowed = [None, np.arange(0, N, 2), None]
    with caplog.at_level(logging.WARNING, logger="pyterrier_hypencoder"):
        found = search(MixedScorer(range(Q)), vectors, 50, n_initial=200, n_per_round=50, allowed=allowed)
    assert found.stats["fell_back"].tolist() == [False, True, True] and "2 of 3 q-nets" in caplog.text
    expected = exhaustive_search(MixedScorer(range(Q)), vectors, Q, 50, allowed=allowed)
    assert ids(found)[1:] == ids(expected)[1:]
    assert found.stats["n_scored"][0] < N / 2 and recall(found.select([0]), expected.select([0])) == 1


def test_no_warning_without_fallback(vectors, caplog):
    with caplog.at_level(logging.WARNING, logger="pyterrier_hypencoder"):
        search(nearly_linear(), vectors)
    assert not caplog.records


@pytest.mark.parametrize("query_vectors", [None, torch.ones(Q, D)])
def test_scan_option_replaces_the_exact_scan(vectors, query_vectors):
    calls, exact = [], make_exact_scan(vectors)

    def scan(queries, k, seen, allowed=None):
        calls.append((tuple(queries.shape), k))
        return exact(queries, k, seen, allowed)

    found = search(nearly_linear(), vectors, scan=scan, query_vectors=query_vectors)
    expected = search(nearly_linear(), vectors, query_vectors=query_vectors)
    assert ids(found) == ids(expected)
    assert calls[0] == ((Q, D), 100) and len(calls) >= found.stats["n_rounds"].max() - 1


def test_scan_that_finds_nothing_returns_the_entry_points(vectors):
    def scan(queries, k, seen, allowed=None):
        return torch.full((len(queries), k), -torch.inf), torch.zeros(len(queries), k, dtype=torch.long)

    score, entry_points = nearly_linear(), draw_entry_points(N, 100)
    found = search(score, vectors, scan=scan)
    allowed = [entry_points] * Q
    expected = exhaustive_search(score, vectors, Q, 10, allowed=allowed)
    assert ids(found) == ids(expected)
    assert found.stats["n_scored"].tolist() == [100] * Q


def test_several_functions_follow_a_maximum_of_inner_products(vectors, monkeypatch):
    """No single linear function ranks like the maximum of four inner products."""

    class MaximumScorer:
        functions = torch.randn(Q, 4, D, generator=torch.Generator().manual_seed(2))

        def __call__(self, block):
            return torch.einsum("qmd,nd->qmn", self.functions, block).amax(1)

        def each(self, block, counts):
            parts = block.split(list(counts))
            return torch.cat([(function @ part.T).amax(0) for function, part in zip(self.functions, parts, strict=True)])

        def select(self, queries):
            chosen = MaximumScorer()
            chosen.functions = self.functions[queries]
            return chosen

    expected = exhaustive_search(MaximumScorer(), vectors, Q, 300)
    monkeypatch.setattr("pyterrier_hypencoder.search.surrogate.FALLBACK_ABOVE", 1.0)  # no fallback
    several = search(MaximumScorer(), vectors, 300, n_per_round=80)
    monkeypatch.setattr("pyterrier_hypencoder.search.surrogate._ROUNDS_WITH_ONE_FUNCTION", 100)
    one = search(MaximumScorer(), vectors, 300, n_per_round=80)
    assert several.stats["n_scored"].mean() <= 1.1 * one.stats["n_scored"].mean()
    assert recall(several, expected) > recall(one, expected) + 0.02


def test_all_documents_as_entry_points_equal_exhaustive_search(vectors):
    score = far_from_linear()
    found = search(score, vectors, 20, n_initial=N)
    assert ids(found) == ids(exhaustive_search(score, vectors, Q, 20))
    assert found.stats["n_scored"].tolist() == [N] * Q and not found.stats["fell_back"].any()


def test_scores_are_those_of_the_qnets(vectors):
    score = nearly_linear()
    found = search(score, vectors)
    exact = score(torch.from_numpy(vectors)).numpy()
    for q in range(Q):
        np.testing.assert_allclose(found.scores[q], exact[q, found.docids[q]], rtol=1e-4, atol=1e-4)
        assert len(set(found.docids[q].tolist())) == 10


def test_monotone_transformation_of_scores_keeps_the_ranking(vectors):
    score = nearly_linear()

    class CubedScorer:
        def __call__(self, block):
            return score(block) ** 3

        def each(self, block, counts):
            return score.each(block, counts) ** 3

        def select(self, queries):
            raise AssertionError("no query should fall back")

    assert ids(search(CubedScorer(), vectors)) == ids(search(score, vectors))


def test_permuting_documents_permutes_results(vectors):
    order = np.random.default_rng(5).permutation(N)
    place, entry_points, score = np.argsort(order), draw_entry_points(N, 100), nearly_linear()
    expected = surrogate_search(score, vectors, entry_points, Q, 10, n_per_round=100)
    found = surrogate_search(score, vectors[order], place[entry_points], Q, 10, n_per_round=100)
    assert [order[row].tolist() for row in found.docids] == ids(expected)


def test_batch_equals_single_queries(vectors):
    score = nearly_linear()
    whole = search(score, vectors)
    for q in range(Q):
        single = surrogate_search(score.select([q]), vectors, draw_entry_points(N, 100), 1, 10, n_per_round=100)
        assert single.docids[0].tolist() == whole.docids[q].tolist()


def test_query_vector_replaces_the_first_fit(vectors):
    score = nearly_linear()
    query_vectors = get_query_vectors(score)
    found = search(score, vectors, 50, n_initial=20, query_vectors=query_vectors)
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) >= 0.98


def make_scorer(directions: list[torch.Tensor], combine) -> scoring.Scorer:
    """Build a scorer that combines the inner products with some directions, each (Q, D)."""

    class DirectionsScorer:
        def __call__(self, rows):
            return combine(torch.stack([direction @ rows.float().T for direction in directions]))

        def each(self, rows, counts):
            parts = zip(rows.float().split(list(counts)), range(Q), strict=True)
            return torch.cat([combine(torch.stack([d[q : q + 1] @ part.T for d in directions]))[0] for part, q in parts])

        def select(self, queries):
            return make_scorer([direction[list(queries)] for direction in directions], combine)

    return DirectionsScorer()


def test_query_vector_that_ranks_like_the_qnet_ends_the_search(vectors):
    query_vectors = torch.randn(Q, D, generator=torch.Generator().manual_seed(5))
    score = make_scorer([query_vectors], lambda values: torch.tanh(values[0] / 20))
    found = search(score, vectors, 50, n_per_round=250, query_vectors=query_vectors)
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) == 1
    assert found.stats["n_scored"].tolist() == [350] * Q and found.stats["n_rounds"].tolist() == [2] * Q
    assert found.stats["last_yield"].tolist() == [0] * Q
    few = search(score, vectors, 50, n_per_round=190, query_vectors=query_vectors)  # the best 100 do not fit into the first 95
    assert few.stats["n_rounds"].tolist() == [3] * Q
    many = search(score, vectors, 200, n_per_round=500, query_vectors=query_vectors)
    assert many.stats["n_scored"].tolist() == [600] * Q and recall(many, exhaustive_search(score, vectors, Q, 200)) == 1
    narrow = search(score, vectors, 200, n_per_round=300, query_vectors=query_vectors)  # the best 200 are not in the first 150
    assert (narrow.stats["n_rounds"] > 2).all()


def test_query_vector_is_not_trusted_if_it_ranks_entry_points_differently(vectors):
    query_vectors, other = torch.randn(2, Q, D, generator=torch.Generator().manual_seed(6))
    score = make_scorer([query_vectors, other], lambda values: values.amax(dim=0))
    whole = exhaustive_search(score, vectors, Q, N)
    entry_points = [docids[1000:1100] for docids in whole.docids]  # not among the best documents
    found = surrogate_search(score, vectors, entry_points, Q, 50, query_vectors=query_vectors, n_per_round=250)
    assert (found.stats["n_rounds"] > 2).all()
    found = search(score, vectors, 50, n_per_round=250, query_vectors=query_vectors)
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) >= 0.98


def test_query_vector_is_not_trusted_if_its_best_documents_score_low(vectors):
    query_vectors = torch.randn(1, D, generator=torch.Generator().manual_seed(7)).expand(Q, D)
    edge = float(np.sort(vectors @ query_vectors[0].numpy())[-200])
    score = make_scorer([query_vectors], lambda values: torch.where(values[0] > edge, edge - (values[0] - edge), values[0]))
    found = search(score, vectors, 50, n_per_round=250, query_vectors=query_vectors)
    alone = search(score, vectors, 50, n_per_round=250, query_vectors=query_vectors, max_rounds=1)
    assert (found.stats["n_rounds"] > 2).all() and (alone.stats["last_yield"] > CONVERGED_BELOW).all()
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) >= recall(alone, exhaustive_search(score, vectors, Q, 50))


def test_trusted_query_vector_with_different_numbers_of_entry_points(vectors):
    query_vectors = torch.randn(Q, D, generator=torch.Generator().manual_seed(5))
    score = make_scorer([query_vectors], lambda values: values[0])
    entry_points = [draw_entry_points(N, size, seed=size) for size in (16, 60, 100)]
    found = surrogate_search(score, vectors, entry_points, Q, 50, query_vectors=query_vectors, n_per_round=250)
    assert found.stats["n_scored"].tolist() == [266, 310, 350]
    assert recall(found, exhaustive_search(score, vectors, Q, 50)) == 1


def test_filter_returns_allowed_documents_only(vectors):
    score = nearly_linear()
    allowed = [np.arange(0, N, 5), None, np.array([3, 2000])]
    found = search(score, vectors, 10, allowed=allowed)
    expected = exhaustive_search(score, vectors, Q, 10, allowed=allowed)
    assert ids(found) == ids(expected)


def test_rounds_without_new_documents_are_not_counted(vectors):
    found = surrogate_search(nearly_linear(), vectors[:30], np.arange(30), Q, 5)
    assert found.stats["n_rounds"].tolist() == [1] * Q and found.stats["n_scored"].tolist() == [30] * Q


@pytest.mark.parametrize("max_rounds", [1, 2, 3])
def test_max_rounds_limits_the_number_of_rounds(vectors, max_rounds):
    found = search(nearly_linear(), vectors, 10, max_rounds=max_rounds, n_per_round=20, n_initial=20)
    ended = ~found.stats["fell_back"]
    assert (found.stats["n_rounds"][ended] <= max_rounds + 2).all()


def test_equal_vectors_give_results():
    found = search(nearly_linear(), np.ones((500, D), np.float32), 5)
    assert all(len(set(row)) == 5 for row in ids(found))
    assert all(np.isfinite(row).all() and len(set(row.tolist())) == 1 for row in found.scores)


@pytest.mark.parametrize("documents", [1, 2, 17])
def test_small_collections(vectors, documents):
    found = search(nearly_linear(), vectors[:documents], 10)
    assert [len(row) for row in found.docids] == [min(10, documents)] * Q


def test_half_precision_memory_map_is_searched(vectors, tmp_path):
    np.save(tmp_path / "v.npy", vectors.astype(np.float16))
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    score = nearly_linear()
    expected = exhaustive_search(score, mapped, Q, 20)
    assert recall(search(score, mapped, 20), expected) >= 0.95
    one = surrogate_search(score.select([0]), mapped, draw_entry_points(N, 100), 1, 20, n_per_round=100)
    assert recall(one, expected.select([0])) >= 0.95


def test_very_large_options_cost_no_more_than_the_collection(vectors):
    """A scan is never asked for more documents than there are."""
    asked, exact = [], make_exact_scan(vectors)

    def scan(queries, k, seen, allowed=None):
        asked.append(k)
        return exact(queries, k, seen, allowed)

    found = search(nearly_linear(), vectors, 10**9, n_initial=10**9 // 10**7, n_per_round=10**9, max_rounds=10**9, scan=scan)
    assert ids(found) == ids(exhaustive_search(nearly_linear(), vectors, Q, N))
    assert max(asked) <= N and found.stats["n_scored"].tolist() == [N] * Q


@pytest.mark.parametrize("default", ["float16", "float64", "meta"])
@pytest.mark.parametrize("make_score", [nearly_linear, far_from_linear])
def test_global_defaults_of_torch_change_no_result(vectors, torch_default, default, make_score):
    score = make_score()
    options = {"query_vectors": get_query_vectors(score), "allowed": [np.arange(0, N, 2), None, np.array([3])]}
    expected = search(score, vectors, 150, **options)
    with torch_default(default):
        found = search(score, vectors, 150, **options)
    assert ids(found) == ids(expected) and all(map(np.array_equal, found.scores, expected.scores))
    for name, values in expected.stats.items():
        np.testing.assert_array_equal(found.stats[name], values)


@pytest.mark.parametrize("make_score", [nearly_linear, far_from_linear])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_batch_size_does_not_change_documents_or_scores(vectors, dtype, make_score):
    """The vectors share a large mean and are nearly equal in groups, so products in half precision are coarse."""
    rows = vectors + 8
    rows[1::3] = rows[::3] + 1e-2 * rows[2::3]
    rows, score = rows.astype(dtype), make_score()
    query_vectors = get_query_vectors(score)
    whole = search(score, rows, 50, max_rounds=3, query_vectors=query_vectors)
    for q in range(Q):
        own = None if query_vectors is None else query_vectors[q : q + 1]
        options = {"n_per_round": 100, "max_rounds": 3, "query_vectors": own}
        single = surrogate_search(score.select([q]), rows, draw_entry_points(N, 100), 1, 50, **options)
        assert ids(single)[0] == ids(whole)[q] and np.array_equal(single.scores[0], whole.scores[q])
        for name in ("n_scored", "n_rounds", "last_yield", "converged"):
            assert single.stats[name][0] == whole.stats[name][q]


def test_deep_results_are_found_with_high_recall(vectors):
    score = nearly_linear()
    found = search(score, vectors, 400, n_per_round=400)
    assert recall(found, exhaustive_search(score, vectors, Q, 400)) >= 0.98


def test_more_results_than_a_round_scores_are_filled_up(vectors):
    found = search(nearly_linear(), vectors, 700, n_per_round=100)
    assert [len(row) for row in found.docids] == [700] * Q


# What the search cannot see


def test_cluster_that_the_query_vector_points_away_from_is_missed_unless_an_entry_point_is_in_it(vectors):
    """The q-nets are linear plus a large bonus in a far region of eight documents, as the module's documentation says."""
    query_vectors = torch.randn(1, D, generator=torch.Generator().manual_seed(5)).expand(Q, D)
    products = vectors @ query_vectors[0].numpy()
    far = np.argsort(products)[:8]
    edge = float(np.sort(products)[7]) + 1e-3
    score = make_scorer([query_vectors], lambda values: values[0] + 1000 * (values[0] <= edge))
    expected = exhaustive_search(score, vectors, Q, 8)
    assert set(ids(expected)[0]) == set(far.tolist())
    blind = np.setdiff1d(draw_entry_points(N, 100), far)
    options = {"query_vectors": query_vectors, "n_per_round": 250}
    missed = surrogate_search(score, vectors, blind, Q, 8, **options)
    assert recall(missed, expected) == 0 and missed.stats["converged"].all()
    seen = surrogate_search(score, vectors, np.union1d(blind, far[:2]), Q, 8, max_rounds=3, **options)
    assert recall(seen, expected) > 0.5


# Budgets


@pytest.mark.parametrize("max_scored", [100, 101, 150, 333])
@pytest.mark.parametrize("make_score", [nearly_linear, far_from_linear])
def test_max_scored_bounds_the_documents_of_every_query(vectors, make_score, max_scored, caplog):
    with caplog.at_level(logging.WARNING, logger="pyterrier_hypencoder"):
        found = search(make_score(), vectors, 120, n_per_round=60, max_scored=max_scored)
    assert (found.stats["n_scored"] <= max_scored).all() and not found.stats["fell_back"].any() and not caplog.records
    assert [len(row) for row in found.docids] == [min(120, n) for n in found.stats["n_scored"]]
    if make_score is far_from_linear:
        assert found.stats["n_scored"].tolist() == [max_scored] * Q and not found.stats["converged"].any()


def test_max_scored_that_no_query_reaches_changes_nothing(vectors):
    expected, found = (search(nearly_linear(), vectors, 50, max_scored=limit) for limit in (None, N))
    assert ids(found) == ids(expected) and found.stats["n_scored"].tolist() == expected.stats["n_scored"].tolist()
    assert found.stats["converged"].all()


def test_max_scored_allows_a_fallback_that_scores_few_documents(vectors):
    allowed = [np.arange(0, N, 5)] * Q
    options = {"n_initial": 40, "n_per_round": 20, "allowed": allowed}
    refused = search(far_from_linear(), vectors, 50, max_scored=600, **options)
    assert not refused.stats["fell_back"].any() and not refused.stats["converged"].any()
    found = search(far_from_linear(), vectors, 50, max_scored=900, **options)
    assert found.stats["fell_back"].all() and found.stats["converged"].all() and (found.stats["n_scored"] <= 900).all()


def test_deferred_fallback_only_marks_queries(vectors, caplog):
    with caplog.at_level(logging.WARNING, logger="pyterrier_hypencoder"):
        found = search(far_from_linear(), vectors, 50, n_initial=40, n_per_round=20, defer_fallback=True)
    assert found.stats["fell_back"].all() and (found.stats["n_scored"] < N / 2).all() and not caplog.records


def test_query_that_runs_out_of_rounds_has_not_converged(vectors):
    found = search(far_from_linear(), vectors, 50, n_initial=40, n_per_round=20, max_rounds=3)
    assert not found.stats["converged"].any() and not found.stats["fell_back"].any()
    assert search(nearly_linear(), vectors, 50).stats["converged"].all()


def test_falling_yield_delays_the_fallback(vectors, monkeypatch):
    options = {"n_initial": 40, "n_per_round": 20, "defer_fallback": True}
    early = search(far_from_linear(), vectors, 50, **options)
    monkeypatch.setattr("pyterrier_hypencoder.search.surrogate.FALLING_BELOW", 1e9)  # every yield counts as falling
    late = search(far_from_linear(), vectors, 50, **options)
    assert early.stats["n_rounds"].tolist() == [5] * Q and late.stats["n_rounds"].max() > 5
    assert (late.stats["fell_back"] == (late.stats["last_yield"] > FALLBACK_ABOVE)).all()


def test_progress_reports_finished_queries(vectors):
    reported: list[int] = []
    search(nearly_linear(), vectors, 50, progress=reported.append)
    assert sum(reported) == Q and len(reported) > 1
