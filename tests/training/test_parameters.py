"""Parameters: which are trained, and at which learning rate."""

from __future__ import annotations

import pytest
from tiny_training import list_changed, make_encoder, make_rows, make_trainer, read_weights, train

from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.parameters import group_parameters

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]}


@pytest.mark.parametrize(("part", "frozen"), [("queries", "passage_encoder."), ("head", ".transformer.")])
def test_only_the_chosen_part_is_trained(tokenizer, rows_file, tmp_path, part, frozen):
    trainer = make_trainer(tmp_path, train=part, max_steps=1)
    before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
    trainer.fit(make_rows(rows_file), Collator(tokenizer))
    changed = list_changed(before, trainer.objective.state_dict())
    assert changed and not any(frozen in name for name in changed)
    assert any("hyper_projection" in name for name in changed)


def test_backbone_layers_trains_only_the_last_layers(untrained, checkpoint_dir, rows_file, tmp_path):
    folder = train(tmp_path / "out", rows_file, untrained, backbone_layers=1, losses=["listwise_ce"], max_steps=1)
    names = list_changed(read_weights(checkpoint_dir), read_weights(folder))
    changed = {name.split("transformer.")[1] for name in names if "transformer." in name}
    depth = 1 + max(int(name.split(".")[2]) for name in changed)
    assert depth == 2 and all(name.startswith(f"encoder.layer.{depth - 1}.") for name in changed)
    with pytest.raises(ValueError, match="backbone_layers must be at most"):
        make_trainer(tmp_path / "more", untrained, backbone_layers=depth + 1)


def test_later_stage_trains_parameters_that_an_earlier_one_froze(tmp_path):
    encoder = make_encoder()
    make_trainer(tmp_path / "head", encoder, train="head")
    expected = {name for name, _ in make_encoder().named_parameters() if ".pooler." not in name}
    make_trainer(tmp_path / "all", encoder, train="all")
    assert {name for name, p in encoder.named_parameters() if p.requires_grad} == expected


def test_group_parameters_divides_head_rates_by_fan_in(checkpoint_dir):
    network, _ = checkpoint.load(str(checkpoint_dir))
    groups = group_parameters(network, 1e-5, 1e-2, 0.1)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == sum(parameter.requires_grad for parameter in network.parameters())
    for name, parameter in network.named_parameters():
        expected = 1e-5 if ".transformer." in name else 1e-2 / (parameter.shape[-1] if parameter.ndim > 1 else 1)
        assert rates[id(parameter)] == pytest.approx(expected), name
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0), name


def test_optimiser_steps_by_the_grouped_rates(untrained, checkpoint_dir, rows_file, tmp_path):
    options = {"max_steps": 1, "learning_rate": 1e-4, "head_learning_rate": 2.4e-2, "losses": ["listwise_ce"]}
    folder = train(tmp_path, rows_file, untrained, **options)
    before, after = read_weights(checkpoint_dir), read_weights(folder)
    # The first step of Adam equals its learning rate, whatever the gradient.
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert moved["query_encoder.weight_hyper_projection.0.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["query_encoder.weight_hyper_projection.0.bias"] == pytest.approx(2.4e-2, rel=1e-2)
    assert moved["passage_encoder.transformer.encoder.layer.0.attention.self.query.weight"] == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": LORA, "train": "head"}, "lora has no effect with train='head'"),
        ({"backbone_layers": 1, "train": "head"}, "backbone_layers has no effect with train='head'"),
        ({"lora": LORA, "backbone_layers": 1}, "Give backbone_layers or lora, not both"),
    ],
)
def test_contradicting_options_raise(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)


def test_parts_that_the_encoder_lacks_raise(tmp_path):
    with pytest.raises(ValueError, match="shared_encoder"):
        make_trainer(tmp_path, make_encoder(shared=True), train="queries")
    with pytest.raises(ValueError, match="no head"):
        make_trainer(tmp_path, make_encoder(architecture="TextDualEncoder"), train="head")
