"""Tiny checkpoints that campaigns damage: those of this package, of the released code, and of other libraries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_checkpoints import HERE as GOLDEN
from golden_checkpoints import copy_tokenizer
from tiny_training import load_tokenizer, make_encoder

from pyterrier_hypencoder import BiEncoder, Hypencoder
from pyterrier_hypencoder.encoders import checkpoint

TEXTS = ["paris is a city", "the capital of france and other countries of europe", ""]
QUERIES = ["what is the capital of france", "city"]


def _save(folder: Path, format: str, seed: int, **options: Any) -> None:
    model = make_encoder(seed=seed, **options)
    checkpoint.save(model, folder, format=format, tokenizer=load_tokenizer())


def save_hypencoder(folder: Path, seed: int) -> None:
    _save(folder, "safetensors", seed)


def save_bin(folder: Path, seed: int) -> None:
    _save(folder, "bin", seed, shared=True)


def save_dual_encoder(folder: Path, seed: int) -> None:
    _save(folder, "safetensors", seed, architecture="TextDualEncoder")


def save_transformer(folder: Path, seed: int, *, safe: bool = True) -> None:
    """Save a BERT as transformers does."""
    from transformers import AutoConfig, BertModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(AutoConfig.from_pretrained(str(GOLDEN / "tiny_base_bert")))
    model.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    copy_tokenizer(folder)


def save_sentence_transformer(folder: Path, seed: int) -> None:
    """Save a BERT in the layout of sentence-transformers."""
    save_transformer(folder, seed)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "document": "passage: "},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    (folder / "1_Pooling").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2))


def save_released(folder: Path, seed: int) -> None:
    """Copy a checkpoint in the layout of the released code, which stores no checksums."""
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(GOLDEN / "tiny_6l_cls_shared" / name, folder)
    copy_tokenizer(folder)
    if seed:
        weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
        torch.save({key: value + 0.01 * value.std() for key, value in weights.items()}, folder / "pytorch_model.bin")


SAVERS: dict[str, tuple[Callable[[Path, int], None], type[Hypencoder] | type[BiEncoder], bool]] = {
    "own Hypencoder": (save_hypencoder, Hypencoder, True),
    "own Hypencoder, .bin": (save_bin, Hypencoder, True),
    "own bi-encoder": (save_dual_encoder, BiEncoder, True),
    "released layout": (save_released, Hypencoder, False),
    "sentence-transformers": (save_sentence_transformer, BiEncoder, False),
}
"""For every kind of checkpoint: how it is saved, the class that loads it, and whether it has checksums."""


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    """Save a checkpoint.

    Args:
        kind: A key of :data:`SAVERS`.
        folder: The folder to make.
        seed: Seed of the weights.
    """
    folder.mkdir(parents=True)
    if kind == "released layout":  # its configuration names a backbone beside it
        shutil.copytree(GOLDEN / "tiny_base_bert", folder.parent / "tiny_base_bert", dirs_exist_ok=True)
    SAVERS[kind][0](folder, seed)
    return folder


def encode(kind: str, folder: Path) -> list[np.ndarray]:
    """Load a checkpoint, and return the vectors of some documents and the q-nets of some queries."""
    model = SAVERS[kind][1](folder, device="cpu", dtype="fp32")
    return [model.encode_docs(TEXTS), model.encode_queries(QUERIES).flatten().numpy()]
