"""Weights: NaN, damage, parts, and files that claim to be larger than they are."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pyterrier_hypencoder import BiEncoder, Hypencoder
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.weights import find_weight_files, read_shapes, read_tensors


@pytest.fixture
def dual_folder(golden, tmp_path):
    """Return a copy of a Hypencoder with weights as safetensors."""
    folder = tmp_path / "checkpoint"
    checkpoint.save(checkpoint.load(str(golden / "tiny_6l_cls_shared"))[0], folder)
    (folder / "checksums.json").unlink()
    for path in (golden / "tiny_6l_cls_shared").glob("*token*"):
        shutil.copy(path, folder)
    return folder


def encode(kind, folder):
    model = kind(folder, device="cpu")
    return model.encode_docs(["planet"]), model.encode_queries(["planet"]).flatten().numpy()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [BiEncoder, Hypencoder])
def test_nan_and_infinity_in_weights_are_errors_that_name_file_and_tensor(bert, dual_folder, tmp_path, kind, value, dtype):
    folder = dual_folder if kind is Hypencoder else shutil.copytree(bert, tmp_path / "model")
    weights = {key: tensor.to(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
    name = next(key for key in weights if key.endswith("word_embeddings.weight"))
    weights[name][3, 2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors has NaN or infinity in .*word_embeddings\.weight"):
        encode(kind, folder)


def test_float64_weights_that_overflow_are_errors(dual_folder):
    weights = load_file(dual_folder / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name].double() + 1e300
    save_file(weights, dual_folder / "model.safetensors")
    with pytest.raises(ValueError, match="NaN or infinity"):
        encode(Hypencoder, dual_folder)


def test_integers_instead_of_weights_are_an_error(dual_folder):
    weights = load_file(dual_folder / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name].view(torch.int32)
    save_file(weights, dual_folder / "model.safetensors")
    with pytest.raises(ValueError, match="no float"):
        encode(Hypencoder, dual_folder)


@pytest.mark.parametrize("kind", [BiEncoder, Hypencoder])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_several_files_are_read(bert, dual_folder, tmp_path, kind, suffix):
    folder = dual_folder if kind is Hypencoder else shutil.copytree(bert, tmp_path / "model")
    expected = encode(kind, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = {key: f"{stem}-0000{i % 3}-of-00003.{suffix}" for i, key in enumerate(weights)}
    for name in set(names.values()):
        part = {key: value for key, value in weights.items() if names[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"}) if suffix == "safetensors" else torch.save(
            part, folder / name
        )
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    for found, wanted in zip(encode(kind, folder), expected, strict=True):
        assert np.array_equal(found, wanted)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        encode(kind, folder)
    for wrong in ({"a": "../x.safetensors"}, {}, {"a": 5}, None, {**names, "more": sorted(set(names.values()) - {name})[0]}):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises((ValueError, FileNotFoundError), match=index.name):
            encode(kind, folder)


def test_shapes_are_read_without_values(bert):
    files = find_weight_files(str(bert))
    shapes, tensors = read_shapes(files), read_tensors(files)
    assert {key: value.shape for key, value in shapes.items()} == {key: value.shape for key, value in tensors.items()}
    assert all(value.device.type == "meta" for value in shapes.values())


def test_tensors_larger_than_their_file_are_an_error(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path)
    with pytest.raises(ValueError, match="more than fit into it"):
        read_shapes([path])


def test_damaged_bin_never_recommends_to_load_code(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": np.zeros(3)}, path)
    with pytest.raises(ValueError) as info:
        read_tensors([path])
    text, cause = str(info.value), info.value
    assert "pytorch_model.bin" in text and "weights_only" not in text
    assert cause.__suppress_context__ and cause.__cause__ is None


@pytest.mark.parametrize("seed", range(60))
def test_mutated_weight_files_give_errors_that_name_them_or_weights(dual_folder, seed):
    rng = np.random.default_rng(seed)
    path = dual_folder / "model.safetensors"
    if seed % 2:
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()
        path = path.with_name("pytorch_model.bin")
    data = bytearray(path.read_bytes())
    if seed % 3 == 0:
        del data[int(rng.integers(len(data))) :]
    else:
        for position in rng.integers(min(len(data), 3000), size=3):
            data[position] = int(rng.integers(256))
    path.write_bytes(data)
    try:
        vectors = read_tensors(find_weight_files(str(dual_folder)))
        Hypencoder(dual_folder, device="cpu").encode_docs(["a"])
    except (ValueError, FileNotFoundError, OSError) as err:
        assert str(dual_folder) in str(err)
    else:
        assert vectors
