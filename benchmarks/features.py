"""Whether richer features would help surrogate search: an early exit after the first hidden layer, products of components.

    python benchmarks/features.py INDEX [--layers 6] [--queries 8] [--rounds 8]

The q-nets are random ones, on which a linear function of the vector is not enough. ``linear`` is surrogate search in its
plainest form, with rounds of several sizes. ``first layer`` lets the linear function propose documents, computes the q-net's
state after its first hidden layer for them, and evaluates those that a readout of the state, fitted in the same way, likes
best. ``products`` does so with the vector and all products of its first principal components.

The table has the evaluations per query, with a first layer counted as its share of the q-net's layers; and R@100.
"""

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from search import random_qnets
from torch import Tensor

from pyterrier_hypencoder import HypencoderIndex, HypencoderRetriever, QNets
from pyterrier_hypencoder.search.graph import draw_entry_points
from pyterrier_hypencoder.search.surrogate import fit

TOP = 100
COMPONENTS = 40
DEFAULTS = HypencoderRetriever()

Features = Callable[[Tensor], Tensor]
"""Of documents (n,), as (n, F)."""


def first_layer(qnet: QNets, vectors: Tensor) -> Features:
    """The state of one q-net of :func:`search.random_qnets` after its first hidden layer."""

    def features(docids: Tensor) -> Tensor:
        rows = vectors[docids]
        return rows + F.layer_norm(F.relu(rows @ qnet.weights[0][0] + qnet.biases[0]), (rows.shape[1],))

    return features


def products(vectors: Tensor) -> Features:
    """The vectors, and all products of two of their first principal components, with the same mean variance."""
    centred = vectors - vectors.mean(dim=0)
    components = centred @ torch.pca_lowrank(centred, min(COMPONENTS, *vectors.shape))[2]
    one, other = torch.triu_indices(components.shape[1], components.shape[1])
    pairs = components[:, one] * components[:, other]
    pairs *= centred.std() / pairs.std()
    return lambda docids: torch.cat([vectors[docids], pairs[docids]], dim=1)


def found(
    scores: Tensor, vectors: Tensor, n_per_round: int, max_rounds: int, features: Features | None, proposed: int
) -> tuple[int, float]:
    """Runs the rounds for one q-net.

    Args:
        scores: (N,), which the rounds see of the documents that they evaluate.
        vectors: (N, D).
        n_per_round: documents that a round evaluates.
        max_rounds: how many there are.
        features: those by which a round chooses among the documents proposed; None to evaluate the first of them.
        proposed: documents that the linear function proposes in a round.

    Returns:
        Documents evaluated, and how many of the best :data:`TOP` are among them, as a share.
    """
    docids = torch.from_numpy(draw_entry_points(len(vectors), 2 * vectors.shape[1]))

    def liked(rows: Callable[[Tensor], Tensor], among: Tensor, number: int) -> Tensor:
        function = fit(rows(docids).unsqueeze(0), scores[docids].unsqueeze(0), DEFAULTS.ridge)[0]
        return among[(rows(among) @ function).topk(min(number, len(among))).indices]

    for _ in range(max_rounds):
        new = torch.ones(len(vectors), dtype=torch.bool)
        new[docids] = False
        others = new.nonzero()[:, 0]
        chosen = liked(vectors.__getitem__, others, n_per_round if features is None else proposed)
        docids = torch.cat([docids, chosen if features is None else liked(features, chosen, n_per_round)])
    best = scores.topk(min(TOP, len(scores))).indices
    return len(docids), float(torch.isin(best, docids).float().mean())


def make_table(vectors: Tensor, qnets: QNets, max_rounds: int) -> pd.DataFrame:
    """One row for each way of choosing."""
    pairs = products(vectors)
    sizes = [(None, size, size) for size in (250, 500, 1000)]
    settings = [*sizes, *((name, 500, wide) for name in ("first layer", "products") for wide in (3000, 6000))]
    rows = []
    for name, n_per_round, proposed in settings:
        runs = []
        for q in range(len(qnets)):
            qnet = qnets.select([q])
            features = {None: None, "first layer": first_layer(qnet, vectors), "products": pairs}[name]
            runs.append(found(qnet.score(vectors)[0], vectors, n_per_round, max_rounds, features, proposed))
        evaluated, recall = np.mean(runs, axis=0)
        layers = max_rounds * proposed / qnets.spec.hidden_layers if name == "first layer" else 0
        row = {"features": name or "linear", "n_per_round": n_per_round, "proposed": proposed}
        rows.append(row | {"evaluations": evaluated + layers, "R@100": recall})
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> None:
    """Runs the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", help="directory of an index")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=DEFAULTS.rounds)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    vectors = torch.from_numpy(np.array(HypencoderIndex(options.index).vectors, dtype=np.float32))
    qnets = random_qnets(options.queries, vectors.shape[1], options.layers)
    with torch.inference_mode():
        table = make_table(vectors, qnets, options.rounds)
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
