"""Measure scoring and searches on a GPU, at 1,000,000 and 8,800,000 documents of 768 dimensions.

    benchmarks/gpu.sh OUT_FOLDER [--tiny] [--seconds 480]

The script imports neither PyTerrier nor faiss. Vectors, neighbours and q-nets are random: the time of a search does not
depend on where they come from, except for the number of rounds. The q-nets have six hidden layers, and an inner product
that makes them as close to linear as trained ones. The goals in the table are those of the package's plan.

Parts, in order, until the time is over:

- ``correctness.csv``: scores and rankings of the GPU against fp32 on the CPU. Failures make the exit status 1.
- ``peaks.csv``: matrix products of the machine, as a limit.
- ``search.csv``: time per query of each search, with the documents scored and the share of the exhaustive results.
- ``encoding.csv`` and ``training.csv``: BERT-base with random weights (see ``gpu_models.py``).
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import measure_encoding, measure_training
from synthetic_qnets import make_random_qnets
from torch import Tensor

from pyterrier_hypencoder import QNets, scoring
from pyterrier_hypencoder.scoring import cuda
from pyterrier_hypencoder.scoring.resident import load_resident
from pyterrier_hypencoder.search.entry_points import draw_entry_points
from pyterrier_hypencoder.search.exhaustive import exhaustive_search
from pyterrier_hypencoder.search.graph import PRESETS, graph_search
from pyterrier_hypencoder.search.results import Results
from pyterrier_hypencoder.search.surrogate import surrogate_search

GOALS_MS = {("exhaustive auto", 32): 150, ("graph", 1): 5, ("surrogate", 1): 15, ("surrogate", 64): 1.5}
"""Milliseconds per query that the package aims at, at 8.8 million documents, by search and batch size."""
NETWORK_SHARE = 0.3
"""Factor of the network beside the inner product."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of everything that is measured."""

    collections: tuple[int, ...] = (1_000_000, 8_800_000)
    checked: int = 20_000
    dimensions: int = 768
    layers: int = 6
    neighbours: int = 100
    repeat: int = 3
    tiny: bool = False


TINY = Sizes(collections=(300, 600), checked=300, dimensions=32, layers=2, neighbours=10, repeat=1, tiny=True)


class Clock:
    """The time that is left, and the rows of the tables.

    Args:
        folder: Folder of the CSV files.
        seconds: Time for everything.
        device: Device that is measured.
    """

    def __init__(self, folder: Path, seconds: float, device: torch.device) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._end, self.device = folder, time.monotonic() + seconds, device
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def is_over(self, what: str, needed: float = 5) -> bool:
        """Return True if fewer seconds are left than needed, and say what is left out."""
        left = self._end - time.monotonic()
        if left < needed:
            print(f"left out, because {left:.0f} seconds are left: {what}", flush=True)
        return left < needed

    def add(self, table: str, **row: Any) -> None:
        """Print a row and write it at once, so that an interrupted run keeps what it has measured."""
        self._rows.setdefault(table, []).append(row)
        print(table, *(f"{key}={value}" for key, value in row.items()), flush=True)
        with open(self._folder / f"{table}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(self._rows[table][0]))
            writer.writeheader()
            writer.writerows(self._rows[table])

    def measure(self, function: Callable[[], object], repeat: int) -> float:
        """Return the median seconds of a call after a warm-up call; the warm-up's own if it took longer than 10 seconds."""
        times = []
        for _ in range(repeat + 1):
            start = time.perf_counter()
            function()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            if times[0] > 10:
                return times[0]
        return statistics.median(times[1:])


def make_qnets(n_queries: int, sizes: Sizes) -> QNets:
    """Make q-nets that are a sum of an inner product and a random network."""
    torch.manual_seed(n_queries)
    nets = make_random_qnets(n_queries, sizes.dimensions, sizes.layers)
    spec = replace(nets.spec, inner_product_skip=True, skip_gate=NETWORK_SHARE)
    queries = torch.randn(n_queries, sizes.dimensions) / sizes.dimensions**0.5
    return QNets(spec, nets.weights, nets.biases, queries)


def make_vectors(number: int, sizes: Sizes, device: torch.device) -> Tensor:
    """Make random vectors (N, D) in half precision on a device."""
    generator = torch.Generator(device).manual_seed(0)
    vectors = torch.empty(number, sizes.dimensions, dtype=torch.float16, device=device)
    for block in vectors.split(2**18):
        block.normal_(generator=generator)
    return vectors


# Searches


@dataclass(frozen=True)
class Searcher:
    """Runs searches over one collection.

    Attributes:
        vectors: (N, D).
        neighbours: Random neighbours, (N, g).
        device: Device of the searches.
    """

    vectors: Any
    neighbours: Any
    device: torch.device

    def exhaustive(self, qnets: QNets, precision: str, k: int = 1000) -> Results:
        """Score all documents."""
        options = {"device": str(self.device), "precision": precision}
        score, first = scoring.make_scorer(qnets, **options), scoring.make_first_pass(qnets, **options)
        return exhaustive_search(score, self.vectors, len(qnets), k, first_pass=first, device=self.device)

    def graph(self, qnets: QNets, k: int = 1000) -> Results:
        """Run Algorithm 1 with the paper's first setting."""
        score = scoring.make_scorer(qnets, device=str(self.device))
        options = {name: PRESETS["efficient_1"][name] for name in ("n_candidates", "max_iter")}
        first = draw_entry_points(len(self.vectors), PRESETS["efficient_1"]["initial_candidates"])
        return graph_search(score, self.vectors, self.neighbours, first, len(qnets), k, device=self.device, **options)

    def surrogate(self, qnets: QNets, k: int = 100) -> Results:
        """Run surrogate search without the fallback to exhaustive search, which would hide its time."""
        score = scoring.make_scorer(qnets, device=str(self.device))
        first = draw_entry_points(len(self.vectors), 2 * self.vectors.shape[1])
        return surrogate_search(score, self.vectors, first, len(qnets), k, device=self.device, max_rounds=3, n_per_round=250)


def measure_share(found: Results, expected: Results, k: int = 100) -> float:
    """Return the share of the best k expected documents that were found."""
    pairs = zip(found.docids, expected.docids, strict=True)
    return float(np.mean([len(np.intersect1d(one[:k], other[:k])) / min(k, len(other)) for one, other in pairs]))


def count_moved_bytes(function: Callable[[], object]) -> int:
    """Return the bytes that a call copies to the GPU."""
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile() as profile:
            function()
        profile.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    return sum(event["args"].get("bytes", 0) for event in events if event.get("name", "").startswith("Memcpy HtoD"))


def check_correctness(clock: Clock, sizes: Sizes) -> bool:
    """Compare scores and rankings with those of the CPU; return True if all agree."""
    cpu, device = torch.device("cpu"), clock.device
    vectors, qnets = make_vectors(sizes.checked, sizes, cpu), make_qnets(4, sizes)
    generator = torch.Generator().manual_seed(1)
    edges = torch.randint(sizes.checked, (sizes.checked, sizes.neighbours), generator=generator, dtype=torch.int32)
    here, there = Searcher(vectors, edges, cpu), Searcher(vectors.to(device), edges.to(device), device)
    agrees = True

    def check(name: str, value: float, limit: float, is_share: bool = False) -> None:
        nonlocal agrees
        is_right = value >= limit if is_share else value <= limit
        agrees = agrees and is_right
        clock.add("correctness", check=name, value=f"{value:.3g}", limit=limit, ok=is_right)

    exact = scoring.make_scorer(qnets, device="cpu", precision="fp32")(vectors)
    spread = float(exact.std())
    counts = [sizes.checked // 2, 0, sizes.checked // 4, sizes.checked - sizes.checked // 2 - sizes.checked // 4]
    expected = torch.cat([exact[q, part] for q, part in enumerate(torch.arange(sizes.checked).split(counts))])
    for precision, limit in (("fp32", 1e-3), ("bf16", 0.1)):
        score = scoring.make_scorer(qnets, device=str(device), precision=precision)
        error = (score(there.vectors).cpu() - exact).abs().max()
        check(f"largest error of {precision} scores, in standard deviations", float(error) / spread, limit)
        error = (score.each(there.vectors, counts).cpu() - expected).abs().max()
        check(f"the same for lists of candidates, {precision}", float(error) / spread, limit)
    if device.type == "cuda":
        check("the fused kernel runs", float(score._network is not None), 1, True)
        loaded = load_resident(vectors.numpy(), device)
        check("resident vectors are those of the CPU", float(torch.equal(loaded.cpu(), vectors)), 1, True)
        on_device = qnets.to(device)
        moved = count_moved_bytes(lambda: there.exhaustive(on_device, "auto"))
        check("share of the vectors that a search moves", moved / vectors.nbytes, 0.01)
    best = here.exhaustive(qnets, "fp32")
    check("top 1,000 of auto", measure_share(there.exhaustive(qnets, "auto"), best, 1000), 0.999, True)
    check("top 1,000 of fp32", measure_share(there.exhaustive(qnets, "fp32"), best, 1000), 0.999, True)
    streamed = Searcher(vectors.numpy(), edges, device)
    check("top 1,000 of streamed vectors", measure_share(streamed.exhaustive(qnets, "fp32"), best, 1000), 0.999, True)
    check("top 100 of graph search", measure_share(there.graph(qnets), here.graph(qnets)), 0.99, True)
    check("top 100 of surrogate search", measure_share(there.surrogate(qnets), here.surrogate(qnets)), 0.99, True)
    return agrees


def measure_peaks(clock: Clock, sizes: Sizes) -> None:
    """Measure the matrix products of the machine."""
    n = 64 if sizes.tiny else 8192
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(n, n, device=clock.device).to(dtype) for _ in range(2))
        seconds = clock.measure(lambda a=left, b=right: a @ b, sizes.repeat)
        clock.add("peaks", precision=name, tflop_per_second=f"{2 * n**3 / seconds / 1e12:.3g}")


def list_searches(searcher: Searcher, is_largest: bool) -> Iterator[tuple[str, int, float, Callable[[QNets], Results]]]:
    """Yield the name of a search, its batch size, the seconds that it may need, and the search."""
    for batch in (1, 64):
        yield "surrogate", batch, 10, searcher.surrogate
    for batch in (1, 32):
        yield "graph", batch, 10, searcher.graph
    for batch in (1, 32):
        yield "exhaustive auto", batch, 40, lambda qnets: searcher.exhaustive(qnets, "auto")
    for batch in (1,) if is_largest else (1, 32):
        yield "exhaustive fp32", batch, 40, lambda qnets: searcher.exhaustive(qnets, "fp32")


def measure_searches(clock: Clock, sizes: Sizes, number: int) -> None:
    """Measure all searches over one collection."""
    if clock.is_over(f"{number} documents", 20):
        return
    device, is_largest = clock.device, number == sizes.collections[-1]
    edges = torch.randint(number, (number, sizes.neighbours), dtype=torch.int32, device=device)
    searcher = Searcher(make_vectors(number, sizes, device), edges, device)
    exact: dict[int, Results] = {}
    flop = 2 * sizes.layers * sizes.dimensions**2 * number
    for name, batch, needed, run in list_searches(searcher, is_largest):
        if clock.is_over(f"{name}, {batch} queries, {number} documents", needed):
            continue
        qnets, found = make_qnets(batch, sizes).to(device), []  # encoders make them there
        seconds = clock.measure(lambda run=run, qnets=qnets, found=found: found.append(run(qnets)), sizes.repeat)
        if batch not in exact and not name.startswith("exhaustive") and not is_largest:
            exact[batch] = searcher.exhaustive(qnets, "auto", 100)
        share = f"{measure_share(found[-1], exact[batch]):.3f}" if batch in exact else ""
        clock.add(
            "search",
            documents=number,
            search=name,
            queries=batch,
            ms_per_query=f"{1000 * seconds / batch:.3f}",
            goal_ms=GOALS_MS.get((name, batch), "") if is_largest else "",
            n_scored=f"{found[-1].stats['n_scored'].mean():.0f}",
            share_of_top_100=share,
            tflop_per_second=f"{flop * batch / seconds / 1e12:.3g}" if name.startswith("exhaustive") else "",
            peak_gb=f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device.type == "cuda" else "",
        )
    if not is_largest:
        measure_variants(clock, sizes, searcher)


def measure_variants(clock: Clock, sizes: Sizes, searcher: Searcher) -> None:
    """Measure exhaustive search with other block sizes, without the fused kernel, and with streamed vectors."""
    qnets, original = make_qnets(8, sizes).to(clock.device), cuda._ACTIVATIONS_PER_BLOCK
    fused = cuda.find_fused_network

    def measure(name: str, where: Searcher) -> None:
        if not clock.is_over(name):
            seconds = clock.measure(lambda: where.exhaustive(qnets, "bf16"), sizes.repeat)
            clock.add("variants", variant=name, ms_per_query=f"{1000 * seconds / len(qnets):.3f}")

    for power in (22, 24, 26, 28):
        cuda._ACTIVATIONS_PER_BLOCK = 2**power
        measure(f"2**{power} activations per block", searcher)
    cuda._ACTIVATIONS_PER_BLOCK = original
    cuda.find_fused_network = lambda device: None
    measure("plain torch between the matrix products", searcher)
    cuda.find_fused_network = fused
    measure("streamed vectors", replace(searcher, vectors=searcher.vectors.cpu().numpy()))


def main(arguments: list[str] | None = None) -> int:
    """Run all parts; return 0 if the GPU agrees with the CPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the CSV files")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU if there is no GPU")
    parser.add_argument("--seconds", type=float, default=480, help="time for everything")
    args = parser.parse_args(arguments)
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU of CUDA. A dry run needs --tiny.")
    sizes, device = TINY if args.tiny else Sizes(), scoring.resolve_device("auto")
    clock = Clock(args.folder, args.seconds, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    clock.add("machine", device=name, torch=torch.__version__, python=sys.version.split()[0])
    agrees = check_correctness(clock, sizes)
    measure_peaks(clock, sizes)
    for number in sizes.collections:
        measure_searches(clock, sizes, number)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    measure_encoding(clock, sizes)
    measure_training(clock, sizes)
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
