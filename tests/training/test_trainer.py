"""HypencoderTrainer: it learns, and its checkpoints load as models."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from tiny_training import load_tokenizer, make_batch, make_encoder, make_rows, make_trainer, read_weights, train

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer, HypencoderTrainer
from pyterrier_hypencoder.training.collator import Collator


@pytest.mark.parametrize("losses", [["margin_mse"], ["in_batch_ce"]])
def test_training_memorises_eight_rows(rows_file, tmp_path, losses):
    trainer = make_trainer(tmp_path, losses=losses, max_steps=100, learning_rate=1e-3, lr_scheduler_type="linear")

    def compute_loss() -> float:
        with torch.inference_mode():
            return trainer.objective.eval()(**make_batch(rows_file))["loss"].item()

    before = compute_loss()
    trainer.fit(make_rows(rows_file), Collator(trainer.tokenizer))
    assert compute_loss() < 0.1 * before  # a few ties remain in some environments


@pytest.mark.parametrize("architecture", ["HypencoderDualEncoder", "TextDualEncoder"])
def test_trained_checkpoint_loads_as_a_model(tokenizer, rows_file, tmp_path, architecture):
    trainer = make_trainer(tmp_path, make_encoder(architecture=architecture), max_steps=3)
    folder = trainer.fit(make_rows(rows_file), Collator(tokenizer))
    cls = Hypencoder if architecture == "HypencoderDualEncoder" else BiEncoder
    model = cls(folder, device="cpu", dtype="fp32")
    batch = Collator(tokenizer, query_max_length=64)(list(make_rows(rows_file)))
    with torch.inference_mode():
        expected = trainer.objective.eval().encoder.passage_encoder(batch["item_ids"], batch["item_mask"])
    texts = [item["content"] for line in rows_file.read_text().splitlines() for item in json.loads(line)["items"]]
    assert len(set(texts)) == len(texts)
    found = model.encode_docs([item for row in make_rows(rows_file) for item in row["items"]])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_document_vectors_replace_encoding(tokenizer, rows_file, tmp_path):
    requested = []

    def vectors(docnos):
        requested.append(len(docnos))
        return np.array([np.full(24, int(docno[1:]) / 100) for docno in docnos], dtype=np.float32)

    trainer = make_trainer(tmp_path, train="queries", max_steps=3)
    trainer.objective.encoder.passage_encoder.forward = None  # calling it would fail
    trainer.fit(make_rows(rows_file, item_texts=False), Collator(tokenizer, vectors=vectors))
    assert sum(requested) == 3 * 8 * 4


def test_document_vectors_need_frozen_documents(tokenizer, rows_file, tmp_path):
    collator = Collator(tokenizer, vectors=lambda docnos: np.zeros((len(docnos), 24)))
    with pytest.raises(ValueError, match=r"collator.vectors needs frozen documents.*train='queries'"):
        make_trainer(tmp_path).fit(make_rows(rows_file), collator)


def test_dual_encoder_needs_a_collator(rows_file, tmp_path):
    with pytest.raises(ValueError, match="needs a collator"):
        make_trainer(tmp_path).fit(make_rows(rows_file))


def test_matryoshka_model_can_be_searched_at_each_width(rows_file, docs, tmp_path):
    folder = train(tmp_path / "out", rows_file, widths=[8, 24], max_steps=3)
    assert json.loads((folder / "config.json").read_text())["matryoshka_widths"] == [8, 24]
    model = Hypencoder(folder, device="cpu", doc_max_length=64)
    index = HypencoderIndexer(tmp_path / "docs.hyp", model, dtype="fp32").index(docs)
    qnets, vectors = model.encode_queries(["a planet"]), torch.tensor(np.asarray(index.vectors))
    for width in (8, 24):
        found = index.retriever(model, num_results=5, qnet_width=width).search("a planet")
        expected = qnets.narrow(width).score(vectors)[0].topk(5).values
        np.testing.assert_allclose(found["score"], expected, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_changes_no_weights(rows_file, tmp_path):
    options = {"losses": ["listwise_ce"], "max_steps": 3, "batch_size": 4, "learning_rate": 1e-3}
    plain = train(tmp_path / "plain", rows_file, **options)
    saving = train(tmp_path / "saving", rows_file, arguments={"gradient_checkpointing": True}, **options)
    before, after = read_weights(plain), read_weights(saving)
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-6, msg=name)


def test_invalid_losses_and_parts_raise(tmp_path):
    with pytest.raises(ValueError, match="losses must be among"):
        make_trainer(tmp_path, losses=["hinge"])
    with pytest.raises(ValueError, match="losses must be among"):
        make_trainer(tmp_path, losses=[])
    with pytest.raises(ValueError, match="train must be one of"):
        make_trainer(tmp_path, train="documents")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[(name, value) for name in ("batch_size", "max_steps") for value in (0, -1, True, 1.5, "3")],
        *[(name, value) for name in ("warmup_steps", "seed") for value in (-1, 1.5, None)],
        *[(name, value) for name in ("learning_rate", "head_learning_rate", "scale") for value in (float("nan"), "1", True)],
        *[("widths", value) for value in ("24", 24, [0], [25], [1.5], [], iter([4]))],
        *[("losses", value) for value in (iter(["margin_mse"]), [], 3, ["margin_mse", 3], {"margin_mse": float("nan")})],
        *[("lora", value) for value in ("r", ["r"])],
        *[("arguments", value) for value in ("bf16", [("bf16", True)])],
    ],
    ids=str,
)
def test_options_of_wrong_types_are_refused(tmp_path, option, value):
    with pytest.raises(ValueError, match="factor of margin_mse" if isinstance(value, dict) else f"{option} must be"):
        HypencoderTrainer(make_encoder(), tmp_path, tokenizer=load_tokenizer(), **{option: value})


@pytest.mark.parametrize(("option", "value"), [("widths", [4]), ("head_learning_rate", 1e-3)])
def test_options_of_qnets_are_refused_for_a_dense_model(dense, tmp_path, option, value):
    with pytest.raises(ValueError, match=option):
        HypencoderTrainer(dense, tmp_path, **{option: value})


def test_training_keeps_global_random_states_and_needs_no_default_device(rows_file, tmp_path, torch_default):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    folder = train(tmp_path / "plain", rows_file, max_steps=2)
    with torch_default("meta"):
        other = train(tmp_path / "meta", rows_file, max_steps=2, model=make_trainer(tmp_path / "unused").objective.encoder)
    assert states[0] == random.getstate() and states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    assert read_weights(folder).keys() == read_weights(other).keys()


def test_relative_output_dir_is_resolved_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer("here")
    monkeypatch.chdir("/")
    assert trainer.output_dir == tmp_path / "here" and trainer.arguments.output_dir == str(tmp_path / "here")
