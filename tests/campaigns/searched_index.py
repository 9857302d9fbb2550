"""An index that campaigns damage, and everything that can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from indexes import edit_meta, make_clusters

from pyterrier_hypencoder import HypencoderIndex, HypencoderIndexer, QNets, QNetSpec
from pyterrier_hypencoder.index.inner_product import open_inner_product_index
from pyterrier_hypencoder.index.reader import IndexReader, fingerprint_index

N_DOCS, VEC_SIZE, GRAPH_K = 3000, 32, 16
TOPICS = pd.DataFrame({"qid": ["1", "2"], "query": ["one", "two"]})


class RandomModel:
    """An encoder whose q-nets are random but fixed by the text of the query."""

    vec_size = VEC_SIZE
    fingerprint = "random"
    qnet_spec = QNetSpec((VEC_SIZE, 16, 1), inner_product_skip=True, skip_gate=0.05)

    def encode_queries(self, texts: list[str]) -> QNets:
        rows = [torch.randn(self.qnet_spec.size, generator=torch.Generator().manual_seed(sum(map(ord, t)))) for t in texts]
        return QNets.unflatten(torch.stack(rows) / 4, self.qnet_spec)

    def encode_docs(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        return {"class": "Hypencoder", "name": "random", "revision": None, "fingerprint": "random", "options": {}}


def build_index(path: Path, seed: int = 0, dtype: str = "fp16") -> Path:
    """Build an index with a neighbour graph and an inner-product index."""
    vectors = make_clusters(N_DOCS, VEC_SIZE) + np.float32(seed)
    docs = [{"docno": f"doc-{seed}-{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]
    index = HypencoderIndexer(path, RandomModel(), graph_k=GRAPH_K, dtype=dtype).index(docs)
    index.inner_product_index()
    return path


def remove_checksums(path: Path) -> None:
    """Make an index look as if an earlier version had written it."""
    edit_meta(path, checksums="gone")
    edit_meta(path / f"corpusgraph_k{GRAPH_K}", checksums="gone", index=fingerprint_index(IndexReader(path)))
    for file in [*path.rglob("checksums.*"), *path.glob("inner_product*")]:
        file.unlink()


def _search(algorithm: str, **options: Any) -> Callable[[HypencoderIndex], pd.DataFrame]:
    options = {"num_results": 30, "algorithm": algorithm, "device": "cpu", **options}
    return lambda index: index.retriever(RandomModel(), **options)(TOPICS)[["qid", "docno", "score"]]


def _rerank(index: HypencoderIndex) -> pd.DataFrame:
    docnos = [f"doc-0-{i}" for i in range(0, N_DOCS, 7)]
    frame = TOPICS.merge(pd.DataFrame({"docno": docnos}), how="cross")
    return index.scorer(RandomModel(), device="cpu")(frame)[["qid", "docno", "score"]]


def _load_vectors(index: HypencoderIndex) -> pd.DataFrame:
    frame = pd.DataFrame({"docno": [f"doc-0-{i}" for i in range(0, N_DOCS, 11)]})
    return pd.DataFrame(np.stack(index.vec_loader()(frame)["doc_vec"].tolist())).assign(docno=frame["docno"])


def _read_graph(index: HypencoderIndex) -> pd.DataFrame:
    graph = index.corpus_graph(GRAPH_K)
    documents = [f"doc-0-{i}" for i in range(0, N_DOCS, 501)]
    found = [graph.neighbours(document, weights=True) for document in documents]
    return pd.DataFrame({"docno": np.concatenate([f[0] for f in found]), "score": np.concatenate([f[1] for f in found])})


def _scan_inner_products(index: HypencoderIndex) -> pd.DataFrame:
    scan = open_inner_product_index(index.reader)
    if scan is None:  # then searches compare all vectors
        return pd.DataFrame()
    queries = torch.randn(2, VEC_SIZE, generator=torch.Generator().manual_seed(0))
    values, docids = scan(queries, 20, torch.zeros(2, len(index), dtype=torch.bool))
    return pd.DataFrame({"docno": docids.flatten().numpy().astype(str), "score": values.flatten().numpy()})


USES: dict[str, Callable[[HypencoderIndex], pd.DataFrame]] = {
    "exhaustive": _search("exhaustive"),
    "graph": _search("graph", initial_candidates=100, n_candidates=8, graph_k=GRAPH_K),
    "surrogate": _search("surrogate", n_initial=128, n_per_round=64),
    "re-rank": _rerank,
    "vec_loader": _load_vectors,
    "corpus_graph": _read_graph,
    "inner products": _scan_inner_products,
}
"""Everything that reads an index, by name. Each opens the files of the index again."""


def answer(path: Path, use: str) -> pd.DataFrame:
    """Open an index and use it once."""
    return USES[use](HypencoderIndex(path))


def is_same_answer(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    """Return True if two answers have the same documents and, up to rounding, the same numbers."""
    if found.empty or expected.empty:
        return found.empty
    if found.shape != expected.shape or not (found["docno"].to_numpy() == expected["docno"].to_numpy()).all():
        return False
    numbers = [frame.select_dtypes("number").to_numpy(np.float64) for frame in (found, expected)]
    return bool(np.allclose(*numbers, rtol=1e-4, atol=1e-4))
