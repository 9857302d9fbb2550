"""The rules of algorithm="auto": every row of the table, its boundaries, and the order of the rows."""

from __future__ import annotations

import itertools

import pytest

from pyterrier_hypencoder.search.choose import ALGORITHMS, RULES, choose_algorithm

LARGE = 3_000_000


def choose(**facts):
    """Choose for a large collection without graph, entry points or filter on a CPU, except for the given facts."""
    doc_count = facts.pop("doc_count", LARGE)
    names = ("is_linear", "has_entry_points", "has_graph", "has_inner_product_index", "on_gpu")
    defaults = {"num_results": 100, **dict.fromkeys(names, False)}
    return choose_algorithm(**{"doc_count": doc_count, "n_allowed": doc_count, **defaults, **facts})


ROWS = [  # facts, algorithm, number of the rule
    ({"is_linear": True}, "exhaustive", 0),
    ({"is_linear": True, "has_entry_points": True, "has_graph": True}, "exhaustive", 0),
    # 20,000 allowed documents on a CPU
    ({"n_allowed": 20_000}, "exhaustive", 1),
    ({"n_allowed": 20_001}, "surrogate", 6),
    ({"n_allowed": 0}, "exhaustive", 1),
    ({"doc_count": 20_000}, "exhaustive", 1),
    ({"n_allowed": 20_000, "has_entry_points": True, "has_graph": True}, "exhaustive", 1),
    # 1,000,000 allowed documents on a GPU
    ({"n_allowed": 1_000_000, "on_gpu": True}, "exhaustive", 1),
    ({"n_allowed": 1_000_001, "on_gpu": True}, "surrogate", 6),
    ({"n_allowed": 1_000_000}, "surrogate", 6),
    # a tenth of the allowed documents as results
    ({"n_allowed": 30_000, "num_results": 3_000}, "exhaustive", 2),
    ({"n_allowed": 30_001, "num_results": 3_000}, "surrogate", 6),
    ({"n_allowed": 30_000, "num_results": 2_999}, "surrogate", 6),
    ({"num_results": LARGE, "has_entry_points": True, "has_graph": True}, "exhaustive", 2),
    ({"n_allowed": 20_000_000, "doc_count": 20_000_000, "num_results": 2_000_000, "on_gpu": True}, "exhaustive", 2),
    # entry points
    ({"has_entry_points": True}, "surrogate", 4),
    ({"has_entry_points": True, "has_graph": True}, "surrogate", 4),
    # more than 2,000,000 documents with a graph on a CPU
    ({"has_graph": True, "doc_count": 2_000_001}, "graph", 5),
    ({"has_graph": True, "doc_count": 2_000_000}, "surrogate", 6),
    ({"has_graph": True, "on_gpu": True}, "surrogate", 6),
    ({"has_graph": True, "n_allowed": 500_000}, "graph", 5),
    ({"has_graph": True, "has_inner_product_index": True}, "surrogate", 6),
    ({"has_inner_product_index": True}, "surrogate", 6),
    ({"has_graph": False}, "surrogate", 6),
    # max_scored
    ({"is_linear": True, "max_scored": LARGE}, "exhaustive", 0),
    ({"is_linear": True, "max_scored": LARGE - 1}, "surrogate", 3),
    ({"n_allowed": 5_000, "max_scored": 5_000}, "exhaustive", 1),
    ({"n_allowed": 5_000, "max_scored": 4_999}, "surrogate", 6),
    ({"n_allowed": 5_000, "max_scored": 4_999, "on_gpu": True}, "surrogate", 6),
    ({"n_allowed": 30_000, "num_results": 3_000, "max_scored": 20_000}, "surrogate", 6),
    ({"has_graph": True, "max_scored": 20_000}, "graph", 5),
]


@pytest.mark.parametrize(("facts", "algorithm", "rule"), ROWS, ids=str)
def test_choose_algorithm_follows_the_table(facts, algorithm, rule):
    assert choose(**facts) == (algorithm, RULES[rule].reason)


def test_every_rule_has_a_test_and_a_reason_of_its_own():
    assert {rule for _, _, rule in ROWS} == set(range(len(RULES)))
    assert len({rule.reason for rule in RULES}) == len(RULES)


def test_every_rule_names_an_algorithm():
    assert {rule.algorithm for rule in RULES} == set(ALGORITHMS) - {"auto", "hnsw"}


def test_choose_algorithm_always_decides():
    facts = itertools.product((0, 1, 10**4, 10**8), (1, 10**6), (1, 10**8), *[(False, True)] * 5, (None, 10**3))
    names = ("n_allowed", "num_results", "doc_count", "is_linear", "has_entry_points", "has_graph")
    names += ("has_inner_product_index", "on_gpu", "max_scored")
    chosen = [(dict(zip(names, row, strict=True)), choose_algorithm(**dict(zip(names, row, strict=True)))) for row in facts]
    assert {choice.algorithm for _, choice in chosen} == set(ALGORITHMS) - {"auto", "hnsw"}
    assert not any(
        choice.algorithm == "exhaustive" and f["max_scored"] is not None and f["n_allowed"] > f["max_scored"]
        for f, choice in chosen
    )
