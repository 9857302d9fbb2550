"""Entry points: the draw and the default number."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pyterrier_hypencoder.search.entry_points import SEED, default_n_initial, draw_entry_points


def test_draw_entry_points_depends_on_the_seed_only():
    first = draw_entry_points(1000, 10)
    assert first.tolist() == draw_entry_points(1000, 10).tolist() != draw_entry_points(1000, 10, 1).tolist()
    assert len(np.unique(first)) == 10 and first.dtype == np.int64 and (np.diff(first) > 0).all()


def test_draw_entry_points_equals_the_draw_of_the_released_code():
    random.seed(43)
    assert SEED == 43
    assert draw_entry_points(500, 20).tolist() == sorted(random.sample(range(500), 20))


@pytest.mark.parametrize("number", [100, 101, 1000])
def test_draw_entry_points_returns_all_documents_of_a_small_collection(number):
    assert draw_entry_points(100, number).tolist() == list(range(100))


def test_draw_entry_points_leaves_the_global_random_state_alone():
    state = random.getstate()
    draw_entry_points(100, 5)
    assert random.getstate() == state


@pytest.mark.parametrize(("vec_size", "expected"), [(1, 1024), (512, 1024), (513, 1026), (768, 1536)])
def test_default_n_initial_grows_with_the_dimensions(vec_size, expected):
    assert default_n_initial(vec_size, has_query_vector=False) == expected
    assert default_n_initial(vec_size, has_query_vector=True) == 256


def test_all_documents_are_entry_points_if_more_are_drawn():
    assert draw_entry_points(100, 10**9).tolist() == draw_entry_points(100, 100).tolist() == list(range(100))


def test_seed_may_be_a_numpy_integer():
    assert draw_entry_points(1000, 5, np.int64(43)).tolist() == draw_entry_points(1000, 5, 43).tolist()


@pytest.mark.parametrize("seed", [None, -1, 1.0, True, "43", np.float64(1)])
def test_invalid_seed_raises_value_error(seed):
    with pytest.raises(ValueError, match="seed must be a non-negative integer"):
        draw_entry_points(1000, 5, seed)
