"""Measure how fast q-nets score documents, as a share of the speed of plain matrix products in the same run.

    python benchmarks/scoring.py [--documents 100000] [--layers 6] [--width 768] [--queries 1] [--repeat 3] [--search]

The **peak** is the best speed of one matrix product (1,024 to 8,192 rows, ``width`` x ``width``), in fp32, bf16 and int8. Its
documents per second are those of a q-net without biases, activations, layer norms and residuals. The other rows are plain
torch with one large batch, which is how the released code scores documents, and all back-ends. Vectors are stored in fp16.
Every repetition measures all rows, and the fastest repetition counts, so other programs on the machine disturb less.

With ``--search``, exhaustive searches for the best 1,000 documents are measured too, with ``fp32`` and ``auto``. On hardware
with native bf16, ``auto`` is a first pass in bf16 and a second one in fp32.

A precision whose products are slower than those of fp32 is emulated. It is then measured on few documents, and the table says
so.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from synthetic_qnets import make_random_qnets

from pyterrier_hypencoder import QNets, scoring
from pyterrier_hypencoder.search.exhaustive import exhaustive_search

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = (1024, 2048, 4096, 8192)
MAX_SECONDS = 0.25
"""Longer products do not show a peak."""
IF_EMULATED = 64
"""Number of documents to score in an emulated precision."""
K = 1000


def measure_seconds(function: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def make_products(width: int, n_rows: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return functions that multiply ``n_rows`` rows with a square matrix, by precision. int8 is left out if it fails."""
    x, weight = torch.randn(n_rows, width, device=device), torch.randn(width, width, device=device)
    products: dict[str, Callable[[], object]] = {}
    for precision, dtype in PRECISIONS.items():
        a, b = x.to(dtype), weight.to(dtype)
        out = torch.empty_like(a)
        products[precision] = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)
    a8, b8 = (20 * x).to(torch.int8), (20 * weight).to(torch.int8)
    try:
        torch._int_mm(a8, b8)
        products["int8"] = lambda: torch._int_mm(a8, b8)
    except (AttributeError, RuntimeError) as err:
        print(f"int8 is not measured: {str(err).splitlines()[0]}")
    return products


def measure_peak(width: int, device: torch.device) -> dict[str, float]:
    """Return the operations per second of the best matrix product by precision; a multiply-add is two operations."""
    peak: dict[str, float] = {}
    slow: set[str] = set()
    for n_rows in ROWS:
        for precision, multiply in make_products(width, n_rows, device).items():
            if precision not in slow:
                repeat = 1 if measure_seconds(multiply) > MAX_SECONDS else 3  # the first call warms up
                seconds = min(measure_seconds(multiply) for _ in range(repeat))
                peak[precision] = max(peak.get(precision, 0), 2 * n_rows * width**2 / seconds)
                slow |= {precision} if seconds > MAX_SECONDS else set()
    return peak


def make_candidates(qnets: QNets, vectors: torch.Tensor, emulated: set[str]) -> dict[tuple[str, str], Callable[[], int]]:
    """Return functions that score documents and return the number of scores, by name and precision."""
    device = scoring.resolve_device("auto")
    vectors = vectors.to(device)
    candidates: dict[tuple[str, str], Callable[[], int]] = {}
    for precision, dtype in PRECISIONS.items():
        nets, some = qnets.to(device, dtype), vectors[:IF_EMULATED] if precision in emulated else vectors
        candidates["plain torch", precision] = lambda nets=nets, some=some: nets.score(some).numel()
        for backend in scoring.BACKENDS:
            if backend.is_available() and backend.supports(qnets.spec, device, precision):
                score = backend.prepare(qnets, device, precision)
                candidates[backend.name, precision] = lambda score=score, some=some: score(some).numel()
    return candidates


def make_searches(qnets: QNets, vectors: torch.Tensor) -> dict[tuple[str, str], Callable[[], int]]:
    """Return functions that search for the best documents and return the number of scores, by name and precision."""
    device = scoring.resolve_device("auto")

    def search(precision: str) -> int:
        score = scoring.make_scorer(qnets, precision=precision)
        first_pass = scoring.make_first_pass(qnets, precision=precision)
        options: dict[str, Any] = {} if first_pass is None else {"first_pass": first_pass, "device": device}
        exhaustive_search(score, vectors.numpy(), len(qnets), K, **options)
        return len(qnets) * len(vectors)

    return {("exhaustive search", name): lambda name=name: search(name) for name in ("fp32", "auto")}


def measure_speed(candidates: dict[tuple[str, str], Callable[[], int]], speed: dict[tuple[str, str], float]) -> None:
    """Measure all candidates once and keep the higher number of scores per second."""
    for key, function in candidates.items():
        start = time.perf_counter()
        n_scores = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        speed[key] = max(speed.get(key, 0), n_scores / (time.perf_counter() - start))


def print_table(peak: dict[str, float], speed: dict[tuple[str, str], float], operations: int) -> None:
    """Print the peak of the machine, and the speed of every candidate as a share of the peak of its precision.

    Args:
        peak: Operations per second by precision.
        speed: Scores per second by name and precision.
        operations: Number of operations of one score.
    """
    for precision, best in peak.items():
        note = "  (emulated)" if best < peak["fp32"] else ""
        print(f"{'peak':18} {precision:5} {best / operations:10.0f} documents/s {best / 1e9:8.1f} GFLOP/s{note}")
    for (name, precision), found in speed.items():
        compared = "fp32" if precision == "auto" else precision
        share, ratio = found * operations / peak[compared], found / speed["plain torch", "fp32"]
        print(
            f"{name:18} {precision:5} {found:10.0f} documents/s {share:7.1%} of {compared} peak {ratio:6.2f}x plain torch fp32"
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=6, help="hidden layers of the q-nets (default 6)")
    parser.add_argument("--width", type=int, default=768, help="width of vectors and hidden layers (default 768)")
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--search", action="store_true", help="measure exhaustive search too")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    device = scoring.resolve_device("auto")
    native = "native" if scoring.has_native_bf16(device) else "no native"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {native} bf16, {options}")
    qnets = make_random_qnets(options.queries, options.width, options.layers)
    vectors = torch.randn(options.documents, options.width).half()
    with torch.inference_mode():
        peak = measure_peak(options.width, device)
        candidates = make_candidates(qnets, vectors, {name for name, best in peak.items() if best < peak["fp32"]})
        candidates |= make_searches(qnets, vectors) if options.search else {}
        speed: dict[tuple[str, str], float] = {}
        for _ in range(options.repeat):
            measure_speed(candidates, speed)
            peak = {name: max(best, peak[name]) for name, best in measure_peak(options.width, device).items()}
    print_table(peak, speed, 2 * options.layers * options.width**2)


if __name__ == "__main__":
    main()
