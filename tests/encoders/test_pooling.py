"""Pooling: token vectors to one vector, and reading the pooling of a dense model."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from golden_checkpoints import make_bi_encoder

from pyterrier_hypencoder.encoders.pooling import POOLINGS, PoolingSettings, pool, read_pooling_settings


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_bi_encoder_pools_the_transformers_output(bert, sentences, pooling, normalize):
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(str(bert))(sentences[:5], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(str(bert)).eval()(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
    expected = []
    for states, mask in zip(hidden.last_hidden_state, tokens["attention_mask"], strict=True):
        states = states[mask.bool()]
        vector = {"cls": states[0], "mean": states.mean(0), "max": states.max(0).values, "last": states[-1]}[pooling]
        expected.append(vector / vector.norm() if normalize else vector)
    found = make_bi_encoder(bert, pooling=pooling, normalize=normalize).encode_docs(sentences[:5])
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-5)


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


def test_unknown_pooling_names_the_known_ones():
    with pytest.raises(ValueError, match="cls"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "sum")


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
        make_bi_encoder(tmp_path / "odd").encode_docs(["a"])
    assert make_bi_encoder(tmp_path / "odd", pooling="cls", normalize=True).encode_docs(["a"]).shape == (1, 24)
