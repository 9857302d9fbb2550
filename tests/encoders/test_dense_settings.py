"""Settings of dense models: what is read from the files of sentence-transformers, and what is refused."""

from __future__ import annotations

import json

import pytest

from pyterrier_hypencoder.encoders.dense_settings import DenseSettings, read_dense_settings


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
    settings = read_dense_settings(str(tmp_path), None)
    assert (settings.pooling, settings.normalize) == (pooling, normalize)


@pytest.mark.parametrize("kind", ["sentence_transformers.models.WordWeights", "custom_code.Transformer"])
def test_unsupported_sentence_transformers_modules_are_an_error(tmp_path, kind):
    (tmp_path / "modules.json").write_text(json.dumps([{"type": kind, "path": "3_Other"}]))
    with pytest.raises(ValueError, match=kind.split(".")[-1]):
        read_dense_settings(str(tmp_path), None)


def test_unknown_pooling_offline_is_an_error(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home = tmp_path / "models--acme--encoder"
    (home / "snapshots" / "commit").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("commit")
    with pytest.raises(ValueError, match=r"Pass pooling=\.\.\. and normalize="):
        read_dense_settings("acme/encoder", None)
    (home / ".no_exist" / "commit").mkdir(parents=True)
    (home / ".no_exist" / "commit" / "modules.json").touch()
    assert read_dense_settings("acme/encoder", None) == DenseSettings("mean", False)
