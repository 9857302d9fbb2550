"""Reading configuration files: base files, overrides, and errors that name the key and the value."""

from __future__ import annotations

import pytest

from pyterrier_hypencoder.training.config_files import load_config


@pytest.fixture
def path(tmp_path):
    """Return the path of a configuration file with everything that is required, except output_dir."""
    path = tmp_path / "mine.yaml"
    path.write_text("model: {dense: x}\ndata: {paths: x}\n")
    return path


def test_file_overrides_its_base_and_merges_mappings(tmp_path):
    (tmp_path / "middle.yaml").write_text("base: hypencoder.6_layer\ntrainer: {seed: 3, learning_rate: 1e-3}\n")
    (tmp_path / "mine.yaml").write_text(
        "base: middle.yaml\ntrainer: {learning_rate: 1e-4, arguments: {weight_decay: 1E-2}}\n"  # middle.yaml is in its folder
    )
    trainer = load_config(str(tmp_path / "mine.yaml")).trainer
    assert (trainer.seed, trainer.learning_rate, trainer.warmup_steps) == (3, 1e-4, 6000)
    assert trainer.arguments["weight_decay"] == 0.01 and trainer.arguments["bf16"] is True


def test_overrides_are_yaml_and_replace_mappings():
    overrides = ["data.paths=[a.jsonl, b.jsonl]", "trainer.scale=2", "trainer.max_steps=1e6", "model.hidden=null"]
    overrides += ["trainer.arguments={use_cpu: true}", "trainer.losses={margin_mse: 1, kl: 5e-1}"]
    config = load_config("hypencoder.6_layer", overrides)
    trainer = config.trainer
    assert config.data.paths == ["a.jsonl", "b.jsonl"] and config.model.hidden is None
    assert (trainer.scale, trainer.max_steps) == (2.0, 1_000_000)
    assert isinstance(trainer.scale, float) and isinstance(trainer.max_steps, int)
    assert trainer.arguments == {"use_cpu": True}
    assert trainer.losses == {"margin_mse": 1.0, "kl": 0.5}


def test_single_values_become_lists():
    overrides = ["data.paths=a.jsonl", "model.hidden=768", "trainer.losses=kl", "validation.text_field=body"]
    config = load_config("hypencoder.6_layer", overrides)
    assert (config.data.paths, config.model.hidden, config.trainer.losses) == (["a.jsonl"], [768], ["kl"])
    assert config.validation.text_field == ["body"]


def test_values_are_converted_to_the_type_of_the_key():
    config = load_config("hypencoder.6_layer", ["output_dir=3", "resume=1", "trainer.learning_rate='1e-5'"])
    assert (config.output_dir, config.resume, config.trainer.learning_rate) == ("3", True, 1e-5)


def test_validation_can_be_removed_and_added(path):
    assert load_config("hypencoder.6_layer", ["validation=null"]).validation is None
    values = [f"validation.{key}" for key in ("topics=a", "qrels=b", "docs=c", "every=1")]
    assert load_config(str(path), ["output_dir=x", *values]).validation.docs == "c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "must be a YAML file with keys and values"),
        ("- 1\n", "must be a YAML file with keys and values, got a list"),
        ("3\n", "must be a YAML file with keys and values"),
        ("a: 1\na: 2\n", "duplicate key a"),
        ("base: mine.yaml\n", "has a circular"),
        ("output_dir: ${nowhere}\n", "nowhere"),
    ],
)
def test_invalid_file_is_an_error_with_its_path(path, text, message):
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["bebase", "nowhere/mine.yaml"])
def test_missing_file_is_an_error_that_lists_all_names(name):
    with pytest.raises(FileNotFoundError, match=rf"'{name}'.*be_base.*tip_of_the_tongue"):
        load_config(name)


@pytest.mark.parametrize(
    ("key", "similar"),
    [
        ("trainr.max_steps", "trainer"),
        ("outputdir", "output_dir"),
        ("learning_rate", "trainer.learning_rate"),
        ("model.chekpoint", "model.checkpoint"),
        ("model.qnet.do_residuals", "model.qnet.do_residual"),
        ("data.path", "data.paths"),
        ("trainer.lr", "trainer.lora"),
        ("trainer.bf16", "trainer.arguments.bf16"),
        ("trainer.save_steps", "trainer.arguments.save_steps"),
        ("trainer.arguments.save_step", "trainer.arguments.save_steps"),
        ("validation.measure", "validation.measures"),
    ],
)
def test_unknown_key_is_an_error_with_the_most_similar_key(key, similar):
    unknown = key.removesuffix(".max_steps")  # an unknown section is reported, not a key in it
    with pytest.raises(ValueError) as caught:
        load_config("hypencoder.6_layer", [f"{key}=1"])
    assert str(caught.value) == f"Unknown key {unknown}. Did you mean {similar}?"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps", "have the form key=value"),
        ("=1", "have the form key=value"),
        ("trainer..seed=1", "have the form key=value"),
        ("trainer.seed=[", "'trainer.seed=\\[' must have a value in YAML"),
        ("trainer.arguments={a: 1, a: 2}", "duplicate key a"),
        ("output_dir.x=1", "output_dir must be of type str, got {'x': 1}"),
        ("output_dir=[3]", "output_dir must be of type str"),
        ("output_dir=", "output_dir must be of type str, got None"),
        ("trainer=1", "trainer must be a section with keys and values, got 1"),
        ("trainer=null", "trainer must be of type TrainerConfig, got None"),
        ("trainer.max_steps=many", "trainer.max_steps must be of type int, got 'many'"),
        ("trainer.max_steps=1.5", "trainer.max_steps must be of type int, got 1.5"),
        ("trainer.max_steps=0", "trainer.max_steps must be a positive integer, got 0"),
        ("trainer.batch_size=true", "trainer.batch_size must be of type int, got True"),
        ("trainer.learning_rate=fast", "trainer.learning_rate must be of type float, got 'fast'"),
        ("trainer.learning_rate=.nan", "trainer.learning_rate must be finite and not empty, got nan"),
        ("trainer.losses={margin_mse: x}", "trainer.losses must be names, or a mapping of names to numbers, got {"),
        ("trainer.losses=[1]", "trainer.losses must be names, or a mapping of names to numbers, got \\[1\\]"),
        ("trainer.losses=null", "trainer.losses must be names, or a mapping of names to numbers, got None"),
        ("trainer.widths=[1, x]", "trainer.widths must be of type list\\[int\\] | None, got \\[1, 'x'\\]"),
        ("trainer.arguments=[1]", "trainer.arguments must be of type dict\\[str, Any\\] | None, got \\[1\\]"),
        ("trainer.train=documents", "trainer.train must be one of"),
        ("trainer.arguments.max_steps=1", "trainer.arguments.max_steps has another key. Set trainer.max_steps instead"),
        ("trainer.arguments.save_steps=7", "trainer.arguments.save_steps must equal validation.every \\(50000\\), got 7"),
        ("data.paths=[]", "data.paths must be finite and not empty"),
        ("data.doc_max_length=0", "data.doc_max_length must be a positive integer, got 0"),
        ("data.vectors=x", "data.vectors needs frozen documents, got trainer.train=all"),
        ("resume=maybe", "resume must be of type bool, got 'maybe'"),
        ("model.checkpoint=x", "model needs exactly one of"),
        ("model.backbone=null", "model needs exactly one of"),
        ("model.hidden=wide", "model.hidden must be of type list\\[int\\] | None, got 'wide'"),
        ("validation.every=1000000", "validation.every must be at most trainer.max_steps \\(800000\\), got 1000000"),
        ("validation.num_results=0", "validation.num_results must be a positive integer, got 0"),
    ],
)
def test_invalid_value_is_an_error_with_key_and_value(override, message):
    with pytest.raises(ValueError, match=message.replace("|", "\\|")):
        load_config("hypencoder.6_layer", [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "output_dir is required.*give output_dir=..."),
        (["output_dir=x", "validation.every=1"], "validation.docs is required"),
        (["output_dir=x", "data={}"], "data.paths is required"),
        (["output_dir=x", "model={checkpoint: x, hidden: [3]}"], "model.checkpoint 'x' already decides hidden"),
        (["output_dir=x", "model.weights=false"], "model.weights must be true with model.dense"),
        (["output_dir=x", "model.head_from=y"], "model.head_from needs model.backbone and model.hidden"),
    ],
)
def test_missing_or_contradictory_values_are_errors(path, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(str(path), overrides)
