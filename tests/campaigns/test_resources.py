"""Memory and descriptors: bounds per document, and no growth over a long run."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from outcomes import OTHER, RIGHT, Outcome
from processes import run_in_child
from workers import limit_memory

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer
from pyterrier_hypencoder.index.writer import IndexWriter

VEC_SIZE = 8
N_DOCS = 1_000_000
TOPICS = pd.DataFrame({"qid": ["1"], "query_vec": [np.ones(VEC_SIZE)]})
PROMISED_BYTES_PER_DOCUMENT = {"index": 60, "open": 40, "exhaustive": 60, "surrogate": 120}
"""The promises of the page on guarantees: bytes beside the memory map of the vectors."""


def write_large_index(path: Path, n: int) -> None:
    """Write an index without an encoder."""
    writer = IndexWriter(path, mode="create", dtype="fp16", facts={"model": None, "text_field": None})
    block = np.random.default_rng(0).standard_normal((10_000, VEC_SIZE)).astype(np.float32)
    for start in range(0, n, len(block)):
        docnos = [str(i) for i in range(start, start + len(block))]
        writer.check(docnos)
        writer.add(docnos, block)
    writer.finish()


@pytest.fixture(scope="module")
def large_index(tmp_path_factory) -> Path:
    """Return an index of N_DOCS documents."""
    path = tmp_path_factory.mktemp("large") / "large.hyp"
    write_large_index(path, N_DOCS)
    return path


def use_index(path: Path, what: str, small: Path, allowance: int) -> str:
    """Use an index in a process whose memory is limited to what it has now and an allowance."""
    write_large_index(small, 20_000)  # loads everything that the use needs
    options = {"algorithm": what} if what in ("exhaustive", "surrogate") else {}
    HypencoderIndex(small).retriever(num_results=10, device="cpu", **options)(TOPICS)
    gc.collect()
    limit_memory(allowance)
    try:
        if what == "index":
            write_large_index(small.with_name("new.hyp"), N_DOCS)
            return "right"
        index = HypencoderIndex(path)
        if what != "open":
            assert len(index.retriever(num_results=10, device="cpu", **options)(TOPICS)) == 10
        return "right"
    except MemoryError:
        return "MemoryError"
    except Exception as err:
        return f"{type(err).__name__}: {err}"[:300]


@pytest.mark.parametrize("what", PROMISED_BYTES_PER_DOCUMENT)
def test_memory_per_document_stays_within_the_promise(large_index, tmp_path, open_table, what):
    fixed = 200 * 2**20  # chunks, buffers and threads, whatever the number of documents
    allowance = fixed + N_DOCS * (2 * VEC_SIZE + PROMISED_BYTES_PER_DOCUMENT[what])
    answer = run_in_child(use_index, large_index, what, tmp_path / "small.hyp", allowance)
    table = open_table(f"memory, {what}")
    table.add(f"{N_DOCS:,} documents", Outcome(RIGHT if answer == "right" else OTHER, answer))
    table.check(at_least=1)


def test_lack_of_memory_is_never_called_damage(large_index, tmp_path, open_table):
    table = open_table("too little memory")
    for what in ("open", "exhaustive", "surrogate"):
        for megabytes in (1, 4, 16, 64):
            small = tmp_path / f"{what}-{megabytes}.hyp"
            answer = run_in_child(use_index, large_index, what, small, megabytes * 2**20)
            kind = answer.split(":")[0]
            clear = kind in ("right", "MemoryError", "OSError") or "memory" in answer.lower() or "allocate" in answer.lower()
            table.add(what, Outcome(RIGHT if clear and "damaged" not in answer else OTHER, f"{megabytes} MiB: {answer}"))
    table.check(at_least=12)


def measure() -> tuple[int, int]:
    """Return the resident bytes and the open descriptors of this process."""
    gc.collect()
    with open("/proc/self/statm") as numbers:
        resident = int(numbers.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    return resident, len(os.listdir("/proc/self/fd"))


def run_long(path: Path, n_searches: int) -> tuple[int, int]:
    """Search, re-rank and replace an index many times; return how much memory and descriptors grew after a warm-up."""
    vectors = np.random.default_rng(0).standard_normal((300, VEC_SIZE))
    docs = [{"docno": str(i), "doc_vec": vector} for i, vector in enumerate(vectors)]
    before = (0, 0)
    for i in range(n_searches):
        if i % 100 == 0:
            index = HypencoderIndexer(path, mode="overwrite", graph_k=5).index(docs)
        if i == n_searches // 4:
            before = measure()
        algorithm = ("exhaustive", "graph", "surrogate")[i % 3]
        options = {"graph_k": 5, "initial_candidates": 20, "n_initial": 32}
        results = index.retriever(num_results=10, algorithm=algorithm, device="cpu", **options)(TOPICS)
        index.vec_loader()(index.scorer(device="cpu")(results))
    after = measure()
    return after[0] - before[0], after[1] - before[1]


def test_long_run_leaks_neither_memory_nor_descriptors(tmp_path, open_table, campaign_size):
    n = campaign_size(10_000, 600)
    grown, descriptors = run_in_child(run_long, tmp_path / "x.hyp", n, seconds=3600)
    table = open_table("long run")
    table.add("resident size", Outcome(RIGHT if grown < 40 * 2**20 else OTHER, f"grew by {grown:,} bytes"))
    table.add("open descriptors", Outcome(RIGHT if descriptors <= 2 else OTHER, f"grew by {descriptors}"))
    table.notes.append(f"{n:,} searches; grew by {grown / 2**20:.1f} MiB and {descriptors} descriptors")
    table.check(at_least=2)
