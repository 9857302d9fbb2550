"""Measure what the checks of files cost: opening, verifying, and searches of rows with and without checks.

    python benchmarks/checks.py [--documents 100000] [--dimensions 384] [--repeat 15]

The index and its vectors are random. ``first`` is the time of a first search, which checks all blocks that it reads;
``with checks`` and ``without`` are medians of later searches, which alternate.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from synthetic_qnets import make_random_qnets

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer, QNets, scoring
from pyterrier_hypencoder.scoring.rows import Rows
from pyterrier_hypencoder.search.entry_points import draw_entry_points
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.graph import graph_search
from pyterrier_hypencoder.search.surrogate import surrogate_search


def measure_ms(function: Callable[[], object]) -> float:
    """Return the time of one call in milliseconds."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def make_searches(n_documents: int, dimensions: int, edges: np.ndarray) -> dict[str, Callable[[Rows], object]]:
    """Return searches for one query over any rows of vectors, by name. The graph is random."""
    linear = scoring.make_scorer(QNets.linear(torch.randn(1, dimensions)), device="cpu")
    deep = scoring.make_scorer(make_random_qnets(1, dimensions, 2), device="cpu")
    entry_points = draw_entry_points(n_documents, 10_000)
    return {
        "exhaustive, linear q-net": lambda rows: exhaustive_search(linear, rows, 1, 100),
        "exhaustive, 2 hidden layers": lambda rows: exhaustive_search(deep, rows, 1, 100),
        "graph, linear q-net": lambda rows: graph_search(linear, rows, edges, entry_points, 1, 100),
        "surrogate, linear q-net": lambda rows: surrogate_search(linear, rows, entry_points[:1000], 1, 100),
    }


def main() -> None:
    """Build a random index and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--repeat", type=int, default=15)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    edges = rng.integers(0, args.documents, (args.documents, 100), dtype=np.uint32)
    vectors = rng.standard_normal((args.documents, args.dimensions), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.hyp"
        HypencoderIndexer(path).index({"docno": str(i), "doc_vec": vector} for i, vector in enumerate(vectors))
        print(f"open {measure_ms(lambda: HypencoderIndex(path)):.1f} ms")
        print(f"verify {measure_ms(HypencoderIndex(path).verify):.1f} ms for {vectors.nbytes / 2e6:.0f} MB")
        print(f"\n{'search':28} {'first':>10} {'with checks':>12} {'without':>10} {'ratio':>7}")
        for name, search in make_searches(args.documents, args.dimensions, edges).items():
            rows = HypencoderIndex(path).reader.vectors
            search(rows.map)
            first = measure_ms(lambda rows=rows, search=search: search(rows))
            rows.check()
            pairs = [
                [measure_ms(lambda rows=r, search=search: search(rows)) for r in (rows, rows.map)] for _ in range(args.repeat)
            ]
            checked, unchecked = (statistics.median(times) for times in zip(*pairs, strict=True))
            print(f"{name:28} {first:7.1f} ms {checked:9.1f} ms {unchecked:7.1f} ms {checked / unchecked:7.3f}")


if __name__ == "__main__":
    main()
