"""Files that were made to do harm: a clear error in bounded time and memory, and no code runs."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from hostile_files import ALL, MARK, prepare
from outcomes import OTHER, Outcome, judge_error
from workers import run_all

_MAX_GROWTH = 400 * 2**20
"""Bytes that a hostile file may make a process use for a moment. Headers and JSON of some 10 MB are read."""


def reset_peak() -> None:
    """Let the kernel measure the largest resident size again."""
    Path("/proc/self/clear_refs").write_text("5")


def read_peak() -> int:
    """Return the largest resident size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def try_hostile(item: tuple[str, str], root: Path, worker: int) -> Outcome:
    """Use a hostile folder, and say yes to every question."""
    folder = root / str(ALL.index(item))
    folder.mkdir()
    os.chdir(folder)
    use = prepare(*item, folder)
    files = [path.name for path in folder.rglob("*") if path.suffix]
    sys.stdin = io.StringIO("y\n" * 99)
    reset_peak()
    before = read_peak()
    try:
        use()
        outcome = Outcome(OTHER, "no error")
    except Exception as err:
        outcome = judge_error(err, (str(folder), *files))
    grown = read_peak() - before
    if list(folder.rglob(MARK)):
        return Outcome(OTHER, f"code ran; {outcome.detail}")
    if sys.stdin.read() != "y\n" * 99:
        return Outcome(OTHER, f"a question was asked; {outcome.detail}")
    if grown > _MAX_GROWTH:
        return Outcome(OTHER, f"took {grown / 2**20:.0f} MiB; {outcome.detail}")
    return outcome


def test_hostile_files_give_clear_errors_and_run_no_code(tmp_path, open_table):
    table = open_table("hostile files")
    for item, outcome in run_all(try_hostile, ALL, tmp_path):
        table.add(item[0], outcome, item[1])
    table.check(at_least=len(ALL))


def _plant_and_measure(item: int, root: Path, worker: int) -> int:
    reset_peak()
    before = read_peak()
    bytes(bytearray(os.urandom(2**20)) * item)
    return read_peak() - before


def test_memory_is_measured(tmp_path):
    for item, grown in run_all(_plant_and_measure, [1, 500], tmp_path):
        assert grown >= item * 2**20 / 2 and (item > 1 or grown < _MAX_GROWTH)
