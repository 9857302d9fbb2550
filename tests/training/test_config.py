"""The configurations that come with the package, and the dataclasses that describe a configuration."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from pyterrier_hypencoder.training.config import FOLDER, TrainerConfig, list_configs
from pyterrier_hypencoder.training.config_files import load_config
from pyterrier_hypencoder.training.initial_model import build_initial_model
from pyterrier_hypencoder.training.trainer import HypencoderTrainer

HIDDEN_LAYERS = {f"hypencoder.{layers}_layer": layers for layers in (2, 4, 6, 8)}
BERT, DISTILBERT, HEAD = 109_482_240, 66_362_880, 30_121_728  # parameters


def test_list_configs_returns_all_configurations_with_titles():
    backbones = {f"{name}{end}" for name in ("tas_b", "contriever", "retromae") for end in ("", "_frozen")}
    others = {"be_base", "tip_of_the_tongue", "follow_ir", "matryoshka"}
    assert set(list_configs()) == {*HIDDEN_LAYERS, *others, *backbones}
    assert all(list_configs().values())


@pytest.mark.parametrize("name", list_configs())
def test_configuration_loads_and_documents_where_sources_disagree(name):
    load_config(name)
    text = " ".join((FOLDER / f"{name}.yaml").read_text().replace("#", " ").split())
    assert "No configuration of it was released" in text or ("released" in text and "7" in text and "512" in text)


def test_6_layer_configuration_has_the_values_of_the_paper():
    config = load_config("hypencoder.6_layer")
    data, trainer, validation = config.data, config.trainer, config.validation
    assert (data.positive, data.negatives_per_row, data.query_max_length, data.doc_max_length) == ("top", 8, 32, 196)
    assert (trainer.batch_size, trainer.learning_rate, trainer.warmup_steps, trainer.max_steps) == (64, 2e-5, 6000, 800_000)
    assert (trainer.losses, trainer.lr_scheduler_type) == (["margin_mse", "in_batch_ce"], "constant_with_warmup")
    assert (validation.every, validation.measures, validation.judged_only) == (50_000, ["Rprec"], True)


def test_other_depths_and_be_base_differ_from_6_layers_only_as_the_paper_says():
    six = load_config("hypencoder.6_layer")
    for name, layers in HIDDEN_LAYERS.items():
        model = dataclasses.replace(six.model, hidden=[768] * layers)
        assert load_config(name) == dataclasses.replace(six, model=model, output_dir=f"models/{name}")
    model = dataclasses.replace(six.model, hidden=None, shared_encoder=False)
    linear = dataclasses.replace(six.trainer, lr_scheduler_type="linear")
    expected = dataclasses.replace(six, model=model, trainer=linear, output_dir="models/be_base")
    assert load_config("be_base") == expected


@pytest.mark.parametrize(("name", "steps"), [("tip_of_the_tongue", 3300), ("follow_ir", 10_000)])
def test_fine_tuning_configurations_have_the_values_of_the_paper(name, steps):
    config = load_config(name)
    data, trainer = config.data, config.trainer
    assert (data.negatives_per_row, data.query_max_length, data.doc_max_length) == (1, 512, 512)
    assert (trainer.learning_rate, trainer.lr_scheduler_type, trainer.batch_size) == (8e-6, "linear", 96)
    assert (trainer.max_steps, trainer.warmup_steps) == (steps, steps // 10)


@pytest.mark.parametrize("name", list_configs())
def test_configuration_builds_its_model_at_full_size(golden, tmp_path, name):
    overrides = ["model.weights=false", f"model.tokenizer={golden / 'tiny_6l_cls_shared'}"]
    config = load_config(name)
    if config.model.checkpoint:
        (tmp_path / "config.json").write_text((golden / "released_6layer_config.json").read_text())
        overrides.append(f"model.checkpoint={tmp_path}")
    with torch.device("meta"):
        encoder, _ = build_initial_model(load_config(name, overrides).model)
    backbone = DISTILBERT if name.startswith("tas_b") else BERT
    expected = 2 * backbone if name == "be_base" else backbone + HEAD
    if name not in HIDDEN_LAYERS or name == "hypencoder.6_layer":
        assert sum(parameter.numel() for parameter in encoder.parameters()) == expected
    if name != "be_base":
        assert encoder.config.qnet_spec.vector_dimensions == (768,) * (HIDDEN_LAYERS.get(name, 6) + 1) + (1,)
    assert encoder.config.shared_encoder == (name != "be_base")


def test_trainer_section_has_the_options_and_defaults_of_the_trainer():
    parameters = dict(inspect.signature(HypencoderTrainer.__init__).parameters)
    for name in ("self", "model", "output_dir", "tokenizer", "callbacks"):
        del parameters[name]
    options = {entry.name: getattr(TrainerConfig(), entry.name) for entry in dataclasses.fields(TrainerConfig)}
    options["losses"] = tuple(options["losses"])
    assert options == {name: parameter.default for name, parameter in parameters.items()}
