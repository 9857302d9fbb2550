"""Say stage by stage where the time of a search goes, query encoding included.

    python benchmarks/stages.py [--dataset FOLDER] [--index INDEX] [--topics 64] [--k 100] [--threads 2]

The searches are surrogate search with the bundled model, and with MiniLM exhaustive search (``dense``) and HNSW search. They
run in turn on the same topics, one query at a time and in batches of 32, so a slow minute of the machine affects all of them.

The first table has milliseconds per query of whole searches (median), and their ratios to ``dense``. The second table has the
milliseconds of each stage (mean over the queries of one more trial), without the stages that it calls. Measuring a stage takes
about a microsecond per call. The row ``rest`` is the time of PyTerrier, frame checks, filters, and whatever has no row.

With ``--clock cpu``, times are processor times of this process, for machines that are shared. Use one thread then.
"""

import argparse
import functools
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import faiss
import numpy as np
import pandas as pd
import torch

from pyterrier_hypencoder import Hypencoder, HypencoderIndex
from pyterrier_hypencoder.index.inner_product import FACTS_FILE

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from shared.datasets import open_collection  # noqa: E402
from shared.indexes import index_collection, load_minilm  # noqa: E402

PACKAGE = "pyterrier_hypencoder"
#: Functions and methods by stage. Those that a version does not have are skipped.
STAGES = {
    "tokenise": ("encoders.tokenization:TextTokenizer.encode",),
    "encode": ("encoders.base:Encoder._run",),
    "generate q-nets": ("encoders.networks:HyperEncoder.generate_qnets",),
    "make scorer": ("scoring:make_scorer", "scoring.backends:make_scorer"),
    "entry points": ("transformers.batch_search:BatchSearch._find_entry_points",),
    "fit": ("search.pool:Pool.fit",),
    "scan": ("search.scan:_Products.find_best", "search.scan:_recompute", "index.inner_product:InnerProductIndex.__call__"),
    "HNSW": ("index.inner_product:InnerProductIndex.find",),
    "score": (
        "search.documents:Documents.score",
        "search.documents:Documents.score_shared",
        "transformers.batch_search:exhaustive_search",
        "search.hnsw:_rescore",
    ),
    "check query vectors": ("search.pool:Pool.check_query_vectors",),
    "result frame": ("transformers.retriever:build_result_frame",),
    "docnos": ("index.docnos:Docnos.at",),
}
BATCH_SIZES = (1, 32)
N_TRIALS = 5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Clock = Callable[[], float]


class Stopwatch:
    """Add up the time of stages, each without the stages that it calls.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._inner: list[float] = []  # for every running stage, the time of the stages that it has called

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Measure the time of a block as time of a stage."""
        start = self._clock()
        self._inner.append(0.0)
        try:
            yield
        finally:
            total = self._clock() - start
            self.seconds[stage] += total - self._inner.pop()
            if self._inner:
                self._inner[-1] += total

    def wrap(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls are measured as a stage."""

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(stage):
                return function(*args, **kwargs)

        return measured

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Measure all stages of the package inside a block."""
        with ExitStack() as stack:
            for stage, names in STAGES.items():
                for name in names:
                    owner, attribute = find_owner(name)
                    if owner is not None:
                        stack.enter_context(mock.patch.object(owner, attribute, self.wrap(stage, getattr(owner, attribute))))
            yield


def find_owner(name: str) -> tuple[Any, str]:
    """Return the module or class of a function ``module:Class.name``, or None if there is none, and the function's name."""
    module, path = name.split(":")
    *classes, attribute = path.split(".")
    try:
        owner = functools.reduce(getattr, classes, importlib.import_module(f"{PACKAGE}.{module}"))
    except (ImportError, AttributeError):
        return None, attribute
    return (owner if hasattr(owner, attribute) else None), attribute


def run(search: Callable[[pd.DataFrame], Any], topics: pd.DataFrame, size: int, clock: Clock) -> list[float]:
    """Search in batches, and return the milliseconds per query of every batch."""
    times = []
    for start in range(0, len(topics), size):
        batch = topics.iloc[start : start + size]
        begin = clock()
        search(batch)
        times.append(1000 * (clock() - begin) / len(batch))
    return times


def compare(systems: dict[str, Any], topics: pd.DataFrame, clock: Clock) -> pd.DataFrame:
    """Return the milliseconds per query of whole searches, and the ratios to ``dense``."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(N_TRIALS):
        for size in BATCH_SIZES:
            for name, search in systems.items():
                times[name, size] += run(search, topics, size, clock)
    table = pd.DataFrame({"system": list(systems)})
    for size in BATCH_SIZES:
        column = "ms" if size == 1 else "ms_batch"
        table[column] = [np.median(times[name, size]) for name in systems]
        table[f"{column}_ratio"] = table[column] / table[column][table["system"] == "dense"].iloc[0]
    return table


def measure_stages(systems: dict[str, Any], topics: pd.DataFrame, clock: Clock) -> pd.DataFrame:
    """Return the milliseconds per query of every stage, one column per system and batch size."""
    columns = {}
    for name, search in systems.items():
        for size in BATCH_SIZES:
            watch = Stopwatch(clock)
            with watch.watch():
                run(watch.wrap("rest", search), topics, size, clock)
            columns[name if size == 1 else f"{name}, batches"] = {
                stage: 1000 * seconds / len(topics) for stage, seconds in watch.seconds.items()
            }
    table = pd.DataFrame(columns).reindex([*STAGES, "rest"])
    return table.dropna(how="all")


def measure_recall(systems: dict[str, Any], topics: pd.DataFrame) -> pd.Series:
    """Return the share of the results of exhaustive search with the same queries that each system finds."""
    found = {name: search(topics)[["qid", "docno"]] for name, search in systems.items()}
    truths = {"surrogate": "exhaustive", "hnsw": "dense"}
    return pd.Series({name: len(found[name].merge(found[truth])) / len(found[truth]) for name, truth in truths.items()})


def main(arguments: list[str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="apidocs, irds:NAME or a folder (default: the MS MARCO pool)")
    parser.add_argument("--index", type=Path, help="index of the documents by MiniLM; without it, it is built")
    parser.add_argument("--topics", type=int, default=64)
    parser.add_argument("--k", type=int, default=100, help="results per query")
    parser.add_argument("--ef-search", type=int, default=128, help="candidates of HNSW search")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="folder for the tables, as stages.csv and stages_total.csv")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    folder, clock = os.environ.get("HYPENCODER_COLLECTIONS"), CLOCKS[options.clock]
    if options.dataset is None and folder is None:
        parser.error("give --dataset, or set HYPENCODER_COLLECTIONS")
    collection = open_collection(options.dataset or f"{folder}/msmarco-dl-pool")
    with tempfile.TemporaryDirectory() as temporary:
        built = (
            HypencoderIndex(options.index) if options.index else index_collection(Path(temporary) / "x.hyp", collection, 128)
        )
        model, minilm = Hypencoder("hypencoder-minilm"), load_minilm(128)
        # Surrogate search would use an inner-product index of its own index.
        copied = HypencoderIndex(shutil.copytree(built.path, Path(temporary) / "hnsw.hyp", ignore=lambda *_: [FACTS_FILE]))
        copied.inner_product_index()
        retriever = functools.partial(built.retriever, num_results=options.k)
        systems = {
            "dense": retriever(minilm),
            "surrogate": retriever(model, algorithm="surrogate"),
            "hnsw": copied.retriever(minilm, num_results=options.k, algorithm="hnsw", ef_search=options.ef_search),
        }
        topics = collection.topics[["qid", "query"]].head(options.topics).reset_index(drop=True)
        recall = measure_recall({**systems, "exhaustive": retriever(model)}, topics)  # warms up too
        print(f"{len(built):,} documents, {len(topics)} topics, torch {torch.__version__}, {options.threads} threads")
        totals, stages = compare(systems, topics, clock), measure_stages(systems, topics, clock)
    totals[f"R@{options.k}"] = totals["system"].map(recall)
    print(totals.to_string(index=False, float_format="{:.3f}".format))
    print(stages.to_string(float_format="{:.3f}".format, na_rep=""))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        totals.to_csv(options.out / "stages_total.csv", index=False, float_format="%.4g")
        stages.to_csv(options.out / "stages.csv", index_label="stage", float_format="%.4g")
    return totals, stages


if __name__ == "__main__":
    main()
