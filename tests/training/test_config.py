"""The training command: shipped configurations, overrides, and what it says of mistakes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("accelerate")

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer
from pyterrier_hypencoder.encoders import checkpoint, hub
from pyterrier_hypencoder.training import config_files  # noqa: E402
from pyterrier_hypencoder.training.__main__ import main  # noqa: E402
from pyterrier_hypencoder.training.config import TrainerConfig  # noqa: E402
from pyterrier_hypencoder.training.initial_model import build_initial_model  # noqa: E402
from pyterrier_hypencoder.training.trainer import HypencoderTrainer  # noqa: E402

SHIPPED = sorted(config_files.list_configs())
HIDDEN = {f"hypencoder.{layers}_layer": layers for layers in (2, 4, 6, 8)}
BERT, DISTILBERT, HEAD = 109_482_240, 66_362_880, 30_121_728  # parameters


@pytest.fixture
def small(golden, rows_file, tmp_path):
    """Overrides that fit a shipped configuration to the golden backbone and eight rows, and to one step."""

    def overrides(name: str) -> list[str]:
        config = config_files.load_config(name)
        given = {
            "model.tokenizer": golden / "tiny_6l_cls_shared",
            "data.paths": rows_file,
            "data.negatives_per_row": min(config.data.negatives_per_row, 3),
            "trainer.batch_size": 4,
            "trainer.max_steps": 1,
            "trainer.warmup_steps": 0,
            "trainer.arguments": "{use_cpu: true}",
            "validation": "null",
            "output_dir": tmp_path / "out",
        }
        if config.model.checkpoint:
            given["model.checkpoint"] = golden / "tiny_6l_cls_shared"
        else:
            given |= {"model.backbone": golden / "tiny_base_bert", "model.weights": "false"}
            given |= {"model.hidden": [24] * len(config.model.hidden)} if config.model.hidden else {}
        if config.trainer.widths:
            given["trainer.widths"] = [width // 32 for width in config.trainer.widths]
        return [f"{key}={value}" for key, value in given.items()]

    return overrides


@pytest.fixture(scope="module")
def backbone(golden, tmp_path_factory) -> Path:
    """The golden backbone with weights, and with a tokenizer."""
    from transformers import AutoConfig, AutoModel

    folder = tmp_path_factory.mktemp("backbone")
    AutoModel.from_config(AutoConfig.from_pretrained(golden / "tiny_base_bert")).save_pretrained(folder)
    hub.load_tokenizer(str(golden / "tiny_6l_cls_shared"), None).save_pretrained(folder)
    return folder


@pytest.fixture
def validation(texts, tmp_path) -> list[str]:
    """Overrides that validate on the golden texts, each query's document being relevant."""
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in texts["docs"]))
    half = len(texts["queries"]) // 2
    for name, queries in {"a": texts["queries"][:half], "b": texts["queries"][half:]}.items():
        (tmp_path / f"{name}.tsv").write_text("".join(f"{query['qid']}\t{query['text']}\n" for query in queries))
        lines = [f"{query['qid']} 0 {doc['docno']} 1\n" for query, doc in zip(queries, texts["docs"][1:], strict=False)]
        (tmp_path / f"{name}.txt").write_text("".join(lines))
    return [
        f"validation.docs={tmp_path}/docs.jsonl",
        f"validation.topics=[{tmp_path}/a.tsv, {tmp_path}/b.tsv]",
        f"validation.qrels=[{tmp_path}/a.txt, {tmp_path}/b.txt]",
        "validation.every=1",
    ]


def error_of(capsys, *arguments: object) -> str:
    """The one line that the command writes of a mistake."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_what_is_shipped():
    backbones = {f"{name}{end}" for name in ("tas_b", "contriever", "retromae") for end in ("", "_frozen")}
    assert set(SHIPPED) == {*HIDDEN, "be_base", "tip_of_the_tongue", "follow_ir", "matryoshka", *backbones}
    assert all(config_files.list_configs().values())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_parses_and_says_where_its_sources_disagree(name):
    config_files.load_config(name)
    text = (config_files.FOLDER / f"{name}.yaml").read_text()
    assert "No configuration of it was released" in text or ("released" in text and "7" in text and "512" in text)


def test_the_papers_figures():
    six = config_files.load_config("hypencoder.6_layer")
    assert (six.data.positive, six.data.negatives_per_row, six.data.query_max_length, six.data.doc_max_length) == (
        "top",
        8,
        32,
        196,
    )
    trainer = six.trainer
    assert (trainer.batch_size, trainer.learning_rate, trainer.warmup_steps, trainer.max_steps) == (64, 2e-5, 6000, 800_000)
    assert (trainer.losses, trainer.lr_scheduler_type) == (
        ["margin_mse", "in_batch_ce"],
        "constant_with_warmup",
    )
    assert (six.validation.every, six.validation.measures, six.validation.judged_only) == (50_000, ["Rprec"], True)
    for name, layers in HIDDEN.items():
        model = dataclasses.replace(six.model, hidden=[768] * layers)
        assert config_files.load_config(name) == dataclasses.replace(six, model=model, output_dir=f"models/{name}")
    base = config_files.load_config("be_base")
    model = dataclasses.replace(six.model, hidden=None, shared_encoder=False)
    linear = dataclasses.replace(six.trainer, lr_scheduler_type="linear")
    assert base == dataclasses.replace(six, model=model, trainer=linear, output_dir="models/be_base")
    for name, steps in {"tip_of_the_tongue": 3300, "follow_ir": 10_000}.items():
        hard = config_files.load_config(name)
        assert (hard.data.negatives_per_row, hard.data.query_max_length, hard.data.doc_max_length) == (1, 512, 512)
        assert (hard.trainer.learning_rate, hard.trainer.lr_scheduler_type, hard.trainer.batch_size) == (8e-6, "linear", 96)
        assert (hard.trainer.max_steps, hard.trainer.warmup_steps) == (steps, steps // 10)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_builds_its_model_at_full_size(golden, tmp_path, name):
    overrides = ["model.weights=false", f"model.tokenizer={golden / 'tiny_6l_cls_shared'}"]
    config = config_files.load_config(name)
    if config.model.checkpoint:
        (tmp_path / "config.json").write_text((golden / "released_6layer_config.json").read_text())
        overrides.append(f"model.checkpoint={tmp_path}")
    with torch.device("meta"):
        encoder, _ = build_initial_model(config_files.load_config(name, overrides).model)
    backbone = DISTILBERT if name.startswith("tas_b") else BERT
    head = 2 * backbone if name == "be_base" else backbone + HEAD
    if name not in HIDDEN or name == "hypencoder.6_layer":
        assert sum(parameter.numel() for parameter in encoder.parameters()) == head
    if name != "be_base":
        assert encoder.config.qnet_spec.vector_dimensions == (768,) * (HIDDEN.get(name, 6) + 1) + (1,)
    assert encoder.config.shared_encoder == (name != "be_base")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_takes_a_step(small, tmp_path, capsys, name):
    assert main([name, *small(name)]) == 0
    folder = tmp_path / "out" / "model"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    model = (BiEncoder if name == "be_base" else Hypencoder)(folder, device="cpu")
    if name in HIDDEN:
        assert model.qnet_spec.hidden_layers == HIDDEN[name]
    assert model.encode_docs(["a planet"]).shape == (1, 24)
    config = config_files.load_config(name, small(name))
    start, _ = build_initial_model(config.model)
    trained = checkpoint.read_weights(str(folder))
    changed = {key for key, value in trained.items() if not torch.equal(value, start.state_dict()[key])}
    assert changed
    assert any(".transformer." in key for key in changed) == (config.trainer.train == "all")


def test_the_command_as_it_is_typed(small, validation, golden, tmp_path):
    command = [sys.executable, "-m", "pyterrier_hypencoder.training"]
    overrides = [*small("hypencoder.2_layer"), *validation, "trainer.max_steps=2", "trainer.learning_rate=1e-3"]
    overrides.remove("validation=null")
    run = subprocess.run([*command, "hypencoder.2_layer", *overrides], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    out = tmp_path / "out"
    assert run.stdout.splitlines()[-1] == str(out / "model")
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-1", "checkpoint-2", "model"]
    state = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_Rprec" in entry] == [1, 2]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run = subprocess.run([*command, "hypencoder.2_layer", *overrides], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.splitlines()[-1].startswith("error: output_dir ") and "Traceback" not in run.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_without_a_name_the_shipped_configurations_are_listed(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in SHIPPED)


def test_help_names_the_shipped_configurations(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in SHIPPED)


def test_training_goes_on_but_not_with_another_model(small, tmp_path, capsys):
    overrides = small("hypencoder.2_layer")
    assert main(["hypencoder.2_layer", *overrides]) == 0
    assert main(["hypencoder.2_layer", *overrides, "resume=true", "trainer.max_steps=2"]) == 0
    out = tmp_path / "out"
    assert {"checkpoint-1", "checkpoint-2"} <= {path.name for path in out.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    error = error_of(capsys, "hypencoder.4_layer", *small("hypencoder.4_layer"), "resume=true", "trainer.max_steps=3")
    assert "checkpoint-2" in error and "vector_dimensions" in error
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    for folder in out.glob("checkpoint-*"):
        shutil.rmtree(folder)
    assert "already contains model. Choose another output_dir" in error_of(
        capsys, "hypencoder.2_layer", *overrides, "resume=true"
    )
    (tmp_path / "file").touch()
    assert "got the file" in error_of(capsys, "hypencoder.2_layer", *overrides, f"output_dir={tmp_path / 'file'}")


def test_the_head_of_another_model_on_a_backbone(small, backbone, golden, capsys):
    start = [f"model.backbone={backbone}", "model.weights=true", f"model.head_from={golden / 'tiny_6l_cls_shared'}"]
    encoder, _ = build_initial_model(config_files.load_config("tas_b_frozen", [*small("tas_b_frozen"), *start]).model)
    head, _ = checkpoint.load(str(golden / "tiny_6l_cls_shared"))
    own = hub.load_transformer(str(backbone)).state_dict()
    for key, value in encoder.query_encoder.state_dict().items():
        expected = (
            own[key.removeprefix("transformer.")] if ".transformer." in f".{key}" else head.query_encoder.state_dict()[key]
        )
        if "pooler" not in key:
            assert torch.equal(value, expected), key
    error = error_of(capsys, "tas_b", *small("tas_b"), *start, "model.hidden=[24, 24]")
    assert "model.head_from: the q-nets of" in error
    error = error_of(capsys, "tas_b", *small("tas_b"), *start, f"model.head_from={golden / 'tiny_2l_mean_separate_reslast'}")
    assert "model.head_from: the q-nets of" in error


def test_a_dense_model_to_begin_with(small, backbone, tmp_path):
    overrides = [*small("hypencoder.2_layer"), "model.backbone=null", "model.weights=true", f"model.dense={backbone}"]
    assert main(["hypencoder.2_layer", *overrides, "model.qnet.skip_scale=2.0"]) == 0
    spec = Hypencoder(tmp_path / "out" / "model", device="cpu").qnet_spec
    assert spec.inner_product_skip and spec.skip_scale == 2.0


def test_vectors_of_an_index_stand_in_for_documents(small, model, index, docs, golden, tmp_path, capsys):
    overrides = [*small("matryoshka"), f"data.vectors={index.path}"]
    assert main(["matryoshka", *overrides]) == 0
    other = Hypencoder(golden / "tiny_2l_mean_separate_reslast", device="cpu")
    path = HypencoderIndexer(tmp_path / "other.hyp", other).index(docs[1:5]).path
    again = [*overrides, f"output_dir={tmp_path / 'again'}"]
    assert "was built by" in error_of(capsys, "matryoshka", *again, f"data.vectors={path}")
    assert "data.vectors needs frozen documents" in error_of(capsys, "matryoshka", *again, "trainer.train=all")
    assert "no index at 'nowhere'" in error_of(capsys, "matryoshka", *again, "data.vectors=nowhere")
    assert "data.vectors must be a HypencoderIndex or" in error_of(capsys, "matryoshka", *again, f"data.vectors={tmp_path}")
    assert not (tmp_path / "again").exists()


def test_validation_by_an_index_needs_frozen_documents(small, validation, index, tmp_path, capsys):
    frozen = [*(entry for entry in small("matryoshka") if entry != "validation=null"), *validation]
    frozen += [f"validation.docs={index.path}", "validation.judged_only=false"]
    assert main(["matryoshka", *frozen]) == 0
    error = error_of(capsys, "matryoshka", *frozen, "trainer.train=all", f"output_dir={tmp_path / 'again'}")
    assert "does not fit trainer.train=all, which changes document vectors" in error


def test_files_of_ones_own(small, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: hypencoder.6_layer\ntrainer: {learning_rate: 1e-4, arguments: {weight_decay: 1E-2}}\n")
    config = config_files.load_config(str(path), ["data.paths=[a.jsonl, b.jsonl]", "trainer.scale=2", "trainer.max_steps=1e6"])
    assert (config.trainer.learning_rate, config.trainer.arguments["weight_decay"]) == (1e-4, 0.01)
    assert config.trainer.arguments["bf16"] is True
    assert config.data.paths == ["a.jsonl", "b.jsonl"]
    assert (config.trainer.scale, config.trainer.max_steps) == (2.0, 1_000_000)
    assert config_files.load_config(str(path), ["trainer.losses={margin_mse: 1, kl: 5e-1}"]).trainer.losses == {
        "margin_mse": 1.0,
        "kl": 0.5,
    }
    (tmp_path / "loop.yaml").write_text("base: loop.yaml\n")
    with pytest.raises(ValueError, match="is based on itself"):
        config_files.load_config(str(tmp_path / "loop.yaml"))
    for text, message in {
        "a: [": "is not a valid YAML file",
        "- 1\n": "must contain keys and values",
        "a: 1\na: 2\n": "duplicate key a",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            config_files.load_config(str(path))
    with pytest.raises(FileNotFoundError, match=r"'bebase'.*be_base"):
        config_files.load_config("bebase")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainr.max_steps=1", "Unknown key trainr. Did you mean .*trainer"),
        ("outputdir=x", "Unknown key outputdir. Did you mean .*output_dir"),
        ("learning_rate=1", "Unknown key learning_rate. Did you mean .*trainer.learning_rate"),
        ("model.chekpoint=x", "Unknown key model.chekpoint. Did you mean .*model.checkpoint"),
        ("model.qnet.do_residuals=true", r"Unknown key model.qnet.do_residuals. Did you mean .*model.qnet.do_residual\?"),
        ("data.path=x", "Unknown key data.path. Did you mean .*data.paths"),
        ("trainer.lr=1", "Unknown key trainer.lr. Did you mean .*trainer"),
        ("trainer.bf16=true", "Unknown key trainer.bf16. Did you mean .*trainer.arguments.bf16"),
        (
            "trainer.arguments.save_step=1",
            "Unknown key trainer.arguments.save_step. Did you mean .*trainer.arguments.save_steps",
        ),
        ("validation.measure=RR", "Unknown key validation.measure. Did you mean .*validation.measures"),
    ],
)
def test_a_key_that_does_not_exist_is_named_with_the_nearest_that_does(override, message):
    with pytest.raises(ValueError, match=message):
        config_files.load_config("hypencoder.6_layer", [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps", "have the form key=value"),
        ("=1", "have the form key=value"),
        ("trainer..seed=1", "have the form key=value"),
        ("trainer.seed=[", "is not valid YAML"),
        ("output_dir.x=1", "output_dir must be of type str"),
        ("trainer=1", "trainer must be a section with keys and values"),
        ("trainer.max_steps=many", "trainer.max_steps must be of type int, got 'many'"),
        ("trainer.max_steps=1.5", "trainer.max_steps must be of type int, got 1.5"),
        ("trainer.max_steps=0", "trainer.max_steps must be a positive integer"),
        ("trainer.batch_size=true", "trainer.batch_size must be of type int, got True"),
        ("trainer.learning_rate=fast", "trainer.learning_rate must be of type float, got 'fast'"),
        ("trainer.learning_rate=.nan", "trainer.learning_rate must be finite and not empty, got nan"),
        ("trainer.losses={margin_mse: x}", "trainer.losses must map names to numbers"),
        ("trainer.widths=[1, x]", "trainer.widths must be of type list.int. \\| None"),
        ("trainer.train=documents", "trainer.train must be one of"),
        ("trainer.arguments.max_steps=1", "trainer.arguments.max_steps has another key. Set trainer.max_steps"),
        ("trainer.arguments.save_steps=7", "save_steps must equal validation.every"),
        ("data.paths=[]", "data.paths must be finite and not empty"),
        ("data.doc_max_length=0", "data.doc_max_length must be a positive integer"),
        ("output_dir=[3]", "output_dir must be of type str"),
        ("output_dir=", "output_dir must be of type str"),
        ("resume=maybe", "resume must be"),
        ("model.checkpoint=x", "model needs exactly one of"),
        ("model.backbone=null", "model needs exactly one of"),
        ("model.hidden=wide", "model.hidden must be of type list"),
        ("validation.every=1000000", "validation.every must be at most"),
    ],
)
def test_bad_values(override, message):
    with pytest.raises(ValueError, match=message):
        config_files.load_config("hypencoder.6_layer", [override])


def test_values_that_must_be_given(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {dense: x}\ndata: {paths: x}\n")
    with pytest.raises(ValueError, match="output_dir is required.*give output_dir=..."):
        config_files.load_config(str(path))
    with pytest.raises(ValueError, match=r"validation.docs is required"):
        config_files.load_config(str(path), ["output_dir=x", "validation.every=1"])
    with pytest.raises(ValueError, match=r"model.checkpoint 'x' already decides hidden"):
        config_files.load_config(str(path), ["output_dir=x", "model={checkpoint: x, hidden: [3]}"])
    with pytest.raises(ValueError, match="model.weights"):
        config_files.load_config(str(path), ["output_dir=x", "model.weights=false"])
    with pytest.raises(ValueError, match="model.head_from"):
        config_files.load_config(str(path), ["output_dir=x", "model.head_from=y"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.paths=nowhere.jsonl", "No training rows in 'nowhere.jsonl'"),
        ("data.positive=best", "positive must be one of"),
        ("data.negatives_per_row=99", "needs at least 99 items"),
        ("model.backbone=no/such/model/anywhere", "backbone 'no/such/model/anywhere'"),
        ("model.tokenizer=no/such/tokenizer/here", "no/such/tokenizer/here"),
        ("model.hidden=[12, 24]", "A residual requires layers of equal width"),
        ("trainer.losses=hinge", "losses must be among"),
        ("trainer.lr_scheduler_type=steep", "steep is not a valid"),
        ("trainer.widths=[999]", "width must be between 1 and 24"),
        ("trainer.arguments.save_steps=often", "trainer.arguments.save_steps must equal validation.every"),
        ("data.query_prefix=q", "need a bi-encoder, got a Hypencoder"),
        ("validation.options.colour=red", "validation.options must be among"),
        ("validation.measures=nDCG@ten", "validation.measures must be names of ir_measures"),
        ("validation.measures=goodness", "validation.measures must be names of ir_measures"),
        ("validation.docs=nowhere.jsonl", "validation.docs: no file at 'nowhere.jsonl'"),
        ("validation.topics=nowhere.tsv", "validation.topics: no file at"),
        ("validation.docs={a}.tsv", "a.tsv, line 1 must be a JSON object with docno and text"),
        ("validation.topics={a}.txt", "must have two columns (qid, tab, query)"),
        ("validation.topics=[{a}.tsv, {a}.tsv]", "occurs twice"),
        ("validation.qrels={a}.tsv", "must have TREC's form"),
        ("validation.docs=irds:no-such-dataset", "validation.docs must be a dataset of ir_datasets"),
        ("validation.text_field=body", "body"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(small, validation, tmp_path, capsys, override, message):
    a = str(tmp_path / "a")
    override, message = override.replace("{a}", a), message.replace("{a}", a)
    overrides = [*(entry for entry in small("hypencoder.2_layer") if entry != "validation=null"), *validation, override]
    error = error_of(capsys, "hypencoder.2_layer", *overrides)
    assert message in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "out" in path.parts]


def test_the_traceback_where_it_is_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["nowhere.yaml", "--debug"])


def test_the_trainers_options_are_the_configurations():
    parameters = dict(inspect.signature(HypencoderTrainer.__init__).parameters)
    for name in ("self", "model", "output_dir", "tokenizer"):
        del parameters[name]
    options = {entry.name: getattr(TrainerConfig(), entry.name) for entry in dataclasses.fields(TrainerConfig)}
    options["losses"] = tuple(options["losses"])
    assert options == {name: parameter.default for name, parameter in parameters.items()}
