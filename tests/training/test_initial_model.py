"""Initial models: training can start from dense models and bi-encoders, with or without a hyper-head."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_training import list_changed, make_rows, make_trainer, read_weights, train

from pyterrier_hypencoder import BiEncoder, Hypencoder
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.dense_start import from_dense
from pyterrier_hypencoder.encoders.tokenizer_files import load_tokenizer

QUERIES = ["planets", "the law of the sea"]


def assert_starts_at_dense_ranking(dense, tokenizer, docs, topics, hidden, query_projection, folder):
    """Assert that a model built from a dense one gives its scores, times 20 if it has a hyper-head."""
    start = from_dense(dense.name_or_path, hidden=hidden, query_projection=query_projection)
    checkpoint.save(start, folder, tokenizer=tokenizer)
    options = {"device": "cpu", "dtype": "fp32", "doc_max_length": 64}
    model = (BiEncoder if hidden is None else Hypencoder)(folder, **options)
    dense = BiEncoder(dense.name_or_path, **options)
    texts, queries = [doc["text"] for doc in docs[:20]], list(topics["query"])
    expected = dense.encode_queries(queries).score(torch.tensor(dense.encode_docs(texts)))
    found = model.encode_queries(queries).score(torch.tensor(model.encode_docs(texts)))
    torch.testing.assert_close(found, expected * (1 if hidden is None else 20), rtol=1e-5, atol=1e-5)
    assert model.fingerprint == dense.fingerprint


@pytest.mark.parametrize("query_projection", [False, True])
@pytest.mark.parametrize("hidden", [None, [16], [24, 24]])
def test_training_starts_at_the_ranking_of_the_dense_model(dense, tokenizer, docs, topics, hidden, query_projection, tmp_path):
    assert_starts_at_dense_ranking(dense, tokenizer, docs, topics, hidden, query_projection, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("query_projection", [False, True])
@pytest.mark.parametrize("hidden", [None, [16], [24, 24]])
def test_training_starts_at_the_ranking_of_minilm(minilm, docs, topics, hidden, query_projection, tmp_path):
    assert_starts_at_dense_ranking(
        minilm, load_tokenizer(minilm.name_or_path, None), docs, topics, hidden, query_projection, tmp_path
    )


@pytest.mark.parametrize("hidden", [None, [16]])
def test_query_projection_is_trained_while_the_backbone_is_frozen(dense, tokenizer, rows_file, hidden, tmp_path):
    start = from_dense(dense.name_or_path, hidden=hidden, query_projection=True)
    checkpoint.save(start, tmp_path / "start", tokenizer=tokenizer)
    cls = BiEncoder if hidden is None else Hypencoder
    options = {"max_steps": 1, "losses": ["in_batch_ce"], "train": "head", "scale": 20 if hidden is None else 1}
    options |= {"learning_rate": 1e-3, "head_learning_rate": 0.024, "tokenizer": None}
    folder = train(tmp_path / "out", rows_file, cls(tmp_path / "start", device="cpu"), **options)
    before, after = read_weights(tmp_path / "start"), read_weights(folder)
    changed = list_changed(before, after)
    assert {"query_encoder.projection.weight", "query_encoder.projection.bias"} <= changed
    assert not [name for name in changed if ".transformer." in name or name.startswith("passage")]
    # The projection has the rate of the backbone.
    assert after["query_encoder.projection.weight"].abs().max() == pytest.approx(1e-3, rel=1e-2)
    found, base = cls(folder, device="cpu").encode_queries(QUERIES), dense.encode_queries(QUERIES).flatten()
    vectors = found.flatten() if hidden is None else found.query_vectors
    expected = base + base @ after["query_encoder.projection.weight"].T + after["query_encoder.projection.bias"]
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)
    assert cls(folder, device="cpu").fingerprint == dense.fingerprint


def test_dense_model_is_trained_as_a_bi_encoder(dense, rows_file, tmp_path):
    options = {"max_steps": 1, "losses": ["in_batch_ce"], "scale": 20, "train": "queries", "tokenizer": None}
    trainer = make_trainer(tmp_path, dense, **options)
    model = BiEncoder(trainer.fit(make_rows(rows_file)), device="cpu")  # without a collator, the model's lengths are used
    assert model.encode_queries(["planets"]).spec.is_linear
    assert model.fingerprint == dense.fingerprint  # documents were frozen
    after, before = (m.encode_queries(["planets"]).weights[0].numpy() for m in (model, dense))
    assert not np.allclose(after, before, atol=1e-6)


def test_checkpoint_can_omit_weights_of_its_base(dense, dense_dir, tmp_path):
    model = from_dense(str(dense_dir), hidden=[8])
    with torch.no_grad():
        model.query_encoder.transformer.encoder.layer[1].output.dense.bias.add_(1.0)
    checkpoint.save(model, tmp_path / "small", base=str(dense_dir), half=True)
    whole = model.state_dict()
    stored = read_weights(tmp_path / "small")
    trunk = [name for name in stored if ".transformer." in name]
    assert trunk == ["query_encoder.transformer.encoder.layer.1.output.dense.bias"]
    loaded, _ = checkpoint.load(str(tmp_path / "small"))
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-3, msg=name)
    checkpoint.save(loaded, tmp_path / "full")
    assert "base_weights" not in json.loads((tmp_path / "full" / "config.json").read_text())
    # The tokenizer is that of the base.
    assert Hypencoder(tmp_path / "small", device="cpu").fingerprint == dense.fingerprint
