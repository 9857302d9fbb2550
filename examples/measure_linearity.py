"""How far q-nets are from linear: each is compared with the best inner product that can stand in for it.

For every topic, a linear function of the document vector is fitted to the ranks that the q-net gives to the collection
(normal scores of the ranks, as any monotone function of the scores ranks alike), by ridge regression in which the first
ranks weigh most. A bi-encoder's overlap is 1 but for the fit; what a Hypencoder lacks is what no query vector could do.

Example::

    python examples/measure_linearity.py hypencoder-minilm apidocs
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from pyterrier.measures import nDCG
from scipy.stats import norm
from shared.collections import open_collection

from pyterrier_hypencoder import HypencoderIndexer
from pyterrier_hypencoder.encoders.loading import load_encoder

CUTOFF = 100
#: Topics that are looked at, as each one takes a fit.
TOPICS = 100
RIDGES = (1e-3, 1e-2, 1e-1)


def fit(vectors: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The ranking of the best linear function: of several ridges, the one whose first documents agree most.

    Args:
        vectors: (N, D), float64.
        scores: (N,), what the q-net gives.

    Returns:
        (N,), what the linear function gives.
    """
    n = len(scores)
    rank = torch.empty(n, dtype=torch.float64)
    rank[scores.argsort(descending=True, stable=True)] = torch.arange(n, dtype=torch.float64)
    target = torch.tensor(norm.isf((rank.numpy() + 0.5) / n))
    weight = torch.exp(-rank / (n / 4)) + 10 * (rank < CUTOFF)
    x = torch.cat([vectors, torch.ones(n, 1, dtype=vectors.dtype)], dim=1)
    gram, moment = x.T @ (weight[:, None] * x), x.T @ (weight * target)
    best, found = -1.0, scores
    for ridge in RIDGES:
        diagonal = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        linear = x @ torch.linalg.solve(gram + diagonal, moment)
        agreement = overlap(scores, linear)
        if agreement > best:
            best, found = agreement, linear
    return found


def overlap(one: torch.Tensor, two: torch.Tensor) -> float:
    """The share of the first documents that two score lists have in common."""
    k = min(CUTOFF, len(one))
    return len(set(one.topk(k).indices.tolist()) & set(two.topk(k).indices.tolist())) / k


def compare(model: Any, index: Any, topics: pd.DataFrame, qrels: pd.DataFrame) -> dict[str, float]:
    """Compares q-nets with their linear stand-ins, on some of the topics.

    Args:
        model: the encoder.
        index: a ``HypencoderIndex`` of the collection.
        topics: qid and query.
        qrels: qid, docno and label.

    Returns:
        Mean overlap of the first 100 documents, and nDCG@10 of both.
    """
    topics = topics.sample(min(TOPICS, len(topics)), random_state=0)
    qrels = qrels[qrels["qid"].isin(topics["qid"])]
    vectors = torch.tensor(np.asarray(index.vectors, dtype=np.float64))
    docnos = np.array(list(index.docnos))
    qnets = model.encode_queries(list(topics["query"]))
    shared, runs = [], {"q-net": [], "linear": []}
    for i, qid in enumerate(topics["qid"]):
        scores = qnets.select([i]).score(vectors.float())[0].double().cpu()
        linear = fit(vectors, scores)
        shared.append(overlap(scores, linear))
        for name, values in (("q-net", scores), ("linear", linear)):
            top = values.topk(min(CUTOFF, len(values)))
            runs[name].append(pd.DataFrame({"qid": qid, "docno": docnos[top.indices], "score": top.values}))
    measured = {name: pt.Evaluate(pd.concat(run), qrels, metrics=[nDCG @ 10])["nDCG@10"] for name, run in runs.items()}
    return {"overlap@100": float(np.mean(shared)), "nDCG@10": measured["q-net"], "nDCG@10 linear": measured["linear"]}


def main() -> None:
    """Compares the q-nets of a model on a collection."""
    parser = argparse.ArgumentParser(description="Compares q-nets with the best inner products in their place.")
    parser.add_argument("model", help="hypencoder-minilm, or any checkpoint")
    parser.add_argument("dataset", help="apidocs, irds:NAME or a folder")
    options = parser.parse_args()
    collection = open_collection(options.dataset)
    model = load_encoder(options.model, doc_max_length=256)
    with tempfile.TemporaryDirectory() as folder:
        index = HypencoderIndexer(Path(folder) / "index.hyp", model, text_field=collection.text_fields).index(
            collection.docs()
        )
        for name, value in compare(model, index, collection.topics, collection.qrels).items():
            print(f"{name:15s} {value:.4f}")


if __name__ == "__main__":
    main()
