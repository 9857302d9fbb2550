"""Training in several processes gives the same model as in one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_training import read_weights

SCRIPT = Path(__file__).parents[1] / "helpers" / "run_distributed.py"


def make_lines(docs) -> list[str]:
    """Return twelve rows: a query, its document and three others, with teacher scores. Queries have different lengths."""
    texts = [doc for doc in docs if len(doc["text"].split()) > 8]
    lines = []
    for i in range(12):
        items = [texts[i], *random.Random(i).sample(texts[12:], 3)]
        scored = [{"id": doc["docno"], "content": doc["text"], "score": float(4 - k)} for k, doc in enumerate(items)]
        query = {"id": f"q{i}", "content": " ".join(texts[i]["text"].split()[: 3 + i % 5])}
        lines.append(json.dumps({"query": query, "items": scored}) + "\n")
    return lines


@pytest.mark.slow
def test_two_processes_train_like_one_with_gradient_accumulation(checkpoint_dir, docs, tmp_path):
    lines = make_lines(docs)
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    # Batches have two rows. Process 0 takes rows 0 and 2, process 1 rows 1 and 3; one process takes them in this order.
    order = [4 * block + i for block in range(3) for i in (0, 2, 1, 3)]
    (tmp_path / "ordered.jsonl").write_text("".join(lines[i] for i in order))
    runs = {
        "one": ([], {"rows": "ordered.jsonl", "accumulation": 2}),
        "two": (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], {"rows": "rows.jsonl"}),
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(tmp_path)}
    for name, (launcher, options) in runs.items():
        options = {"model": str(checkpoint_dir), "output_dir": str(tmp_path / name), "accumulation": 1} | options
        options["rows"] = str(tmp_path / options["rows"])
        command = [sys.executable, *launcher, str(SCRIPT), json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-9000:]
    before, one, two = (read_weights(folder) for folder in (checkpoint_dir, tmp_path / "one/model", tmp_path / "two/model"))
    assert any((one[name] - before[name]).abs().max() > 1e-4 for name in one)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-6, msg=name)
    validations = [(tmp_path / f"{name}.validations").read_text() for name in runs]
    assert validations[0] and validations[0] == validations[1]  # one process validates for all
