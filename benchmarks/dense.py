"""Compare HNSW search of this package and of pyterrier_dr on the same vectors, in one run.

    python benchmarks/dense.py [--documents 100000] [--dimensions 384] [--queries 100] [--k 100] [--neighbours 32]
    python benchmarks/dense.py --dataset FOLDER [--queries 100]    # vectors of all-MiniLM-L6-v2 over texts

Random vectors come from clusters, and queries lie near documents. Both retrievers are PyTerrier transformers that get frames
with ``query_vec``. They search with several numbers of candidates (``ef_search``), in turn, so a slow minute of the machine
affects both. The columns are

* ``ms_p50``: median milliseconds per query, one query at a time,
* ``ms_batch``: milliseconds per query, all queries in one frame,
* ``recall``: share of the ``k`` best documents of exhaustive search.

With ``--clock cpu``, times are processor times of this process, for machines that are shared. Use one thread then.

The last lines compare both at equal recall: for each target, the fastest setting that reaches it. Times of this package
include the scores from the stored vectors.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import torch

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from shared.datasets import open_collection  # noqa: E402
from shared.indexes import index_collection, load_minilm  # noqa: E402

WIDTHS = (1, 2, 4, 8, 16)
TARGETS = (0.9, 0.95, 0.99)
N_TRIALS = 3

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Retriever = Callable[[pd.DataFrame], pd.DataFrame]
Clock = Callable[[], float]


def index_random_vectors(path: Path, n_documents: int, dimensions: int, n_queries: int) -> tuple[HypencoderIndex, np.ndarray]:
    """Index random vectors of length 1 in clusters, and return the index and query vectors (Q, D)."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(1, n_documents // 200), dimensions))
    vectors = centres[rng.integers(0, len(centres), n_documents)] + 1.5 * rng.standard_normal((n_documents, dimensions))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    index = HypencoderIndexer(path).index({"docno": f"d{i}", "doc_vec": vector} for i, vector in enumerate(vectors))
    near = vectors[rng.choice(n_documents, n_queries)] + rng.standard_normal((n_queries, dimensions)) / dimensions**0.5
    return index, near.astype(np.float32)


def time_search(search: Retriever, topics: pd.DataFrame, clock: Clock) -> tuple[list[float], float]:
    """Return milliseconds of each query alone, and milliseconds per query of all queries together."""
    single = []
    for q in range(len(topics)):
        start = clock()
        search(topics.iloc[q : q + 1])
        single.append(1000 * (clock() - start))
    start = clock()
    search(topics)
    return single, 1000 * (clock() - start) / len(topics)


def measure(
    systems: dict[tuple[str, int], Retriever], topics: pd.DataFrame, truth: pd.DataFrame, clock: Clock
) -> pd.DataFrame:
    """Return one row per system and number of candidates."""
    recalls = {key: len(search(topics).merge(truth, on=["qid", "docno"])) / len(truth) for key, search in systems.items()}
    trials = [{key: time_search(search, topics, clock) for key, search in systems.items()} for _ in range(N_TRIALS)]
    rows = []
    for system, width in systems:
        times = [trial[system, width] for trial in trials]
        rows.append(
            {
                "system": system,
                "ef_search": width,
                "ms_p50": np.median(np.concatenate([single for single, _ in times])),
                "ms_batch": np.median([batch for _, batch in times]),
                "recall": recalls[system, width],
            }
        )
    return pd.DataFrame(rows)


def compare_at_equal_recall(table: pd.DataFrame) -> list[str]:
    """Return one line per target recall with the fastest settings that reach it."""
    lines = []
    for target in TARGETS:
        good = table[table["recall"] >= target]
        if good["system"].nunique() < 2:
            lines.append(f"recall {target}: not reached by both")
            continue
        best = {
            column: [good[good["system"] == system][column].min() for system in ("ours", "pyterrier_dr")]
            for column in ("ms_p50", "ms_batch")
        }
        parts = [f"{column} {a:.2f} against {b:.2f}, ratio {a / b:.2f}" for column, (a, b) in best.items()]
        lines.append(f"recall {target}: {'; '.join(parts)}")
    return lines


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """Build both indexes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="apidocs, irds:NAME or a folder; without it, vectors are random")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--k", type=int, default=100, help="results per query")
    parser.add_argument("--neighbours", type=int, default=32, help="neighbours of pyterrier_dr's HNSW")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.hyp"
        if args.dataset is None:
            index, queries = index_random_vectors(path, args.documents, args.dimensions, args.queries)
        else:
            collection = open_collection(args.dataset)
            index = index_collection(path, collection)
            queries = load_minilm().encode_queries(collection.topics["query"].tolist()[: args.queries]).flatten().numpy()
        topics = pd.DataFrame({"qid": [str(q) for q in range(len(queries))], "query": "", "query_vec": list(queries)})
        start = time.perf_counter()
        index.inner_product_index()
        seconds = [time.perf_counter() - start]
        flex = index.to_flex(Path(folder) / "x.flex")
        start = time.perf_counter()
        flex.faiss_hnsw_retriever(args.neighbours)
        seconds.append(time.perf_counter() - start)
        print(f"{len(index)} documents, {len(topics)} queries, faiss {faiss.__version__}, {args.threads} threads")
        print(f"HNSW built in {seconds[0]:.0f} s (ours) and {seconds[1]:.0f} s (pyterrier_dr)")
        systems: dict[tuple[str, int], Retriever] = {}
        for width in (factor * args.k for factor in WIDTHS):
            systems["ours", width] = index.retriever(algorithm="hnsw", num_results=args.k, ef_search=width)
            theirs = flex.faiss_hnsw_retriever(args.neighbours, num_results=args.k, ef_search=width)
            systems["pyterrier_dr", width] = theirs
        table = measure(systems, topics, index.retriever(num_results=args.k)(topics), CLOCKS[args.clock])
        print(table.to_string(index=False, float_format="{:.3f}".format))
        print("\n".join(compare_at_equal_recall(table)))
    return table


if __name__ == "__main__":
    main()
