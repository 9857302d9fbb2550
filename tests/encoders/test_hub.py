"""Loading transformers: every architecture is cut at its positions, and damaged or hostile files are errors."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time

import numpy as np
import pytest
import torch
from golden_checkpoints import copy_tokenizer

from pyterrier_hypencoder import BiEncoder, Hypencoder
from pyterrier_hypencoder.encoders import checkpoint, hub
from pyterrier_hypencoder.encoders.loading import load_recorded_encoder

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
POSITIONS = 40
# Architectures, their number of usable positions, and options.
ARCHITECTURES = {
    **dict.fromkeys(("bert", "electra", "mobilebert", "megatron-bert", "nystromformer", "rembert"), (POSITIONS, {})),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text"), (POSITIONS - 2, {"pad_token_id": 1})),
    **dict.fromkeys(("xlm-roberta-xl", "roberta-prelayernorm", "ibert"), (POSITIONS - 2, {"pad_token_id": 1})),
    "xmod": (POSITIONS - 2, {"pad_token_id": 1, "default_language": "en_XX"}),
    "longformer": (POSITIONS - 2, {"pad_token_id": 1, "attention_window": 4}),
    "luke": (POSITIONS - 2, {"pad_token_id": 1}),
    "distilbert": (POSITIONS, {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}),
    "xlm": (POSITIONS, {"emb_dim": 16, "n_layers": 1, "n_heads": 2}),
    "albert": (POSITIONS, {"embedding_size": 8}),
    "deberta-v2": (POSITIONS, {}),
    "modernbert": (POSITIONS, {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0}),
    "t5": (None, {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}),
}


@pytest.fixture(scope="module")
def tokenizer_files(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    copy_tokenizer(folder)
    return folder


def save_model(folder, tokenizer_files, config, kind=None):
    """Save a random model of a configuration, with a tokenizer that states no length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tokenizer_files), model_max_length=10**9)
    config.vocab_size = len(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (kind or transformers.AutoModel).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_texts_are_cut_at_the_positions_of_the_architecture(name, tokenizer_files, tmp_path):
    positions, options = ARCHITECTURES[name]
    sizes = {} if "d_model" in options or "n_layers" in options else SMALL
    config = transformers.AutoConfig.for_model(name, max_position_embeddings=POSITIONS, **{**sizes, **options})
    save_model(tmp_path, tokenizer_files, config)
    model = BiEncoder(tmp_path, device="cpu", query_max_length=2000, doc_max_length=2000)
    long = model.encode_docs(["planet " * 300])
    assert np.isfinite(long).all()
    assert np.isfinite(model.encode_queries(["planet " * 300]).flatten().numpy()).all()
    if positions is not None:
        np.testing.assert_allclose(model.encode_docs(["planet " * (positions - 2)]), long, atol=1e-6)
        assert np.abs(model.encode_docs(["planet " * (positions - 3)]) - long).max() > 1e-7


@pytest.mark.parametrize("name", ["dpr", "bart", "clip"])
def test_models_that_are_no_text_encoders_are_refused(name, tokenizer_files, tmp_path):
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    config = transformers.AutoConfig.for_model(name, **(small if name == "bart" else SMALL))
    if name == "clip":
        config = transformers.CLIPConfig(
            text_config={**SMALL, "vocab_size": 99}, vision_config={**SMALL, "image_size": 8, "patch_size": 4}
        )
    save_model(tmp_path, tokenizer_files, config)
    with pytest.raises(ValueError, match="not supported|pixel_values"):
        BiEncoder(tmp_path, device="cpu").encode_docs(["a"])


# Code that comes with a model


@pytest.fixture
def dual_folder(golden, tmp_path):
    """Return a copy of a Hypencoder, which finds its backbone beside it."""
    shutil.copytree(golden / "tiny_base_bert", tmp_path / "tiny_base_bert")
    return shutil.copytree(golden / "tiny_2l_mean_separate_reslast", tmp_path / "checkpoint")


@pytest.fixture
def model_folder(bert, tmp_path):
    return shutil.copytree(bert, tmp_path / "model")


def edit(path, **values):
    options = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**options, **values}))


# Subclasses, because transformers marks the classes that it takes from a model folder.
OWN_CLASSES = """
from transformers import BertConfig, BertModel, BertTokenizerFast

class C(BertConfig):
    pass

class M(BertModel):
    config_class = C

class T(BertTokenizerFast):
    pass
"""


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Write code that leaves a mark when it runs, and say yes to every question. Return a function that says if it ran."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').write('x')\n{OWN_CLASSES}"
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))

    def plant(folder):
        (folder / "evil.py").write_text(code)
        return mark.exists

    return plant


AUTO_MAP = {"AutoConfig": "evil.C", "AutoModel": "evil.M"}


@pytest.mark.parametrize("model_type", ["evil", "bert"])
def test_code_of_a_model_runs_only_if_the_user_trusts_it(model_folder, trap, model_type):
    ran = trap(model_folder)
    edit(model_folder / "config.json", model_type=model_type, auto_map=AUTO_MAP)
    with pytest.raises(ValueError, match="trust_remote_code"):
        BiEncoder(model_folder, device="cpu").encode_docs(["a"])
    assert not ran()
    assert sys.stdin.read() == "y\n" * 9
    edit(model_folder / "config.json", model_type="bert")
    assert BiEncoder(model_folder, device="cpu", trust_remote_code=True).encode_docs(["a"]).shape == (1, 24)
    assert ran()


@pytest.mark.parametrize("auto_map", [{"AutoTokenizer": ["evil.T", "evil.T"]}, ["evil.T", "evil.T"]])
def test_code_of_a_tokenizer_runs_only_if_the_user_trusts_it(model_folder, trap, auto_map):
    ran = trap(model_folder)
    edit(model_folder / "tokenizer_config.json", auto_map=auto_map)
    with pytest.raises(ValueError, match="trust_remote_code"):
        BiEncoder(model_folder, device="cpu").encode_docs(["a"])
    assert not ran()


@pytest.mark.parametrize("place", ["stored", "directory"])
def test_code_of_a_backbone_does_not_run(dual_folder, tmp_path, trap, place):
    folder = dual_folder
    ran = trap(folder)
    config = json.loads((folder / "config.json").read_text())
    if place == "stored":
        model, _ = checkpoint.load(str(folder))
        stored = {**checkpoint.describe_backbone(model.query_encoder.transformer.config), "auto_map": AUTO_MAP}
        config["backbone_configs"] = {"query": stored, "passage": stored}
    else:
        inner = tmp_path / "backbone"
        inner.mkdir()
        shutil.copy(folder / "evil.py", inner)
        (inner / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": AUTO_MAP}))
        for side in ("query", "passage"):
            config[f"{side}_encoder_kwargs"]["model_name_or_path"] = str(inner)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        Hypencoder(folder, device="cpu").encode_queries(["a"])
    assert not ran()


def test_record_of_an_index_never_allows_code(model_folder, trap):
    ran = trap(model_folder)
    edit(model_folder / "config.json", auto_map=AUTO_MAP)
    record = {"class": "BiEncoder", "name": str(model_folder), "revision": None, "options": {"trust_remote_code": True}}
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_recorded_encoder(record).encode_docs(["a"])
    assert not ran()


# Sizes in configurations


BOMBS = {
    "hidden_size": 200_000,
    "num_hidden_layers": 1_000_000,
    "vocab_size": 10**9,
    "intermediate_size": 10**8,
    "max_position_embeddings": 10**9,
    "num_labels": 10**9,
    "num_attention_heads": 0,
    "type_vocab_size": -3,
}


@pytest.mark.parametrize("key", BOMBS)
def test_sizes_are_compared_with_the_weights_before_anything_is_built(model_folder, key):
    edit(model_folder / "config.json", **{key: BOMBS[key]})
    start = time.time()
    with pytest.raises(ValueError, match=r"config\.json"):
        BiEncoder(model_folder, device="cpu").encode_docs(["a"])
    assert time.time() - start < 10


@pytest.mark.parametrize("dimensions", [[24, 20_000, 20_000, 1], [24] * 100_000 + [1], [10**15, 1], [24, -1, 1], ["24", "1"]])
def test_qnet_sizes_are_compared_with_the_weights_before_anything_is_built(dual_folder, dimensions):
    folder = dual_folder
    config = json.loads((folder / "config.json").read_text())
    config["query_encoder_kwargs"]["converter_kwargs"].update(vector_dimensions=dimensions, do_residual=False)
    (folder / "config.json").write_text(json.dumps(config))
    start = time.time()
    with pytest.raises(ValueError, match=r"config\.json"):
        Hypencoder(folder, device="cpu").encode_docs(["a"])
    assert time.time() - start < 10


def test_fewer_layers_than_weights_are_an_error(model_folder):
    layers = json.loads((model_folder / "config.json").read_text())["num_hidden_layers"]
    edit(model_folder / "config.json", num_hidden_layers=layers - 1)
    with pytest.raises(ValueError, match="is unknown"):
        BiEncoder(model_folder, device="cpu").encode_docs(["a"])


# Damaged files


WRONG = ["", "{", "[]", "null", "5", '"text"', '{"a": ' * 100_000, "{" + " " * 100, "\ufeff{}", '{"a": 1e999}', "\x00" * 50]


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("kind", [BiEncoder, Hypencoder])
def test_damaged_configuration_is_an_error_that_names_it(golden, bert, tmp_path, kind, text):
    folder = shutil.copytree(golden / "tiny_6l_cls_shared" if kind is Hypencoder else bert, tmp_path / "model")
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=r"config\.json"):
        kind(folder, device="cpu").encode_docs(["a"])


@pytest.mark.parametrize("value", [None, 5, -1, "text", [], {}, [[]], True, 0.5, {"a": {"b": None}}])
def test_wrong_values_in_the_configuration_are_errors_or_change_nothing(dual_folder, value):
    """Every value of the file, replaced by others, gives the same vectors or an error of an allowed type."""
    folder = dual_folder
    config = json.loads((folder / "config.json").read_text())
    expected = Hypencoder(folder, device="cpu").encode_queries(["planet"]).flatten()

    def list_places(entry):
        for key, inner in entry.items():
            yield entry, key
            if isinstance(inner, dict):
                yield from list_places(inner)

    for entry, key in list(list_places(config)):
        before = entry[key]
        entry[key] = value
        (folder / "config.json").write_text(json.dumps(config))
        entry[key] = before
        try:
            found = Hypencoder(folder, device="cpu").encode_queries(["planet"]).flatten()
        except (ValueError, FileNotFoundError):
            continue
        if not isinstance(value, bool | int | float | None):  # an option of another value, or its default
            assert torch.equal(found, expected), key


@pytest.mark.parametrize(
    "name", ["config.json", "modules.json", "tokenizer_config.json", "model.safetensors", "tokenizer.json", "chat.jinja"]
)
@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "dangling link"])
def test_other_kinds_of_files_are_errors_and_never_read(model_folder, name, kind):
    path = model_folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else model_folder / "nothing")
    with pytest.raises((ValueError, FileNotFoundError), match=name.replace(".", r"\.")):
        BiEncoder(model_folder, device="cpu").encode_docs(["a"])


def test_random_state_and_defaults_of_the_user_do_not_change(golden, model_folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for model in (BiEncoder(model_folder, device="cpu"), Hypencoder(golden / "tiny_6l_cls_shared", device="cpu")):
        model.encode_docs(["a"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("change", ["dtype", "device"])
def test_vectors_do_not_follow_the_defaults_of_the_user(golden, model_folder, change):
    makers = [lambda: BiEncoder(model_folder, device="cpu"), lambda: Hypencoder(golden / "tiny_6l_cls_shared", device="cpu")]
    expected = [(m.encode_docs(["planet orbit"]), m.encode_queries(["judge"]).flatten()) for m in (make() for make in makers)]
    if change == "dtype":
        torch.set_default_dtype(torch.float16)
    else:
        torch.set_default_device("meta")
    try:
        found = [(m.encode_docs(["planet orbit"]), m.encode_queries(["judge"]).flatten()) for m in (make() for make in makers)]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for (docs, queries), (docs_expected, queries_expected) in zip(found, expected, strict=True):
        assert np.array_equal(docs, docs_expected)
        assert torch.equal(queries, queries_expected)


def test_position_table_decides_the_maximum_length():
    class Embeddings(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.padding_idx = 1
            self.position_embeddings = torch.nn.Embedding(50, 4)

    module = torch.nn.Module()
    module.config = transformers.BertConfig(max_position_embeddings=100)
    module.inner = Embeddings()
    assert hub.get_max_length(module) == 48
