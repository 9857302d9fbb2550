"""Checksums: a checkpoint whose files have changed since it was saved does not load."""

from __future__ import annotations

import json
import shutil

import pytest
from golden_checkpoints import copy_tokenizer

from pyterrier_hypencoder import Hypencoder
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.model_checksums import CHECKSUM_FILE, compute_checksum, write_checksums
from pyterrier_hypencoder.encoders.model_files import find_local_directory
from pyterrier_hypencoder.encoders.tokenizer_files import load_tokenizer


@pytest.fixture(scope="module")
def saved(golden, tmp_path_factory):
    """Return a checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("saved")
    copy_tokenizer(folder)
    model, _ = checkpoint.load(str(golden / "tiny_6l_cls_shared"))
    checkpoint.save(model, folder, tokenizer=load_tokenizer(str(folder), None))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def flip_byte(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_checksums_cover_weights_configuration_and_tokenizer(saved):
    files = json.loads((saved / CHECKSUM_FILE).read_text())["files"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    assert files["config.json"] == compute_checksum(saved / "config.json")
    assert Hypencoder(saved, device="cpu").encode_docs(["a"]).shape == (1, 24)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_changed_file_is_an_error_that_names_it(copy, name):
    size = (copy / name).stat().st_size
    flip_byte(copy / name, size - 100 if name == "model.safetensors" else size - 5)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Hypencoder(copy, device="cpu").encode_docs(["a"])


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_missing_file_is_an_error_that_names_it(copy, name):
    (copy / name).unlink()
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Hypencoder(copy, device="cpu").encode_docs(["a"])


def test_checkpoint_without_checksums_loads(copy):
    (copy / CHECKSUM_FILE).unlink()
    assert Hypencoder(copy, device="cpu").encode_docs(["a"]).shape == (1, 24)


@pytest.mark.parametrize("content", ["{", "[]", '{"files": {}}', '{"algorithm": "xxh3_128", "files": {"../x": ""}}'])
def test_damaged_checksums_are_an_error(copy, content):
    (copy / CHECKSUM_FILE).write_text(content)
    with pytest.raises(ValueError, match=CHECKSUM_FILE):
        Hypencoder(copy, device="cpu").encode_docs(["a"])


def test_saving_again_replaces_the_checksums(golden, copy):
    model, _ = checkpoint.load(str(golden / "tiny_2l_mean_separate_reslast"))
    checkpoint.save(model, copy, format="bin")
    files = json.loads((copy / CHECKSUM_FILE).read_text())["files"]
    assert "pytorch_model.bin" in files and "model.safetensors" not in files
    Hypencoder(copy, device="cpu").encode_docs(["a"])


def test_bundled_model_has_checksums():
    folder = find_local_directory("hypencoder-minilm")
    files = json.loads((folder / CHECKSUM_FILE).read_text())["files"]
    assert set(files) == {"config.json", "model.safetensors"}


def test_files_that_do_not_exist_have_no_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    write_checksums(tmp_path, ["a", "b"])
    assert json.loads((tmp_path / CHECKSUM_FILE).read_text())["files"] == {"a": "99aa06d3014798d86001c324468d497f"}
