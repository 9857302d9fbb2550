"""A set of documents per query, with one bit for every document."""

from __future__ import annotations

import torch
from torch import Tensor


class BitSets:
    """Sets of documents, one per query.

    Eight documents share a byte, so 8.8 million documents take 1.1 MB per query.

    Args:
        n_queries: Number of queries, Q.
        n_docs: Number of documents, N.
        device: Device of the bits.

    Example:
        >>> import torch
        >>> seen = BitSets(2, 100, torch.device("cpu"))
        >>> seen.add(torch.tensor([0, 1]), torch.tensor([7, 42]))
        >>> seen.contains(torch.tensor([0, 0, 1]), torch.tensor([7, 42, 42])).tolist()
        [True, False, True]
    """

    def __init__(self, n_queries: int, n_docs: int, device: torch.device) -> None:
        self._bits = torch.zeros(n_queries, -(-n_docs // 8), dtype=torch.uint8, device=device)

    def contains(self, queries: Tensor, docids: Tensor) -> Tensor:
        """Return for every pair of a query (M,) and a docid (M,) whether the set of the query has the document, (M,)."""
        return (self._bits[queries, docids >> 3] & _make_bits(docids)) != 0

    def add(self, queries: Tensor, docids: Tensor) -> None:
        """Add documents (M,) to the sets of queries (M,). The pairs must be distinct, and none may be in a set yet."""
        places = queries * self._bits.shape[1] + (docids >> 3)
        self._bits.view(-1).index_add_(0, places, _make_bits(docids))  # different bits of a byte add up

    def add_to_all(self, docids: Tensor) -> None:
        """Add different documents (n,) to the sets of all queries."""
        row = torch.zeros_like(self._bits[0]).index_add_(0, docids >> 3, _make_bits(docids))
        self._bits |= row


def _make_bits(docids: Tensor) -> Tensor:
    """Return the bit of every document in its byte, (M,) uint8."""
    return torch.bitwise_left_shift(1, docids & 7).to(torch.uint8)
