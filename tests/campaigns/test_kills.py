"""Builds that are killed: there is the old index, the new one or none, and a resumed build has the same bytes."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from file_calls import FileCalls, count_calls, run_and_wait, use_one_thread, wait_for
from indexes import read_tree
from indexing import Doc, build, count_stored, make_vectors
from outcomes import CLEAR, OTHER, RIGHT, Outcome
from processes import PROCESSES, run_in_child
from workers import run_all

from pyterrier_hypencoder import Hypencoder, HypencoderIndex
from pyterrier_hypencoder.index.staging import get_staging_path

GOLDEN = Path(__file__).parents[1] / "golden"
DOCS, OLD_DOCS = make_vectors(30, 4), make_vectors(7, 2)
OPTIONS = {"batch_size": 12}


class Build(NamedTuple):
    """A build that is killed."""

    mode: str
    graph_k: int | None
    before: str
    """``nothing``, ``old`` (an index that is replaced) or ``half`` (a killed build, with or without an index)."""

    def __str__(self) -> str:
        return f"{self.mode}{f' with graph_k={self.graph_k}' if self.graph_k else ''}, before: {self.before}"


BUILDS = [
    Build("create", None, "nothing"),
    Build("create", 3, "nothing"),
    Build("overwrite", None, "old"),
    Build("overwrite", 3, "old"),
    Build("overwrite", 3, "half over old"),
    Build("resume", None, "half"),
    Build("resume", 3, "half over old"),
]
Tree = dict[str, bytes | None]


class Kill(NamedTuple):
    """A build, and the moment at which it is killed: before its n-th file-system call, or after some seconds."""

    build: Build
    call: int
    seconds: float | None
    then: str
    """Mode of the next build."""

    def __str__(self) -> str:
        moment = f"call {self.call}" if self.seconds is None else f"after {self.seconds:.3f} seconds"
        return f"killed at {moment}, then {self.then}"


def prepare(folder: Path, job: Build) -> Path:
    """Make what stands there before the build."""
    path = folder / "x.hyp"
    if "old" in job.before:
        build(path, OLD_DOCS, graph_k=2)
    if "half" in job.before:
        mode = "overwrite" if "old" in job.before else "create"
        run_and_wait(lambda: build(path, _kill_after(DOCS, 14), mode=mode, **OPTIONS))
    return path


def _kill_after(docs: list[Doc], number: int) -> Iterator[Doc]:
    yield from docs[:number]
    os.kill(os.getpid(), signal.SIGKILL)


def run_build(path: Path, job: Build, kill_at: int = 0) -> None:
    if kill_at:
        FileCalls(path.parent, kill_at, lambda path: os.kill(os.getpid(), signal.SIGKILL))
    build(path, DOCS, mode=job.mode, graph_k=job.graph_k, **OPTIONS)


def try_kill(kill: Kill, folder: Path, worker: int) -> Outcome:
    """Kill a build, look at what it leaves, build again, and compare."""
    place = folder / f"worker-{worker}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / str(BUILDS.index(kill.build)), place, symlinks=True)
    path = place / "x.hyp"
    old = read_tree(path) if path.exists() else None
    new = read_tree(folder / f"new-{kill.build.graph_k}" / "x.hyp")
    if kill.seconds is None:
        status = run_and_wait(lambda: run_build(path, kill.build, kill.call))
    else:
        status = _run_and_kill(path, kill.build, kill.seconds)
    if status not in (0, -signal.SIGKILL):
        return Outcome(OTHER, f"the build ended with {status}")
    try:
        return find_fault(path, old, new) or build_again(path, kill, old, new)
    except Exception as err:
        return Outcome(OTHER, f"{type(err).__name__}: {err}")


def _run_and_kill(path: Path, job: Build, seconds: float) -> int:
    child = os.fork()
    if not child:
        run_build(path, job)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait_for(child)


def find_fault(path: Path, old: Tree | None, new: Tree) -> Outcome | None:
    """Check what a killed build has left: the old index, the new one, or none if there was none."""
    extra = {file.name for file in path.parent.iterdir()} - {path.name, f"{path.name}.partial", f".{path.name}.lock"}
    if extra:
        return Outcome(OTHER, f"unknown files remain: {extra}")
    if path.exists():
        if read_tree(path) not in (old, new):
            return Outcome(OTHER, "the index is neither the old one nor the new one")
        HypencoderIndex(path, verify=True)
    elif old is not None:
        return Outcome(OTHER, "the old index is gone")
    return None


def build_again(path: Path, kill: Kill, old: Tree | None, new: Tree) -> Outcome:
    """Build again and check that the result has the same bytes as a build that was never killed."""
    outcome = Outcome(RIGHT)
    options = {"graph_k": kill.build.graph_k, **OPTIONS}
    try:
        build(path, DOCS, mode=kill.then, **options)
    except (FileExistsError, ValueError) as err:
        # "create" refuses what the killed build has left; "resume" refuses a complete index of other documents.
        if kill.then == "resume" and not (path.exists() and read_tree(path) == old):
            return Outcome(OTHER, f"it cannot be resumed: {err}")
        outcome = Outcome(CLEAR if path.name in str(err) else OTHER, str(err))
        build(path, DOCS, mode="overwrite", **options)
    if read_tree(path) != new:
        return Outcome(OTHER, "the index has other bytes than that of a build that was never killed")
    left = {file.name for file in path.parent.iterdir()} - {path.name}
    return Outcome(OTHER, f"files remain after the next build: {left}") if left else outcome


def list_kills(folder: Path, at_calls: int, at_random: int) -> list[Kill]:
    """Make the places of all builds, and return the kills.

    Args:
        folder: Folder of the places.
        at_calls: Maximum number of kills at file-system calls per build.
        at_random: Number of kills at random moments per build.
    """
    use_one_thread()
    kills = []
    for graph_k in {job.graph_k for job in BUILDS}:
        build(folder / f"new-{graph_k}" / "x.hyp", DOCS, graph_k=graph_k, **OPTIONS)
    for number, job in enumerate(BUILDS):
        rng, place, trial = random.Random(number), folder / str(number), folder / f"trial-{number}"
        place.mkdir()
        path = prepare(place, job)
        shutil.copytree(place, trial, symlinks=True)
        started = time.monotonic()
        n_calls = count_calls(lambda: run_build(trial / path.name, job), trial)  # noqa: B023
        seconds = time.monotonic() - started
        calls = sorted(rng.sample(range(1, n_calls + 1), min(at_calls, n_calls)))
        modes = itertools.cycle(["resume", "overwrite", "resume", "create"])
        kills += [Kill(job, call, None, next(modes)) for call in calls]
        kills += [Kill(job, 0, rng.uniform(0, seconds), next(modes)) for _ in range(at_random)]
    return kills


def test_killed_build_leaves_the_old_index_the_new_one_or_none(tmp_path, open_table, campaign_size):
    kills = run_in_child(list_kills, tmp_path, campaign_size(10**6, 8), campaign_size(30, 3))
    table = open_table("killed build")
    for kill, outcome in run_all(try_kill, kills, tmp_path):
        table.add(str(kill.build), outcome, str(kill))
    table.check(at_least=campaign_size(200, 60))


def _find_nothing_wrong(folder: Path) -> list[str]:
    path, other = build(folder / "x" / "x.hyp", OLD_DOCS), build(folder / "y" / "x.hyp", DOCS)
    found = [find_fault(path, read_tree(path), {}), find_fault(path, None, read_tree(other))]
    shutil.rmtree(path)
    found.append(find_fault(path, {}, {}))
    (path.parent / "junk").touch()
    found.append(find_fault(path, None, {}))
    return ["" if outcome is None else outcome.detail for outcome in found]


def test_a_lost_index_is_found(tmp_path):
    details = run_in_child(_find_nothing_wrong, tmp_path)
    assert details[0] == "" and "neither" in details[1] and "gone" in details[2] and "unknown" in details[3]


# Builds that are killed again and again


def slow_down(docs: Iterable[Doc], pause: float, started: Any) -> Iterator[Doc]:
    """Yield the documents with pauses. A long pause at the end keeps a build from finishing before it is killed."""
    started.set()
    for position, doc in enumerate(docs):
        if position % 16 == 0:
            time.sleep(pause)
        yield doc
    time.sleep(120 if pause else 0)


def make_golden_docs(n: int) -> list[Doc]:
    docs = json.loads((GOLDEN / "texts.json").read_text())["docs"]
    return [
        {"docno": f"{doc['docno']}/{i}", "text": doc["text"]} for i, doc in zip(range(n), itertools.cycle(docs), strict=False)
    ]


def build_slowly(path: Path, kind: str, pause: float, started: Any) -> None:
    if kind == "doc_vec":
        docs, model = make_vectors(3000, 16), None
    else:
        docs, model = make_golden_docs(640), Hypencoder(str(GOLDEN / "tiny_6l_cls_shared"), device="cpu", doc_max_length=64)
        model.record()  # loads the model before the clock starts
    build(path, slow_down(docs, pause, started), model, mode="resume")


def build_and_kill(path: Path, kind: str, pause: float, after: float | None) -> int:
    """Build in a child process and kill it some seconds after its stream has started; return its exit code."""
    started = PROCESSES.Event()
    process = PROCESSES.Process(target=build_slowly, args=(path, kind, pause, started))
    process.start()
    if after is not None:
        assert started.wait(timeout=120)
        time.sleep(after)
        process.kill()
    process.join(timeout=120)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize(("kind", "pause", "seconds"), [("doc_vec", 0.004, 0.75), ("text", 0.02, 0.8)])
def test_build_killed_five_times_and_resumed_has_the_same_bytes(tmp_path, kind, pause, seconds):
    path, whole = tmp_path / "x.hyp", tmp_path / "whole.hyp"
    assert build_and_kill(whole, kind, 0, None) == 0
    rng = random.Random(5)
    for moment in sorted(rng.uniform(0.05, 0.95) * seconds for _ in range(5)):  # the stream takes that long
        assert build_and_kill(path, kind, pause, moment) == -signal.SIGKILL
        assert not path.exists()
    assert count_stored(path)
    assert build_and_kill(path, kind, 0, None) == 0
    assert read_tree(path) == read_tree(whole)
    assert not get_staging_path(path).exists()
