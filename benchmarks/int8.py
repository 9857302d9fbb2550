"""Measure what int8 storage of document vectors would do to rankings.

    python benchmarks/int8.py --dataset FOLDER [--topics 100] [--docs 12000]

Every dimension has a scale and an offset of its own, from the smallest and largest value of the collection. The truth is the
ranking over fp16 vectors by the same q-nets. The columns are

* ``overlap@10`` and ``R@100``: share of the best documents that a ranking over int8 vectors alone finds,
* ``R@100, 200 re-scored``: the same, if the best 200 documents are scored again with fp16 vectors,
* ``nDCG@10`` with fp16 and with int8 vectors, if there are relevance judgements.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from pyterrier.measures import nDCG

from pyterrier_hypencoder import BiEncoder, Hypencoder, QNets, scoring

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from shared.collection import Collection  # noqa: E402
from shared.datasets import open_collection  # noqa: E402

DOC_LENGTH = 128


def quantize(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors (N, D) as int8 would store them, as float32, with a scale and an offset per dimension."""
    lowest, highest = vectors.min(axis=0), vectors.max(axis=0)
    scale = np.maximum((highest - lowest) / 255, 1e-12)
    return np.round((vectors - lowest) / scale) * scale + lowest


def encode_docs(model: BiEncoder, collection: Collection, limit: int) -> tuple[list[str], np.ndarray]:
    """Return the docnos, and the vectors (N, D) in fp16 precision as float32."""
    docs = list(islice(collection.docs(), limit))
    texts = [" ".join(doc.get(field) or "" for field in collection.text_fields) for doc in docs]
    return [doc["docno"] for doc in docs], model.encode_docs(texts).astype(np.float16).astype(np.float32)


def measure_overlap(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean share of the true documents (Q, K) that was found (Q, K)."""
    pairs = zip(found.tolist(), truth.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


def measure_ndcg(scores: torch.Tensor, topics: pd.DataFrame, docnos: list[str], qrels: pd.DataFrame) -> float:
    """Return nDCG@10 of scores (Q, N)."""
    best = scores.topk(10, dim=1)
    frames = [
        pd.DataFrame({"qid": qid, "docno": [docnos[i] for i in ids], "score": values})
        for qid, ids, values in zip(topics["qid"], best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    run = pt.model.add_ranks(pd.concat(frames).assign(query=""))
    return pt.Evaluate(run, qrels[qrels["qid"].isin(topics["qid"])], [nDCG @ 10])["nDCG@10"]


def compare(qnets: QNets, vectors: np.ndarray, collection: Collection, topics: pd.DataFrame, docnos: list[str]) -> dict:
    """Return one row of the table."""
    score = scoring.make_scorer(qnets, device="cpu")
    exact, rounded = score(torch.from_numpy(vectors)), score(torch.from_numpy(quantize(vectors)))  # (Q, N)
    truth = exact.topk(100, dim=1).indices
    first = rounded.topk(200, dim=1).indices
    again = first.gather(1, exact.gather(1, first).topk(100, dim=1).indices)
    row = {
        "overlap@10": measure_overlap(first[:, :10], truth[:, :10]),
        "R@100": measure_overlap(first[:, :100], truth),
        "R@100, 200 re-scored": measure_overlap(again, truth),
    }
    if len(collection.qrels):
        row["nDCG@10 fp16"] = measure_ndcg(exact, topics, docnos, collection.qrels)
        row["nDCG@10 int8"] = measure_ndcg(rounded, topics, docnos, collection.qrels)
    return row


def main(arguments: list[str] | None = None) -> None:
    """Encode a collection and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="apidocs, irds:NAME or a folder; see examples/shared/datasets.py")
    parser.add_argument("--topics", type=int, default=100)
    parser.add_argument("--docs", type=int, default=12_000, help="documents to encode, from the beginning")
    args = parser.parse_args(arguments)
    collection = open_collection(args.dataset)
    minilm = BiEncoder("sentence-transformers/all-MiniLM-L6-v2", doc_max_length=DOC_LENGTH)
    docnos, vectors = encode_docs(minilm, collection, args.docs)
    topics = collection.topics.head(args.topics)
    models = {"all-MiniLM-L6-v2": minilm, "hypencoder-minilm": Hypencoder("hypencoder-minilm")}
    rows = {
        name: compare(model.encode_queries(topics["query"].tolist()), vectors, collection, topics, docnos)
        for name, model in models.items()
    }
    print(f"{len(vectors)} documents, {len(topics)} queries")
    print(pd.DataFrame.from_dict(rows, orient="index").to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    main()
