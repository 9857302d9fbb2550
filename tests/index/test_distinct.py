"""Groups of equal vectors."""

from __future__ import annotations

import numpy as np
import pytest
from indexes import make_clusters

from pyterrier_hypencoder.index import distinct
from pyterrier_hypencoder.index.distinct import DistinctVectors


def test_distinct_vectors_group_documents_in_the_order_of_their_docids():
    vectors = np.array([[1, 0], [2, 0], [1, 0], [0, 3], [2, 0], [1, -0.0]], dtype=np.float32)
    groups = DistinctVectors(vectors)
    assert len(groups) == 3 and groups.size == 2
    assert groups.docids.tolist() == [0, 1, 3] and groups.groups.tolist() == [0, 1, 0, 2, 1, 0]
    assert groups.sizes.tolist() == [3, 2, 1] and groups.starts.tolist() == [0, 3, 5, 6]
    assert groups.order.tolist() == [0, 2, 5, 1, 4, 3]
    assert groups.list_members(0, 2).tolist() == [0, 2] and groups.list_members(1, 9).tolist() == [1, 4]
    assert groups.take(np.array([[2], [0]])).tolist() == [[[0, 3]], [[1, 0]]]


def test_iter_tiles_yields_every_distinct_vector_once():
    vectors = np.array([[1, 0], [2, 0], [1, 0], [0, 3], [2, 0], [1, -0.0]], dtype=np.float32)
    tiles = [(start, tile.tolist()) for start, tile in DistinctVectors(vectors).iter_tiles(16)]
    assert tiles == [(0, [[1, 0], [2, 0]]), (2, [[0, 3]])]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("max_bytes", [1, 1000, 10**6])
def test_distinct_vectors_are_those_of_numpy(monkeypatch, dtype, max_bytes):
    monkeypatch.setattr(distinct, "_HASHED_AT_ONCE", 7)
    vectors = make_clusters(100).astype(dtype)
    groups = DistinctVectors(vectors)
    assert len(groups) == len(np.unique(vectors, axis=0))
    np.testing.assert_array_equal(vectors[groups.docids][groups.groups], vectors)
    np.testing.assert_array_equal(np.diff(groups.docids) > 0, True)
    tiles = list(groups.iter_tiles(max_bytes))
    np.testing.assert_array_equal(np.concatenate([tile for _, tile in tiles]), vectors[groups.docids])
    assert tiles[-1][1].dtype == np.float32 and next(groups.iter_tiles(8, dtype))[1].dtype == dtype
    assert [start for start, _ in tiles] == np.cumsum([0, *(len(tile) for _, tile in tiles[:-1])]).tolist()
