"""Measure how fast q-nets score documents, for all back-ends and precisions.

    python benchmarks/scoring.py [--documents 32768] [--layers 6] [--width 768] [--queries 1] [--repeat 5]

The baseline is plain torch in fp32 with one large batch, which is how the released code scores documents. The output is the
number of documents per second (median over the repetitions) and its ratio to the baseline.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pyterrier_hypencoder import QNets, QNetSpec, scoring

BASELINE = "plain torch fp32"


def measure_seconds(function: Callable[[], object], repeat: int) -> float:
    """Return the median time of a call, after a warm-up call."""
    function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_candidates(qnets: QNets, vectors: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return functions that score all documents, by name."""
    device = scoring.resolve_device("auto")
    candidates: dict[str, Callable[[], object]] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        nets, block = qnets.to(device, dtype), vectors.to(device, dtype)
        candidates[f"plain torch {precision}"] = lambda nets=nets, block=block: nets.score(block)
        for backend in scoring.BACKENDS:
            if backend.is_available() and backend.supports(qnets.spec, device, precision):
                score = backend.prepare(qnets, device, precision)
                candidates[f"{backend.name} {precision}"] = lambda score=score: score(vectors)
    return candidates


def main() -> None:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=32_768)
    parser.add_argument("--layers", type=int, default=6, help="hidden layers of the q-nets (default 6)")
    parser.add_argument("--width", type=int, default=768, help="width of vectors and hidden layers (default 768)")
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    spec = QNetSpec((*[options.width] * (options.layers + 1), 1))
    qnets = QNets.unflatten(torch.randn(options.queries, spec.size) * (2 / options.width) ** 0.5, spec)
    vectors = torch.randn(options.documents, options.width)
    n_scores = options.documents * options.queries
    with torch.inference_mode():
        candidates = make_candidates(qnets, vectors)
        speed = {name: n_scores / measure_seconds(function, options.repeat) for name, function in candidates.items()}
    print(f"torch {torch.__version__}, {scoring.resolve_device('auto')}, {torch.get_num_threads()} threads, {options}")
    for name, docs_per_second in speed.items():
        print(f"{name:24} {docs_per_second:10.0f} documents/s {docs_per_second / speed[BASELINE]:6.2f}x")


if __name__ == "__main__":
    main()
