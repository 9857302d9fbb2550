#!/bin/sh
# Measure the package on a GPU of CUDA: correctness first, then searches, encoding and training.
#
#     benchmarks/gpu.sh OUT_FOLDER [--tiny]
#
# The machine needs Python, torch, Triton and transformers 5, but neither PyTerrier nor faiss, and nothing is installed.
# It takes at most 8 minutes, 24 GB of GPU memory, and writes CSV files to OUT_FOLDER. --tiny is a dry run, also on a CPU.
set -eu
[ $# -ge 1 ] || { echo "usage: $0 OUT_FOLDER [--tiny]" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" "$root/benchmarks/gpu.py" "$@"
