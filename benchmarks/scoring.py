"""How fast q-nets are evaluated: every back-end and precision against plain torch in one large batch, in one run.

    python benchmarks/scoring.py [--documents 32768] [--layers 6] [--width 768] [--queries 1] [--repeat 5]

Prints documents per second (median over the repetitions) and the ratio to plain torch in fp32, which is how the released
code evaluates a q-net.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pyterrier_hypencoder import QNets, QNetSpec, scoring


def seconds(function: Callable[[], object], repeat: int) -> float:
    """The median time of a call, after one that does not count."""
    function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Runs the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=32_768)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    spec = QNetSpec((*[options.width] * (options.layers + 1), 1))
    qnets = QNets.unflatten(torch.randn(options.queries, spec.size) * (2 / options.width) ** 0.5, spec)
    vectors = torch.randn(options.documents, options.width)
    device = scoring.resolve_device("auto")
    ways: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            nets, block = qnets.to(device, dtype), vectors.to(device, dtype)
            ways[f"plain torch {name}"] = lambda nets=nets, block=block: nets.score(block)
        for backend in scoring.BACKENDS:
            for precision in ("fp32", "bf16"):
                if backend.is_available() and backend.supports(spec, device, precision):
                    score = backend.scorer(qnets, device, precision)
                    ways[f"{backend.name} {precision}"] = lambda score=score: score(vectors)
        work = options.documents * options.queries
        speed = {name: work / seconds(way, options.repeat) for name, way in ways.items()}
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {options}")
    for name, documents in speed.items():
        print(f"{name:24} {documents:10.0f} documents/s {documents / speed['plain torch fp32']:6.2f}x")


if __name__ == "__main__":
    main()
