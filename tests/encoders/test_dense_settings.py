"""Settings of dense models: what is read from the files of sentence-transformers, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pyterrier_hypencoder import BiEncoder
from pyterrier_hypencoder.encoders.dense_settings import DenseSettings, read_dense_settings
from pyterrier_hypencoder.encoders.dense_start import from_dense


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


# Comparison with sentence-transformers

WORDS = ["planet", "orbit", "Court", "JUDGE", "retrieval", "documents", "networks", "model", "state", "India"]


@pytest.fixture(scope="module")
def backbone(bert, tmp_path_factory):
    """Return the directory of a small BERT with a fast tokenizer that does not lower-case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("backbone") / "cased"
    model = BertModel.from_pretrained(str(bert))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ":", *WORDS, *map(str.lower, WORDS), "query", "passage"]
    words += [f"w{i}" for i in range(model.config.vocab_size)]
    vocabulary = {word: i for i, word in enumerate(list(dict.fromkeys(words))[: model.config.vocab_size])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.NFC(), pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=400, **names)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_json(path, **values):
    options = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**options, **values}))


def move_transformer(folder):
    """Give a model the layout of the first versions: the transformer in a folder of its own."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and not path.name.startswith(("modules", "config_s", "README")):
            path.rename(inner / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))


def split_weights(folder):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()


def store_dense_as_bin(folder):
    import torch
    from safetensors.torch import load_file

    path = next(folder.glob("*_Dense")) / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


CONFIG, BERT_CONFIG = "config_sentence_transformers.json", "sentence_bert_config.json"
PROMPTS = {"query": "query: ", "document": "passage: "}
# Modules after the transformer, and what is changed in the folder.
FOLDERS = {
    "mean": (["mean"], None),
    "cls and normalize": (["cls", "normalize"], None),
    "last": (["lasttoken"], None),
    "max": (["max"], None),
    "prompts": (["mean"], lambda f: edit_json(f / CONFIG, prompts=PROMPTS)),
    "default prompt": (["mean"], lambda f: edit_json(f / CONFIG, prompts={"x": "planet "}, default_prompt_name="x")),
    "prompt named passage": (["mean"], lambda f: edit_json(f / CONFIG, prompts={"query": "query: ", "passage": "passage: "})),
    "prompts are not pooled": (
        ["mean"],
        lambda f: (edit_json(f / CONFIG, prompts=PROMPTS), edit_json(f / "1_Pooling/config.json", include_prompt=False)),
    ),
    "cls without prompts": (
        ["cls"],
        lambda f: (edit_json(f / CONFIG, prompts=PROMPTS), edit_json(f / "1_Pooling/config.json", include_prompt=False)),
    ),
    "max_seq_length": (["mean"], lambda f: edit_json(f / BERT_CONFIG, max_seq_length=9)),
    "longer than the tokenizer says": (
        ["mean"],
        lambda f: (edit_json(f / BERT_CONFIG, max_seq_length=30), edit_json(f / "tokenizer_config.json", model_max_length=7)),
    ),
    "lower case": (["mean"], lambda f: edit_json(f / BERT_CONFIG, do_lower_case=True)),
    "cosine": (["mean"], lambda f: edit_json(f / CONFIG, similarity_fn_name="cosine")),
    "no similarity": (["mean"], lambda f: edit_json(f / CONFIG, similarity_fn_name=None)),
    "truncate_dim": (["mean", "normalize"], lambda f: edit_json(f / CONFIG, truncate_dim=8)),
    "truncate_dim and cosine": (["mean"], lambda f: edit_json(f / CONFIG, truncate_dim=8, similarity_fn_name="cosine")),
    "dense": (["mean", "dense", "normalize"], None),
    "dense without activation": (["cls", "identity"], None),
    "dense with residual": (["mean", "residual"], None),
    "dense as bin": (["mean", "dense"], store_dense_as_bin),
    "layer norm": (["mean", "layernorm", "dense"], None),
    "dropout": (["mean", "dropout"], None),
    "old layout": (["mean", "normalize"], move_transformer),
    "old layout and length": (
        ["mean"],
        lambda f: (edit_json(f / BERT_CONFIG, max_seq_length=9, do_lower_case=True), move_transformer(f)),
    ),
    "shards": (["mean"], split_weights),
    "old pooling": (
        ["mean"],
        lambda f: (f / "1_Pooling/config.json").write_text(
            json.dumps({"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
        ),
    ),
    "no sentence-transformers files": (None, None),
}


def make_folder(backbone, target, kinds, change):
    st = pytest.importorskip("sentence_transformers")
    from torch import nn

    if kinds is None:
        return shutil.copytree(backbone, target)
    try:
        from sentence_transformers.sentence_transformer import modules as parts
    except ImportError:
        parts = st.models
    size, modules = 24, [parts.Transformer(str(backbone))]
    for kind in kinds:
        if kind in ("dense", "identity", "residual"):
            options = {"activation_function": nn.Identity()} if kind == "identity" else {}
            modules.append(parts.Dense(size, 16, **options, **({"use_residual": True} if kind == "residual" else {})))
            size = 16
        elif kind == "layernorm":
            modules.append(parts.LayerNorm(size))
            nn.init.normal_(modules[-1].norm.weight)
        else:
            other = {"normalize": parts.Normalize, "dropout": parts.Dropout}
            modules.append(other[kind]() if kind in other else parts.Pooling(size, pooling_mode=kind))
    st.SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="dot").save(str(target))
    if change is not None:
        change(target)
    return target


@pytest.mark.parametrize("name", FOLDERS)
def test_bi_encoder_gives_the_vectors_of_sentence_transformers(backbone, tmp_path, name):
    import torch

    st = pytest.importorskip("sentence_transformers", minversion="6")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        folder = make_folder(backbone, tmp_path / "model", *FOLDERS[name])
    theirs = st.SentenceTransformer(str(folder), device="cpu")
    ours = BiEncoder(folder, device="cpu", query_max_length=300, doc_max_length=300)
    texts = ["state of India", "Court", " ".join(WORDS * 12), "planet orbit: JUDGE", ""]
    for found, expected in (
        (ours.encode_queries(texts).flatten().numpy(), theirs.encode_query(texts)),
        (ours.encode_docs(texts), theirs.encode_document(texts)),
    ):
        assert found.shape == expected.shape == (len(texts), ours.vec_size)
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((found * expected).sum(1) / lengths).min() > 0.9999
        if "cosine" not in name:
            np.testing.assert_allclose(found, expected, atol=1e-4)
        else:
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_settings_that_change_document_vectors_enter_the_fingerprint(backbone, tmp_path):
    pytest.importorskip("sentence_transformers", minversion="6")
    names = ["mean", "prompts", "prompts are not pooled", "lower case", "cosine", "truncate_dim", "dense", "layer norm"]
    folders = [make_folder(backbone, tmp_path / str(i), *FOLDERS[name]) for i, name in enumerate(names)]
    prints = {BiEncoder(folder, device="cpu").fingerprint for folder in folders}
    assert len(prints) == len(names)
    plain = BiEncoder(folders[0], device="cpu").fingerprint
    assert plain == BiEncoder(backbone, device="cpu").fingerprint
    assert plain == BiEncoder(folders[1], device="cpu", doc_prefix="").fingerprint


@pytest.mark.parametrize("side", ["query", "doc"])
def test_prefix_options_replace_the_prompts_of_the_folder(backbone, tmp_path, side):
    folder = make_folder(backbone, tmp_path / "model", *FOLDERS["prompts"])
    (plain,) = [BiEncoder(backbone, device="cpu")]

    def encode(model, text):
        return model.encode_docs([text])[0] if side == "doc" else model.encode_queries([text]).flatten()[0].numpy()

    prompt = PROMPTS["document" if side == "doc" else "query"]
    for prefix, text in ((None, prompt + "planet"), ("", "planet"), ("orbit ", "orbit planet")):
        model = BiEncoder(folder, device="cpu", **{f"{side}_prefix": prefix})
        np.testing.assert_allclose(encode(model, "planet"), encode(plain, text), atol=1e-5)


REFUSED = {
    "euclidean": (CONFIG, {"similarity_fn_name": "euclidean"}, "similarity_fn_name"),
    "another kind of model": (CONFIG, {"model_type": "SparseEncoder"}, "model_type"),
    "unknown option": (CONFIG, {"whitening": [1.0]}, "whitening"),
    "prompt is a number": (CONFIG, {"prompts": {"query": 3}}, "prompts"),
    "prompts are a list": (CONFIG, {"prompts": ["a"]}, "prompts"),
    "truncate_dim is text": (CONFIG, {"truncate_dim": "8"}, "truncate_dim"),
    "length is zero": (BERT_CONFIG, {"max_seq_length": 0}, "max_seq_length"),
    "unknown option of the transformer": (BERT_CONFIG, {"model_args": {"num_hidden_layers": 1}}, "num_hidden_layers"),
    "chat template": (BERT_CONFIG, {"modality_config": {"message": {}}}, "something else"),
    "weighted mean": ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "weightedmean"),
    "two poolings": ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "exactly one"),
    "pooling is a number": ("1_Pooling/config.json", {"pooling_mode": 5}, "pooling"),
    "own activation": ("2_Dense/config.json", {"activation_function": "evil.Code"}, "activation_function"),
    "sizes do not fit": ("2_Dense/config.json", {"in_features": 25}, "does not fit"),
    "size bomb": ("2_Dense/config.json", {"out_features": 10**12}, "2_Dense"),
    "quantised": ("config.json", {"quantization_config": {"bits": 4}}, "quantised"),
    "code": ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "trust_remote_code"),
    "code of the tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "trust_remote_code"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused(backbone, tmp_path, name):
    path, values, message = REFUSED[name]
    folder = make_folder(backbone, tmp_path / "model", ["mean", "dense"], None)
    edit_json(folder / path, **values)
    with pytest.raises(ValueError, match=message):
        BiEncoder(folder, device="cpu").encode_docs(["a"])


def test_adapters_are_refused(backbone, tmp_path):
    folder = shutil.copytree(backbone, tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="PEFT adapter"):
        BiEncoder(folder, device="cpu").encode_docs(["a"])


def test_dual_encoders_do_not_start_from_models_with_further_layers(backbone, tmp_path):
    folder = make_folder(backbone, tmp_path / "model", ["mean", "dense"], None)
    with pytest.raises(ValueError, match="Start from another dense model"):
        from_dense(folder)


def test_missing_module_list_is_an_error_if_other_files_show_that_it_got_lost(backbone, tmp_path):
    folder = make_folder(backbone, tmp_path / "model", ["cls"], None)
    (folder / "modules.json").unlink()
    with pytest.raises(ValueError, match=r"no modules\.json"):
        BiEncoder(folder, device="cpu").encode_docs(["a"])
    assert BiEncoder(folder, device="cpu", pooling="cls", normalize=False).encode_docs(["a"]).shape == (1, 24)


def test_language_models_need_a_pooling(backbone, tmp_path):
    folder = shutil.copytree(backbone, tmp_path / "model")
    edit_json(folder / "config.json", architectures=["BertForCausalLM"])
    with pytest.raises(ValueError, match="Pass pooling='last' or"):
        BiEncoder(folder, device="cpu").encode_docs(["a"])
    assert BiEncoder(folder, device="cpu", pooling="last").encode_docs(["a"]).shape == (1, 24)


def test_token_types_of_single_texts_are_refused(backbone, tmp_path):
    """XLNet gives the type 2 to a token, and types are never passed to the transformer."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    folder = shutil.copytree(backbone, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    template = TemplateProcessing(single="$A:0 [CLS]:2", special_tokens=[("[CLS]", 2)])
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.save_pretrained(folder)
    edit_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    with pytest.raises(ValueError, match="token types"):
        BiEncoder(folder, device="cpu").encode_docs(["a"])


ARCHITECTURES = {
    "t5": {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8},
    "roberta": {"pad_token_id": 1},
    "mpnet": {"pad_token_id": 1},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "electra": {},
    "modernbert": {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "pad_token_id": 0},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("layout", ["plain", "saved"])
def test_architectures_give_the_vectors_of_sentence_transformers(backbone, tmp_path, name, layout):
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    st = pytest.importorskip("sentence_transformers", minversion="6")
    tokenizer = AutoTokenizer.from_pretrained(str(backbone))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    options = ARCHITECTURES[name]
    sizes = {} if "d_model" in options or "dim" in options else sizes
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **{**sizes, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    theirs = st.SentenceTransformer(str(tmp_path / "plain"), device="cpu")
    if layout == "saved":
        theirs.save(str(tmp_path / "saved"))
    ours = BiEncoder(tmp_path / layout, device="cpu", doc_max_length=200)
    texts = ["state of India", "Court", " ".join(WORDS * 12)]
    found, expected = ours.encode_docs(texts), theirs.encode_document(texts, normalize_embeddings=True)
    assert ((found * expected).sum(1) / np.linalg.norm(found, axis=1)).min() > 0.9999
