"""HypencoderTrainer: it learns, and its checkpoints load as models."""

from __future__ import annotations

import json
import random
import shutil

import datasets
import numpy as np
import pytest
import torch
from tiny_training import load_tokenizer, make_batch, make_encoder, make_rows, make_trainer, read_weights, train

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer, HypencoderTrainer
from pyterrier_hypencoder.training import run_state
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
    ids=lambda value: "iterator" if hasattr(value, "__next__") else str(value),
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


# Rows, epochs and callbacks


@pytest.mark.parametrize("kind", ["path", "string", "list", "dataset"])
def test_trainer_takes_rows_as_path_list_or_dataset(rows_file, tmp_path, untrained, kind):
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    given = {"path": rows_file, "string": str(rows_file), "list": rows, "dataset": datasets.Dataset.from_list(rows)}[kind]
    trainer = make_trainer(tmp_path, untrained, tokenizer=None, max_steps=1)
    with pytest.raises(ValueError, match="must be fitted first"):
        _ = trainer.model
    folder = trainer.fit(given, negatives_per_row=3)
    assert trainer.model.name_or_path == str(folder)
    assert trainer.model.encode_queries(["a"]).spec == untrained.qnet_spec


def test_trainer_trains_a_hypencoder_from_the_users_bi_encoder(rows_file, tmp_path, dense):
    start = Hypencoder.from_dense(dense, hidden=[8])
    options = {"tokenizer": None, "train": "head", "losses": ["listwise_ce"], "learning_rate": 1e-2}
    trainer = make_trainer(tmp_path, start, **options)
    trainer.fit(rows_file, negatives_per_row=3)
    assert trainer.model.fingerprint == dense.fingerprint  # so indexes of the dense model stay valid
    assert trainer.model.dense_start is None and trainer.model.doc_max_length == dense.doc_max_length
    assert not trainer.model.encode_queries(["a"]).flatten().equal(start.encode_queries(["a"]).flatten())


def test_negatives_per_row_of_sampled_rows_is_refused(rows_file, tmp_path):
    with pytest.raises(ValueError, match="negatives_per_row has no effect on TrainingRows"):
        make_trainer(tmp_path).fit(make_rows(rows_file), Collator(load_tokenizer()), negatives_per_row=2)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 2), (2.5, 5), (0.1, 1)])
def test_epochs_count_passes_over_the_rows(rows_file, tmp_path, epochs, steps):
    options = {"max_steps": 1000, "epochs": epochs, "batch_size": 2, "arguments": {"gradient_accumulation_steps": 2}}
    trainer = make_trainer(tmp_path, **options)
    assert f"epochs={epochs}" in repr(trainer)
    trainer.fit(make_rows(rows_file), Collator(load_tokenizer()))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{steps}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 1000, "epochs": 0}, "epochs must be positive, got 0"),
        ({"max_steps": 5, "epochs": 1}, "Give epochs or max_steps, not both, got 1 and 5"),
    ],
)
def test_invalid_epochs_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)


def test_callbacks_are_called_and_can_stop_the_run(rows_file, tmp_path):
    import transformers

    seen = []

    class Watcher(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    options = {"max_steps": 20, "arguments": {"eval_steps": 1}, "train": "head"}
    trainer = make_trainer(tmp_path, callbacks=[Watcher(), transformers.EarlyStoppingCallback(2)], **options)
    trainer.fit(make_rows(rows_file), Collator(load_tokenizer()), validate=lambda folder: {"AP": 1 / len(seen)}, best="AP")
    assert seen == [1, 2, 3]


def test_only_the_last_checkpoint_keeps_the_state_of_the_optimiser(rows_file, tmp_path):
    scores = iter([0.5, 0.1, 0.1, 0.1, 0.1])
    options = {"max_steps": 4, "arguments": {"eval_steps": 1}, "validate": lambda folder: {"AP": next(scores)}, "best": "AP"}
    train(tmp_path, rows_file, **options)
    kept = {path.name: (path / "optimizer.pt").exists() for path in tmp_path.glob("checkpoint-*")}
    assert kept == {"checkpoint-1": False, "checkpoint-4": True}
    train(tmp_path, rows_file, **(options | {"max_steps": 5}), resume=True)
    assert (tmp_path / "checkpoint-5").exists()
    for path in ("checkpoint-5", "checkpoint-4"):
        shutil.rmtree(tmp_path / path, ignore_errors=True)
    assert run_state.find_last_checkpoint(tmp_path) is None  # the best one has no optimiser


def test_trained_model_records_its_training_for_the_card(rows_file, tmp_path, untrained):
    trainer = make_trainer(tmp_path / "out", untrained, tokenizer=None, max_steps=2, arguments={"eval_steps": 1})
    scores = iter([0.5, 0.25])
    folder = trainer.fit(rows_file, negatives_per_row=3, validate=lambda folder: {"AP": next(scores)}, best="AP")
    training = json.loads((folder / "training.json").read_text())
    assert training["measures"] == {"AP": 0.5} and training["rows"] == ["rows.jsonl"] and training["steps"] == 2
    assert training["started_from"] == "hypencoder"
    card = (trainer.model.save_pretrained(tmp_path / "saved", card=True) / "README.md").read_text()
    assert "| AP | 0.5 |" in card and "| losses | margin_mse: 1 |" in card and str(tmp_path) not in card
