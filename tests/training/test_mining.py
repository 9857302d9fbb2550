"""Mine training rows with PyTerrier pipelines."""

from __future__ import annotations

import json
import logging
import os

import pandas as pd
import pyterrier as pt
import pytest
from example_rows import read_rows

from pyterrier_hypencoder.training import mining
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.mining import mine
from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.training_rows import TrainingRows


class Recorder(pt.Transformer):
    """Apply a function to a frame, and record the queries."""

    def __init__(self, name, function):
        self.name, self.function, self.queries = name, function, []

    def transform(self, inp):
        self.queries += list(inp["qid"].unique())
        return self.function(inp)

    def __repr__(self):
        return f"Recorder({self.name})"


@pytest.fixture
def inputs(docs, topics):
    """Return the inputs of ``mine`` and a teacher: results are ranked by docno, and scored by text length."""
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

    return {
        "topics": topics,
        "qrels": qrels,
        "docs": docs,
        "retriever": Recorder("bm25", retrieve),
    }, Recorder("teacher", score)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_mined_rows_can_be_sampled_and_collated(inputs, tmp_path, tokenizer, suffix, caplog):
    given, teacher = inputs
    with caplog.at_level(logging.WARNING):
        path = mine(**given, path=tmp_path / f"new/train.{suffix}", teacher=teacher, negatives_per_query=20)
    assert "rows for 4 of 5 topics (1 without a relevant document in docs, 0 with fewer than 20 negatives)" in caplog.text
    texts = {doc["docno"]: doc["text"] for doc in given["docs"]}
    rows = read_rows(path)
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


def test_existing_file_is_reused(inputs, tmp_path):
    given, teacher = inputs
    path = mine(**given, path=tmp_path / "train.jsonl", teacher=teacher)
    before, queries = path.read_bytes(), list(given["retriever"].queries)
    assert queries == list(given["topics"]["qid"])
    mine(**given, path=path, teacher=teacher)
    assert path.read_bytes() == before and given["retriever"].queries == queries
    facts = json.loads((tmp_path / "train.jsonl.json").read_text())
    assert facts["rows"] == 4 and facts["bytes"] == len(before) and facts["made_from"]["retriever"] == "Recorder(bm25)"
    again = mine(**given, path=tmp_path / "again.jsonl", teacher=teacher)
    assert again.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"negatives_per_query": 3}, r"negatives_per_query=100 \(now 3\)"),
        ({"seed": 3}, "seed"),
        ({"teacher": None}, "teacher"),
        ({"retriever": Recorder("dense", None)}, r"retriever='Recorder\(bm25\)' \(now 'Recorder\(dense\)'\)"),
        ({"docs": []}, "docs"),
        ({"topics": pd.DataFrame({"qid": ["1"], "query": ["other"]})}, "topics"),
    ],
)
def test_file_from_other_inputs_raises(inputs, tmp_path, changes, named):
    given, teacher = inputs
    path = mine(**given, path=tmp_path / "train.jsonl", teacher=teacher)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=f"train.jsonl was made from other inputs: .*{named}"):
        mine(**{**given, "teacher": teacher, "path": path, **changes})
    assert path.read_bytes() == before


def test_incomplete_file_and_missing_facts_raise(inputs, tmp_path):
    given, _ = inputs
    path = mine(**given, path=tmp_path / "train.jsonl")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileExistsError, match="a size of"):
        mine(**given, path=path)
    (tmp_path / "train.jsonl.json").unlink()
    with pytest.raises(FileExistsError, match="cannot be read"):
        mine(**given, path=path)


def test_failed_run_leaves_no_files(inputs, tmp_path):
    given, _ = inputs
    for cut in (lambda inp: inp.assign(score=1.0).iloc[:-1], lambda inp: inp.assign(score=float("nan"))):
        with pytest.raises(ValueError, match="teacher must give every document a finite score"):
            mine(**given, path=tmp_path / "train.jsonl", teacher=Recorder("cut", cut))
        assert not os.listdir(tmp_path)


def test_max_rank_draws_random_negatives_from_top_ranks(inputs, tmp_path):
    given, _ = inputs
    options = {"negatives_per_query": 5, "max_rank": 40}
    rows = read_rows(mine(**given, path=tmp_path / "a.jsonl", **options))
    for row in rows:
        names = [item["id"] for item in row["items"][2:]]
        assert len(names) == 5 and names == sorted(names) and max(names) < "d040"
        assert "score" not in row["items"][0]
    assert len({str([item["id"] for item in row["items"]]) for row in rows}) > 1
    assert rows == read_rows(mine(**given, path=tmp_path / "b.jsonl", **options))
    assert rows != read_rows(mine(**given, path=tmp_path / "c.jsonl", seed=1, **options))


def test_docs_of_any_kind_are_read_once(inputs, tmp_path):
    given, _ = inputs

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
    items = read_rows(file)[0]["items"]
    assert all(item["content"].startswith("T") for item in items)
    assert [item["id"] for item in items if item["type"] == "positive"] == ["d003"]


def test_retriever_and_scorer_pipelines_mine_rows(docs, topics, tmp_path, index, model):
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": "d003", "label": 1})
    teacher = pt.apply.doc_score(lambda row: float(len(row["text"])))
    options = {"path": tmp_path / "train.jsonl", "negatives_per_query": 10}
    path = mine(topics, qrels, docs, index.retriever(model) % 50, teacher=teacher, **options)
    assert mine(topics, qrels, docs, index.retriever(model) % 50, teacher=teacher, **options) == path
    assert {len(row["items"]) for row in read_rows(path)} == {11}


def test_invalid_inputs_raise_and_write_nothing(inputs, tmp_path):
    given, _ = inputs
    path = tmp_path / "train.jsonl"
    twice = pd.concat([given["topics"], given["topics"][:1]])
    bad = [
        ({"docs": []}, "has a relevant document"),
        ({"min_label": 9}, "has a relevant document"),
        ({"topics": twice}, "every qid once"),
        ({"topics": given["topics"].drop(columns="query")}, "topics must have the columns"),
        ({"qrels": given["qrels"].drop(columns="label")}, "qrels must have the columns"),
        ({"retriever": Recorder("none", lambda inp: inp)}, "results of retriever must have the columns"),
        ({"teacher": Recorder("none", lambda inp: inp)}, "teacher must have the columns"),
        ({"text_field": "body"}, "must have a string in body"),
        ({"negatives_per_query": 0}, "negatives_per_query"),
        ({"max_rank": 0}, "max_rank"),
        ({"path": tmp_path / "train.csv"}, "must end with .jsonl"),
    ]
    for changes, message in bad:
        with pytest.raises(ValueError, match=message):
            mine(**{**given, "path": path, **changes})
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topics": [{"qid": "q1", "query": "a"}]}, "topics must be a data frame with the columns qid, query"),
        ({"qrels": "qrels.txt"}, "qrels must be a data frame with the columns qid, docno, label"),
        ({"docs": "irds:vaswani"}, "docs must be dictionaries with docno and text, a frame or a dataset, got 'i'"),
        ({"docs": 5}, "docs must be dictionaries .* got 5"),
        ({"seed": -1}, "seed must be"),
        ({"min_label": float("nan")}, "min_label must be a finite number"),
    ],
    ids=str,
)
def test_inputs_of_wrong_types_raise_value_error(topics, qrels, docs, tmp_path, change, message):
    results = topics[["qid"]].assign(docno="d001", rank=0)
    inputs = {"topics": topics, "qrels": qrels, "docs": docs, "retriever": pt.Transformer.from_df(results)} | change
    with pytest.raises(ValueError, match=message):
        mine(**inputs, path=tmp_path / "rows.jsonl")


def test_labels_must_be_numbers(topics, qrels, docs, tmp_path):
    with pytest.raises(ValueError, match="label must be a column of numbers in qrels"):
        mine(topics, qrels.astype({"label": str}), docs, None, path=tmp_path / "rows.jsonl")


def test_progress_counts_topics_and_rows(inputs, tmp_path, capsys):
    given, _ = inputs
    mine(**given, path=tmp_path / "rows.jsonl", verbose=True)
    shown = capsys.readouterr().err
    assert "negatives: 100%" in shown and "rows: 100%" in shown
    mine(**given, path=tmp_path / "other.jsonl")
    assert "%" not in capsys.readouterr().err
