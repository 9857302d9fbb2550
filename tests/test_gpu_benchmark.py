"""The benchmark for GPUs: a dry run with tiny sizes, on a machine without PyTerrier, faiss and pandas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.sh"
MISSING = ("pyterrier", "faiss", "pandas", "npids", "xxhash")


@pytest.mark.slow
def test_gpu_benchmark_runs_without_pyterrier_and_faiss(tmp_path):
    for name in MISSING:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not installed here')")
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([SCRIPT, tmp_path / "out", "--tiny"], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    tables = {path.stem: pd.read_csv(path) for path in (tmp_path / "out").iterdir()}
    assert set(tables) == {"machine", "correctness", "peaks", "search", "variants", "encoding", "training"}
    assert tables["correctness"]["ok"].all()
    assert set(tables["search"]["search"]) == {"surrogate", "graph", "exhaustive auto", "exhaustive fp32"}
    assert set(tables["search"]["documents"]) == {300, 600}


def test_gpu_benchmark_needs_a_folder():
    done = subprocess.run([SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2 and "usage:" in done.stderr
