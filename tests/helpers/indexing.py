"""Documents, a fake encoder and builds, for tests of indexers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pyterrier_hypencoder import HypencoderIndexer
from pyterrier_hypencoder.index.staging import get_staging_path

Doc = dict[str, Any]


class FakeModel:
    """An encoder that hashes texts, and records the texts that it was given."""

    def __init__(self, name: str = "fake", vec_size: int = 8) -> None:
        self.name = name
        self.vec_size = vec_size
        self.texts: list[str] = []

    def encode_docs(self, texts: list[str]) -> np.ndarray:
        self.texts += texts
        digests = np.frombuffer(b"".join(hashlib.sha256(text.encode()).digest() for text in texts), dtype=np.uint8)
        return np.tile(digests.reshape(len(texts), 32), 40)[:, : self.vec_size].astype(np.float32)

    def record(self) -> dict[str, Any]:
        return {"class": "FakeModel", "name": self.name, "revision": None, "fingerprint": self.name, "options": {}}


def make_texts(n: int = 200) -> list[Doc]:
    return [{"docno": f"d{i}", "text": f"text of document {i}"} for i in range(n)]


def make_vectors(n: int = 200, size: int = 8) -> list[Doc]:
    vectors = np.random.default_rng(n).standard_normal((n, size))
    return [{"docno": f"d{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]


def build(path: Path, docs: Iterable[Doc], model: Any = None, **options: Any) -> Path:
    HypencoderIndexer(path, model, **{"batch_size": 64, **options}).index(docs)
    return path


def count_stored(path: Path) -> int:
    """Return the number of documents that an interrupted build has stored."""
    state = get_staging_path(path) / "state.json"
    return json.loads(state.read_text())["count"] if state.exists() else 0


def replace_at(docs: list[Doc], at: int, doc: Any) -> list[Doc]:
    """Return the documents with another one at a position."""
    return [*docs[:at], doc, *docs[at + 1 :]]
