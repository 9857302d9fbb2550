"""Training rows: reading, sampling, batches, and mining with PyTerrier pipelines."""

from __future__ import annotations

import copy
import gzip
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from pyterrier_hypencoder.training import mining, row_files, row_sampler, training_rows
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.mining import mine
from pyterrier_hypencoder.training.row_sampler import RowSampler, TooFewItemsError
from pyterrier_hypencoder.training.training_rows import TrainingRows

datasets = pytest.importorskip("datasets")


def row_of(number, items=12, **changes):
    """A row whose teacher likes item 3 best; items 0 and 1 are of the positive type."""
    made = [
        {
            "id": f"q{number}d{i}",
            "content": f"document {i} of {number}",
            "tokenized_content": [2, number % 90 + 5, i + 5, 3],
            "score": 10.0 if i == 3 else float(-i),
            "type": "positive" if i < 2 else "negative",
        }
        for i in range(items)
    ]
    query = {"id": f"q{number}", "content": f"query {number}", "tokenized_content": [2, number % 90 + 5, 3]}
    return {"query": query, "items": made, **changes}


def write(path, rows):
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return path


def without(row, key):
    return {"query": _drop(row["query"], key), "items": [_drop(item, key) for item in row["items"]]}


def _drop(record, key):
    return {k: v for k, v in record.items() if k != key}


def ids(rows):
    return [row["query_id"] for row in rows]


def sample(row, seed=0, **options):
    return RowSampler(**options)(row, random.Random(seed))


@pytest.fixture
def two_files(tmp_path):
    """50 rows in a plain and a gzipped file."""
    write(tmp_path / "a.jsonl", [row_of(n) for n in range(30)])
    write(tmp_path / "b.jsonl.gz", [row_of(n) for n in range(30, 50)])
    (tmp_path / "notes.txt").write_text("no training data")
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer(golden):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(golden / "tiny_6l_cls_shared")


@pytest.fixture(autouse=True)
def no_traces(monkeypatch, tmp_path_factory):
    """The lock files that ``datasets`` makes go where tests may write."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp()))


# Reading


def test_files_directories_and_patterns(two_files):
    names = [str(two_files / "a.jsonl"), str(two_files / "b.jsonl.gz")]
    for paths in (two_files, str(two_files), names, two_files / "*", f"{two_files}/**/*.jsonl*"):
        assert row_files.list_row_files(paths) == names
    assert row_files.list_row_files([names[1], names[0]]) == names[::-1]
    for paths in (two_files / "c.jsonl", two_files / "*.csv", [], [names[0], two_files / "none"]):
        with pytest.raises(FileNotFoundError, match="No training rows.*(matches no|list of paths is empty)"):
            TrainingRows(paths, RowSampler())


def test_rows_come_in_order_without_a_buffer_and_all_of_them_with_one(two_files):
    expected = [f"q{n}" for n in range(50)]
    assert ids(TrainingRows(two_files, RowSampler(), shuffle_buffer=0)) == expected
    shuffled = ids(TrainingRows(two_files, RowSampler(), shuffle_buffer=20, seed=1))
    assert shuffled != expected and sorted(shuffled) == sorted(expected)
    assert ids(TrainingRows(two_files, RowSampler(), shuffle_buffer=20, seed=2)) != shuffled


@pytest.mark.parametrize("missing", ["tokenized_content", "content", "id", "type", "score"])
def test_what_may_be_absent(tmp_path, missing):
    path = write(tmp_path / "rows.jsonl", [without(row_of(n), missing) for n in range(3)])
    row = next(iter(TrainingRows(path, RowSampler(negatives_per_row=2), shuffle_buffer=0)))
    assert row["query"] == ([2, 5, 3] if missing == "content" else "query 0")
    assert row["items"][0] == ([2, 5, 5, 3] if missing == "content" else "document 0 of 0")
    assert (row["scores"] is None) == (missing == "score")
    assert row["item_ids"][0] == (None if missing == "id" else "q0d0")


@pytest.fixture
def counted(monkeypatch):
    """The lines that are read and the rows that are parsed, as they are."""
    read, parsed, read_lines, parts = [], [], training_rows.read_lines, row_sampler._parse_row

    def counting(files):
        for line in read_lines(files):
            read.append(line["row"])
            yield line

    monkeypatch.setattr(training_rows, "read_lines", counting)
    monkeypatch.setattr(row_sampler, "_parse_row", lambda row, source: parsed.append(row) or parts(row, source))
    return read, parsed


def test_only_what_is_needed_is_read_and_parsed(tmp_path, counted):
    path = write(tmp_path / "rows.jsonl", [*(row_of(n) for n in range(40)), *["no row"] * 500])
    read, parsed = counted
    rows = iter(TrainingRows(path, RowSampler(), shuffle_buffer=8, rank=1, world_size=2))
    assert not read
    list(islice(rows, 3))
    ahead = 2  # lines that datasets reads ahead, which depends on its version
    assert len(read) <= 3 * 2 + 8 + ahead and len(parsed) == 3


def test_what_is_skipped_is_not_parsed_and_whole_passes_are_not_read(tmp_path, counted):
    path = write(tmp_path / "rows.jsonl", [row_of(n) for n in range(40)])
    read, parsed = counted
    rows = TrainingRows(path, RowSampler(), shuffle_buffer=8, world_size=2, skip=20 * 1000 + 3, epochs=None)
    list(islice(rows, 3))
    assert len(read) <= 2 * 40 + 8 and len(parsed) == 3


def test_memory_does_not_grow_with_the_file(tmp_path):
    row = row_of(0, items=9)
    row["items"][1]["content"] = "word " * 20_000
    path = write(tmp_path / "rows.jsonl", [json.dumps(row)] * 300)  # 30 MB
    rows = iter(TrainingRows(path, RowSampler(), shuffle_buffer=10))
    next(rows)
    tracemalloc.start()
    count = sum(1 for _ in rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 299 and peak < 5_000_000


# Sampling


@pytest.mark.parametrize(
    ("options", "positives"),
    [
        ({"positive": "first"}, {0}),
        ({"positive": "type"}, {0, 1}),
        ({"positive": "type", "positive_type": "negative", "negatives_per_row": 2}, set(range(2, 12))),
        ({"positive": "score_above", "threshold": -2.5}, {0, 1, 2, 3}),
        ({"positive": "top"}, {3}),
    ],
)
def test_one_positive_first_and_no_document_twice(options, positives):
    row, seen = row_of(7), Counter()
    for seed in range(200):
        sampled = sample(row, seed, **options)
        numbers = [int(name.removeprefix("q7d")) for name in sampled["item_ids"]]
        assert numbers[0] in positives and not positives & set(numbers[1:])
        assert len(set(numbers)) == len(numbers) == 1 + options.get("negatives_per_row", 8)
        assert sampled["items"] == [f"document {i} of 7" for i in numbers]
        assert sampled["scores"] == [row["items"][i]["score"] for i in numbers]
        seen.update(numbers)
    assert set(seen) >= positives
    assert set(seen) == set(range(12))


def test_documents_listed_twice_are_sampled_once():
    row = row_of(0, items=5)
    row["items"] += [dict(row["items"][0]), dict(row["items"][2])]
    for seed in range(30):
        assert len(set(sample(row, seed, negatives_per_row=4)["item_ids"])) == 5
    with pytest.raises(TooFewItemsError, match="at least 5 items"):
        sample(row, negatives_per_row=5)


def test_content_is_text_or_tokens_as_asked():
    row = row_of(0)
    assert sample(row, content="tokens")["query"] == [2, 5, 3]
    assert sample(row, content="text")["items"][0] == "document 0 of 0"
    assert sample(row, item_texts=False)["items"] is None
    empty = row_of(0, query={"content": ""})
    assert sample(empty)["query"] == "" and sample(empty)["query_id"] is None


def test_chance_depends_on_seed_epoch_and_row_alone(two_files):
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
    assert sorted(ids(second)) == sorted(ids(first)) and ids(second) != ids(first)
    assert {row["query_id"]: row for row in second} != plain
    both = list(TrainingRows(two_files, RowSampler(negatives_per_row=3), shuffle_buffer=10, epochs=2))
    assert both == first + second


SCRIPT = """
import json, sys
from pyterrier_hypencoder.training.row_sampler import *
from pyterrier_hypencoder.training.training_rows import *
rows = TrainingRows(sys.argv[1], RowSampler(positive="type"), seed=3, shuffle_buffer=16, rank=1, world_size=2)
print(json.dumps(list(rows)))
assert "transformers" not in sys.modules
"""


def test_other_processes_sample_the_same(two_files, tmp_path):
    here = list(TrainingRows(two_files, RowSampler(positive="type"), seed=3, shuffle_buffer=16, rank=1, world_size=2))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(two_files)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "HF_DATASETS_CACHE": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("1", "2")
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and json.loads(output) == here


def test_workers_change_no_row(two_files, monkeypatch):
    rows = TrainingRows(two_files, RowSampler(negatives_per_row=3), shuffle_buffer=0)
    alone = list(rows)
    assert list(DataLoader(rows, batch_size=None, num_workers=1)) == alone
    together = list(DataLoader(rows, batch_size=None, num_workers=2))
    assert sorted(together, key=str) == sorted(alone, key=str)
    rows = TrainingRows(two_files / "a.jsonl", RowSampler(negatives_per_row=3), shuffle_buffer=0, skip=1)
    assert len(list(DataLoader(rows, batch_size=None, num_workers=1))) == 29
    # Asked in this process: torch waits five seconds for a worker that raised.
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: SimpleNamespace(num_workers=2, id=0))
    with pytest.raises(ValueError, match="skip=1 needs at most one DataLoader worker, got 2"):
        list(rows)


# Ranks and resuming


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("shuffle_buffer", [0, 16])
def test_ranks_part_the_rows_equally(two_files, world_size, shuffle_buffer):
    options = {"shuffle_buffer": shuffle_buffer, "world_size": world_size, "epochs": 2}
    parts = [ids(TrainingRows(two_files, RowSampler(), rank=rank, **options)) for rank in range(world_size)]
    assert {len(part) for part in parts} == {100 // world_size}
    whole = ids(TrainingRows(two_files, RowSampler(), shuffle_buffer=shuffle_buffer, epochs=2))
    woven = [name for turn in zip(*parts, strict=True) for name in turn]
    assert woven == whole[: len(woven)]


def test_ranks_get_equally_many_where_short_rows_are_left_out(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row_of(n, items=12 if n % 3 else 2) for n in range(30)])
    options = {"shuffle_buffer": 8, "world_size": 3, "on_too_few_items": "skip"}
    parts = [ids(TrainingRows(path, RowSampler(), rank=rank, **options)) for rank in range(3)]
    assert [len(part) for part in parts] == [6, 6, 6]
    assert len(set(sum(parts, [])) & {f"q{n}" for n in range(30) if n % 3}) == 18


@pytest.mark.parametrize("on_too_few_items", ["error", "skip"])
@pytest.mark.parametrize("skip", [0, 1, 20, 33, 70])
def test_skipping_goes_on_exactly(two_files, skip, on_too_few_items):
    if on_too_few_items == "skip":
        write(two_files / "c.jsonl", [row_of(n, items=n % 5) for n in range(50, 60)])
    options = {"shuffle_buffer": 16, "rank": 1, "world_size": 2, "epochs": None, "on_too_few_items": on_too_few_items}
    whole = list(islice(TrainingRows(two_files, RowSampler(), **options), 90))
    rest = list(islice(TrainingRows(two_files, RowSampler(), skip=skip, **options), 90 - skip))
    assert rest == whole[skip:]


def test_an_iteration_begins_anew_each_time_and_rows_pickle(two_files):
    rows = TrainingRows(two_files, RowSampler(), shuffle_buffer=16)
    assert list(rows) == list(rows) == list(pickle.loads(pickle.dumps(rows)))


# Bad input


def test_short_rows_are_errors_or_counted(tmp_path, caplog):
    bad = [row_of(1, items=4), {"query": {"id": "q2"}, "items": []}]
    path = write(tmp_path / "rows.jsonl", [row_of(0), *bad, row_of(3)])
    with pytest.raises(
        ValueError, match=r"rows.jsonl, row 2, query 'q1': negatives_per_row=8 needs at least 8 items besides .*got 3.*'skip'"
    ):
        list(TrainingRows(path, RowSampler(), shuffle_buffer=0))
    with caplog.at_level(logging.WARNING):
        assert ids(TrainingRows(path, RowSampler(), shuffle_buffer=0, on_too_few_items="skip")) == ["q0", "q3"]
    assert "Skipped 2 of 4 rows" in caplog.text
    alone = write(tmp_path / "short.jsonl", bad)
    for epochs in (1, None):
        with pytest.raises(ValueError, match="All 2 rows in .* have no positive or fewer than 8 negatives"):
            list(TrainingRows(alone, RowSampler(), on_too_few_items="skip", epochs=epochs))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"positive": "type", "positive_type": "gold"}, "none of the 12 items is a positive of type 'gold'"),
        ({"positive": "score_above", "threshold": 99.0}, "none of the 12 items is a positive with a score above 99.0"),
        ({"negatives_per_row": 12}, "negatives_per_row=12 needs at least 12 items besides the positive, got 11"),
    ],
)
def test_rows_without_positive_or_with_too_few_items(tmp_path, options, found):
    path = write(tmp_path / "rows.jsonl", [row_of(5)])
    with pytest.raises(TooFewItemsError, match=f"rows.jsonl, row 1, query 'q5': {found}"):
        list(TrainingRows(path, RowSampler(**options)))


@pytest.mark.parametrize("options", [{"require_scores": True}, {"positive": "top"}, {"positive": "score_above"}])
def test_missing_scores_where_they_are_needed(tmp_path, options):
    row = row_of(5)
    del row["items"][4]["score"]
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match="row 1, query 'q5': item 4 has no teacher score") as caught:
        list(TrainingRows(path, RowSampler(**options), on_too_few_items="skip"))
    assert not isinstance(caught.value, TooFewItemsError)
    assert len(list(TrainingRows(path, RowSampler()))) == 1


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
def test_malformed_rows(tmp_path, line):
    path = write(tmp_path / "rows.jsonl", ["", line])
    with pytest.raises(ValueError, match="rows.jsonl, row 2.*must .*got ") as caught:
        list(TrainingRows(path, RowSampler(negatives_per_row=0), on_too_few_items="skip"))
    assert not isinstance(caught.value, TooFewItemsError)


def test_files_that_are_damaged_or_empty(tmp_path):
    whole = write(tmp_path / "rows.jsonl.gz", [row_of(n) for n in range(50)]).read_bytes()
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="rows.jsonl.gz is damaged"):
        list(TrainingRows(tmp_path, RowSampler()))
    (tmp_path / "rows.jsonl.gz").unlink()
    write(tmp_path / "none.jsonl", [])
    for epochs in (1, None):
        with pytest.raises(ValueError, match="No training rows in"):
            list(TrainingRows(tmp_path, RowSampler(), epochs=epochs))


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
def test_wrong_options(two_files, options, message):
    with pytest.raises(ValueError, match=message):
        TrainingRows(two_files, RowSampler(), **options)
    for wrong in ({"positive": "last"}, {"content": "words"}, {"negatives_per_row": -1}):
        with pytest.raises(ValueError, match="must be"):
            RowSampler(**wrong)


# Batches


def test_batches_of_texts(two_files, tokenizer):
    collate = Collator(tokenizer, query_max_length=6, doc_max_length=5)
    rows = TrainingRows(two_files, RowSampler(negatives_per_row=3), shuffle_buffer=0)
    batch = next(iter(DataLoader(rows, batch_size=4, collate_fn=pickle.loads(pickle.dumps(collate)))))
    sampled = list(islice(rows, 4))
    assert set(batch) == {"query_ids", "query_mask", "item_ids", "item_mask", "teacher"}
    assert batch["query_ids"].shape[0] == 4 and batch["item_ids"].shape[0] == 16 and batch["item_ids"].shape[1] <= 5
    assert batch["teacher"].dtype == torch.float32
    assert batch["teacher"].tolist() == [row["scores"] for row in sampled]
    for i, text in enumerate(text for row in sampled for text in row["items"]):
        own = batch["item_ids"][i][batch["item_mask"][i].bool()]
        assert own.tolist() == tokenizer(text, truncation=True, max_length=5)["input_ids"]
        assert batch["item_mask"][i].tolist() == sorted(batch["item_mask"][i].tolist(), reverse=True)


def test_a_blank_query_of_a_tokenizer_without_special_tokens():
    backend = Tokenizer(WordLevel({"[PAD]": 0, "moon": 1}, unk_token="[PAD]"))
    backend.pre_tokenizer = Whitespace()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    row = {"query": "", "query_id": None, "items": ["moon", ""], "item_ids": ["a", "b"], "scores": None}
    batch = Collator(bare)([row])
    assert batch["query_ids"].tolist() == [[0]] and batch["query_ids"].dtype == torch.int64
    assert batch["item_ids"].tolist() == [[1], [0]]


def test_padding_is_the_tokenizers_and_no_longer_than_needed(tokenizer):
    rows = [sample(row_of(0)), sample(row_of(1, query={"content": "a much longer query"}))]
    batch = Collator(tokenizer)(rows)
    lengths = [len(tokenizer(row["query"])["input_ids"]) for row in rows]
    assert batch["query_mask"].sum(1).tolist() == lengths and batch["query_ids"].shape == (2, max(lengths))
    assert (batch["query_ids"][batch["query_mask"] == 0] == tokenizer.pad_token_id).all()
    assert batch["query_ids"].dtype == batch["query_mask"].dtype == torch.int64
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.sep_token
    assert (Collator(other)(rows)["query_ids"][batch["query_mask"] == 0] == tokenizer.sep_token_id).all()


def test_tokens_are_cut_before_the_last_and_padded():
    row = row_of(0, query={"tokenized_content": [2, 11, 12, 13, 14, 3]})
    sampled = [sample(row, content="tokens", negatives_per_row=1), sample(row_of(1), content="tokens", negatives_per_row=1)]
    batch = Collator(query_max_length=4, pad_token_id=9)(sampled)
    assert batch["query_ids"].tolist() == [[2, 11, 12, 3], [2, 6, 3, 9]]
    assert batch["query_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert Collator(query_max_length=1)(sampled)["query_ids"].tolist() == [[3], [3]]


def test_prefixes_and_rows_that_mix_read_texts_and_tokens(tokenizer):
    text, tokens = row_of(0), without(row_of(1), "content")
    batch = Collator(tokenizer)([sample(text), sample(tokens)])
    assert batch["query_ids"][1][batch["query_mask"][1].bool()].tolist() == [2, 6, 3]
    prefixed = Collator(tokenizer, query_prefix="query: ", doc_prefix="passage: ")([sample(text)])
    assert prefixed["query_ids"][0].tolist() == tokenizer("query: query 0")["input_ids"]
    assert prefixed["item_ids"].shape[1] > batch["item_ids"].shape[1]
    with pytest.raises(ValueError, match="The prefix 'query: ' needs texts, got token ids"):
        Collator(tokenizer, query_prefix="query: ")([sample(tokens)])


def test_documents_as_vectors():
    vectors = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float16)
    rows = [sample(_items_only(row_of(0), "id", "score"), item_texts=False, negatives_per_row=3, content="tokens")]

    def look_up(docnos):
        return vectors[[int(docno.removeprefix("q0d")) for docno in docnos]]

    batch = Collator(vectors=look_up)(rows)
    assert "item_ids" not in batch and batch["item_vectors"].dtype == torch.float32
    np.testing.assert_array_equal(batch["item_vectors"].numpy(), look_up(rows[0]["item_ids"]).astype(np.float32))
    with pytest.raises(ValueError, match=r"vectors must return an array of shape \(4, D\), got \(3, 5\)"):
        Collator(vectors=lambda docnos: vectors[:3])(rows)
    vectors[0, 2] = np.nan
    with pytest.raises(ValueError, match="The vector of document 'q0d0' contains NaN or infinity"):
        Collator(vectors=look_up)(rows)
    with pytest.raises(ValueError, match="The rows have no item texts"):
        Collator()(rows)
    nameless = sample(without(row_of(0), "id"), content="tokens")
    with pytest.raises(ValueError, match="some items have no id"):
        Collator(vectors=look_up)([nameless])


def _items_only(row, *keys):
    return {"query": row["query"], "items": [{key: item[key] for key in keys} for item in row["items"]]}


def test_batches_that_cannot_be_made(tokenizer):
    with pytest.raises(ValueError, match=r"same number of items, got \[3, 4\]"):
        Collator(tokenizer)([sample(row_of(0), negatives_per_row=2), sample(row_of(1), negatives_per_row=3)])
    with pytest.raises(ValueError, match="same number of items, got"):
        Collator(tokenizer)([])
    with pytest.raises(ValueError, match="Without a tokenizer all texts must be token ids, got 'query 0'"):
        Collator()([sample(row_of(0))])
    foreign = row_of(0, query={"tokenized_content": [2, 30_000, 3]})
    with pytest.raises(ValueError, match="Token ids must be below .*got 30000"):
        Collator(tokenizer)([sample(foreign)])
    with pytest.raises(ValueError, match="doc_max_length"):
        Collator(tokenizer, doc_max_length=0)
    unscored = without(row_of(1), "score")
    assert "teacher" not in Collator(tokenizer)([sample(row_of(0)), sample(unscored)])


# Mining


class Calls(pt.Transformer):
    """Runs a function and counts how often, and which queries."""

    def __init__(self, name, function):
        self.name, self.function, self.queries = name, function, []

    def transform(self, inp):
        self.queries += list(inp["qid"].unique())
        return self.function(inp)

    def __repr__(self):
        return f"Calls({self.name})"


@pytest.fixture
def parts(docs, topics):
    """Topics, judgements, and pipelines: all documents ranked by number, scored by length."""
    qrels = pd.DataFrame(
        [(q, d, label) for q in topics["qid"][:4] for d, label in [("d005", 1), ("d003", 2), ("d001", 0), ("gone", 1)]],
        columns=["qid", "docno", "label"],
    )
    qrels = pd.concat([qrels, pd.DataFrame([(topics["qid"][4], "gone", 1)], columns=qrels.columns)], ignore_index=True)

    def retrieve(inp):
        found = pd.DataFrame([(d["docno"], i) for i, d in enumerate(docs)], columns=["docno", "rank"]).iloc[::-1]
        return inp.merge(found.assign(score=-found["rank"].astype(float)), how="cross")

    def score(inp):
        return inp.assign(score=inp["text"].str.len() / 7).drop(columns="text").iloc[::-1]

    return {"topics": topics, "qrels": qrels, "docs": docs, "retriever": Calls("bm25", retrieve)}, Calls("teacher", score)


def rows_in(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_mined_rows_are_read_sampled_and_batched(parts, tmp_path, tokenizer, suffix, caplog):
    given, teacher = parts
    with caplog.at_level(logging.WARNING):
        path = mine(**given, path=tmp_path / f"new/train.{suffix}", teacher=teacher, negatives_per_query=20)
    assert "rows for 4 of 5 topics. 1 topics have no relevant d" in caplog.text
    texts = {doc["docno"]: doc["text"] for doc in given["docs"]}
    rows = rows_in(path)
    assert [row["query"]["id"] for row in rows] == list(given["topics"]["qid"][:4])
    for row in rows:
        names = [item["id"] for item in row["items"]]
        assert names == ["d003", "d005", *[d for d in sorted(texts) if d not in ("d003", "d005")][:20]]
        assert [item["type"] for item in row["items"]] == ["positive"] * 2 + ["negative"] * 20
        assert all(item["content"] == texts[item["id"]].strip() for item in row["items"])
        assert all(item["score"] == pytest.approx(len(item["content"]) / 7) for item in row["items"])
    stream = TrainingRows(path, RowSampler(positive="type", negatives_per_row=7, require_scores=True))
    batch = Collator(tokenizer, doc_max_length=64)(list(stream))
    assert batch["query_ids"].shape[0] == 4 and batch["item_ids"].shape[0] == 32
    assert batch["teacher"].shape == (4, 8)
    assert sorted(os.listdir(path.parent)) == [path.name, path.name + ".json"]


def test_what_was_mined_is_used_again(parts, tmp_path):
    given, teacher = parts
    path = mine(**given, path=tmp_path / "train.jsonl", teacher=teacher)
    before, queries = path.read_bytes(), list(given["retriever"].queries)
    assert queries == list(given["topics"]["qid"])
    mine(**given, path=path, teacher=teacher)
    assert path.read_bytes() == before and given["retriever"].queries == queries
    facts = json.loads((tmp_path / "train.jsonl.json").read_text())
    assert facts["rows"] == 4 and facts["bytes"] == len(before) and facts["made_from"]["retriever"] == "Calls(bm25)"
    again = mine(**given, path=tmp_path / "again.jsonl", teacher=teacher)
    assert again.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"negatives_per_query": 3}, r"negatives_per_query=100 \(now 3\)"),
        ({"seed": 3}, "seed"),
        ({"teacher": None}, "teacher"),
        ({"retriever": Calls("dense", None)}, r"retriever='Calls\(bm25\)' \(now 'Calls\(dense\)'\)"),
        ({"docs": []}, "docs"),
        ({"topics": pd.DataFrame({"qid": ["1"], "query": ["other"]})}, "topics"),
    ],
)
def test_what_was_mined_from_something_else_is_an_error(parts, tmp_path, changes, named):
    given, teacher = parts
    path = mine(**given, path=tmp_path / "train.jsonl", teacher=teacher)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=f"train.jsonl was made from other inputs: .*{named}"):
        mine(**{**given, "teacher": teacher, "path": path, **changes})
    assert path.read_bytes() == before


def test_files_without_their_facts_are_not_trusted(parts, tmp_path):
    given, _ = parts
    path = mine(**given, path=tmp_path / "train.jsonl")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileExistsError, match="a size of"):
        mine(**given, path=path)
    (tmp_path / "train.jsonl.json").unlink()
    with pytest.raises(FileExistsError, match="cannot be read"):
        mine(**given, path=path)


def test_a_run_that_fails_leaves_nothing(parts, tmp_path):
    given, _ = parts
    for cut in (lambda inp: inp.assign(score=1.0).iloc[:-1], lambda inp: inp.assign(score=float("nan"))):
        with pytest.raises(ValueError, match="teacher must give every document a finite score"):
            mine(**given, path=tmp_path / "train.jsonl", teacher=Calls("cut", cut))
        assert not os.listdir(tmp_path)


def test_random_negatives_of_the_first_ranks(parts, tmp_path):
    given, _ = parts
    options = {"negatives_per_query": 5, "max_rank": 40}
    rows = rows_in(mine(**given, path=tmp_path / "a.jsonl", **options))
    for row in rows:
        names = [item["id"] for item in row["items"][2:]]
        assert len(names) == 5 and names == sorted(names) and max(names) < "d040"
        assert "score" not in row["items"][0]
    assert len({str([item["id"] for item in row["items"]]) for row in rows}) > 1
    assert rows == rows_in(mine(**given, path=tmp_path / "b.jsonl", **options))
    assert rows != rows_in(mine(**given, path=tmp_path / "c.jsonl", seed=1, **options))


def test_documents_are_read_once_from_whatever_gives_them(parts, tmp_path):
    given, _ = parts

    class Dataset:
        calls = 0

        def get_corpus_iter(self, verbose=True):
            Dataset.calls += 1
            return iter(given["docs"])

        def __repr__(self):
            return "Dataset(tiny)"

    kinds = [given["docs"], pd.DataFrame(given["docs"]), (doc for doc in given["docs"]), Dataset()]
    files = [mine(**{**given, "docs": docs}, path=tmp_path / f"{i}.jsonl") for i, docs in enumerate(kinds)]
    assert len({file.read_bytes() for file in files}) == 1 and Dataset.calls == 1
    assert set(mining._read_texts(given["docs"], ["text"], {"d003", "gone"})) == {"d003"}
    titled = [{"docno": doc["docno"], "title": "T", "body": doc["text"]} for doc in given["docs"]]
    file = mine(**{**given, "docs": titled}, path=tmp_path / "t.jsonl", text_field=["title", "body"], min_label=2)
    items = rows_in(file)[0]["items"]
    assert all(item["content"].startswith("T") for item in items)
    assert [item["id"] for item in items if item["type"] == "positive"] == ["d003"]


def test_real_pipelines(docs, topics, tmp_path, index, model):
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": "d003", "label": 1})
    teacher = pt.apply.doc_score(lambda row: float(len(row["text"])))
    options = {"path": tmp_path / "train.jsonl", "negatives_per_query": 10}
    path = mine(topics, qrels, docs, index.retriever(model) % 50, teacher=teacher, **options)
    assert mine(topics, qrels, docs, index.retriever(model) % 50, teacher=teacher, **options) == path
    assert {len(row["items"]) for row in rows_in(path)} == {11}


def test_what_cannot_be_mined(parts, tmp_path):
    given, _ = parts
    path = tmp_path / "train.jsonl"
    twice = pd.concat([given["topics"], given["topics"][:1]])
    bad = [
        ({"docs": []}, "has a relevant document"),
        ({"min_label": 9}, "has a relevant document"),
        ({"topics": twice}, "every qid once"),
        ({"topics": given["topics"].drop(columns="query")}, "topics must have the columns"),
        ({"qrels": given["qrels"].drop(columns="label")}, "qrels must have the columns"),
        ({"retriever": Calls("none", lambda inp: inp)}, "results of retriever must have the columns"),
        ({"teacher": Calls("none", lambda inp: inp)}, "teacher must have the columns"),
        ({"text_field": "body"}, "must have a string in body"),
        ({"negatives_per_query": 0}, "negatives_per_query"),
        ({"max_rank": 0}, "max_rank"),
        ({"path": tmp_path / "train.csv"}, "must end with .jsonl"),
    ]
    for changes, message in bad:
        with pytest.raises(ValueError, match=message):
            mine(**{**given, "path": path, **changes})
        assert not os.listdir(tmp_path)
