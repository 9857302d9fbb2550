"""Measure all search algorithms on a large collection: time, recall and memory.

    python benchmarks/scale.py [--documents 1000000] [--paths surrogate dense ...] [--graph 32] [--inner-product]
    python benchmarks/scale.py --index made.hyp      # reuse an index of an earlier run, with its graph
    python benchmarks/scale.py --large               # 8.8 million random vectors of 768 dimensions

The vectors are made from those of real texts; see ``make_vectors`` in ``scale_vectors.py``. The first lines of the output
compare the neighbours of made vectors with those of real ones. The texts and the topics come from ``--dataset``, by default
the MS MARCO passages in the folder of the environment variable ``HYPENCODER_COLLECTIONS``. Q-nets come from the bundled model.

======================  ===============================================================================
Path                    Search
======================  ===============================================================================
``exhaustive``          all documents, scored by q-nets
``graph``               Algorithm 1, if the index has a neighbour graph
``surrogate``           surrogate search; each scan is a product with all vectors
``surrogate_index``     surrogate search with the inner-product index, if it has been built
``auto``                the algorithm that ``algorithm="auto"`` chooses
``dense``               all documents, scored by query vectors
``flat``                faiss, all vectors in memory in float32
``hnsw``                HNSW search with query vectors, if the inner-product index has been built
======================  ===============================================================================

Every path runs in a process of its own. The columns are

* ``ms`` and ``ms_batch``: milliseconds per query, one query at a time (median) and in batches of 32 (median of the batches).
  Q-nets and query vectors are made beforehand. Retrievers build result frames, ``flat`` does not.
* ``encode_ms`` and ``encode_ms_batch``: milliseconds to encode a query, to be added for a whole search.
* ``n_scored``: documents scored per query.
* ``R@n``: share of the n best documents of ``exhaustive``, or of ``dense`` for searches with query vectors.
* ``open_s``: seconds that the first search of a query takes longer than the second one. It opens what the search needs, and
  compares the checksum of every block that it reads, from the disk if the blocks are not in the page cache.
* ``base_mb``: memory of the process before the first search: libraries, model and queries.
* ``private_mb``: largest memory beyond that, without pages of files. This memory must be free for the search to run. It is
  sampled every two milliseconds.
* ``resident_mb``: largest resident memory of the process, with the pages of the index that it has read. The system can take
  those pages back, and processes share them. So this column says more about the free memory than about the search.

``--large`` measures one batch of 32 with q-nets of the released size (6 hidden layers of 768, beside an inner product, without
which random q-nets would make every surrogate query exhaustive). The neighbour graph has random edges. Exhaustive search
scores ``--exhaustive-documents``, and its time is extrapolated to the collection.
"""

import argparse
import functools
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import torch
from scale_vectors import describe_neighbours, make_random_vectors, make_vectors, write_index, write_random_graph

from pyterrier_hypencoder import Hypencoder, HypencoderIndex, HypencoderRetriever, QNets, QNetSpec, scoring
from pyterrier_hypencoder.index.inner_product import FACTS_FILE, is_built
from pyterrier_hypencoder.index.layout import list_graph_sizes
from pyterrier_hypencoder.search.exhaustive import exhaustive_search

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from shared.datasets import open_collection  # noqa: E402
from shared.indexes import index_collection, load_minilm  # noqa: E402

PATHS = ("exhaustive", "graph", "surrogate", "surrogate_index", "auto", "dense", "flat", "hnsw")
DENSE_PATHS = ("dense", "flat", "hnsw")
LARGE_PATHS = ("exhaustive", "graph", "surrogate", "auto", "dense")
BATCH_SIZE = 32
CUTOFFS = (10, 100)
LARGE = {"documents": 8_841_823, "dimensions": 768, "layers": 6, "graph": 32}
N_TRIALS = 3

Frames = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class Task:
    """One search to measure, in a process of its own.

    Attributes:
        path: One of :data:`PATHS`.
        index: Directory of the index.
        topics: Topics, with the columns ``qid`` and ``query``.
        k: Results per query.
        threads: Number of threads.
        is_large: If True, the q-nets are random, and only batches are measured.
        exhaustive_documents: Documents that exhaustive search scores if ``is_large``.
    """

    path: str
    index: Path
    topics: pd.DataFrame
    k: int
    threads: int
    is_large: bool = False
    exhaustive_documents: int | None = None


class PreparedRetriever(HypencoderRetriever):
    """A retriever whose q-nets were made beforehand. The qid of a query is its position among them."""

    def _make_fitting_qnets(self, reader: Any, queries: pd.DataFrame) -> QNets:
        return self.prepared.select(queries["qid"].astype(int).tolist())


class MemorySampler:
    """Sample the memory of this process in a thread, in megabytes. Values are NaN where ``/proc`` does not exist."""

    def __init__(self) -> None:
        self.base, self.peak = read_memory("RssAnon"), 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, read_memory("RssAnon"))


def read_memory(name: str) -> float:
    """Return an entry of ``/proc/self/status`` in megabytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), float("nan"))


def make_near_linear_qnets(n_queries: int, dimensions: int, layers: int) -> QNets:
    """Make q-nets of the released size beside an inner product with a random vector."""
    generator = torch.Generator().manual_seed(0)
    spec = QNetSpec((*[dimensions] * (layers + 1), 1), inner_product_skip=True, skip_gate=1e-3)
    weights = [torch.randn(n_queries, i, o, generator=generator) * (2 / i) ** 0.5 for i, o in spec.weight_shapes]
    biases = [torch.zeros(n_queries, size) for size in spec.bias_sizes]
    return QNets(spec, weights, biases, torch.randn(n_queries, dimensions, generator=generator))


def encode(task: Task) -> tuple[QNets, dict[str, float]]:
    """Return the q-nets of a task, and how long it takes to make them."""
    queries = task.topics["query"].tolist()
    if task.is_large:
        dimensions = HypencoderIndex(task.index).vec_size
        qnets = make_near_linear_qnets(len(queries), dimensions, LARGE["layers"])
        return (QNets.linear(qnets.query_vectors) if task.path in DENSE_PATHS else qnets), {}
    model = load_model(task.path in DENSE_PATHS)
    model.encode_queries(queries[:2])  # warm up
    times = [time_call(lambda part=part: model.encode_queries(queries[part])) for part in list_slices(len(queries), 1)]
    batches = list_slices(len(queries), BATCH_SIZE)
    batch_times = [time_call(lambda part=part: model.encode_queries(queries[part])) / len(queries[part]) for part in batches]
    costs = {"encode_ms": float(np.median(times)), "encode_ms_batch": float(np.median(batch_times))}
    return QNets.cat([model.encode_queries(queries[part]) for part in batches]), costs


@functools.cache
def load_model(is_dense: bool) -> Any:
    """Load the model that makes query vectors, or the one that makes q-nets."""
    return load_minilm() if is_dense else Hypencoder("hypencoder-minilm")


def list_slices(total: int, size: int) -> list[slice]:
    """Return slices of a size that cover all queries."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def time_call(function: Callable[[], Any]) -> float:
    """Return the milliseconds of a call."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def open_path(task: Task, qnets: QNets) -> Frames:
    """Return the search of a path, which takes and returns frames."""
    if task.path == "flat":
        return open_flat(task, qnets)
    if task.is_large and task.path == "exhaustive":
        return open_part(task, qnets)
    algorithm = {"dense": "exhaustive", "surrogate_index": "surrogate"}.get(task.path, task.path)
    folder = hide_inner_product_index(task.index) if task.path == "surrogate" else task.index
    retriever = PreparedRetriever(folder, num_results=task.k, algorithm=algorithm, return_stats=True)
    retriever.prepared = qnets
    return retriever


def open_part(task: Task, qnets: QNets) -> Frames:
    """Return exhaustive search of the first documents, which returns no frame of results."""
    vectors = HypencoderIndex(task.index).reader.vectors[: task.exhaustive_documents]

    def search(topics: pd.DataFrame) -> pd.DataFrame:
        part = qnets.select(topics["qid"].astype(int).tolist())
        first_pass = scoring.make_first_pass(part)
        exhaustive_search(scoring.make_scorer(part), vectors, len(part), task.k, first_pass=first_pass)
        return pd.DataFrame({"qid": topics["qid"], "n_scored": len(vectors)})

    return search


def open_flat(task: Task, qnets: QNets) -> Frames:
    """Return exhaustive search of faiss, which returns docids without docnos."""
    index = HypencoderIndex(task.index)
    flat = faiss.IndexFlatIP(index.vec_size)
    for start in range(0, len(index), 100_000):
        flat.add(index.reader.vectors[start : start + 100_000].astype(np.float32))
    queries = qnets.weights[0].squeeze(-1).numpy()

    def search(topics: pd.DataFrame) -> pd.DataFrame:
        docids = flat.search(queries[topics["qid"].astype(int).to_numpy()], task.k)[1]
        return pd.DataFrame({"qid": np.repeat(topics["qid"].to_numpy(), docids.shape[1]), "docid": docids.ravel()})

    return search


def hide_inner_product_index(path: Path) -> Path:
    """Return a directory with links to the files of an index, except its inner-product index."""
    folder = path.with_name(f"{path.name}-without-inner-product-index")
    folder.mkdir(exist_ok=True)
    for link in folder.iterdir():
        link.unlink()
    for file in path.iterdir():
        if file.is_file() and file.name != FACTS_FILE:
            (folder / file.name).symlink_to(file.absolute())
    return folder


def measure_path(task: Task) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Measure one path; called in its own process.

    Returns:
        The row of the table without the recall, and the docids found for every query.
    """
    torch.set_num_threads(task.threads)
    faiss.omp_set_num_threads(task.threads)
    qnets, costs = encode(task)
    topics = task.topics.assign(qid=[str(q) for q in range(len(task.topics))])
    with MemorySampler() as memory:
        search = open_path(task, qnets)
        parts = [] if task.is_large else list_slices(len(topics), 1)
        first, again = (time_call(lambda: search(topics.iloc[:1])) for _ in range(2))
        single = [time_call(lambda part=part: search(topics.iloc[part])) for part in parts]
        batches = list_slices(len(topics), BATCH_SIZE) * (1 if task.is_large else N_TRIALS)
        batch = [time_call(lambda part=part: search(topics.iloc[part])) / len(topics.iloc[part]) for part in batches]
        found = search(topics.iloc[:1] if task.is_large else topics)
    row = {
        "path": task.path,
        "ms": float(np.median(single)) if single else float("nan"),
        "ms_batch": float(np.median(batch)),
        **costs,
        **({"n_scored": found.groupby("qid")["n_scored"].first().mean()} if "n_scored" in found else {}),
        "open_s": max(0.0, (first - again) / 1000),
        "base_mb": memory.base,
        "private_mb": memory.peak - memory.base,
        "resident_mb": read_memory("VmHWM"),
    }
    if task.is_large and task.path == "exhaustive":
        row["ms_batch"] *= len(HypencoderIndex(task.index)) / row["n_scored"]
    if "docid" not in found:
        return row, []
    return row, [docids.to_numpy() for _, docids in sorted(found.groupby("qid")["docid"], key=lambda group: int(group[0]))]


def measure_recall(found: list[np.ndarray], truth: list[np.ndarray], cutoff: int) -> float:
    """Return the mean share of the best documents that were found."""
    pairs = zip(found, truth, strict=True)
    return float(np.mean([np.isin(best[:cutoff], docids[:cutoff]).mean() for docids, best in pairs]))


def run_paths(tasks: list[Task], own_process: bool = True) -> pd.DataFrame:
    """Measure all tasks one after the other, and add the recall. A path whose process dies gets a row with the error."""
    rows, truths = [], {}
    for task in tasks:
        try:
            if own_process:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                    row, found = pool.submit(measure_path, task).result()
            else:
                row, found = measure_path(task)
        except (BrokenProcessPool, MemoryError) as err:
            row, found = {"path": task.path, "error": type(err).__name__}, []
        if task.path in ("exhaustive", "dense"):
            truths[task.path] = found
        truth = truths.get("dense" if task.path in DENSE_PATHS else "exhaustive")
        if found and truth and not task.is_large:
            row |= {f"R@{cutoff}": measure_recall(found, truth, cutoff) for cutoff in CUTOFFS if cutoff <= task.k}
        print(json.dumps(row, default=float), flush=True)
        rows.append(row)
    return pd.DataFrame(rows)


def open_made_index(options: argparse.Namespace, collection: Any) -> HypencoderIndex:
    """Open the index, or make it from the vectors of real texts, or from random vectors for ``--large``."""
    path = options.index or options.work / ("large.hyp" if options.large else "made.hyp")
    if path.exists():
        return HypencoderIndex(path)
    if options.large:
        return write_index(path, make_random_vectors(options.documents, LARGE["dimensions"]))
    source = HypencoderIndex(options.real) if options.real else index_collection(options.work / "real.hyp", collection, 128)
    real = np.asarray(source.vectors, dtype=np.float32)
    sample = np.concatenate(list(make_vectors(real, len(real), seed=1)))
    print("inner products with nearest neighbours, percentiles 5, 25, 50, 75 and 95")
    print("\n".join(["real vectors", *describe_neighbours(real), "as many made ones", *describe_neighbours(sample)]))
    return write_index(path, make_vectors(real, options.documents))


def prepare_index(options: argparse.Namespace, index: HypencoderIndex) -> None:
    """Build the graph and the inner-product index that the command line asks for."""
    start = time.perf_counter()
    if options.graph and options.large:
        if not list_graph_sizes(index.path):
            write_random_graph(index, options.graph)
            print(f"random graph written in {time.perf_counter() - start:.0f} s")
    elif options.graph:
        index.corpus_graph(options.graph, verbose=True)
        print(f"graph built or opened in {time.perf_counter() - start:.0f} s")
    start = time.perf_counter()
    if options.inner_product:
        index.inner_product_index(verbose=True)
        print(f"inner-product index built or opened in {time.perf_counter() - start:.0f} s")


def time_opening(index: HypencoderIndex) -> list[str]:
    """Return one line for the index and for each of its parts: how long opening takes, as median of five."""
    openings: dict[str, Callable[[], object]] = {"index": lambda: HypencoderIndex(index.path).reader}
    if sizes := list_graph_sizes(index.path):
        openings["graph"] = lambda: index.corpus_graph(sizes[-1])
    if is_built(index.reader):
        openings["inner-product index"] = index.inner_product_index
    medians = {name: np.median([time_call(opening) for _ in range(5)]) for name, opening in openings.items()}
    return [f"opening the {name}: {median:.0f} ms" for name, median in medians.items()]


def list_paths(options: argparse.Namespace, index: HypencoderIndex) -> list[str]:
    """Return the paths to measure: those that the command line asks for and that the index can run."""
    missing = set()
    if not list_graph_sizes(index.path):
        missing.add("graph")
    if not is_built(index.reader):
        missing |= {"hnsw", "surrogate_index"}
    chosen = options.paths or (LARGE_PATHS if options.large else PATHS)
    for path in sorted(missing & set(chosen)):
        print(f"{path}: left out, because the index has not been prepared for it (--graph, --inner-product)")
    return [path for path in PATHS if path in chosen and path not in missing]


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, help="number of documents to make (default 1,000,000, or 8,841,823)")
    parser.add_argument("--dataset", help="texts and topics: a folder, apidocs or irds:NAME")
    parser.add_argument("--real", type=Path, help="index of the real texts; without it, they are encoded")
    parser.add_argument("--index", type=Path, help="index of an earlier run")
    parser.add_argument("--work", type=Path, default=Path("scale_benchmark"), help="folder for the indexes")
    parser.add_argument("--out", type=Path, help="folder for the table, as scale.csv or large.csv")
    parser.add_argument("--paths", nargs="+", choices=PATHS, help="searches to measure; without it, all of them")
    parser.add_argument("--topics", type=int, help="number of topics (default 64, or 32 with --large)")
    parser.add_argument("--k", type=int, default=100, help="results per query")
    parser.add_argument("--graph", type=int, metavar="K", help="build a neighbour graph first, which takes long")
    parser.add_argument("--inner-product", action="store_true", help="build the inner-product index first, which takes long")
    parser.add_argument("--large", action="store_true", help="random vectors at the paper's size; one batch")
    parser.add_argument("--exhaustive-documents", type=int, default=8192, help="documents to score exhaustively with --large")
    parser.add_argument("--one-process", action="store_true", help="measure all paths in this process, as tests do")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    options.documents = options.documents or (LARGE["documents"] if options.large else 1_000_000)
    options.graph = options.graph or (LARGE["graph"] if options.large else None)
    options.topics = options.topics or (BATCH_SIZE if options.large else 2 * BATCH_SIZE)
    folder = os.environ.get("HYPENCODER_COLLECTIONS")
    options.dataset = options.dataset or (f"{folder}/msmarco-dl-pool" if folder else None)
    if options.dataset is None and not options.large:
        parser.error("give --dataset, or set HYPENCODER_COLLECTIONS")
    return options


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """Make the index, and measure what the command line asks for."""
    options = parse_options(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    collection = None if options.large else open_collection(options.dataset)
    index = open_made_index(options, collection)
    prepare_index(options, index)
    print(f"{len(index):,} documents x {index.vec_size}, torch {torch.__version__}, {options.threads} threads")
    print("\n".join(time_opening(index)))
    if collection is None:
        topics = pd.DataFrame({"qid": range(options.topics), "query": ""})
    else:
        topics = collection.topics.head(options.topics)
    part = options.exhaustive_documents if options.large else None
    tasks = [
        Task(path, Path(index.path), topics, min(options.k, len(index)), options.threads, options.large, part)
        for path in list_paths(options, index)
    ]
    table = run_paths(tasks, own_process=not options.one_process)
    table["documents"] = len(index)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / ("large.csv" if options.large else "scale.csv"), index=False, float_format="%.4g")
    return table


if __name__ == "__main__":
    main()
