"""Compare q-nets with the best inner products that approximate them."""

from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from pyterrier.measures import nDCG

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.search.linearity import CUTOFF, fit_linear_scores, measure_overlap

#: Maximum number of topics, because each topic needs a fit over the whole collection.
MAX_TOPICS = 100


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
