"""Collate sampled rows into tensors."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

import numpy as np
import pytest
import torch
from example_rows import drop_key, make_row, sample
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from pyterrier_hypencoder import HypencoderIndexer
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.frozen_vectors import make_vector_lookup
from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.training_rows import TrainingRows


def test_texts_are_tokenized_cut_and_padded(two_files, tokenizer):
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


def test_blank_query_gets_padding_if_tokenizer_adds_no_special_tokens():
    backend = Tokenizer(WordLevel({"[PAD]": 0, "moon": 1}, unk_token="[PAD]"))
    backend.pre_tokenizer = Whitespace()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    row = {"query": "", "query_id": None, "items": ["moon", ""], "item_ids": ["a", "b"], "scores": None}
    batch = Collator(bare)([row])
    assert batch["query_ids"].tolist() == [[0]] and batch["query_ids"].dtype == torch.int64
    assert batch["item_ids"].tolist() == [[1], [0]]


def test_padding_uses_tokenizer_and_is_minimal(tokenizer):
    rows = [sample(make_row(0)), sample(make_row(1, query={"content": "a much longer query"}))]
    batch = Collator(tokenizer)(rows)
    lengths = [len(tokenizer(row["query"])["input_ids"]) for row in rows]
    assert batch["query_mask"].sum(1).tolist() == lengths and batch["query_ids"].shape == (2, max(lengths))
    assert (batch["query_ids"][batch["query_mask"] == 0] == tokenizer.pad_token_id).all()
    assert batch["query_ids"].dtype == batch["query_mask"].dtype == torch.int64
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.sep_token
    assert (Collator(other)(rows)["query_ids"][batch["query_mask"] == 0] == tokenizer.sep_token_id).all()


def test_long_token_lists_keep_their_last_token():
    row = make_row(0, query={"tokenized_content": [2, 11, 12, 13, 14, 3]})
    sampled = [sample(row, content="tokens", negatives_per_row=1), sample(make_row(1), content="tokens", negatives_per_row=1)]
    batch = Collator(query_max_length=4, pad_token_id=9)(sampled)
    assert batch["query_ids"].tolist() == [[2, 11, 12, 3], [2, 6, 3, 9]]
    assert batch["query_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert Collator(query_max_length=1)(sampled)["query_ids"].tolist() == [[3], [3]]


def test_prefixes_and_batches_of_texts_and_tokens(tokenizer):
    text, tokens = make_row(0), drop_key(make_row(1), "content")
    batch = Collator(tokenizer)([sample(text), sample(tokens)])
    assert batch["query_ids"][1][batch["query_mask"][1].bool()].tolist() == [2, 6, 3]
    prefixed = Collator(tokenizer, query_prefix="query: ", doc_prefix="passage: ")([sample(text)])
    assert prefixed["query_ids"][0].tolist() == tokenizer("query: query 0")["input_ids"]
    assert prefixed["item_ids"].shape[1] > batch["item_ids"].shape[1]
    with pytest.raises(ValueError, match="The prefix 'query: ' needs texts, got token ids"):
        Collator(tokenizer, query_prefix="query: ")([sample(tokens)])


def keep_item_keys(row, *keys):
    return {"query": row["query"], "items": [{key: item[key] for key in keys} for item in row["items"]]}


def test_vectors_replace_item_texts():
    vectors = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float16)
    rows = [sample(keep_item_keys(make_row(0), "id", "score"), item_texts=False, negatives_per_row=3, content="tokens")]

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
    nameless = sample(drop_key(make_row(0), "id"), content="tokens")
    with pytest.raises(ValueError, match="some items have no id"):
        Collator(vectors=look_up)([nameless])


def test_invalid_batches_raise(tokenizer):
    with pytest.raises(ValueError, match=r"same number of items, got \[3, 4\]"):
        Collator(tokenizer)([sample(make_row(0), negatives_per_row=2), sample(make_row(1), negatives_per_row=3)])
    with pytest.raises(ValueError, match="same number of items, got"):
        Collator(tokenizer)([])
    with pytest.raises(ValueError, match="Without a tokenizer all texts must be token ids, got 'query 0'"):
        Collator()([sample(make_row(0))])
    foreign = make_row(0, query={"tokenized_content": [2, 30_000, 3]})
    with pytest.raises(ValueError, match="Token ids must be below .*got 30000"):
        Collator(tokenizer)([sample(foreign)])
    with pytest.raises(ValueError, match="doc_max_length"):
        Collator(tokenizer, doc_max_length=0)
    unscored = drop_key(make_row(1), "score")
    assert "teacher" not in Collator(tokenizer)([sample(make_row(0)), sample(unscored)])


def collate_again(collator, rows):
    """Collate in another process."""
    return {name: tensor.numpy() for name, tensor in collator(rows).items()}


def test_collator_works_in_a_spawned_process(tokenizer, docs, tmp_path):
    """Worker processes start from nothing on macOS and Windows."""
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    index = HypencoderIndexer(tmp_path / "x.hyp").index({"docno": f"d{i}", "doc_vec": v} for i, v in enumerate(vectors))
    row = {"query_id": "q", "query": "a query", "item_ids": ["d2", "d0"], "items": ["one", "two words"], "scores": [1.0, 0.5]}
    lookups = [None, make_vector_lookup(index), make_vector_lookup(vectors, ["d0", "d1", "d2"])]
    collators = [Collator(tokenizer, vectors=lookup) for lookup in lookups]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(collate_again, collators, [[row]] * 3))
    for batch, collator in zip(found, collators, strict=True):
        expected = collator([row])
        assert batch.keys() == expected.keys()
        assert all(np.array_equal(batch[name], expected[name].numpy()) for name in batch)


@pytest.mark.slow
def test_workers_of_a_data_loader_may_be_spawned(two_files, tokenizer):
    rows, collator = TrainingRows(two_files, RowSampler(negatives_per_row=2), shuffle_buffer=0), Collator(tokenizer)
    spawned = DataLoader(rows, batch_size=5, collate_fn=collator, num_workers=1, multiprocessing_context="spawn")
    for found, expected in zip(spawned, DataLoader(rows, batch_size=5, collate_fn=collator), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("default", ["float16", "float64", "meta"])
def test_global_defaults_of_torch_change_no_batch(tokenizer, torch_default, default):
    row = {"query_id": "q", "query": "a query", "item_ids": ["d2", "d0"], "items": ["one", [5, 6]], "scores": [1.0, 0.5]}
    collators = [Collator(tokenizer), Collator(tokenizer, vectors=lambda docnos: np.ones((len(docnos), 4)))]
    for collator in collators:
        expected = collator([row])
        with torch_default(default):
            found = collator([row])
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
