"""Compare q-nets with the best inner products that approximate them."""

from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from pyterrier.measures import nDCG

from pyterrier_hypencoder import HypencoderIndex

CUTOFF = 100
#: Maximum number of topics, because each topic needs a fit over the whole collection.
MAX_TOPICS = 100
RIDGES = (1e-3, 1e-2, 1e-1)


def compare_with_linear(model: Any, index: HypencoderIndex, topics: pd.DataFrame, qrels: pd.DataFrame) -> dict[str, float]:
    """Compare the ranking of q-nets with the ranking of the best linear functions in their place.

    Args:
        model: Encoder of the queries.
        index: Index of the collection.
        topics: Frame with ``qid`` and ``query``. At most ``MAX_TOPICS`` are drawn from it.
        qrels: Frame with ``qid``, ``docno`` and ``label``.

    Returns:
        Mean overlap of the first 100 documents, and nDCG@10 of both rankings.
    """
    topics = topics.sample(min(MAX_TOPICS, len(topics)), random_state=0)
    qrels = qrels[qrels["qid"].isin(topics["qid"])]
    vectors = torch.tensor(np.asarray(index.vectors, dtype=np.float64))  # (N, D)
    docnos = np.array(list(index.docnos))
    qnets = model.encode_queries(list(topics["query"]))
    overlaps, runs = [], {"q-net": [], "linear": []}
    for i, qid in enumerate(topics["qid"]):
        scores = qnets.select([i]).score(vectors.float())[0].double().cpu()  # (N,)
        linear_scores = fit_linear_scores(vectors, scores)
        overlaps.append(measure_overlap(scores, linear_scores))
        for name, values in (("q-net", scores), ("linear", linear_scores)):
            top = values.topk(min(CUTOFF, len(values)))
            runs[name].append(pd.DataFrame({"qid": qid, "docno": docnos[top.indices], "score": top.values}))
    ndcg = {name: pt.Evaluate(pd.concat(run), qrels, metrics=[nDCG @ 10])["nDCG@10"] for name, run in runs.items()}
    return {"overlap@100": float(np.mean(overlaps)), "nDCG@10": ndcg["q-net"], "nDCG@10 linear": ndcg["linear"]}


def fit_linear_scores(vectors: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the scores of the linear function that ranks most like a q-net.

    The function is fitted to normal scores of the q-net's ranks, because all monotone functions of the scores rank alike.
    The fit is a ridge regression that gives the first ranks the highest weights. It is repeated with several ridges, and
    the one with the largest overlap of the first documents is kept.

    Args:
        vectors: Document vectors, (N, D), float64.
        scores: Scores of the q-net, (N,).

    Returns:
        Scores of the linear function, (N,).
    """
    n = len(scores)
    rank = torch.empty(n, dtype=torch.float64)
    rank[scores.argsort(descending=True, stable=True)] = torch.arange(n, dtype=torch.float64)
    target = -torch.special.ndtri((rank + 0.5) / n)
    weight = torch.exp(-rank / (n / 4)) + 10 * (rank < CUTOFF)
    x = torch.cat([vectors, torch.ones(n, 1, dtype=vectors.dtype)], dim=1)  # (N, D + 1)
    gram, moment = x.T @ (weight[:, None] * x), x.T @ (weight * target)
    best_overlap, best_scores = -1.0, scores
    for ridge in RIDGES:
        diagonal = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        linear_scores = x @ torch.linalg.solve(gram + diagonal, moment)
        overlap = measure_overlap(scores, linear_scores)
        if overlap > best_overlap:
            best_overlap, best_scores = overlap, linear_scores
    return best_scores


def measure_overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the share of the first 100 documents that two score lists have in common."""
    k = min(CUTOFF, len(one))
    return len(set(one.topk(k).indices.tolist()) & set(other.topk(k).indices.tolist())) / k
