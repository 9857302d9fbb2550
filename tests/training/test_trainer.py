"""Training: it learns, resumes exactly, trains what it should, and stops where it must."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("accelerate")

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer
from pyterrier_hypencoder.encoders import checkpoint, hub
from pyterrier_hypencoder.encoders.checkpoint_config import DualEncoderConfig  # noqa: E402
from pyterrier_hypencoder.training.collator import Collator  # noqa: E402
from pyterrier_hypencoder.training.objective import DISTILLATION, LOSSES, TrainingObjective  # noqa: E402
from pyterrier_hypencoder.training.row_sampler import RowSampler  # noqa: E402
from pyterrier_hypencoder.training.trainer import HypencoderTrainer  # noqa: E402
from pyterrier_hypencoder.training.training_rows import TrainingRows  # noqa: E402

NAME = "tiny_6l_cls_shared"


def encoder_of(golden, *, layers: int = 2, shared: bool = False, architecture: str = "HypencoderDualEncoder", **kwargs):
    """A small dual encoder with random weights and no dropout in its backbones."""
    backbone = json.loads((golden / "tiny_base_bert" / "config.json").read_text())
    backbone |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | kwargs.pop("backbone", {})
    config = DualEncoderConfig(
        architecture,
        query_encoder_kwargs={
            "model_name_or_path": str(golden / "tiny_base_bert"),
            "base_encoder_output_dim": 24,
            "converter_kwargs": {"vector_dimensions": [24] * (layers + 1) + [1]},
            **kwargs,
        },
        passage_encoder_kwargs={"model_name_or_path": str(golden / "tiny_base_bert"), "pooling_type": "mean"},
        shared_encoder=shared,
        extra={"backbone_configs": {"query": backbone, "passage": backbone}},
    )
    return checkpoint.build(config, seed=1)


@pytest.fixture(scope="module")
def tokenizer(golden):
    return hub.load_tokenizer(str(golden / NAME), None)


def make_rows(path: Path, **options) -> TrainingRows:
    return TrainingRows(path, RowSampler(negatives_per_row=3), shuffle_buffer=0, **options)


def trainer_of(golden, tokenizer, out: Path, **options) -> HypencoderTrainer:
    encoder = options.pop("encoder", None) or encoder_of(golden)
    arguments = {"use_cpu": True, **options.pop("arguments", {})}
    defaults = {"batch_size": 8, "max_steps": 10, "learning_rate": 2e-3}
    return HypencoderTrainer(encoder, out, tokenizer=tokenizer, arguments=arguments, **(defaults | options))


def loss_of(trainer: HypencoderTrainer, path: Path, collator: Collator) -> float:
    batch = collator(list(make_rows(path)))
    with torch.inference_mode():
        return trainer.objective.eval()(**batch)["loss"].item()


@pytest.mark.parametrize("losses", [["margin_mse"], ["in_batch_ce"]])
def test_eight_rows_are_learnt_by_heart(golden, tokenizer, rows_file, tmp_path, losses):
    collator = Collator(tokenizer)
    trainer = trainer_of(
        golden, tokenizer, tmp_path, losses=losses, max_steps=200, learning_rate=1e-2, lr_scheduler_type="linear"
    )
    start = loss_of(trainer, rows_file, collator)
    trainer.fit(make_rows(rows_file), collator)
    assert loss_of(trainer, rows_file, collator) < 0.01 * start


@pytest.mark.parametrize("architecture", ["HypencoderDualEncoder", "TextDualEncoder"])
def test_what_was_trained_loads_as_a_model(golden, tokenizer, rows_file, tmp_path, architecture):
    trainer = trainer_of(golden, tokenizer, tmp_path, encoder=encoder_of(golden, architecture=architecture))
    folder = trainer.fit(make_rows(rows_file), Collator(tokenizer))
    kind = Hypencoder if architecture == "HypencoderDualEncoder" else BiEncoder
    model = kind(folder, device="cpu", dtype="fp32")
    batch = Collator(tokenizer, query_max_length=64)(list(make_rows(rows_file)))
    with torch.inference_mode():
        expected = trainer.objective.eval().encoder.passage_encoder(batch["item_ids"], batch["item_mask"])
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    texts = [item["content"] for row in rows for item in row["items"]]
    order = [texts.index(text) for text in texts]
    assert order == sorted(set(order))
    found = model.encode_docs([item for row in list(make_rows(rows_file)) for item in row["items"]])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_resumed_training_is_uninterrupted_training(golden, tokenizer, rows_file, tmp_path):
    dropout = {"backbone": {"hidden_dropout_prob": 0.1}}  # which only resumes exactly with the random state
    options = {"batch_size": 3, "arguments": {"save_steps": 4}, "warmup_steps": 3, "losses": LOSSES}
    whole = trainer_of(golden, tokenizer, tmp_path / "whole", encoder=encoder_of(golden, **dropout), **options)
    whole.fit(make_rows(rows_file), Collator(tokenizer))
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    shutil.rmtree(cut / "model")
    for folder in cut.glob("checkpoint-*"):
        if folder.name != "checkpoint-4":
            shutil.rmtree(folder)
    resumed = trainer_of(golden, tokenizer, cut, encoder=encoder_of(golden, **dropout), **options)
    resumed.fit(make_rows(rows_file), Collator(tokenizer), resume=True)
    for (name, one), two in zip(whole.objective.state_dict().items(), resumed.objective.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(("train", "frozen"), [("queries", "passage_encoder."), ("head", ".transformer.")])
def test_only_what_should_be_is_trained(golden, tokenizer, rows_file, tmp_path, train, frozen):
    trainer = trainer_of(golden, tokenizer, tmp_path, train=train)
    before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
    trainer.fit(make_rows(rows_file), Collator(tokenizer))
    changed = {name for name, value in trainer.objective.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any(frozen in name for name in changed)
    assert any("hyper_projection" in name for name in changed)


def test_documents_that_are_given_as_vectors_are_not_encoded(golden, tokenizer, rows_file, tmp_path):
    asked = []

    def vectors(docnos):
        asked.append(len(docnos))
        return np.array([np.full(24, int(docno[1:]) / 100) for docno in docnos], dtype=np.float32)

    trainer = trainer_of(golden, tokenizer, tmp_path, train="queries")
    trainer.objective.encoder.passage_encoder.forward = None  # calling it would fail
    rows = TrainingRows(rows_file, RowSampler(negatives_per_row=3, item_texts=False), shuffle_buffer=0)
    trainer.fit(rows, Collator(tokenizer, vectors=vectors))
    assert sum(asked) == 10 * 8 * 4


def test_the_best_checkpoint_by_validation_is_kept(golden, tokenizer, rows_file, tmp_path):
    measured = []

    def validate(folder: Path) -> dict[str, float]:
        Hypencoder(folder, device="cpu").encode_docs(["a planet"])
        measured.append(checkpoint.read_weights(str(folder))["query_encoder.hyper_base_matrices.0"])
        return {"Rprec": [0.1, 0.9, 0.3][len(measured) - 1]}

    arguments = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    trainer = trainer_of(golden, tokenizer, tmp_path, max_steps=6, arguments=arguments)
    folder = trainer.fit(make_rows(rows_file), Collator(tokenizer), validate=validate, best="Rprec")
    kept = checkpoint.read_weights(str(folder))["query_encoder.hyper_base_matrices.0"]
    assert len(measured) == 3
    assert torch.equal(kept, measured[1]) and not torch.equal(kept, measured[2])
    assert not (tmp_path / "validation").exists()


def test_validation_comes_with_every_checkpoint_unless_told_otherwise(golden, tokenizer, rows_file, tmp_path):
    measured = []
    trainer = trainer_of(golden, tokenizer, tmp_path, max_steps=4, arguments={"save_steps": 2})
    trainer.fit(
        make_rows(rows_file), Collator(tokenizer), validate=lambda folder: measured.append(1) or {"AP": 0.1}, best="AP"
    )
    assert len(measured) == 2


def test_a_loss_that_is_no_number_stops_and_leaves_the_checkpoints(golden, tokenizer, rows_file, tmp_path, monkeypatch):
    trainer = trainer_of(golden, tokenizer, tmp_path, max_steps=4, arguments={"save_steps": 2})
    trainer.fit(make_rows(rows_file), Collator(tokenizer))
    before = sorted(path.name for path in tmp_path.iterdir())
    broken = trainer_of(golden, tokenizer, tmp_path, max_steps=8, arguments={"save_steps": 2})
    monkeypatch.setitem(DISTILLATION, "margin_mse", lambda scores, teacher: scores.sum() * float("nan"))
    with pytest.raises(FloatingPointError, match="after step 4"):
        broken.fit(make_rows(rows_file), Collator(tokenizer), resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_checkpoints_are_neither_overwritten_nor_mixed(golden, tokenizer, rows_file, tmp_path):
    trainer_of(golden, tokenizer, tmp_path).fit(make_rows(rows_file), Collator(tokenizer))
    with pytest.raises(FileExistsError, match="resume=True"):
        trainer_of(golden, tokenizer, tmp_path).fit(make_rows(rows_file), Collator(tokenizer))
    other = trainer_of(golden, tokenizer, tmp_path, encoder=encoder_of(golden, layers=3), max_steps=20)
    with pytest.raises(
        ValueError, match=r"another model or run: .*vector_dimensions=\[24, 24, 24, 1\] \(now \[24, 24, 24, 24, 1\]\)"
    ):
        other.fit(make_rows(rows_file), Collator(tokenizer), resume=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"losses": ["in_batch_ce"]}, "losses"),
        ({"batch_size": 4}, "batch_size"),
        ({"seed": 1}, "seed"),
        ({"train": "head"}, "train"),
        ({"widths": [12, 24]}, "matryoshka_widths"),
        ({"scale": 2.0}, "scale"),
    ],
)
def test_a_run_goes_on_as_it_was_begun(golden, tokenizer, rows_file, tmp_path, change, named):
    trainer_of(golden, tokenizer, tmp_path, max_steps=1).fit(make_rows(rows_file), Collator(tokenizer))
    before = (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=f"another model or run: .*{named}"):
        trainer_of(golden, tokenizer, tmp_path, **change).fit(make_rows(rows_file), Collator(tokenizer), resume=True)
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes() == before
    longer = trainer_of(golden, tokenizer, tmp_path, max_steps=2, learning_rate=1e-4)
    assert longer.fit(make_rows(rows_file), Collator(tokenizer), resume=True)  # these may change


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(golden, tokenizer, rows_file, tmp_path):
    options = {"max_steps": 4, "arguments": {"save_steps": 2}}
    whole = trainer_of(golden, tokenizer, tmp_path, **options)
    whole.fit(make_rows(rows_file), Collator(tokenizer))
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    rows = make_rows(rows_file)
    again = trainer_of(golden, tokenizer, tmp_path, **options)
    again.fit(rows, Collator(tokenizer), resume=True)
    assert rows.skip == 2 * 8
    for (name, one), two in zip(whole.objective.state_dict().items(), again.objective.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6, msg=name)
    trainer_of(golden, tokenizer, tmp_path / "new", max_steps=1).fit(rows, Collator(tokenizer))
    assert rows.skip == 0  # a run of its own begins at the first row


def test_weights_that_are_no_numbers_are_not_kept(golden, tokenizer, rows_file, tmp_path):
    arguments = {"save_steps": 1, "save_total_limit": 1}
    trainer = trainer_of(golden, tokenizer, tmp_path, max_steps=3, arguments=arguments)
    seen = []
    weight = trainer.objective.encoder.query_encoder.hyper_base_matrices[0]
    weight.register_hook(lambda gradient: seen.append(1) or (gradient * float("nan") if len(seen) == 2 else gradient))
    with pytest.raises(FloatingPointError, match="Trained weights are NaN or infinite after step 2"):
        trainer.fit(make_rows(rows_file), Collator(tokenizer))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    last = trainer_of(golden, tokenizer, tmp_path / "last", max_steps=1, arguments={"save_strategy": "no"})
    last.objective.encoder.query_encoder.hyper_base_matrices[0].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="after step 1"):
        last.fit(make_rows(rows_file), Collator(tokenizer))
    assert not (tmp_path / "last" / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [({}, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]), ({"eval_steps": 5}, [5, 10, 15, 20]), ({"save_steps": 10}, [10, 20])],
)
def test_the_best_checkpoint_is_one_that_was_measured(golden, tokenizer, rows_file, tmp_path, arguments, steps):
    trainer = trainer_of(golden, tokenizer, tmp_path, max_steps=20, batch_size=2, arguments=arguments)
    measured = []

    def validate(folder: Path) -> dict[str, float]:
        measured.append(checkpoint.read_weights(str(folder))["query_encoder.hyper_base_matrices.0"])
        return {"AP": 1.0 - len(measured) / 100}

    folder = trainer.fit(make_rows(rows_file), Collator(tokenizer), validate=validate, best="AP")
    assert len(measured) == len(steps)
    assert torch.equal(checkpoint.read_weights(str(folder))["query_encoder.hyper_base_matrices.0"], measured[0])
    kept = {int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*")}
    assert kept == {steps[0], steps[-1]}


def test_a_best_checkpoint_that_cannot_be_found(golden, tokenizer, rows_file, tmp_path):
    def fit(best, validate=lambda folder: {"AP": 0.1}, **arguments):
        trainer = trainer_of(golden, tokenizer, tmp_path, arguments=arguments)
        trainer.fit(make_rows(rows_file), Collator(tokenizer), validate=validate, best=best)

    with pytest.raises(ValueError, match="needs a validation.*validate="):
        fit("AP", None)
    with pytest.raises(ValueError, match=r"save_steps must equal eval_steps \(2\)"):
        fit("AP", eval_steps=2, save_steps=3)
    with pytest.raises(ValueError, match=r"best must be one of the measures AP, got 'AQ'"):
        fit("AQ", SimpleNamespace(measures=["AP"]))
    assert not list(tmp_path.glob("model"))


def test_documents_whose_encoder_is_trained_cannot_be_vectors(golden, tokenizer, rows_file, tmp_path):
    collator = Collator(tokenizer, vectors=lambda docnos: np.zeros((len(docnos), 24)))
    with pytest.raises(ValueError, match=r"collator.vectors needs frozen documents.*train='queries'"):
        trainer_of(golden, tokenizer, tmp_path).fit(make_rows(rows_file), collator)


@pytest.mark.parametrize(("train", "shared"), [("queries", False), ("head", False), ("head", True)])
def test_frozen_documents_are_encoded_without_dropout(golden, tokenizer, rows_file, tmp_path, train, shared):
    encoder = encoder_of(golden, shared=shared, backbone={"hidden_dropout_prob": 0.5})
    network = trainer_of(golden, tokenizer, tmp_path, encoder=encoder, train=train).objective
    seen = []
    network.encoder.passage_encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    batch = Collator(tokenizer)(list(make_rows(rows_file)))
    network.train()(**batch)
    assert encoder.query_encoder.transformer.training and not seen[0].requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(network.eval().encoder.passage_encoder(batch["item_ids"], batch["item_mask"]), seen[0])


def test_a_second_stage_trains_what_the_first_has_frozen(golden, tokenizer, rows_file, tmp_path):
    encoder = encoder_of(golden)
    trainer_of(golden, tokenizer, tmp_path / "head", encoder=encoder, train="head")
    free = {name for name, p in encoder_of(golden).named_parameters() if ".pooler." not in name}
    trainer_of(golden, tokenizer, tmp_path / "all", encoder=encoder, train="all")
    assert {name for name, p in encoder.named_parameters() if p.requires_grad} == free


def test_matryoshka_losses_are_averaged_over_widths(golden, tokenizer, rows_file):
    encoder = encoder_of(golden)
    batch = Collator(tokenizer)(list(make_rows(rows_file)))
    each = []
    for widths in ([8], [24], [8, 24]):
        network = TrainingObjective(encoder, {"margin_mse": 1.0}, widths).eval()
        each.append(network(**batch)["loss"].item())
    full = TrainingObjective(encoder, {"margin_mse": 1.0}).eval()(**batch)["loss"].item()
    assert each[2] == pytest.approx((each[0] + each[1]) / 2, rel=1e-5)
    assert each[1] == pytest.approx(full, rel=1e-5)
    assert each[0] != pytest.approx(full, rel=1e-4)


def test_a_matryoshka_model_is_saved_loaded_and_searched_at_its_widths(golden, tokenizer, rows_file, docs, tmp_path):
    trainer = trainer_of(golden, tokenizer, tmp_path / "out", widths=[8, 24])
    folder = trainer.fit(make_rows(rows_file), Collator(tokenizer))
    assert json.loads((folder / "config.json").read_text())["matryoshka_widths"] == [8, 24]
    model = Hypencoder(folder, device="cpu", doc_max_length=64)
    index = HypencoderIndexer(tmp_path / "docs.hyp", model, dtype="fp32").index(docs)
    qnets, vectors = model.encode_queries(["a planet"]), torch.tensor(np.asarray(index.vectors))
    for width in (8, 24):
        found = index.retriever(model, num_results=5, qnet_width=width).search("a planet")
        expected = qnets.narrow(width).score(vectors)[0].topk(5).values
        np.testing.assert_allclose(found["score"], expected, rtol=1e-4, atol=1e-4)


def test_losses_are_weighted_and_added(golden, tokenizer, rows_file):
    encoder = encoder_of(golden)
    batch = Collator(tokenizer)(list(make_rows(rows_file)))
    single = {name: TrainingObjective(encoder, {name: 1.0}).eval()(**batch)["loss"].item() for name in LOSSES}
    weights = {name: 0.5 + i for i, name in enumerate(LOSSES)}
    total = TrainingObjective(encoder, weights).eval()(**batch)["loss"].item()
    assert total == pytest.approx(sum(weights[name] * single[name] for name in LOSSES), rel=1e-5)


def test_options_that_do_not_fit(golden, tokenizer, rows_file, tmp_path):
    with pytest.raises(ValueError, match="losses must be among"):
        trainer_of(golden, tokenizer, tmp_path, losses=["hinge"])
    with pytest.raises(ValueError, match="losses must be among"):
        trainer_of(golden, tokenizer, tmp_path, losses=[])
    with pytest.raises(ValueError, match="train must be one of"):
        trainer_of(golden, tokenizer, tmp_path, train="documents")
    with pytest.raises(ValueError, match="shared_encoder"):
        trainer_of(golden, tokenizer, tmp_path, train="queries", encoder=encoder_of(golden, shared=True))
    with pytest.raises(ValueError, match="no head"):
        bi_encoder = encoder_of(golden, architecture="TextDualEncoder")
        trainer_of(golden, tokenizer, tmp_path, train="head", encoder=bi_encoder)
    batch = Collator(tokenizer)(list(make_rows(rows_file)))
    del batch["teacher"]
    with pytest.raises(ValueError, match="needs teacher scores"):
        TrainingObjective(encoder_of(golden), {"margin_mse": 1.0})(**batch)
