"""One pass over the collection: score all documents block by block, and keep the best ones.

The memory that a pass takes is bounded:

======================  ======================================  =================================================
memory                  on a CPU                                on a GPU
======================  ======================================  =================================================
vectors of a block      64 MiB as float32; a view of the file,  a view if vectors are resident, else 256 MiB
                        or a copy if there is a filter
documents of a block    at most 2**24 / Q                       at most 2**25 / Q and 2**20
scores of a block       64 MiB, and a quarter of it for masks   128 MiB, and 4 times as much for their keys
best documents so far   12 bytes x Q x k, five times            the same
======================  ======================================  =================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..scoring.resident import iter_blocks
from ..scoring.rows import Rows
from .allowed import Allowed
from .finite import check_finite
from .results import select_top_k

_CHUNK_BYTES = 64 * 2**20
"""Size of the vectors of a block on a CPU, as float32; the collection itself stays on disk."""
_STREAMED_BYTES = 256 * 2**20
"""Size of the vectors of a block that is copied to a GPU, as float32."""
_SCORES_PER_BLOCK = {"cpu": 2**24, "gpu": 2**25}
_MOST_DOCS_ON_GPU = 2**20

Score = Callable[[Tensor], Tensor]
"""Scores a block of documents (n, D) for Q queries, (Q, n); a :class:`~pyterrier_hypencoder.scoring.Scorer`."""


@dataclass(frozen=True)
class Collection:
    """The documents of a pass.

    Attributes:
        vectors: Vectors of all documents, (N, D).
        docids: Ascending docids of the documents that at least one query may return, (n,) on the device; None for all.
        filters: The documents that each query may return, by their positions among ``docids``; None if these are all.
        device: Device that computes the scores.
    """

    vectors: Rows
    docids: Tensor | None
    filters: Allowed | None
    device: torch.device

    @classmethod
    def make(cls, vectors: Rows, allowed: Allowed | None, device: torch.device) -> Collection:
        """Limit a collection to the documents that at least one query may return."""
        docids = None if allowed is None else allowed.find_union()
        if allowed is None or docids is None:
            return cls(vectors, None, allowed, device)
        return cls(vectors, docids, allowed.relate_to(docids), device)

    def __len__(self) -> int:
        return len(self.vectors) if self.docids is None else len(self.docids)

    def select(self, queries: Tensor) -> Collection:
        """Return the same documents with the filters of some queries (q,)."""
        return replace(self, filters=None if self.filters is None else self.filters.select(queries))

    def find_docids(self, positions: Tensor) -> Tensor:
        """Return the docids at some positions, of any shape."""
        return positions if self.docids is None else self.docids[positions]


def find_best(
    score: Score, collection: Collection, n_queries: int, k: int, progress: Callable[[int], object] | None = None
) -> tuple[Tensor, Tensor]:
    """Score all documents for all queries and return the best ones.

    Args:
        score: Scorer of the q-nets of Q queries.
        collection: The documents.
        n_queries: Number of queries, Q.
        k: Number of documents per query.
        progress: Called with the number of documents of every finished block.

    Returns:
        Scores and docids, (Q, min(k, n)), best first, with equal scores ordered by docid. A score of -inf marks a place
        without a document.

    Raises:
        NonFiniteScoreError: If a score is NaN or infinite.
    """
    best = _Best(n_queries, k, collection.device)
    is_finite = torch.ones((), dtype=torch.bool, device=collection.device)
    for start, rows in _iter_rows(collection, n_queries):
        scores = score(rows).to(collection.device)  # (Q, n)
        positions = torch.arange(start, start + len(rows), device=collection.device)
        if collection.device.type == "cpu":
            check_finite(scores, rows, collection.find_docids(positions))
        else:  # to look at the sum now would wait for the GPU
            is_finite &= scores.sum().isfinite()
        if collection.filters is not None:
            scores = collection.filters.apply(scores, start)
        best.add(scores, positions)
        if progress is not None:
            progress(len(rows))
    if not bool(is_finite):
        _name_damage(score, collection, n_queries)
    found, positions = best.sort()
    return found, collection.find_docids(positions)


def _iter_rows(collection: Collection, n_queries: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the position of the first document of every block, and the vectors of the block on the device."""
    vectors, device = collection.vectors, collection.device
    row_bytes = 4 * vectors.shape[1]
    on_gpu = device.type != "cpu"
    step = _SCORES_PER_BLOCK["gpu" if on_gpu else "cpu"] // max(1, n_queries)
    if not on_gpu:
        step = min(step, _CHUNK_BYTES // row_bytes)
    elif isinstance(vectors, Tensor) and vectors.device.type == device.type:
        step = min(step, _MOST_DOCS_ON_GPU)
    else:
        step = min(step, _STREAMED_BYTES // row_bytes)
    return iter_blocks(vectors, max(1, step), device, collection.docids)


def _name_damage(score: Score, collection: Collection, n_queries: int) -> None:
    """Score the documents again, and raise the error for the first score that is NaN or infinite."""
    for start, rows in _iter_rows(collection, n_queries):
        positions = torch.arange(start, start + len(rows), device=collection.device)
        check_finite(score(rows).to(collection.device), rows, collection.find_docids(positions))


class _Best:
    """The best documents so far.

    Args:
        n_queries: Number of queries, Q.
        k: Number of documents per query.
        device: Device of the scores.
    """

    def __init__(self, n_queries: int, k: int, device: torch.device) -> None:
        self._k = k
        self._scores = torch.empty(n_queries, 0, dtype=torch.float32, device=device)  # (Q, n), best first
        self._positions = torch.empty(n_queries, 0, dtype=torch.long, device=device)
        self._new: list[tuple[Tensor, Tensor]] = []

    def add(self, scores: Tensor, positions: Tensor) -> None:
        """Add documents (n,) that come after all earlier ones, with their scores (Q, n)."""
        if self._scores.device.type == "cpu" and self._scores.shape[1] == self._k:
            self._new.append(_take_above(scores, positions, self._scores[:, -1:]))
        else:
            self._new.append(select_top_k(scores, positions, self._k))
        if sum(part.shape[1] for part, _ in self._new) >= self._k:
            self.sort()

    def sort(self) -> tuple[Tensor, Tensor]:
        """Return scores and positions of the best documents, (Q, min(k, n)), best first."""
        # Earlier documents come first: their positions are smaller, as select_top_k requires among equal scores.
        scores, positions = zip((self._scores, self._positions), *self._new, strict=True)
        self._scores, self._positions = select_top_k(torch.cat(scores, 1), torch.cat(positions, 1), self._k)
        self._new = []
        return self._scores, self._positions


def _take_above(scores: Tensor, positions: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores (Q, n) above a limit of each query (Q, 1), in the order of positions, and their positions.

    After the first blocks these are few, so this takes a fraction of the time of ``topk``. An equal score is too late: its
    docid is larger.
    """
    queries, places = (scores > limits).nonzero(as_tuple=True)
    counts = torch.bincount(queries, minlength=len(scores))
    columns = torch.arange(len(queries), device=scores.device) - (counts.cumsum(0) - counts)[queries]
    shape = len(scores), int(counts.max()) if len(queries) else 0
    values = torch.full(shape, -torch.inf, dtype=torch.float32, device=scores.device)
    ids = torch.zeros(shape, dtype=torch.long, device=scores.device)
    values[queries, columns], ids[queries, columns] = scores[queries, places], positions[places]
    return values, ids
