"""The training command: every configuration trains, and user errors are one line with exit status 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer
from pyterrier_hypencoder.encoders import checkpoint, hub
from pyterrier_hypencoder.encoders.tokenizer_files import load_tokenizer
from pyterrier_hypencoder.training import packages
from pyterrier_hypencoder.training.__main__ import main
from pyterrier_hypencoder.training.config import list_configs
from pyterrier_hypencoder.training.config_files import load_config
from pyterrier_hypencoder.training.initial_model import build_initial_model

HIDDEN_LAYERS = {f"hypencoder.{layers}_layer": layers for layers in (2, 4, 6, 8)}


@pytest.fixture
def make_overrides(golden, rows_file, tmp_path):
    """Return a function that adapts a configuration to the golden backbone, eight rows and one step."""

    def make(name: str) -> list[str]:
        config = load_config(name)
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

    return make


@pytest.fixture(scope="module")
def backbone(golden, tmp_path_factory) -> Path:
    """Return the golden backbone with weights and a tokenizer."""
    from transformers import AutoConfig, AutoModel

    folder = tmp_path_factory.mktemp("backbone")
    AutoModel.from_config(AutoConfig.from_pretrained(golden / "tiny_base_bert")).save_pretrained(folder)
    load_tokenizer(str(golden / "tiny_6l_cls_shared"), None).save_pretrained(folder)
    return folder


@pytest.fixture
def validation(texts, tmp_path) -> list[str]:
    """Return overrides that validate on the golden texts, with one relevant document for every query."""
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


@pytest.fixture
def read_error(capsys):
    """Return a function that runs the command and returns its error, which must be one line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()  # forget earlier commands of the test
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        errors = [line for line in err.strip().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in err and out == ""
        return errors[0]

    return run


def with_validation(overrides: list[str], validation: list[str]) -> list[str]:
    return [override for override in overrides if override != "validation=null"] + validation


def read_mtimes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", list_configs())
def test_configuration_takes_a_step(make_overrides, tmp_path, capsys, name):
    assert main([name, *make_overrides(name)]) == 0
    folder = tmp_path / "out" / "model"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    model = (BiEncoder if name == "be_base" else Hypencoder)(folder, device="cpu")
    if name in HIDDEN_LAYERS:
        assert model.qnet_spec.hidden_layers == HIDDEN_LAYERS[name]
    assert model.encode_docs(["a planet"]).shape == (1, 24)
    config = load_config(name, make_overrides(name))
    start = build_initial_model(config.model)[0].state_dict()
    changed = {key for key, value in checkpoint.read_weights(str(folder)).items() if not torch.equal(value, start[key])}
    assert changed
    assert any(".transformer." in key for key in changed) == (config.trainer.train == "all")


def check_two_validated_steps(out: Path, printed: str) -> None:
    assert printed.splitlines()[-1] == str(out / "model")
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-1", "checkpoint-2", "model"]
    state = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "eval_Rprec" in entry] == [1, 2]


def test_command_validates_and_overwrites_nothing(make_overrides, validation, tmp_path, capsys, read_error):
    overrides = with_validation(make_overrides("hypencoder.2_layer"), validation)
    overrides += ["trainer.max_steps=2", "trainer.learning_rate=1e-3"]
    assert main(["hypencoder.2_layer", *overrides]) == 0
    out = tmp_path / "out"
    check_two_validated_steps(out, capsys.readouterr().out)
    before = read_mtimes(out)
    assert read_error("hypencoder.2_layer", *overrides).startswith(f"error: output_dir {out} already contains checkpoint-1")
    assert read_mtimes(out) == before


@pytest.mark.slow
def test_command_runs_as_a_module(make_overrides, validation, tmp_path):
    overrides = with_validation(make_overrides("hypencoder.2_layer"), validation)
    overrides += ["trainer.max_steps=2", "trainer.learning_rate=1e-3"]
    command = [sys.executable, "-m", "pyterrier_hypencoder.training", "hypencoder.2_layer", *overrides]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    out = tmp_path / "out"
    check_two_validated_steps(out, run.stdout)
    before = read_mtimes(out)
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.splitlines()[-1].startswith("error: output_dir ") and "Traceback" not in run.stderr
    assert read_mtimes(out) == before


def test_command_without_arguments_lists_configurations(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and title in out for name, title in list_configs().items())


def test_help_lists_configurations(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in list_configs())


def test_resume_continues_a_run_but_not_with_another_model(make_overrides, tmp_path, read_error):
    overrides = make_overrides("hypencoder.2_layer")
    assert main(["hypencoder.2_layer", *overrides]) == 0
    assert main(["hypencoder.2_layer", *overrides, "resume=true", "trainer.max_steps=2"]) == 0
    out = tmp_path / "out"
    assert {"checkpoint-1", "checkpoint-2"} <= {path.name for path in out.iterdir()}
    before = read_mtimes(out)
    error = read_error("hypencoder.4_layer", *make_overrides("hypencoder.4_layer"), "resume=true", "trainer.max_steps=3")
    assert "checkpoint-2" in error and "vector_dimensions" in error
    assert read_mtimes(out) == before
    for folder in out.glob("checkpoint-*"):
        shutil.rmtree(folder)
    error = read_error("hypencoder.2_layer", *overrides, "resume=true")
    assert "already contains model. Choose another output_dir." in error


def test_output_dir_that_is_a_file_is_an_error(make_overrides, tmp_path, read_error):
    (tmp_path / "file").touch()
    overrides = [*make_overrides("hypencoder.2_layer"), f"output_dir={tmp_path / 'file'}"]
    assert f"got the file {tmp_path / 'file'}" in read_error("hypencoder.2_layer", *overrides)


def test_head_from_takes_the_hyper_head_of_another_model(make_overrides, backbone, golden, read_error):
    start = [f"model.backbone={backbone}", "model.weights=true", f"model.head_from={golden / 'tiny_6l_cls_shared'}"]
    encoder, _ = build_initial_model(load_config("tas_b_frozen", [*make_overrides("tas_b_frozen"), *start]).model)
    head = checkpoint.load(str(golden / "tiny_6l_cls_shared"))[0].query_encoder.state_dict()
    transformer = hub.load_transformer(str(backbone)).state_dict()
    for key, value in encoder.query_encoder.state_dict().items():
        expected = transformer[key.removeprefix("transformer.")] if key.startswith("transformer.") else head[key]
        if "pooler" not in key:
            assert torch.equal(value, expected), key
    other = f"model.head_from={golden / 'tiny_2l_mean_separate_reslast'}"
    for override in ("model.hidden=[24, 24]", other):
        assert "model.head_from: the q-nets of" in read_error("tas_b", *make_overrides("tas_b"), *start, override)


def test_training_starts_from_a_dense_model(make_overrides, backbone, tmp_path):
    overrides = make_overrides("hypencoder.2_layer")
    overrides += ["model.backbone=null", "model.weights=true", f"model.dense={backbone}", "model.qnet.skip_scale=2.0"]
    assert main(["hypencoder.2_layer", *overrides]) == 0
    spec = Hypencoder(tmp_path / "out" / "model", device="cpu").qnet_spec
    assert spec.inner_product_skip and spec.skip_scale == 2.0


def test_data_vectors_replace_documents_and_must_fit_the_model(make_overrides, index, docs, golden, tmp_path, read_error):
    overrides = [*make_overrides("matryoshka"), f"data.vectors={index.path}"]
    assert main(["matryoshka", *overrides]) == 0
    other = Hypencoder(golden / "tiny_2l_mean_separate_reslast", device="cpu")
    path = HypencoderIndexer(tmp_path / "other.hyp", other).index(docs[1:5]).path
    again = [*overrides, f"output_dir={tmp_path / 'again'}"]
    for override, message in {
        f"data.vectors={path}": "was built by another document encoder",
        "trainer.train=all": "data.vectors needs frozen documents",
        "data.vectors=nowhere": "data.vectors: no index at 'nowhere'",
        f"data.vectors={tmp_path}": "data.vectors must be a HypencoderIndex or a FlexIndex",
    }.items():
        assert message in read_error("matryoshka", *again, override)
    assert not (tmp_path / "again").exists()


def test_validation_on_an_index_needs_frozen_documents(make_overrides, validation, index, tmp_path, read_error):
    frozen = with_validation(make_overrides("matryoshka"), validation)
    frozen += [f"validation.docs={index.path}", "validation.judged_only=false"]
    assert main(["matryoshka", *frozen]) == 0
    error = read_error("matryoshka", *frozen, "trainer.train=all", f"output_dir={tmp_path / 'again'}")
    assert "does not fit trainer.train=all, which changes document vectors" in error


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
        ("trainer.widths=[999]", "widths must be between 1 and 24"),
        ("trainer.arguments.save_steps=often", "trainer.arguments.save_steps must equal validation.every"),
        ("data.query_prefix=q", "need a bi-encoder, got a Hypencoder"),
        ("validation.options.colour=red", "validation.options must be among"),
        ("validation.measures=nDCG@ten", "validation.measures must be names of ir_measures, got 'nDCG@ten'"),
        ("validation.measures=goodness", "validation.measures must be names of ir_measures, got 'goodness'"),
        ("validation.docs=nowhere.jsonl", "validation.docs: no file at 'nowhere.jsonl'"),
        ("validation.topics=nowhere.tsv", "validation.topics: no file at 'nowhere.tsv'"),
        ("validation.docs={a}.tsv", "a.tsv, line 1 must be a JSON object with docno and text"),
        ("validation.topics={a}.txt", "must have two columns (qid, tab, query)"),
        ("validation.topics=[{a}.tsv, {a}.tsv]", "occurs twice"),
        ("validation.qrels={a}.tsv", "must have TREC's format"),
        ("validation.docs=irds:no-such-dataset", "validation.docs must be a dataset of ir_datasets"),
        ("validation.text_field=body", "body"),
    ],
)
def test_user_error_is_one_line_and_writes_nothing(make_overrides, validation, tmp_path, read_error, override, message):
    a = str(tmp_path / "a")
    overrides = with_validation(make_overrides("hypencoder.2_layer"), validation)
    error = read_error("hypencoder.2_layer", *overrides, override.replace("{a}", a))
    assert message in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "out" in path.parts]


@pytest.mark.parametrize(
    ("package", "modules"),
    [("omegaconf", ["config_files"]), ("accelerate", ["command", "trainer", "training_loop"]), ("datasets", [])],
)
def test_missing_package_is_an_error_with_the_pip_command(make_overrides, monkeypatch, read_error, package, modules):
    overrides = make_overrides("be_base")
    find_spec = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == package else find_spec(name))
    for module in modules:  # these check for the package when they are imported
        monkeypatch.delitem(sys.modules, f"pyterrier_hypencoder.training.{module}")
    error = read_error("be_base", *overrides)
    assert package in error and "pip install 'pyterrier-hypencoder[train]'" in error
    assert main([]) == 0  # the help needs none of them


def test_debug_shows_the_traceback():
    with pytest.raises(FileNotFoundError):
        main(["nowhere.yaml", "--debug"])
