"""Start from a dense model: first scores, gradients, and options that must fit."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from golden_checkpoints import copy_tokenizer, make_bi_encoder

from pyterrier_hypencoder import Hypencoder
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.dense_start import from_dense
from pyterrier_hypencoder.encoders.loading import load_encoder, load_recorded_encoder


@pytest.mark.parametrize("shared", [True, False])
def test_dense_start_scores_like_the_bi_encoder_and_can_learn(bert, sentences, tmp_path, shared):
    network = from_dense(str(bert), hidden=[24, 24], pooling="mean", normalize=True, shared_encoder=shared)
    checkpoint.save(network, tmp_path)
    copy_tokenizer(tmp_path)
    dense = make_bi_encoder(bert, pooling="mean", normalize=True)
    model = Hypencoder(tmp_path, device="cpu", doc_max_length=64)
    vectors = torch.from_numpy(model.encode_docs(sentences))
    np.testing.assert_allclose(vectors, dense.encode_docs(sentences), atol=1e-5)
    qnets = model.encode_queries(sentences[:5])
    assert qnets.spec.inner_product_skip and qnets.spec.do_residual
    expected = 20 * dense.encode_queries(sentences[:5]).score(vectors)
    torch.testing.assert_close(qnets.score(vectors), expected, rtol=1e-4, atol=1e-4)
    assert model.fingerprint == dense.fingerprint

    mask = torch.ones(2, 4, dtype=torch.long)
    network.query_encoder(torch.randint(5, 100, (2, 4)), mask).score(vectors).pow(2).sum().backward()
    output = network.query_encoder.weight_hyper_projection[-1]
    assert output.weight.grad.abs().sum() > 0


def test_dense_start_without_hidden_layers_is_the_bi_encoder(bert, sentences, tmp_path):
    checkpoint.save(from_dense(str(bert), pooling="max", query_projection=True), tmp_path)
    copy_tokenizer(tmp_path)
    dense = make_bi_encoder(bert, pooling="max")
    model = load_encoder(str(tmp_path), device="cpu", dtype="fp32", doc_max_length=64)
    assert type(model) is type(dense) and model.fingerprint == dense.fingerprint
    found, expected = (encoder.encode_queries(sentences[:5]).flatten() for encoder in (model, dense))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_dense_start_with_other_widths_has_no_residual(bert):
    spec = from_dense(str(bert), hidden=[8], skip_gate=0.5).config.qnet_spec
    assert not spec.do_residual and spec.vector_dimensions == (24, 8, 1)
    assert (spec.skip_scale, spec.skip_gate) == (1.0, 0.5)  # vectors are not normalised, so cosines need no scale


def test_inner_product_skip_needs_a_fitting_query_vector(bert):
    config = from_dense(str(bert), hidden=[24, 24], pooling="mean").config
    del config.query_encoder_kwargs["embedding_representation"]
    with pytest.raises(ValueError, match="embedding_representation"):
        checkpoint.build(config)
    config.query_encoder_kwargs |= {"embedding_representation": "cls", "head_init": "warm"}
    with pytest.raises(ValueError, match="head_init must be one of 'released', 'dense', got 'warm'"):
        checkpoint.build(config)


# Hypencoder.from_dense


def test_hypencoder_from_dense_takes_the_users_bi_encoder_and_ranks_like_it(bert, sentences):
    dense = make_bi_encoder(bert, pooling="mean", normalize=True, query_max_length=16)
    model = Hypencoder.from_dense(dense, hidden=[8])
    assert model.qnet_spec.vector_dimensions == (24, 8, 1) and model.query_max_length == 16 and model.device == "cpu"
    vectors = torch.from_numpy(model.encode_docs(sentences))
    expected = 20 * dense.encode_queries(sentences[:3]).score(vectors)
    torch.testing.assert_close(model.encode_queries(sentences[:3]).score(vectors), expected, rtol=1e-4, atol=1e-4)
    assert Hypencoder.from_dense(str(bert), hidden=[8]).vec_size == 24


def test_hypencoder_from_dense_is_equal_pickled_and_recorded_by_its_arguments(bert):
    dense = make_bi_encoder(bert)
    model = Hypencoder.from_dense(dense, hidden=(8,), seed=1)
    again = pickle.loads(pickle.dumps(model))
    assert again == model != Hypencoder.from_dense(dense, hidden=[8])
    assert again.encode_queries(["a"]).flatten().equal(model.encode_queries(["a"]).flatten())
    record = json.loads(json.dumps(model.record()))
    assert load_recorded_encoder(record, device="cpu").qnet_spec == model.qnet_spec
    assert record["fingerprint"] == dense.fingerprint


def test_hypencoder_from_dense_refuses_what_it_cannot_start_from(bert, golden):
    with pytest.raises(ValueError, match="must have no prefixes"):
        Hypencoder.from_dense(make_bi_encoder(bert, query_prefix="query: "), hidden=[8])
    with pytest.raises(ValueError, match="hidden must be a collection of widths, got 96"):
        Hypencoder.from_dense(str(bert), hidden=96)
    with pytest.raises(ValueError, match="is a checkpoint of this package, not a dense model"):
        Hypencoder.from_dense(golden / "tiny_6l_cls_shared", hidden=[8]).encode_docs(["a"])
