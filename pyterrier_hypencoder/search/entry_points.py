"""Entry points: the random documents that graph and surrogate search score first, and default numbers of documents."""

from __future__ import annotations

import random

import numpy as np

from ..options import check_non_negative

SEED = 43
"""Seed of the released code, which draws its entry points with it."""

_MIN_INITIAL = 1024
_INITIAL_PER_DIMENSION = 2
_INITIAL_WITH_QUERY_VECTOR = 256
_MIN_PER_ROUND = 250


def draw_entry_points(n_docs: int, number: int, seed: int = SEED) -> np.ndarray:
    """Draw random documents, the same ones as the released code for the same seed.

    Args:
        n_docs: Number of documents in the collection, N.
        number: Number of documents to draw. All documents are returned if there are no more than that.
        seed: Seed of the draw.

    Returns:
        Ascending docids, (min(number, N),).

    Raises:
        ValueError: If the seed is not a non-negative integer.

    Example:
        >>> draw_entry_points(1000, 5).tolist()
        [39, 147, 292, 712, 780]
    """
    check_non_negative("seed", seed)
    if number >= n_docs:  # a sample of all documents would take seconds for millions of them
        return np.arange(n_docs, dtype=np.int64)
    return np.sort(np.asarray(random.Random(int(seed)).sample(range(n_docs), number), dtype=np.int64))


def default_n_initial(vec_size: int, *, has_query_vector: bool) -> int:
    """Return how many random documents surrogate search scores first by default.

    A fit needs about twice as many documents as dimensions. At least 1,024 documents make it likely that the sample
    contains documents from every cluster of relevant ones. Q-nets with a query vector need no fit in the first round.

    Args:
        vec_size: Dimensions of a document vector, D.
        has_query_vector: If True, the q-nets have an inner-product skip, whose vector is the first linear function.
    """
    if has_query_vector:
        return _INITIAL_WITH_QUERY_VECTOR
    return max(_MIN_INITIAL, _INITIAL_PER_DIMENSION * vec_size)


def default_n_per_round(num_results: int, *, has_query_vector: bool) -> int:
    """Return how many documents each round of surrogate search scores by default.

    If the query vector ranks like the q-net, a first round of 2.5 times the number of results finds them all, and the search
    ends. Other q-nets need several rounds, which are smaller.

    Args:
        num_results: Number of results per query.
        has_query_vector: If True, the q-nets have an inner-product skip, whose vector is the first linear function.
    """
    return max(_MIN_PER_ROUND, 5 * num_results // 2 if has_query_vector else num_results)
