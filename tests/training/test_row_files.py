"""List, read and check files of training rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from example_rows import make_row, write_rows

from pyterrier_hypencoder.training.row_files import list_row_files
from pyterrier_hypencoder.training.row_sampler import RowSampler, TooFewItemsError
from pyterrier_hypencoder.training.training_rows import TrainingRows


def test_list_row_files_finds_files_directories_and_patterns(two_files):
    names = [str(two_files / "a.jsonl"), str(two_files / "b.jsonl.gz")]
    for paths in (two_files, str(two_files), names, two_files / "*", f"{two_files}/**/*.jsonl*"):
        assert list_row_files(paths) == names
    assert list_row_files([names[1], names[0]]) == names[::-1]
    for paths in (two_files / "c.jsonl", two_files / "*.csv", [], [names[0], two_files / "none"]):
        with pytest.raises(FileNotFoundError, match="No training rows.*(matches no|list of paths is empty)"):
            TrainingRows(paths, RowSampler())


def test_damaged_and_empty_files_raise(tmp_path):
    whole = write_rows(tmp_path / "rows.jsonl.gz", [make_row(n) for n in range(50)]).read_bytes()
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="rows.jsonl.gz is damaged"):
        list(TrainingRows(tmp_path, RowSampler()))
    (tmp_path / "rows.jsonl.gz").unlink()
    write_rows(tmp_path / "none.jsonl", [])
    for epochs in (1, None):
        with pytest.raises(ValueError, match="No training rows in"):
            list(TrainingRows(tmp_path, RowSampler(), epochs=epochs))


@pytest.mark.parametrize(
    "line",
    [
        '{"query": {"id": "q"',
        "[]",
        "7",
        '{"query": {"id": "q"}}',
        '{"query": "text", "items": []}',
        '{"query": {"content": "q"}, "items": ["text"]}',
        '{"query": {"content": "q"}, "items": [{"content": "d", "score": NaN}]}',
        '{"query": {"content": "q"}, "items": [{"content": "d", "score": "high"}]}',
        '{"query": {}, "items": [{"content": "d"}]}',
        '{"query": {"content": "q"}, "items": [{"content": null}]}',
        '{"query": {"content": "q"}, "items": [{"tokenized_content": []}]}',
        '{"query": {"content": "q"}, "items": [{"tokenized_content": [1, "a"]}]}',
    ],
)
def test_malformed_rows_raise_with_file_and_line(tmp_path, line):
    path = write_rows(tmp_path / "rows.jsonl", ["", line])
    with pytest.raises(ValueError, match="rows.jsonl, row 2.*must .*got ") as caught:
        list(TrainingRows(path, RowSampler(negatives_per_row=0), on_too_few_items="skip"))
    assert not isinstance(caught.value, TooFewItemsError)


@pytest.mark.parametrize("kind", [list, tuple, set, np.array])
def test_paths_may_be_any_collection(tmp_path, kind):
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for name in names:
        Path(name).write_text("{}")
    assert list_row_files(kind(names)) == names


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text("{}")
    assert list_row_files("~/a.jsonl") == list_row_files(["~/*.jsonl"]) == [str(tmp_path / "a.jsonl")]


@pytest.mark.parametrize("paths", [iter(["a.jsonl"]), 5, None, [5], b"a.jsonl"])
def test_paths_of_wrong_types_raise_value_error(paths):
    with pytest.raises(ValueError, match="paths must be a collection of paths"):
        list_row_files(paths)
