"""Save encoders: the folders load here, in sentence-transformers, in transformers and in pyterrier_dr, with equal vectors."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from golden_checkpoints import make_bi_encoder

from pyterrier_hypencoder import BiEncoder, Hypencoder
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.dense_start import from_dense
from pyterrier_hypencoder.encoders.model_card import TRAINING_FILE
from pyterrier_hypencoder.encoders.tokenizer_files import load_tokenizer

OPTIONS = {"device": "cpu", "dtype": "fp32", "doc_max_length": 64}


@pytest.fixture(scope="module", params=["cls", "mean", "normalised", "trained"])
def dense(request, bert, tmp_path_factory):
    """Return bi-encoders: dense models of several kinds, and a checkpoint of this package with one transformer."""
    if request.param != "trained":
        pooling = "mean" if request.param == "normalised" else request.param
        return make_bi_encoder(bert, pooling=pooling, normalize=request.param == "normalised")
    folder = tmp_path_factory.mktemp("trained")
    network = from_dense(str(bert), shared_encoder=True, pooling="mean", normalize=True)
    checkpoint.save(network, folder, tokenizer=load_tokenizer(str(bert), None))
    return BiEncoder(folder, **OPTIONS)


@pytest.fixture(scope="module")
def saved(dense, tmp_path_factory):
    """Return the folder of the saved bi-encoder."""
    return dense.save_pretrained(tmp_path_factory.mktemp("saved") / "model")


def test_saved_bi_encoder_gives_equal_vectors(dense, saved, sentences):
    again = BiEncoder(saved, **OPTIONS)
    np.testing.assert_allclose(again.encode_docs(sentences), dense.encode_docs(sentences), atol=1e-6)
    assert again.fingerprint == dense.fingerprint


def test_sentence_transformers_loads_a_saved_bi_encoder(dense, saved, sentences):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(saved), device="cpu")
    np.testing.assert_allclose(model.encode(sentences[:20]), dense.encode_docs(sentences[:20]), atol=1e-5)
    assert model.max_seq_length == 64 and model.similarity_fn_name in ("cosine", "dot")


def test_auto_model_of_transformers_loads_a_saved_bi_encoder(dense, saved):
    from transformers import AutoModel, AutoTokenizer

    state = AutoModel.from_pretrained(saved).state_dict()
    expected = dense._load_networks()[0].transformer.state_dict()
    assert all(value.equal(state[name]) for name, value in expected.items() if not name.startswith("pooler"))
    assert AutoTokenizer.from_pretrained(saved)("a text")["input_ids"]


def test_pyterrier_dr_loads_a_saved_bi_encoder(dense, saved, topics):
    pyterrier_dr = pytest.importorskip("pyterrier_dr")
    pytest.importorskip("sentence_transformers")
    found = pyterrier_dr.SBertBiEncoder(str(saved), device="cpu")(topics)
    np.testing.assert_allclose(np.stack(found["query_vec"]), np.stack(dense(topics)["query_vec"]), atol=1e-5)


def test_saved_prefixes_are_prompts(bert, tmp_path, sentences):
    dense = make_bi_encoder(bert, pooling="mean", query_prefix="query: ", doc_prefix="passage: ")
    again = BiEncoder(dense.save_pretrained(tmp_path / "model"), **OPTIONS)
    assert again.prefixes == {"query": "query: ", "document": "passage: "}
    np.testing.assert_allclose(again.encode_docs(sentences[:9]), dense.encode_docs(sentences[:9]), atol=1e-6)


def test_saved_hypencoders_give_equal_qnets(model, bert, tmp_path, sentences):
    for start in (model, Hypencoder.from_dense(str(bert), hidden=[8])):
        folder = start.save_pretrained(tmp_path / str(start.qnet_spec.size))
        again = Hypencoder(folder, device="cpu", doc_max_length=64, query_max_length=32)
        assert again.fingerprint == start.fingerprint and again.dense_start is None
        found, expected = (encoder.encode_queries(sentences[:2]).flatten() for encoder in (again, start))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_bi_encoder_with_two_transformers_is_saved_as_a_checkpoint(bert, tmp_path, sentences, caplog):
    network = from_dense(str(bert), query_projection=True)
    network.query_encoder.projection.weight.data += 1
    checkpoint.save(network, tmp_path / "trained", tokenizer=load_tokenizer(str(bert), None))
    start = BiEncoder(tmp_path / "trained", query_prefix="query: ", **OPTIONS)
    with caplog.at_level(logging.WARNING):
        folder = start.save_pretrained(tmp_path / "model")
    assert "holds no prefixes" in caplog.text and not (folder / "modules.json").exists()
    again = BiEncoder(folder, query_prefix="query: ", **OPTIONS)
    np.testing.assert_allclose(again.encode_queries(["a"]).flatten(), start.encode_queries(["a"]).flatten(), atol=1e-6)


def test_save_overwrites_nothing_and_leaves_nothing_after_an_error(dense, tmp_path):
    (tmp_path / "model").mkdir()
    dense.save_pretrained(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="exists and is not empty. Delete it, or give another directory"):
        dense.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="card must have keys among license, .*, got licence"):
        dense.save_pretrained(tmp_path / "other", card={"licence": "mit"})
    assert sorted(tmp_path.rglob("*")) == before


# Model cards


def test_card_has_usage_training_and_measures(model, golden, tmp_path):
    first = model.save_pretrained(tmp_path / "first")
    training = {"steps": 20, "losses": {"margin_mse": 1.0}, "measures": {"nDCG@10": 0.51234}}
    (first / TRAINING_FILE).write_text(json.dumps(training))
    folder = Hypencoder(first).save_pretrained(tmp_path / "second", card=True)
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n") and "library_name: pyterrier-hypencoder" in text and "- hypencoder" in text
    assert "# second" in text and "Hypencoder('second')" in text and "| nDCG@10 | 0.5123 |" in text
    assert "| steps | 20 |" in text and "| losses | margin_mse: 1 |" in text
    assert json.loads((folder / TRAINING_FILE).read_text()) == training


def test_card_takes_given_facts(dense, tmp_path):
    card = {"license": "mit", "language": "en", "training_data": "Two topics.", "measures": {"RR": 1.0}}
    text = (dense.save_pretrained(tmp_path / "model", card=card) / "README.md").read_text()
    assert "license: mit" in text and "Two topics." in text and "| RR | 1 |" in text and "sentence-transformers" in text
    plain = (dense.save_pretrained(tmp_path / "plain", card=True) / "README.md").read_text()
    assert "No training run is recorded." in plain and "No measures are recorded." in plain


# The hub


def test_push_to_hub_uploads_the_saved_folder_with_a_card(dense, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, token):
            calls.append(token)

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))
            return f"the hub: {repo_id}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append((repo_id, commit_message))
            calls.append({path.name for path in folder_path.iterdir()})
            calls.append((folder_path / "README.md").read_text())

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert dense.push_to_hub("me/model", private=True, token="t") == "the hub: me/model"
    assert calls[:3] == ["t", ("me/model", {"private": True, "exist_ok": True}), ("me/model", "Upload model")]
    assert {"README.md", "config.json", "model.safetensors", "modules.json"} <= calls[3]
    assert "BiEncoder('me/model')" in calls[4]


def test_push_to_hub_without_network_is_an_os_error(dense):
    with pytest.raises(OSError, match="could not be uploaded to 'me/model'.*Check name, token and network"):
        dense.push_to_hub("me/model", token="none")
