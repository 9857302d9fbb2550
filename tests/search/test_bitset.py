"""Bit sets: the documents of each query, eight in a byte."""

from __future__ import annotations

import pytest
import torch

from pyterrier_hypencoder.search.bitset import BitSets

CPU = torch.device("cpu")


def to_bools(sets: BitSets, n_queries: int, n_docs: int) -> torch.Tensor:
    queries = torch.arange(n_queries).repeat_interleave(n_docs)
    return sets.contains(queries, torch.arange(n_docs).repeat(n_queries)).view(n_queries, n_docs)


@pytest.mark.parametrize("n_docs", [1, 7, 8, 9, 64, 1001])
def test_sets_equal_a_matrix_of_booleans(n_docs):
    generator = torch.Generator().manual_seed(n_docs)
    sets, expected = BitSets(3, n_docs, CPU), torch.zeros(3, n_docs, dtype=torch.bool)
    for _ in range(5):
        new = (torch.rand(3, n_docs, generator=generator) < 0.3) & ~expected
        sets.add(*new.nonzero(as_tuple=True))
        expected |= new
        assert torch.equal(to_bools(sets, 3, n_docs), expected)
    shared = (torch.rand(n_docs, generator=generator) < 0.5).nonzero()[:, 0]
    sets.add_to_all(shared)
    expected[:, shared] = True
    assert torch.equal(to_bools(sets, 3, n_docs), expected)


def test_all_documents_of_a_byte_can_be_added_at_once():
    sets = BitSets(1, 16, CPU)
    sets.add(torch.zeros(8, dtype=torch.long), torch.arange(8))
    assert to_bools(sets, 1, 16).tolist() == [[True] * 8 + [False] * 8]


def test_memory_is_one_bit_per_query_and_document():
    assert BitSets(5, 8001, CPU)._bits.nbytes == 5 * 1001
