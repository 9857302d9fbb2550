"""Backbones: any Hugging Face encoder on either side, trained for a step, saved, loaded and searched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from pyterrier_hypencoder import Hypencoder, HypencoderIndexer, HypencoderTrainer  # noqa: E402
from pyterrier_hypencoder.encoders import checkpoint  # noqa: E402
from pyterrier_hypencoder.encoders.checkpoint_config import DualEncoderConfig  # noqa: E402
from pyterrier_hypencoder.encoders.tokenizer_files import load_tokenizer  # noqa: E402
from pyterrier_hypencoder.training.collator import Collator  # noqa: E402
from pyterrier_hypencoder.training.row_sampler import RowSampler  # noqa: E402
from pyterrier_hypencoder.training.training_rows import TrainingRows  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
BACKBONES = {
    "bert": {"model_type": "bert", **SMALL},
    "distilbert": {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "mpnet": {"model_type": "mpnet", "pad_token_id": 1, **SMALL},
    "roberta": {"model_type": "roberta", "pad_token_id": 1, **SMALL},
    "modernbert": {"model_type": "modernbert", "max_position_embeddings": 512, **SMALL},
    "minilm": {"model_type": "bert", **SMALL, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 64},
}
# ModernBERT names special tokens beyond a small vocabulary.
TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}


@pytest.fixture(scope="module")
def tokenizer(golden):
    return load_tokenizer(str(golden / "tiny_6l_cls_shared"), None)


def dual_encoder(tokenizer, query: str, passage: str, *, shared: bool = False, pooling: str = "mean", normalize: bool = False):
    sides = {}
    for side, name in (("query", query), ("passage", passage)):
        config = {"vocab_size": len(tokenizer), **BACKBONES[name]}
        sides[side] = config | {
            k: v for k, v in TOKENS.items() if name == "modernbert" or k not in config and k == "pad_token_id"
        }
    width = {side: config.get("hidden_size", config.get("dim")) for side, config in sides.items()}
    config = DualEncoderConfig(
        query_encoder_kwargs={
            "model_name_or_path": query,
            "base_encoder_output_dim": width["query"],
            "converter_kwargs": {"vector_dimensions": [width["passage"]] * 3 + [1]},
        },
        passage_encoder_kwargs={"model_name_or_path": passage, "pooling_type": pooling, "normalize": normalize},
        shared_encoder=shared,
        extra={"backbone_configs": sides},
    )
    return checkpoint.build(config, seed=3)


@pytest.fixture(scope="module")
def rows_file(docs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [doc for doc in docs if len(doc["text"].split()) > 8]
    lines = [
        {"query": {"content": doc["text"][:20]}, "items": [{"id": d["docno"], "content": d["text"]} for d in (doc, texts[-1])]}
        for doc in texts[:4]
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


CASES = [
    *((name, name, {"shared": True}) for name in BACKBONES),
    ("distilbert", "bert", {"pooling": "cls"}),
    ("minilm", "modernbert", {"normalize": True}),  # documents of 32 dimensions, queries of 16
    ("roberta", "minilm", {"pooling": "cls", "normalize": True}),
    ("mpnet", "distilbert", {}),
]


@pytest.mark.parametrize(("query", "passage", "options"), CASES, ids=lambda value: str(value))
def test_backbone_trains_saves_and_searches(tokenizer, docs, rows_file, tmp_path, query, passage, options):
    encoder = dual_encoder(tokenizer, query, passage, **options)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    trainer = HypencoderTrainer(
        encoder,
        tmp_path / "out",
        tokenizer=tokenizer,
        losses=["in_batch_ce", "listwise_ce"],
        batch_size=4,
        max_steps=1,
        learning_rate=1e-3,
        arguments={"use_cpu": True},
    )
    folder = trainer.fit(TrainingRows(rows_file, RowSampler(negatives_per_row=1), shuffle_buffer=0), Collator(tokenizer))
    for side in ("query_encoder.transformer", "passage_encoder.transformer", "query_encoder.weight_hyper_projection"):
        assert any(not torch.equal(value, before[key]) for key, value in encoder.state_dict().items() if key.startswith(side))
    model = Hypencoder(folder, device="cpu", doc_max_length=40, query_max_length=20)
    texts = [doc["text"] for doc in docs[:12]]
    vectors = model.encode_docs(texts)
    assert model.vec_size == vectors.shape[1] == encoder.passage_encoder.transformer.config.hidden_size
    if options.get("normalize"):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(model.encode_docs(texts[3:4])[0], vectors[3], atol=2e-5)  # padding changes nothing
    index = HypencoderIndexer(tmp_path / "docs.hyp", model, dtype="fp32").index(docs)
    found = index.retriever(model, num_results=5).search("a planet")
    expected = model.encode_queries(["a planet"]).score(torch.tensor(np.asarray(index.vectors))).topk(5)
    np.testing.assert_allclose(found["score"], expected.values[0], rtol=1e-4, atol=1e-5)
