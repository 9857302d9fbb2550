"""An index that is replaced again and again: every answer is wholly of one state, and none fails."""

from __future__ import annotations

import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from outcomes import OTHER, RIGHT, Outcome
from processes import PROCESSES, run_in_child

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer, HypencoderRetriever, HypencoderScorer

GRAPH_K, VEC_SIZE = 5, 8
TOPICS = pd.DataFrame({"qid": ["1", "2"], "query_vec": list(np.ones((2, VEC_SIZE)))})
OPTIONS: dict[str, dict[str, Any]] = {
    "exhaustive": {},
    "graph": {"algorithm": "graph", "graph_k": GRAPH_K, "initial_candidates": 5, "n_candidates": 4},
    "surrogate": {"algorithm": "surrogate", "n_initial": 16, "n_per_round": 16},
}


@cache
def make_vectors(generation: int) -> np.ndarray:
    return np.random.default_rng(generation).standard_normal((40 + generation % 9, VEC_SIZE)).astype(np.float32)


def build(path: Path, generation: int, docno: str = "{generation}-{i}") -> None:
    """Build an index whose docnos begin with the number of its generation, with a neighbour graph."""
    vectors = make_vectors(generation)
    docs = [{"docno": docno.format(generation=generation, i=i), "doc_vec": vector} for i, vector in enumerate(vectors)]
    HypencoderIndexer(path, mode="overwrite", dtype="fp32", graph_k=GRAPH_K).index(docs)


def judge(results: pd.DataFrame) -> Outcome:
    """Check that documents and scores belong to one generation."""
    parts = results["docno"].str.split("-", expand=True).astype(int)
    if results.empty or parts[0].nunique() != 1:
        return Outcome(OTHER, f"documents of the generations {sorted(parts[0].unique())}")
    scores = make_vectors(int(parts[0][0]))[parts[1]].sum(axis=1)
    return Outcome(RIGHT if np.allclose(scores, results["score"], atol=1e-4) else OTHER, "scores of another generation")


def rerank_until(stop: Any, path: Path) -> list[Outcome]:
    """Re-rank documents that all generations have, and load their vectors, until an event is set."""
    outcomes: list[Outcome] = []
    scorer, loader = HypencoderScorer(path, device="cpu"), HypencoderIndex(path).vec_loader()
    candidates = TOPICS.merge(pd.DataFrame({"docno": [str(i) for i in range(40)]}), how="cross")
    while not stop.is_set():
        try:
            scores = scorer(candidates).sort_values(["qid", "docno"])["score"].to_numpy()
            vectors = np.stack(loader(candidates).sort_values(["qid", "docno"])["doc_vec"])
            outcomes += [judge_values(scores), judge_values(vectors.sum(axis=1))]
        except Exception as err:
            outcomes.append(Outcome(OTHER, f"re-ranking: {type(err).__name__}: {err}"[:300]))
    return outcomes


def judge_values(found: np.ndarray) -> Outcome:
    """Check that the sums of two times 40 vectors, in the order of docnos as strings, belong to one generation."""
    order = sorted(range(40), key=str)
    for generation in range(10_000):
        if np.allclose(found, np.tile(make_vectors(generation)[order].sum(axis=1), 2), atol=1e-4):
            return Outcome(RIGHT)
    return Outcome(OTHER, "values of no single generation")


def search_until(stop: Any, path: Path, algorithm: str, retriever: HypencoderRetriever | None = None) -> list[Outcome]:
    """Search until an event is set; the index is opened anew every tenth time."""
    outcomes: list[Outcome] = []
    while not stop.is_set():
        try:
            if retriever is None or len(outcomes) % 10 == 0:
                retriever = HypencoderRetriever(path, num_results=9, device="cpu", **OPTIONS[algorithm])
            results = retriever(TOPICS)
            outcomes.append(judge(results))
        except Exception as err:
            outcomes.append(Outcome(OTHER, f"{algorithm}: {type(err).__name__}: {err}"[:300]))
    return outcomes


def search_in_process(stop: Any, pipe: Any, path: Path, algorithm: str) -> None:
    pipe.send(search_until(stop, path, algorithm))


def rerank_in_process(stop: Any, pipe: Any, path: Path) -> None:
    pipe.send(rerank_until(stop, path))


def test_answers_during_replacement_are_of_one_index(tmp_path, open_table, campaign_size):
    path, table, wanted = tmp_path / "x.hyp", open_table("answers during replacement"), campaign_size(5000, 600)
    build(path, 0)
    shared = HypencoderIndex(path)
    stop, thread_stop = PROCESSES.Event(), threading.Event()
    found: dict[str, list[Outcome]] = {}
    pipes = []
    for algorithm in OPTIONS:
        ours, theirs = PROCESSES.Pipe()
        PROCESSES.Process(target=search_in_process, args=(stop, theirs, path, algorithm), daemon=True).start()
        pipes.append((f"process, {algorithm}", ours))

    def search_in_thread(algorithm: str) -> None:
        retriever = shared.retriever(num_results=9, device="cpu", **OPTIONS[algorithm])
        found[f"thread, {algorithm}"] = search_until(thread_stop, path, algorithm, retriever)

    named = tmp_path / "named.hyp"
    build(named, 0, "{i}")
    ours, theirs = PROCESSES.Pipe()
    PROCESSES.Process(target=rerank_in_process, args=(stop, theirs, named), daemon=True).start()
    pipes.append(("process, re-ranking", ours))
    threads = [threading.Thread(target=search_in_thread, args=(algorithm,)) for algorithm in OPTIONS]
    threads.append(threading.Thread(target=lambda: found.update({"thread, re-ranking": rerank_until(thread_stop, named)})))
    for thread in threads:
        thread.start()
    generation, end = 0, time.monotonic() + campaign_size(240, 30)
    while time.monotonic() < end:
        generation += 1
        build(path, generation)
        build(named, generation, "{i}")
    stop.set()
    thread_stop.set()
    for thread in threads:
        thread.join()
    found |= {name: pipe.recv() for name, pipe in pipes}
    for name, outcomes in found.items():
        for outcome in outcomes:
            table.add(name, outcome)
    table.notes.append(f"{generation} replacements")
    table.check(at_least=wanted)
    assert generation > campaign_size(50, 5)


def build_or_fail(path: Path, generation: int) -> str:
    try:
        build(path, generation)
    except Exception as err:
        return f"{type(err).__name__}: {err}"
    return "built"


def append_answer(answers: list[str], path: Path, generation: int) -> None:
    answers.append(build_or_fail(path, generation))


def test_second_of_two_writers_gets_one_clear_error(tmp_path, open_table):
    path, table = tmp_path / "x.hyp", open_table("two writers")
    for generation in range(8):
        answers: list[str] = []
        threads = [threading.Thread(target=append_answer, args=(answers, path, generation)) for _ in range(2)]
        for thread in threads:
            thread.start()
        answers.append(run_in_child(build_or_fail, path, generation))
        for thread in threads:
            thread.join()
        for answer in answers:
            clear = answer == "built" or (answer.startswith("FileExistsError") and str(path) in answer)
            table.add("threads and a process", Outcome(RIGHT if clear else OTHER, answer[:300]))
        assert "built" in answers and len(HypencoderIndex(path, verify=True)) == 40 + generation % 9
        assert [entry.name for entry in tmp_path.iterdir()] == ["x.hyp"]
    table.check(at_least=24)
