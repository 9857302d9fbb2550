"""A disk that is full: the error names the file, nothing half-written remains, and the next build goes on."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from file_calls import FileCalls, count_calls, use_one_thread, wait_for
from golden_checkpoints import FOLDERS
from indexes import read_tree
from indexing import build, make_vectors
from outcomes import CLEAR, OTHER, RIGHT, Outcome, judge_error
from processes import run_in_child
from small_checkpoints import TEXTS, save
from workers import run_all

from pyterrier_hypencoder import Hypencoder, HypencoderIndex
from pyterrier_hypencoder.encoders import checkpoint

DOCS, OLD_DOCS = make_vectors(200, 8), make_vectors(40, 8)
_NEEDS_SPACE = {"create", "write", "fsync", "os.mkdir", "os.symlink"}
_OTHER_CHECKPOINT = FOLDERS["tiny_2l_mean_separate_reslast"]


class Job(NamedTuple):
    """Something that writes files."""

    prepare: Callable[[Path], Any]
    write: Callable[[Path, str], Any]
    """Takes the path, and the mode of a build: that of the first attempt, or of the second one."""
    modes: tuple[str, str]
    describe: Callable[[Path], Any]
    """Returns what is there, to compare it with what was there before and with what would be there without an error."""


def _describe_index(path: Path) -> dict[str, bytes | None] | None:
    if not path.exists():
        return None
    HypencoderIndex(path, verify=True)
    # Unfinished graphs and locks are left out, and faiss does not write the same bytes twice.
    return {name: data for name, data in read_tree(path).items() if ".partial" not in name and "inner_product" not in name}


def _describe_checkpoint(path: Path) -> list[list[float]]:
    return np.round(Hypencoder(path, device="cpu").encode_docs(TEXTS), 4).tolist()


def _save_other_checkpoint(path: Path, format: str) -> None:
    model, _ = checkpoint.load(str(_OTHER_CHECKPOINT))
    checkpoint.save(model, path, format=format)


def _build(path: Path, mode: str) -> None:
    build(path, DOCS, mode=mode, graph_k=4)


JOBS = {
    "create an index": Job(lambda path: None, _build, ("create", "resume"), _describe_index),
    "create an index in int8": Job(
        lambda path: None,
        lambda path, mode: build(path, DOCS, mode=mode, dtype="int8"),
        ("create", "resume"),
        _describe_index,
    ),
    "overwrite an index": Job(
        lambda path: build(path, OLD_DOCS, graph_k=2), _build, ("overwrite", "overwrite"), _describe_index
    ),
    "build a graph": Job(
        lambda path: build(path, DOCS), lambda path, mode: HypencoderIndex(path).corpus_graph(4), ("", ""), _describe_index
    ),
    "build an inner-product index": Job(
        lambda path: build(path, DOCS),
        lambda path, mode: HypencoderIndex(path).inner_product_index(),
        ("", ""),
        _describe_index,
    ),
    "save a checkpoint": Job(
        lambda path: save("own Hypencoder", path),
        _save_other_checkpoint,
        ("safetensors", "safetensors"),
        _describe_checkpoint,
    ),
    "save a checkpoint as .bin": Job(
        lambda path: save("own Hypencoder", path), _save_other_checkpoint, ("bin", "bin"), _describe_checkpoint
    ),
}


class FullDisk(NamedTuple):
    """A job, and the moment at which the disk is full: at its n-th call, or when a file has some size."""

    job: str
    call: int
    max_bytes: int | None

    def __str__(self) -> str:
        return f"full at call {self.call}" if self.max_bytes is None else f"files of at most {self.max_bytes} bytes"


def _raise_full(path: str | None) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    error.filename = path  # a call with a descriptor names no file
    raise error


def write_on_full_disk(path: Path, full: FullDisk) -> Outcome | None:
    """Do a job in a forked child whose disk gets full; return the outcome, or None if the space was enough."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        outcome = None
        try:
            if full.max_bytes is None:
                FileCalls(path.parent, full.call, _raise_full, _NEEDS_SPACE, onward=True)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (full.max_bytes, full.max_bytes))
            JOBS[full.job].write(path, JOBS[full.job].modes[0])
        except BaseException as err:
            outcome = judge_error(err, (str(path.parent),))
            if not isinstance(err, OSError):
                outcome = Outcome(OTHER, outcome.detail)
        finally:
            os.write(writer, json.dumps(outcome).encode())
            os._exit(0)
    os.close(writer)
    wait_for(child)
    with open(reader) as pipe:
        found = json.loads(pipe.read())
    return None if found is None else Outcome(*found)


def try_full_disk(full: FullDisk, root: Path, worker: int) -> Outcome:
    """Do a job while the disk is full, look at what is left, and do it again with enough space."""
    use_one_thread()
    place, job = root / f"worker-{worker}", JOBS[full.job]
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(root / full.job, place, symlinks=True)
    path = place / "x"
    old = json.loads((root / f"{full.job}.json").read_text())
    outcome = write_on_full_disk(path, full) or Outcome(RIGHT)
    if outcome.kind == OTHER:
        return outcome
    try:
        if parts := [str(file.relative_to(place)) for file in place.rglob("*.part")]:
            return Outcome(OTHER, f"{parts} remain")
        now = _encode(job.describe(path))
        if now not in (old["before"], old["after"]):
            return Outcome(OTHER, "neither the old state nor the new one")
        job.write(path, job.modes[1])
        if _encode(job.describe(path)) != old["after"]:
            return Outcome(OTHER, "another result with enough space")
    except Exception as err:
        return Outcome(OTHER, f"{type(err).__name__}: {err}")
    return outcome


def _encode(value: Any) -> Any:
    """Return what can be compared after it was stored as JSON."""
    return json.loads(json.dumps(value, default=lambda data: data.hex()))


def list_full_disks(root: Path, number: int) -> list[FullDisk]:
    """Make the places of all jobs, and return about as many full disks per job."""
    use_one_thread()
    found = []
    for name, job in JOBS.items():
        rng, place, trial = random.Random(name), root / name, root / f"{name} (trial)"
        place.mkdir()
        job.prepare(place / "x")
        before = job.describe(place / "x")
        shutil.copytree(place, trial, symlinks=True)
        n_calls = count_calls(lambda: job.write(trial / "x", job.modes[0]), trial, _NEEDS_SPACE)  # noqa: B023
        states = {"before": before, "after": job.describe(trial / "x")}
        (root / f"{name}.json").write_text(json.dumps(_encode(states)))
        calls = sorted(rng.sample(range(1, n_calls + 1), min(n_calls, number)))
        largest = max(file.stat().st_size for file in trial.rglob("*") if file.is_file())
        sizes = [0, *(rng.randrange(largest) for _ in range(number // 4))]
        found += [FullDisk(name, call, None) for call in calls] + [FullDisk(name, 0, size) for size in sizes]
    return found


def test_full_disk_is_a_clear_error_and_the_next_build_goes_on(tmp_path, open_table, campaign_size):
    items = run_in_child(list_full_disks, tmp_path, campaign_size(200, 8))
    table = open_table("full disk")
    for full, outcome in run_all(try_full_disk, items, tmp_path):
        table.add(full.job, outcome, str(full))
    table.check(at_least=campaign_size(200, 50))
    assert sum(counts[CLEAR] for counts in table.counts.values()) > table.total / 2
