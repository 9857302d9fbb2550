"""Tokenising: the same ids as with truncation by the tokenizer, in threads, and without reading all of long texts."""

from __future__ import annotations

import copy
import random
import threading

import pytest

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

from pyterrier_hypencoder import BiEncoder  # noqa: E402
from pyterrier_hypencoder.encoders import tokenization  # noqa: E402
from pyterrier_hypencoder.encoders.tokenization import TextTokenizer  # noqa: E402

WORDS = "planet orbit court judge retrieval of documents about networks and their parameters 日本 русский naïve".split()
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def make_tokenizer(kind: str, **options):
    """Train a small tokenizer of a kind: the building blocks are those of the models that it is named after."""
    rng = random.Random(0)
    corpus = [" ".join(rng.choices(WORDS, k=12)) + rng.choice([".", "!\n", "?\n\n", "  end"]) for _ in range(200)]
    if kind == "bert":
        inner = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=20))
        inner.normalizer = normalizers.BertNormalizer(lowercase=True)
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL)
    elif kind == "roberta":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    elif kind == "llama":  # the whole text is one word
        inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False, fuse_unk=True))
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, max_token_length=12)
    else:  # sentencepiece
        inner = Tokenizer(models.Unigram())
        inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    inner.train_from_iterator(corpus, trainer)
    template = {"t5": "$A </s>", "plain": "$A", "llama": "<s> $A"}.get(kind, "<s> $A </s>")
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, inner.token_to_id(token)) for token in ("<s>", "</s>") if token in template]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names, **options)


def make_texts() -> list[str]:
    """Return texts of all lengths, and those for which cutting by characters is risky."""
    rng = random.Random(1)
    texts = [" ".join(rng.choices(WORDS, k=k)) for k in (0, 1, 2, 5, 20, 100, 400, 3000)]
    texts += [" " * 5000 + "planet " * 50, "planet" + " " * 9000 + "orbit " * 50, "\n".join(["a b"] * 4000), "\t" * 3000]
    texts += [
        "x" * 20000,
        "x" * 3000 + " planet" * 900,
        "日本" * 4000,
        "planet\x1corbit\u00a0" * 900,
        "\u200b" * 4000 + "a " * 99,
    ]
    texts += [
        "!" * 4000 + "\n" * 4000,
        "a\u0301 " * 3000,
        "<mask> " * 2000,
        ("y" * 1500 + " ") * 8,
        "a, b. " * 2000 + "z" * 4000,
    ]
    texts += ["".join(rng.choices(" \nab,日\u0301\t", k=rng.randrange(6000))) for _ in range(20)]
    return texts


KINDS = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "t5": {},
    "plain": {},
    "llama": {"padding_side": "left"},
    "bert-left": {"truncation_side": "left", "padding_side": "left"},
    "t5-left": {"truncation_side": "left"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "query: "])
def test_ids_equal_those_of_the_truncating_tokenizer(kind, prefix):
    reference = make_tokenizer(kind.removesuffix("-left"), **KINDS[kind])
    tokenizer, texts = TextTokenizer(copy.deepcopy(reference)), make_texts()
    for length in (3, 4, 17, 64, 512, 100_000):
        expected = reference([prefix + text for text in texts], truncation=True, max_length=length)["input_ids"]
        assert tokenizer.encode(texts, length, prefix=prefix) == expected


def test_slow_tokenizers_give_the_same_ids(tmp_path):
    from transformers import ByT5Tokenizer

    tokenizer = TextTokenizer(ByT5Tokenizer())
    texts = ["", "planet", "日本 " * 50]
    assert tokenizer.encode(texts, 12) == ByT5Tokenizer()(texts, truncation=True, max_length=12)["input_ids"]
    assert tokenizer.num_special_tokens == 1


def test_settings_in_the_tokenizer_file_do_not_pad_or_truncate(tmp_path):
    tokenizer = make_tokenizer("bert")
    tokenizer.backend_tokenizer.enable_truncation(max_length=5)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert list(map(len, TextTokenizer(tokenizer).encode(["planet", "planet " * 20], 40))) == [3, 22]


def test_tokenizer_is_shared_by_threads():
    tokenizer, text, wrong = TextTokenizer(make_tokenizer("bert")), "planet orbit " * 100, []
    expected = {length: tokenizer.encode([text], length) for length in (5, 50)}

    def work(length: int) -> None:
        for _ in range(200):
            try:
                if tokenizer.encode([text], length) != expected[length]:
                    wrong.append(length)
            except Exception as err:
                wrong.append(repr(err))

    threads = [threading.Thread(target=work, args=(length,)) for length in (5, 50) * 3]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


def test_only_the_start_of_a_long_text_is_tokenised(monkeypatch):
    tokenizer, sizes = TextTokenizer(make_tokenizer("bert")), []

    class Spy:
        def encode_batch_fast(self, texts):
            sizes.append(sum(map(len, texts)))
            return backend.encode_batch_fast(texts)

    backend = tokenizer._backend
    monkeypatch.setattr(tokenizer, "_backend", Spy())
    assert len(tokenizer.encode(["word " * 60_000] * 4, 32)[0]) == 32
    assert sum(sizes) < 4 * 2000


def test_many_characters_are_tokenised_in_several_calls(monkeypatch):
    monkeypatch.setattr(tokenization, "_CALL_CHARACTERS", 30)
    texts = ["planet orbit", "a" * 50, "", "court"] * 3
    reference = make_tokenizer("bert")
    tokenizer = TextTokenizer(copy.deepcopy(reference))
    assert tokenizer.encode(texts, 8) == reference(texts, truncation=True, max_length=8)["input_ids"]


@pytest.mark.parametrize("limit", [0, -5, "512", True])
def test_invalid_model_max_length_is_an_error(limit):
    with pytest.raises(ValueError, match="model_max_length"):
        TextTokenizer(make_tokenizer("bert", model_max_length=limit))


@pytest.mark.parametrize(
    ("side", "prefix", "length", "used"), [("doc", "", 1, 2), ("query", "", 2, 2), ("query", "planet planet", 4, 4)]
)
def test_length_without_room_for_text_is_an_error(bert, side, prefix, length, used):
    model = BiEncoder(bert, device="cpu", **{f"{side}_max_length": length, f"{side}_prefix": prefix})
    encode = model.encode_docs if side == "doc" else model.encode_queries
    with pytest.raises(ValueError, match=f"{side}_max_length must be greater than {used}"):
        encode(["planet"])
    setattr(model, f"{side}_max_length", used + 1)
    encode(["planet"])


# Files


def damage(path, text="{"):
    path.write_text(text)


@pytest.fixture
def folder(bert, tmp_path):
    """Return a copy of a model."""
    import shutil

    return shutil.copytree(bert, tmp_path / "model")


def test_missing_vocabulary_is_an_error(folder):
    AutoTokenizer.from_pretrained(str(folder)).save_pretrained(folder)
    for path in folder.iterdir():
        if path.name in ("tokenizer.json", "vocab.txt"):
            path.unlink()
    assert (folder / "tokenizer_config.json").exists()
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        BiEncoder(folder, device="cpu").encode_docs(["a"])


@pytest.mark.parametrize("words", [["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], None])
def test_tokenizer_of_another_vocabulary_is_an_error(folder, words):
    from transformers import BertTokenizerFast

    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    words = words or ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(50_000))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    with pytest.raises(ValueError, match="tokenizer .* vocabulary of the transformer"):
        BiEncoder(folder, device="cpu").encode_docs(["a"])


@pytest.mark.parametrize("text", ["{", "", "[]", '{"model": {"type": "Nonsense"}}', '{"a":' * 3000, "\x00\xff"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizer_file_is_an_error_that_names_it(folder, name, text):
    if name == "tokenizer_config.json" and text.startswith('{"model'):
        pytest.skip("an unknown key changes nothing")
    AutoTokenizer.from_pretrained(str(folder)).save_pretrained(folder)
    damage(folder / name, text)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        BiEncoder(folder, device="cpu").encode_docs(["a"])
