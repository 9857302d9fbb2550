"""The rules of ``algorithm="auto"``: one pure function over one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

ALGORITHMS = ("auto", "exhaustive", "graph", "surrogate", "hnsw")
EXHAUSTIVE_IF_LINEAR = ("graph", "surrogate")
"""Algorithms that score all documents if q-nets are single vectors and ``max_scored`` allows it. Approximating an inner
product would not be faster."""

EXHAUSTIVE_UP_TO = 20_000
"""Number of allowed documents up to which a CPU scores all of them."""
EXHAUSTIVE_UP_TO_ON_GPU = 1_000_000
"""Number of allowed documents up to which a GPU scores all of them."""
EXHAUSTIVE_UP_TO_PER_RESULT = 10
"""Number of allowed documents per requested result up to which all of them are scored."""
GRAPH_ABOVE = 2_000_000
"""Number of documents in the collection above which a CPU uses the neighbour graph, if the index has one."""


class Choice(NamedTuple):
    """The chosen algorithm and the reason, for the log."""

    algorithm: str
    reason: str


@dataclass(frozen=True)
class Situation:
    """The facts that decide which algorithm runs.

    Attributes:
        n_allowed: Number of documents that a filter leaves for at least one query of the batch.
        num_results: Number of results per query.
        doc_count: Number of documents in the collection.
        is_linear: True if every q-net is a single vector.
        has_entry_points: True if the caller gives documents to start from.
        has_graph: True if the index has a neighbour graph.
        has_inner_product_index: True if the index has an inner-product index, which makes surrogate search faster.
        on_gpu: True if q-nets are evaluated on a GPU.
        max_scored: Maximum number of documents that a query may score; None for no limit.
    """

    n_allowed: int
    num_results: int
    doc_count: int
    is_linear: bool
    has_entry_points: bool
    has_graph: bool
    has_inner_product_index: bool
    on_gpu: bool
    max_scored: int | None = None

    @property
    def may_score_all(self) -> bool:
        """True if a query may score all allowed documents."""
        return self.max_scored is None or self.n_allowed <= self.max_scored


@dataclass(frozen=True)
class Rule:
    """One row of the table: if the condition holds, the algorithm runs."""

    algorithm: str
    condition: Callable[[Situation], bool]
    reason: str


RULES = (
    Rule(
        "exhaustive",
        lambda s: s.may_score_all and s.is_linear,
        "q-nets are single vectors, so one matrix product scores all documents",
    ),
    Rule(
        "exhaustive",
        lambda s: s.may_score_all and s.n_allowed <= (EXHAUSTIVE_UP_TO_ON_GPU if s.on_gpu else EXHAUSTIVE_UP_TO),
        "few documents are allowed",
    ),
    Rule(
        "exhaustive",
        lambda s: s.may_score_all and s.n_allowed <= EXHAUSTIVE_UP_TO_PER_RESULT * s.num_results,
        "a tenth of the allowed documents or more are requested as results",
    ),
    Rule("surrogate", lambda s: s.is_linear, "q-nets are single vectors, and max_scored forbids to score all documents"),
    Rule("surrogate", lambda s: s.has_entry_points, "entry points were given"),
    Rule(
        "graph",
        lambda s: s.doc_count > GRAPH_ABOVE and s.has_graph and not s.has_inner_product_index and not s.on_gpu,
        "the collection is large, the device is a CPU, and the index has a neighbour graph but no inner-product index",
    ),
    Rule("surrogate", lambda s: True, "many documents are allowed, or max_scored forbids to score all of them"),
)
"""The rules in order; the first one whose condition holds decides."""


def choose_algorithm(
    *,
    n_allowed: int,
    num_results: int,
    doc_count: int,
    is_linear: bool,
    has_entry_points: bool,
    has_graph: bool,
    has_inner_product_index: bool,
    on_gpu: bool,
    max_scored: int | None = None,
) -> Choice:
    """Choose the algorithm for ``algorithm="auto"``.

    The rules are in :data:`RULES`, and the arguments are the attributes of :class:`Situation`.

    Returns:
        The algorithm and the reason.

    Example:
        >>> facts = dict(is_linear=False, has_entry_points=False, on_gpu=False)
        >>> facts |= dict(has_graph=False, has_inner_product_index=False)
        >>> choose_algorithm(n_allowed=6_000, num_results=100, doc_count=6_000, **facts).algorithm
        'exhaustive'
        >>> choose_algorithm(n_allowed=500_000, num_results=100, doc_count=500_000, **facts).algorithm
        'surrogate'
    """
    situation = Situation(
        n_allowed=n_allowed,
        num_results=int(num_results),  # the product of a small numpy integer would overflow
        doc_count=doc_count,
        is_linear=is_linear,
        has_entry_points=has_entry_points,
        has_graph=has_graph,
        has_inner_product_index=has_inner_product_index,
        on_gpu=on_gpu,
        max_scored=max_scored,
    )
    rule = next(rule for rule in RULES if rule.condition(situation))
    return Choice(rule.algorithm, rule.reason)
