"""Make large indexes for ``scale.py``: vectors with the structure of real ones, random vectors, and a random graph."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.index.graph_builder import write_graph
from pyterrier_hypencoder.index.reader import IndexReader
from pyterrier_hypencoder.index.writer import IndexWriter

BLOCK = 50_000
#: Nearest texts from which the second text of a made vector is drawn.
N_NEAREST = 32
NOISE = 0.01
CUTOFFS = (1, 10, 100)
PERCENTILES = (5, 25, 50, 75, 95)
_TILE = 2000


def find_nearest(vectors: np.ndarray, number: int) -> np.ndarray:
    """Return the rows of the nearest other vectors, (N, number), in any order."""
    number = min(number, len(vectors) - 1)
    found = []
    for start in range(0, len(vectors), _TILE):
        similarities = vectors[start : start + _TILE] @ vectors.T
        places = np.arange(len(similarities))
        similarities[places, start + places] = -np.inf
        found.append(np.argpartition(-similarities, number - 1, axis=1)[:, :number].copy())
    return np.concatenate(found)


def make_vectors(real: np.ndarray, n_documents: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Make vectors with the structure of real ones.

    Every vector is ``a`` times the vector of one text plus ``1 - a`` times that of a second one plus noise, normalised, with
    ``a`` between .5 and 1. The first text is any. The second one is among the 32 nearest of the first with probability .5,
    and any other text otherwise. :func:`describe_neighbours` compares the result with the real vectors.

    Args:
        real: Vectors of real texts, (N, D) float32.
        n_documents: Number of vectors to make.
        seed: Seed of the random numbers.

    Yields:
        Blocks of vectors, (n, D) float32.
    """
    rng = np.random.default_rng(seed)
    nearest = find_nearest(real, N_NEAREST)
    for start in range(0, n_documents, BLOCK):
        n = min(BLOCK, n_documents - start)
        first, second = rng.integers(0, len(real), (2, n))
        is_near = rng.random(n) < 0.5
        second = np.where(is_near, nearest[first, rng.integers(0, nearest.shape[1], n)], second)
        share = rng.uniform(0.5, 1, (n, 1)).astype(np.float32)
        noise = NOISE * rng.standard_normal((n, real.shape[1]), dtype=np.float32)
        made = share * real[first] + (1 - share) * real[second] + noise
        yield made / np.linalg.norm(made, axis=1, keepdims=True)


def make_random_vectors(n_documents: int, dimensions: int) -> Iterator[np.ndarray]:
    """Yield blocks of random vectors (n, D), with a length of about 1. All blocks are equal, which saves time."""
    block = np.random.default_rng(0).standard_normal((BLOCK, dimensions), dtype=np.float32) / dimensions**0.5
    for start in range(0, n_documents, BLOCK):
        yield block[: min(BLOCK, n_documents - start)]


def describe_neighbours(vectors: np.ndarray, n_samples: int = 500) -> list[str]:
    """Return one line per cutoff: percentiles of the inner product with the nearest neighbours of sampled vectors."""
    rows = np.random.default_rng(0).choice(len(vectors), min(n_samples, len(vectors)), replace=False)
    similarities = vectors[rows] @ vectors.T
    similarities[np.arange(len(rows)), rows] = -np.inf
    ordered = -np.sort(-similarities, axis=1)
    lines = []
    for cutoff in (cutoff for cutoff in CUTOFFS if cutoff < len(vectors)):
        values = np.percentile(ordered[:, cutoff - 1], PERCENTILES)
        lines.append(f"  neighbour {cutoff:3}: " + " ".join(f"{value:.3f}" for value in values))
    return lines


def write_index(path: Path, blocks: Iterator[np.ndarray]) -> HypencoderIndex:
    """Write an index of vectors in fp16. The docnos are d0, d1, and so on."""
    writer = IndexWriter(path, mode="overwrite", dtype="fp16", facts={"model": None, "text_field": None})
    numbers = itertools.count()
    for block in blocks:
        docnos = [f"d{number}" for number in itertools.islice(numbers, len(block))]
        writer.check(docnos)
        writer.add(docnos, block)
    writer.finish()
    return HypencoderIndex(path)


class RandomNeighbours:
    """Random documents in place of neighbours.

    Args:
        doc_count: Number of documents.
        k: Number of neighbours per document.
    """

    builder = "random"
    options: dict[str, int] = {}

    def __init__(self, doc_count: int, k: int) -> None:
        self._doc_count = doc_count
        self.k = k

    def prepare(self, folder: Path, *, verbose: bool = False) -> None:
        """Do nothing."""

    def find(self, docids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return random docids and equal distances, both (n, K)."""
        shape = len(docids), self.k
        return np.random.default_rng(int(docids[0])).integers(0, self._doc_count, shape), np.ones(shape, dtype=np.float32)


def write_random_graph(index: HypencoderIndex, k: int) -> None:
    """Write a graph of random documents: it costs as much memory as a real one, which takes hours to build."""
    finder = RandomNeighbours(len(index), k)
    write_graph(IndexReader(index.path), finder, lambda staged: {}, batch_size=BLOCK)
