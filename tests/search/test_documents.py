"""Documents during a search: seen documents, filters, and scores per query."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyterrier_hypencoder.search.documents import Documents
from pyterrier_hypencoder.search.finite import NonFiniteScoreError

CPU = torch.device("cpu")


class RowNumberScorer:
    """Score a document with its first component, and keep all vectors that were scored."""

    def __init__(self) -> None:
        self.scored: list[torch.Tensor] = []

    def __call__(self, vectors):
        self.scored.append(vectors)
        return vectors[:, 0].expand(3, -1)

    def each(self, vectors, counts):
        assert sum(counts) == len(vectors) and len(counts) == 3
        self.scored.append(vectors)
        return vectors[:, 0]

    def select(self, queries):
        raise NotImplementedError


@pytest.fixture
def documents() -> Documents:
    """20 documents, whose scores are their docids, for three queries."""
    return Documents(RowNumberScorer(), np.arange(20, dtype=np.float32)[:, None], 3, CPU)


def test_mark_seen_returns_new_documents_once_and_sorted(documents):
    queries, docids = documents.mark_seen(torch.tensor([2, 0, 0, 2, 0]), torch.tensor([5, 9, 3, 5, 9]))
    assert (queries.tolist(), docids.tolist()) == ([0, 0, 2], [3, 9, 5])
    queries, docids = documents.mark_seen(torch.tensor([0, 1, 2]), torch.tensor([9, 9, 4]))
    assert (queries.tolist(), docids.tolist()) == ([1, 2], [9, 4])
    assert documents.mark_seen(torch.tensor([0, 0, 2, 2]), torch.tensor([3, 9, 4, 5]))[0].tolist() == []


def test_score_pads_queries_with_fewer_documents(documents):
    scores, docids = documents.score(torch.tensor([0, 0, 0, 2]), torch.tensor([4, 1, 19, 7]))
    assert scores.tolist() == [[4, 1, 19], [-torch.inf] * 3, [7, -torch.inf, -torch.inf]]
    assert docids[0].tolist() == [4, 1, 19] and docids[2, 0] == 7
    assert documents.n_scored.tolist() == [3, 0, 1]


def test_score_of_no_documents_has_one_empty_column(documents):
    nothing = torch.empty(0, dtype=torch.long)
    scores, docids = documents.score(nothing, nothing)
    assert scores.tolist() == [[-torch.inf]] * 3 and docids.shape == (3, 1)


@pytest.mark.parametrize("size", [1, 12, 10**6])
def test_score_in_pieces_equals_score_at_once(documents, monkeypatch, size):
    monkeypatch.setattr("pyterrier_hypencoder.search.documents._SCORED_BYTES", size)
    queries, docids = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([1, 2, 3, 4, 5, 6])
    scores, _ = documents.score(queries, docids)
    assert scores.tolist() == [[1, 2, -torch.inf], [3, 4, 5], [6, -torch.inf, -torch.inf]]
    assert len(documents._score.scored) == {1: 6, 12: 2, 10**6: 1}[size]


def test_shared_entry_points_are_scored_once(documents):
    scores, docids = documents.score_entry_points(np.array([7, 3, 7]))
    assert scores.tolist() == [[3, 7]] * 3 and docids.tolist() == [[3, 7]] * 3
    assert documents.n_scored.tolist() == [2] * 3
    queries, docids = documents.mark_seen(torch.arange(3).repeat_interleave(3), torch.tensor([3, 7, 8] * 3))
    assert (queries.tolist(), docids.tolist()) == ([0, 1, 2], [8] * 3)
    assert sum(map(len, documents._score.scored)) == 2


def test_entry_points_per_query_are_scored_once_per_query(documents):
    scores, docids = documents.score_entry_points([np.array([7, 3, 7]), np.empty(0, np.int64), np.array([19])])
    assert scores.tolist() == [[3, 7], [-torch.inf] * 2, [19, -torch.inf]] and docids[0].tolist() == [3, 7]
    assert documents.n_scored.tolist() == [2, 0, 1]


def test_apply_filter_hides_excluded_documents():
    allowed = [np.array([1, 2]), None, np.empty(0, np.int64)]
    documents = Documents(RowNumberScorer(), np.arange(4, dtype=np.float32)[:, None], 3, CPU, allowed)
    scores, docids = documents.score_entry_points(np.array([0, 2]))
    assert documents.apply_filter(scores, docids).tolist() == [[-torch.inf, 2], [0, 2], [-torch.inf] * 2]


@pytest.mark.parametrize("allowed", [None, [None, None, None]])
def test_apply_filter_without_filters_changes_nothing(allowed):
    documents = Documents(RowNumberScorer(), np.arange(4, dtype=np.float32)[:, None], 3, CPU, allowed)
    scores, docids = documents.score_entry_points(np.array([0, 2]))
    assert documents.allowed is None and documents.apply_filter(scores, docids) is scores


def test_documents_take_one_bit_per_query_and_document():
    documents = Documents(RowNumberScorer(), np.zeros((10**6, 1), np.float32), 3, CPU, [np.arange(5), None, None])
    assert max(part.nbytes for part in vars(documents._seen).values()) == 3 * 10**6 // 8


def test_pairs_of_a_damaged_vector_are_named_whatever_the_piece(documents, monkeypatch):
    monkeypatch.setattr("pyterrier_hypencoder.search.documents._SCORED_BYTES", 8)
    documents.vectors[7] = np.nan
    with pytest.raises(NonFiniteScoreError) as error:
        documents.score(torch.tensor([0, 0, 0, 2, 2, 2]), torch.tensor([4, 1, 19, 3, 7, 8]))
    assert (error.value.query, error.value.docid, error.value.vector_is_finite) == (2, 7, False)
