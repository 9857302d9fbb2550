"""Read and write checkpoints, and report damaged ones."""

from __future__ import annotations

import errno
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch
from golden_checkpoints import copy_tokenizer
from indexes import read_tree

from pyterrier_hypencoder import BiEncoder, Hypencoder
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.checkpoint_config import DualEncoderConfig

NAME = "tiny_6l_cls_shared"


@pytest.fixture
def copy(golden, tmp_path) -> Path:
    """A checkpoint to damage, with its backbone beside it."""
    shutil.copytree(golden / "tiny_base_bert", tmp_path / "tiny_base_bert")
    return Path(shutil.copytree(golden / NAME, tmp_path / NAME))


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config.pop(key, None) if value is None else config.update({key: value})
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, change) -> None:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(change(dict(weights)), folder / "pytorch_model.bin")


@pytest.mark.parametrize("kept", ["query_encoder.", "passage_encoder."])
def test_shared_transformer_loads_from_either_prefix(copy, golden, kept):
    trunk = ("query_encoder.transformer.", "passage_encoder.transformer.")
    edit_weights(copy, lambda w: {k: v for k, v in w.items() if not k.startswith(trunk) or k.startswith(kept)})
    model, _ = checkpoint.load(str(copy))
    whole, _ = checkpoint.load(str(golden / NAME))
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.query_encoder.transformer is model.passage_encoder.transformer


def test_shared_transformers_that_differ_are_an_error(copy):
    key = "passage_encoder.transformer.embeddings.word_embeddings.weight"
    edit_weights(copy, lambda w: w | {key: w[key] + 1})
    with pytest.raises(ValueError, match="set shared_encoder to false"):
        checkpoint.load(str(copy))


def test_missing_unknown_and_misshaped_weights_are_named(copy):
    def change(weights):
        weights["query_encoder.hyper_base_matrices.0"] = torch.zeros(1, 24, 23)
        del weights["query_encoder.hyper_base_vectors.1"]
        return weights | {"query_encoder.classifier.weight": torch.zeros(2, 2)}

    edit_weights(copy, change)
    with pytest.raises(ValueError) as error:
        checkpoint.load(str(copy))
    message = str(error.value)
    assert "query_encoder.hyper_base_vectors.1 [1, 24] is missing" in message
    assert "query_encoder.classifier.weight [2, 2] is unknown" in message
    assert "query_encoder.hyper_base_matrices.0 has shape [1, 24, 23] instead of [1, 24, 24]" in message


def test_position_ids_of_old_versions_are_ignored(copy):
    name = "query_encoder.transformer.embeddings.position_ids"
    edit_weights(copy, lambda w: w | {name: torch.arange(64)[None]})
    checkpoint.load(str(copy))


def test_missing_weight_file_is_an_error(copy):
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor pytorch_model.bin"):
        checkpoint.load(str(copy))


class Bomb:
    """An object that runs code when it is unpickled without precautions."""

    def __reduce__(self):
        return (Path.touch, (Path("bomb-went-off"),))


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickle_with_other_objects_is_never_loaded(copy, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(copy / "pytorch_model.bin", "wb") as out:
        pickle.dump({"a": Bomb()}, out, protocol=protocol)
    with pytest.raises(ValueError, match="objects other than tensors"):
        checkpoint.load(str(copy))
    torch.save({"a": Bomb()}, copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="objects other than tensors"):
        checkpoint.load(str(copy))
    assert not Path("bomb-went-off").exists()


@pytest.mark.parametrize("content", [{"a": 1}, [torch.zeros(1)], {"a": [torch.zeros(1)]}])
def test_weight_file_with_values_other_than_tensors_is_an_error(copy, content):
    torch.save(content, copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="dictionary of tensors only"):
        checkpoint.load(str(copy))


@pytest.mark.parametrize("filename", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("size", [0, 100, 5000])
def test_truncated_weight_files_are_an_error(copy, golden, filename, size):
    source = golden / NAME / "pytorch_model.bin"
    if filename == "model.safetensors":
        model, _ = checkpoint.load(str(golden / NAME))
        checkpoint.save(model, copy, format="safetensors")
        source = copy / filename
    (copy / filename).write_bytes(source.read_bytes()[:size])
    with pytest.raises(ValueError, match=filename):
        checkpoint.load(str(copy))


def test_missing_and_unknown_configuration_keys_are_tolerated(copy, golden):
    edit_config(copy, loss_type=None, loss_kwargs=None, query_encoder_type=None, pad_token_id=0, dtype="float32", novelty=[1])
    _, config = checkpoint.load(str(copy))
    assert config.extra["novelty"] == [1]
    released = DualEncoderConfig.from_dict(json.loads((golden / "released_6layer_config.json").read_text()))
    assert released.qnet_spec.vector_dimensions == (*[768] * 7, 1)
    assert (released.pooling, released.shared_encoder, released.extra["base_encoder_output_dim"]) == ("cls", True, 768)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_as_weights_are_an_error(copy, seed):
    (copy / "pytorch_model.bin").write_bytes(random.Random(seed).randbytes(60))
    with pytest.raises(ValueError, match=r"pytorch_model.bin"):
        checkpoint.load(str(copy))


def test_unknown_backbone_is_named(copy):
    edit_config(copy, passage_encoder_kwargs={"model_name_or_path": "nobody/nothing"}, shared_encoder=False)
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        checkpoint.load(str(copy))


def test_backbone_with_another_width_is_named(copy):
    config = json.loads((copy / "config.json").read_text())
    config["query_encoder_kwargs"]["base_encoder_output_dim"] = 32
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is 32, but the backbone .* has width 24"):
        checkpoint.load(str(copy))


def test_saved_checkpoint_loads_without_other_files(golden, tmp_path):
    model, _ = checkpoint.load(str(golden / NAME))
    checkpoint.save(model, tmp_path / "elsewhere" / "saved")
    again, _ = checkpoint.load(str(tmp_path / "elsewhere" / "saved"))
    assert again.state_dict().keys() == model.state_dict().keys()


def test_saving_in_another_format_replaces_the_weight_file(golden, tmp_path):
    model, _ = checkpoint.load(str(golden / NAME))
    checkpoint.save(model, tmp_path, format="safetensors")
    checkpoint.save(model, tmp_path, format="bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checksums.json", "config.json", "pytorch_model.bin"]
    with pytest.raises(ValueError, match="bin"):
        checkpoint.save(model, tmp_path, format="onnx")


@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("fails", ["write_json", "write_checksums"])
def test_a_failed_save_leaves_the_old_checkpoint_or_none(golden, tmp_path, monkeypatch, format, fails):
    model, _ = checkpoint.load(str(golden / "tiny_2l_mean_separate_reslast"))
    checkpoint.save(model, tmp_path / "old")
    before = read_tree(tmp_path / "old")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, fails, fail)
    for name in ("old", "new"):
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(model, tmp_path / name, format=format)
    assert read_tree(tmp_path / "old") == before
    assert not (tmp_path / "new").exists()


def test_shared_weights_are_stored_once_in_safetensors_and_twice_in_bin(golden, tmp_path):
    from safetensors.torch import load_file

    model, _ = checkpoint.load(str(golden / NAME))
    checkpoint.save(model, tmp_path / "s", format="safetensors")
    checkpoint.save(model, tmp_path / "b", format="bin")
    trunk = "passage_encoder.transformer."
    assert not any(key.startswith(trunk) for key in load_file(tmp_path / "s" / "model.safetensors"))
    assert torch.load(tmp_path / "b" / "pytorch_model.bin", weights_only=True).keys() == model.state_dict().keys()
    sizes = [(tmp_path / "b" / "pytorch_model.bin").stat().st_size, (tmp_path / "s" / "model.safetensors").stat().st_size]
    assert sizes[0] < 1.5 * sizes[1]


def test_loading_changes_no_global_state(golden):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    checkpoint.build(DualEncoderConfig.from_dict(json.loads((golden / NAME / "config.json").read_text())), str(golden / NAME))
    checkpoint.load(str(golden / NAME))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_default_dtype() == torch.float32


def test_build_with_a_seed_is_reproducible(golden):
    config = DualEncoderConfig.from_dict(json.loads((golden / NAME / "config.json").read_text()))
    first, same, other = (checkpoint.build(config, str(golden / NAME), seed=seed) for seed in (1, 1, 2))
    key = "query_encoder.weight_query_embeddings.0"
    assert torch.equal(first.state_dict()[key], same.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


def test_head_initialisation_matches_the_released_code(golden):
    config = json.loads((golden / "released_6layer_config.json").read_text())
    config["query_encoder_kwargs"]["converter_kwargs"]["vector_dimensions"] = [768, 768, 1]
    head = checkpoint.build(DualEncoderConfig.from_dict(config)).query_encoder
    assert head.hyper_base_matrices[0].std().item() == pytest.approx((2 / 768) ** 0.5, rel=0.02)
    assert head.weight_query_embeddings[0].std().item() == pytest.approx(10, rel=0.02)
    assert head.weight_hyper_projection[0].weight.std().item() == pytest.approx(768**-2, rel=0.02)
    assert [bool(p.bias.any()) for p in head.key_projections] == [False, False, True]
    assert not head.hyper_base_vectors[0].any()


def test_unknown_model_names_are_an_error():
    with pytest.raises(FileNotFoundError, match="Check the spelling"):
        checkpoint.load("no/such/directory")
    with pytest.raises(FileNotFoundError, match="cache"):
        checkpoint.load("nobody/nothing")


def test_missing_and_foreign_configurations_are_an_error(golden, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        checkpoint.load(str(tmp_path))
    with pytest.raises(ValueError, match="BiEncoder"):
        checkpoint.load(str(golden / "tiny_base_bert"))
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ValueError, match="not valid JSON"):
        checkpoint.load(str(tmp_path))


def fill_hub_cache(cache: Path, repo: str, revision: str, source: Path) -> None:
    """Put a directory into a hub cache, like huggingface_hub after a download."""
    home = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(source, home / "snapshots" / f"{revision}-commit")
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(f"{revision}-commit")


def test_hub_ids_load_from_the_cache_with_their_revision(golden, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in ("main", "half"):
        saved = tmp_path / "saved" / revision
        model, _ = checkpoint.load(str(golden / NAME))
        if revision == "half":
            for parameter in model.parameters():
                parameter.data /= 2
        checkpoint.save(model, saved, format="bin" if revision == "main" else "safetensors")
        copy_tokenizer(saved)
        fill_hub_cache(tmp_path, "someone/tiny", revision, saved)
    whole, _ = checkpoint.load("someone/tiny")
    half, _ = checkpoint.load("someone/tiny", revision="half")
    key = "query_encoder.hyper_base_matrices.0"
    assert torch.equal(half.state_dict()[key], whole.state_dict()[key] / 2)
    with pytest.raises(FileNotFoundError):
        checkpoint.load("someone/tiny", revision="other")


def test_wrong_encoder_class_names_the_right_one(golden, tmp_path):
    with pytest.raises(ValueError, match=r"Hypencoder\("):
        BiEncoder(golden / NAME).encode_docs(["a"])
    config = DualEncoderConfig.from_dict(json.loads((golden / NAME / "config.json").read_text()))
    config.architecture = "TextDualEncoder"
    model = checkpoint.build(config, str(golden / NAME))
    checkpoint.save(model, tmp_path)
    copy_tokenizer(tmp_path)
    for use in ("encode_docs", "encode_queries"):
        with pytest.raises(ValueError, match=r"BiEncoder\("):
            getattr(Hypencoder(tmp_path), use)(["a"])
    encoder = BiEncoder(tmp_path, device="cpu", dtype="fp32", doc_max_length=64, query_max_length=64)
    vectors = encoder.encode_docs(["a planet", "a court"])
    queries = encoder.encode_queries(["a planet"])
    assert vectors.shape == (2, 24)
    torch.testing.assert_close(queries.flatten()[0], torch.from_numpy(vectors[0]), rtol=0, atol=1e-5)
