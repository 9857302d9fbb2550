"""Collate sampled rows into tensors."""

from __future__ import annotations

import copy
import pickle
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

from pyterrier_hypencoder.training.collator import Collator
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
