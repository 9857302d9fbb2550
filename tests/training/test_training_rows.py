"""Stream rows: order, memory, processes, workers and resuming."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import tracemalloc
from itertools import islice
from types import SimpleNamespace

import datasets
import pytest
import torch
from example_rows import list_ids, make_row, write_rows
from torch.utils.data import DataLoader

from pyterrier_hypencoder.training import row_sampler, training_rows
from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.training_rows import TrainingRows

SCRIPT = """
import json, sys
from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.training_rows import TrainingRows
rows = TrainingRows(sys.argv[1], RowSampler(positive="type"), seed=3, shuffle_buffer=16, rank=1, world_size=2)
print(json.dumps(list(rows)))
assert "transformers" not in sys.modules
"""


@pytest.fixture
def counted(monkeypatch):
    """Return two lists that grow with the lines that are read and the rows that are parsed."""
    read, parsed, read_lines, parts = [], [], training_rows.read_lines, row_sampler._parse_row

    def counting(files):
        for line in read_lines(files):
            read.append(line["row"])
            yield line

    monkeypatch.setattr(training_rows, "read_lines", counting)
    monkeypatch.setattr(row_sampler, "_parse_row", lambda row, source: parsed.append(row) or parts(row, source))
    return read, parsed


def test_shuffle_buffer_keeps_all_rows_and_zero_keeps_their_order(two_files):
    expected = [f"q{n}" for n in range(50)]
    assert list_ids(TrainingRows(two_files, RowSampler(), shuffle_buffer=0)) == expected
    shuffled = list_ids(TrainingRows(two_files, RowSampler(), shuffle_buffer=20, seed=1))
    assert shuffled != expected and sorted(shuffled) == sorted(expected)
    assert list_ids(TrainingRows(two_files, RowSampler(), shuffle_buffer=20, seed=2)) != shuffled


def test_iteration_reads_and_parses_only_needed_rows(tmp_path, counted):
    path = write_rows(tmp_path / "rows.jsonl", [*(make_row(n) for n in range(40)), *["no row"] * 500])
    read, parsed = counted
    rows = iter(TrainingRows(path, RowSampler(), shuffle_buffer=8, rank=1, world_size=2))
    assert not read
    list(islice(rows, 3))
    read_ahead = 2  # by datasets; older versions read none
    assert len(read) <= 3 * 2 + 8 + read_ahead and len(parsed) == 3


def test_skip_does_not_parse_rows_and_does_not_read_whole_passes(tmp_path, counted):
    path = write_rows(tmp_path / "rows.jsonl", [make_row(n) for n in range(40)])
    read, parsed = counted
    rows = TrainingRows(path, RowSampler(), shuffle_buffer=8, world_size=2, skip=20 * 1000 + 3, epochs=None)
    list(islice(rows, 3))
    assert len(read) <= 2 * 40 + 8 and len(parsed) == 3


def test_memory_does_not_grow_with_file_size(tmp_path):
    row = make_row(0, items=9)
    row["items"][1]["content"] = "word " * 20_000
    path = write_rows(tmp_path / "rows.jsonl", [json.dumps(row)] * 300)  # 30 MB
    rows = iter(TrainingRows(path, RowSampler(), shuffle_buffer=10))
    next(rows)
    tracemalloc.start()
    count = sum(1 for _ in rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 299 and peak < 5_000_000


def test_samples_depend_only_on_seed_epoch_and_row(two_files):
    def by_query(**options):
        rows = TrainingRows(two_files, RowSampler(negatives_per_row=3), **options)
        return {row["query_id"]: row for row in rows}

    plain = by_query(shuffle_buffer=0)
    assert by_query(shuffle_buffer=30) == plain
    parts = [by_query(shuffle_buffer=30, world_size=2, rank=rank) for rank in (0, 1)]
    assert parts[0] | parts[1] == plain
    assert by_query(seed=1) != plain
    rows = TrainingRows(two_files, RowSampler(negatives_per_row=3), shuffle_buffer=10)
    first = list(rows)
    rows.set_epoch(1)
    second = list(rows)
    assert sorted(list_ids(second)) == sorted(list_ids(first)) and list_ids(second) != list_ids(first)
    assert {row["query_id"]: row for row in second} != plain
    both = list(TrainingRows(two_files, RowSampler(negatives_per_row=3), shuffle_buffer=10, epochs=2))
    assert both == first + second


def test_other_process_samples_the_same_rows(two_files, tmp_path):
    here = list(TrainingRows(two_files, RowSampler(positive="type"), seed=3, shuffle_buffer=16, rank=1, world_size=2))
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another one than in this process
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "HF_DATASETS_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(two_files)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here


def test_workers_do_not_change_samples(two_files, monkeypatch):
    rows = TrainingRows(two_files, RowSampler(negatives_per_row=3), shuffle_buffer=0)
    alone = list(rows)
    assert list(DataLoader(rows, batch_size=None, num_workers=1)) == alone
    together = list(DataLoader(rows, batch_size=None, num_workers=2))
    assert sorted(together, key=str) == sorted(alone, key=str)
    rows = TrainingRows(two_files / "a.jsonl", RowSampler(negatives_per_row=3), shuffle_buffer=0, skip=1)
    assert len(list(DataLoader(rows, batch_size=None, num_workers=1))) == 29
    # In this process, because torch waits five seconds for a worker that raised.
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: SimpleNamespace(num_workers=2, id=0))
    with pytest.raises(ValueError, match="skip=1 needs at most one DataLoader worker, got 2"):
        list(rows)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("shuffle_buffer", [0, 16])
def test_ranks_share_rows_equally(two_files, world_size, shuffle_buffer):
    options = {"shuffle_buffer": shuffle_buffer, "world_size": world_size, "epochs": 2}
    parts = [list_ids(TrainingRows(two_files, RowSampler(), rank=rank, **options)) for rank in range(world_size)]
    assert {len(part) for part in parts} == {100 // world_size}
    whole = list_ids(TrainingRows(two_files, RowSampler(), shuffle_buffer=shuffle_buffer, epochs=2))
    woven = [name for turn in zip(*parts, strict=True) for name in turn]
    assert woven == whole[: len(woven)]


def test_ranks_share_rows_equally_if_short_rows_are_skipped(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [make_row(n, items=12 if n % 3 else 2) for n in range(30)])
    options = {"shuffle_buffer": 8, "world_size": 3, "on_too_few_items": "skip"}
    parts = [list_ids(TrainingRows(path, RowSampler(), rank=rank, **options)) for rank in range(3)]
    assert [len(part) for part in parts] == [6, 6, 6]
    assert len(set(sum(parts, [])) & {f"q{n}" for n in range(30) if n % 3}) == 18


@pytest.mark.parametrize("on_too_few_items", ["error", "skip"])
@pytest.mark.parametrize("skip", [0, 1, 20, 33, 70])
def test_skip_continues_exactly(two_files, skip, on_too_few_items):
    if on_too_few_items == "skip":
        write_rows(two_files / "c.jsonl", [make_row(n, items=n % 5) for n in range(50, 60)])
    options = {"shuffle_buffer": 16, "rank": 1, "world_size": 2, "epochs": None, "on_too_few_items": on_too_few_items}
    whole = list(islice(TrainingRows(two_files, RowSampler(), **options), 90))
    rest = list(islice(TrainingRows(two_files, RowSampler(), skip=skip, **options), 90 - skip))
    assert rest == whole[skip:]


def test_iterations_repeat_and_rows_pickle(two_files):
    rows = TrainingRows(two_files, RowSampler(), shuffle_buffer=16)
    assert list(rows) == list(rows) == list(pickle.loads(pickle.dumps(rows)))


def test_short_rows_raise_or_are_skipped_and_counted(tmp_path, caplog):
    bad = [make_row(1, items=4), {"query": {"id": "q2"}, "items": []}]
    path = write_rows(tmp_path / "rows.jsonl", [make_row(0), *bad, make_row(3)])
    with pytest.raises(
        ValueError, match=r"rows.jsonl, row 2, query 'q1': negatives_per_row=8 needs at least 8 items besides .*got 3.*'skip'"
    ):
        list(TrainingRows(path, RowSampler(), shuffle_buffer=0))
    with caplog.at_level(logging.WARNING):
        assert list_ids(TrainingRows(path, RowSampler(), shuffle_buffer=0, on_too_few_items="skip")) == ["q0", "q3"]
    assert "Skipped 2 of 4 rows" in caplog.text
    alone = write_rows(tmp_path / "short.jsonl", bad)
    for epochs in (1, None):
        with pytest.raises(
            ValueError,
            match="All 2 rows in .* have no positive or fewer than 8 negatives: they have at most 3. Set negatives_per_row=3",
        ):
            list(TrainingRows(alone, RowSampler(), on_too_few_items="skip", epochs=epochs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank must be below world_size=2"),
        ({"world_size": 0}, "world_size"),
        ({"skip": -1}, "skip"),
        ({"epochs": 0}, "epochs"),
        ({"on_too_few_items": "ignore"}, "on_too_few_items"),
    ],
)
def test_invalid_options_raise(two_files, options, message):
    with pytest.raises(ValueError, match=message):
        TrainingRows(two_files, RowSampler(), **options)


# Rows in memory


@pytest.mark.parametrize("kind", ["list", "dataset"])
def test_rows_in_memory_are_sampled_like_rows_of_a_file(tmp_path, kind):
    rows = [make_row(n) for n in range(30)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    source = rows if kind == "list" else datasets.Dataset.from_list(rows)
    from_file = TrainingRows(path, RowSampler(negatives_per_row=3), shuffle_buffer=0)
    assert list(TrainingRows(source, RowSampler(negatives_per_row=3), shuffle_buffer=0)) == list(from_file)
    shuffled = TrainingRows(source, RowSampler(negatives_per_row=3), epochs=2)
    first, second = list_ids(shuffled)[:30], list_ids(shuffled)[30:]
    assert first != second and sorted(first) == sorted(second) == sorted(list_ids(from_file))
    assert list_ids(shuffled) == list_ids(pickle.loads(pickle.dumps(shuffled)))


def test_rows_in_memory_are_split_over_workers_and_processes():
    rows = TrainingRows([make_row(n) for n in range(20)], RowSampler(negatives_per_row=3))
    together = list_ids(DataLoader(rows, batch_size=None, num_workers=2))
    assert sorted(together) == sorted(list_ids(rows)) and len(together) == 20
    rest = TrainingRows(rows.rows, rows.sampler, skip=4, world_size=2, rank=1, epochs=None)
    assert list_ids(islice(rest, 6)) == list_ids(rows)[9::2]


@pytest.mark.parametrize("source", [iter([]), {"query": {}}, 3], ids=["iterator", "one row", "number"])
def test_rows_that_can_be_read_only_once_are_refused(source):
    with pytest.raises(TypeError, match="must be paths, a list of rows or a datasets.Dataset, got"):
        TrainingRows(source, RowSampler())


def test_count_rows_leaves_out_skipped_rows(tmp_path):
    rows = [make_row(n, items=12 if n % 3 else 2) for n in range(30)]
    for source in (rows, write_rows(tmp_path / "rows.jsonl", rows)):
        assert TrainingRows(source, RowSampler(), on_too_few_items="skip").count_rows() == 20
        assert TrainingRows(source, RowSampler()).count_rows() == 30


def test_positive_auto_uses_types_if_rows_have_them():
    typed = make_row(0)
    for i, item in enumerate(typed["items"]):
        item["type"] = "positive" if i == 2 else "negative"
    untyped = {**typed, "items": [{**item, "type": None} for item in typed["items"]]}
    for row, position in ((typed, 2), (untyped, 0)):
        (sampled,) = TrainingRows([row], RowSampler(positive="auto", negatives_per_row=3))
        assert sampled["item_ids"][0] == row["items"][position]["id"]
