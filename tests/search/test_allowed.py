"""Filters of a batch: the same documents as a matrix of queries and documents, without such a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyterrier_hypencoder.search import allowed as allowed_module
from pyterrier_hypencoder.search.allowed import Allowed, make_allowed

SHARED = np.arange(0, 40, 3)
FILTERS = {
    "shared": [SHARED, SHARED, SHARED],
    "two share": [SHARED, np.array([2, 39]), SHARED],
    "one without": [SHARED, None, np.arange(40)],
    "nothing allowed": [np.empty(0, np.int64), np.array([7]), SHARED],
    "nothing allowed at all": [np.empty(0, np.int64)] * 3,
    "int32": [np.array([1, 5], np.int32), None, None],
}
CASES = pytest.mark.parametrize("docids", FILTERS.values(), ids=FILTERS)


def to_bools(docids) -> torch.Tensor:
    """Return which of 40 documents each query may return."""
    rows = [np.isin(np.arange(40), np.arange(40) if ids is None else ids) for ids in docids]
    return torch.from_numpy(np.stack(rows))


@CASES
@pytest.mark.parametrize("step", [1, 7, 40])
def test_apply_hides_the_documents_of_a_range(docids, step):
    filters = Allowed(docids)
    found = torch.cat([filters.apply(torch.ones(3, len(part)), int(part[0])) for part in torch.arange(40).split(step)], 1)
    assert torch.equal(found > -torch.inf, to_bools(docids))


@CASES
def test_apply_to_hides_given_documents(docids):
    filters, expected = Allowed(docids), to_bools(docids)
    order = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(q)) for q in range(3)])
    scores = torch.ones(3, 40)
    assert torch.equal(filters.apply_to(scores, order) > -torch.inf, expected.gather(1, order))
    assert torch.equal(filters.apply_to(scores, order[0]) > -torch.inf, expected[:, order[0]])
    assert torch.equal(scores, torch.ones(3, 40))


@CASES
def test_contains_tells_for_pairs(docids):
    queries, numbers = torch.arange(3).repeat_interleave(40), torch.arange(40).repeat(3)
    assert torch.equal(Allowed(docids).contains(queries, numbers).view(3, 40), to_bools(docids))


@CASES
def test_count_gives_the_number_of_documents_per_query(docids):
    assert Allowed(docids).count(40).tolist() == to_bools(docids).sum(dim=1).tolist()


@CASES
@pytest.mark.parametrize("sorted_up_to", [0, 1000])
def test_union_has_the_documents_of_all_queries(monkeypatch, docids, sorted_up_to):
    monkeypatch.setattr(allowed_module, "_SORTED_UP_TO", sorted_up_to)
    found = Allowed(docids).find_union()
    if any(ids is None for ids in docids):
        assert found is None
    else:
        assert found.tolist() == to_bools(docids).any(dim=0).nonzero()[:, 0].tolist()


@CASES
def test_filters_related_to_their_union_hide_the_same_documents(docids):
    union = Allowed(docids).find_union()
    if union is None:
        return
    related, scores = Allowed(docids).relate_to(union), torch.ones(3, len(union))
    found = scores if related is None else related.apply(scores, 0)
    assert torch.equal(found > -torch.inf, to_bools(docids)[:, union])


@CASES
@pytest.mark.parametrize("queries", [[0], [1], [2, 0], [1, 1, 2], []])
def test_select_gives_the_filters_of_some_queries(docids, queries):
    selected, expected = Allowed(docids).select(torch.tensor(queries, dtype=torch.long)), to_bools(docids)[queries]
    assert selected.count(40).tolist() == expected.sum(dim=1).tolist()
    assert torch.equal(selected.apply(torch.ones(len(queries), 40), 0) > -torch.inf, expected)


def test_queries_that_share_a_filter_share_its_memory():
    filters = Allowed([SHARED, SHARED, None])
    assert len(filters._filters) == 1 and filters._filters[0].ids is SHARED
    assert not filters.is_shared and Allowed([SHARED] * 3).is_shared


def test_no_filters_give_none():
    assert make_allowed(None) is None and make_allowed([None, None]) is None
    assert isinstance(make_allowed([None, SHARED]), Allowed)


def test_filters_of_read_only_arrays_give_no_warning(recwarn):
    frozen = SHARED.copy()
    frozen.flags.writeable = False
    assert Allowed([frozen]).count(40).tolist() == [len(SHARED)] and not len(recwarn)
