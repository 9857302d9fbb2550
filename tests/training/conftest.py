"""Fixtures of the training tests: a tokenizer, tiny models on disk, and no files outside the test folders."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import datasets
import pandas as pd
import pytest
import tiny_training
import torch
from example_rows import make_row, write_rows

from pyterrier_hypencoder.encoders import checkpoint


@pytest.fixture(autouse=True)
def no_traces(monkeypatch, tmp_path_factory):
    """Put the lock files of ``datasets`` where tests may write."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="session", autouse=True)
def quick_garbage_collection():
    """Exempt loaded modules from garbage collection, because every training run collects once (0.2 s otherwise)."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tokenizer():
    """Return the tokenizer of the golden checkpoints."""
    return tiny_training.load_tokenizer()


@pytest.fixture(scope="session")
def checkpoint_dir(golden, tmp_path_factory) -> Path:
    """Return a Hypencoder checkpoint, which tests only read: separate encoders, 2 hidden layers, 24 dimensions, no dropout."""
    folder = tmp_path_factory.mktemp("models") / "hypencoder"
    model, _ = checkpoint.load(str(golden / "tiny_2l_mean_separate_reslast"))
    for side in (model.query_encoder, model.passage_encoder):
        side.transformer.config.hidden_dropout_prob = side.transformer.config.attention_probs_dropout_prob = 0.0
    checkpoint.save(model, folder, tokenizer=tiny_training.load_tokenizer())
    return folder


@pytest.fixture(scope="session")
def dense_dir(golden, tmp_path_factory) -> Path:
    """Return a dense model in the format of sentence-transformers: mean pooling, vectors of length 1, 24 dimensions."""
    from transformers import AutoConfig, AutoModel

    folder = tmp_path_factory.mktemp("models") / "dense"
    # Large weights, because texts get almost the same vector otherwise.
    config = AutoConfig.from_pretrained(golden / "tiny_base_bert", initializer_range=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    tiny_training.load_tokenizer().save_pretrained(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    entries = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in modules]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


@pytest.fixture
def dense(dense_dir):
    """Return the dense model as a bi-encoder."""
    from pyterrier_hypencoder import BiEncoder

    return BiEncoder(dense_dir, device="cpu", doc_max_length=64)


@pytest.fixture
def untrained(checkpoint_dir):
    """Return the Hypencoder checkpoint as a model."""
    from pyterrier_hypencoder import Hypencoder

    return Hypencoder(checkpoint_dir, device="cpu", doc_max_length=64)


@pytest.fixture
def two_files(tmp_path) -> Path:
    """Return a folder with 50 rows in a plain and a gzipped file, and a text file."""
    write_rows(tmp_path / "a.jsonl", [make_row(n) for n in range(30)])
    write_rows(tmp_path / "b.jsonl.gz", [make_row(n) for n in range(30, 50)])
    (tmp_path / "notes.txt").write_text("no training rows")
    return tmp_path


@pytest.fixture(scope="session")
def qrels(docs, topics) -> pd.DataFrame:
    """Return three judged documents per topic, one of them not relevant."""
    rows = [(qid, docs[5 * i + k]["docno"], 2 - k) for i, qid in enumerate(topics["qid"]) for k in range(3)]
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


@pytest.fixture(scope="session")
def candidates(docs, topics) -> pd.DataFrame:
    """Return ten documents per topic with their texts. The judged ones are among them."""
    rows = [
        {"qid": topic.qid, "query": topic.query, **docs[5 * i + k], "score": -float(k), "rank": k}
        for i, topic in enumerate(topics.itertuples())
        for k in range(10)
    ]
    return pd.DataFrame(rows)
