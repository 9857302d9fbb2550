"""Builds of an index that are killed: the index is never partial, and a resumed build has the same bytes."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from indexes import read_tree
from indexing import Doc, build, count_stored, make_vectors
from processes import PROCESSES, run_in_child

from pyterrier_hypencoder import Hypencoder
from pyterrier_hypencoder.index.staging import get_staging_path, is_unfinished
from pyterrier_hypencoder.index.writer import is_index

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Skip fsync, which takes most of the time and does not matter for the death of a process."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def slow_down(docs: Iterable[Doc], pause: float, started: Any, finishing: Any) -> Iterator[Doc]:
    """Yield the documents with pauses. A long pause at the end keeps a build from finishing before it is killed."""
    started.set()
    for position, doc in enumerate(docs):
        if position % 16 == 0:
            time.sleep(pause)
        yield doc
    time.sleep(120 if pause else 0)
    finishing.set()


def make_golden_docs(n: int) -> list[Doc]:
    docs = json.loads((GOLDEN / "texts.json").read_text())["docs"]
    return [
        {"docno": f"{doc['docno']}/{i}", "text": doc["text"]} for i, doc in zip(range(n), itertools.cycle(docs), strict=False)
    ]


def build_slowly(path: Path, kind: str, mode: str, pause: float, started: Any, finishing: Any) -> None:
    if kind == "doc_vec":
        docs, model = make_vectors(3000, 16), None
    else:
        docs, model = make_golden_docs(640), Hypencoder(str(GOLDEN / "tiny_6l_cls_shared"), device="cpu", doc_max_length=64)
        model.record()  # loads the model before the clock starts
    build(path, slow_down(docs, pause, started, finishing), model, mode=mode)


def build_and_kill(path: Path, kind: str, mode: str, pause: float, after: float | None, *, finish: bool = False) -> int:
    """Build in a child process and kill it some seconds after its stream has started (or ended); return its exit code."""
    started, finishing = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=build_slowly, args=(path, kind, mode, pause, started, finishing))
    process.start()
    if after is not None:
        assert (finishing if finish else started).wait(timeout=120)
        time.sleep(after)
        process.kill()
    process.join(timeout=120)
    assert process.exitcode is not None
    return process.exitcode


def assert_never_partial(path: Path, old: dict[str, bytes | None] | None, new: dict[str, bytes | None]) -> None:
    """Check that the path has the old index, the new index, or none while the old one can still be restored."""
    if path.exists():
        assert read_tree(path) in (old, new)
    elif old is not None:
        assert read_tree(get_staging_path(path) / "old") == old and is_unfinished(path)


@pytest.mark.parametrize(
    ("kind", "pause", "seconds"), [("doc_vec", 0.004, 0.75), pytest.param("text", 0.02, 0.8, marks=pytest.mark.slow)]
)
def test_build_killed_five_times_and_resumed_has_the_same_bytes(tmp_path, kind, pause, seconds):
    path, whole = tmp_path / "x.hyp", tmp_path / "whole.hyp"
    assert build_and_kill(whole, kind, "create", 0, None) == 0
    rng = random.Random(5)
    for moment in sorted(rng.uniform(0.05, 0.95) * seconds for _ in range(5)):  # the stream takes that long
        assert build_and_kill(path, kind, "resume", pause, moment) == -signal.SIGKILL
        assert not path.exists()
    assert count_stored(path)
    assert build_and_kill(path, kind, "resume", 0, None) == 0
    assert read_tree(path) == read_tree(whole)
    assert not get_staging_path(path).exists()


@pytest.mark.slow
def test_build_killed_while_finishing_and_resumed_has_the_same_bytes(tmp_path):
    path, whole = tmp_path / "x.hyp", tmp_path / "whole.hyp"
    assert build_and_kill(whole, "doc_vec", "create", 0, None) == 0
    old, rng = read_tree(build(path, make_vectors(30))), random.Random(5)
    for mode in ["overwrite"] + ["resume"] * 4:
        build_and_kill(path, "doc_vec", mode, 0, rng.uniform(0, 0.03), finish=True)
        assert_never_partial(path, old, read_tree(whole))
    assert build_and_kill(path, "doc_vec", "resume", 0, None) == 0
    assert read_tree(path) == read_tree(whole)
    assert not get_staging_path(path).exists()


def die_at(step: int, folder: str) -> None:
    """Kill this process at its n-th file system call below a folder."""
    steps = itertools.count(1)
    touches = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in touches and (folder in str(args[0]) or event == "os.rmdir") and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def die_everywhere(folder: Path, there: bool, mode: str, then: str) -> int:
    """Kill a build at each of its file system calls in turn, build again, and compare; return the number of kills."""
    os.fsync = lambda file: None
    docs = make_vectors(30, 4)
    old = read_tree(build(folder / "old.hyp", make_vectors(7, 2))) if there else None
    new = read_tree(build(folder / "new.hyp", docs, batch_size=12))
    for step in itertools.count(1):
        path = folder / f"{step}.hyp"
        if there:
            shutil.copytree(folder / "old.hyp", path)
        child = os.fork()
        if not child:
            code = 1
            try:
                die_at(step, str(path))
                build(path, docs, mode=mode, batch_size=12)
                code = 0
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), f"at step {step}: {status}"
        assert_never_partial(path, old, new)
        try:
            build(path, docs, mode=then, batch_size=12)
        except FileExistsError:  # mode="create" refuses what the killed build has left
            assert then == "create" and (is_index(path) or is_unfinished(path))
            build(path, docs, mode="overwrite", batch_size=12)
        except ValueError:  # killed before it started: there is only the old index
            assert then == "resume" and read_tree(path) == old and not is_unfinished(path)
            build(path, docs, mode="overwrite", batch_size=12)
        assert read_tree(path) == new, f"at step {step}"
        assert {file.name for file in folder.glob(f"{step}.hyp*")} == {path.name}, f"at step {step}"
        if status == 0:
            return step - 1
    raise AssertionError


@pytest.mark.parametrize(
    ("there", "mode", "then"),
    [
        pytest.param(False, "create", "resume", marks=pytest.mark.slow),
        pytest.param(False, "create", "create", marks=pytest.mark.slow),
        (True, "overwrite", "resume"),
        pytest.param(True, "overwrite", "overwrite", marks=pytest.mark.slow),
    ],
)
def test_build_killed_at_any_file_system_call_can_be_continued(tmp_path, there, mode, then):
    assert run_in_child(die_everywhere, tmp_path, there, mode, then) > 30
