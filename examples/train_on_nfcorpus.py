"""Trains a bi-encoder and a Hypencoder from MiniLM on NFCorpus, alike, and compares them on its test topics.

Both have the same data, steps and selection (nDCG@10 on the dev topics). MiniLM itself stays as it is: both learn a linear map
of its query vectors, and the Hypencoder a small network beside the inner product. Each is trained with several seeds.

Example::

    python examples/train_on_nfcorpus.py FOLDER_OF_NFCORPUS work
"""

import argparse
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from pyterrier.measures import RR, R, nDCG
from shared import adapt_minilm as adapt
from shared.collections import open_collection

from pyterrier_hypencoder.training.validation import Validation

RECIPE = adapt.Recipe(
    hidden=(96,),
    backbone_layers=0,
    max_steps=1000,
    every=100,
    learning_rate=3e-4,
    warmup_steps=50,
    losses=("listwise_ce",),
    negatives=63,
)
EPOCHS = 10


def with_negatives(topics: pd.DataFrame, qrels: pd.DataFrame, docnos: list[str], seed: int) -> list[dict[str, Any]]:
    """Rows with relevant documents, and random ones that are not judged relevant.

    A topic has 43 relevant documents on average, which other topics of a batch share, so that they are no negatives.
    """
    rng, ordered = random.Random(seed), []
    rows = adapt.judged_rows("nfcorpus", topics, qrels)
    for _ in range(EPOCHS):
        for row in rng.sample(rows, len(rows)):
            relevant = {item["id"] for item in row["items"]}
            drawn = (f"nfcorpus/{docno}" for docno in rng.sample(docnos, 2 * RECIPE.negatives))
            negatives = [{"id": docno, "type": "negative"} for docno in drawn if docno not in relevant]
            ordered.append({**row, "items": [*row["items"], *negatives]})
    return ordered


def main() -> None:
    """Trains what is not trained yet, and prints the table."""
    parser = argparse.ArgumentParser(description="Trains a bi-encoder and a Hypencoder on NFCorpus, and compares them.")
    parser.add_argument("folder", help="NFCorpus: docs.jsonl.gz, topics and qrels of train, dev and test")
    parser.add_argument("work", type=Path, help="where indexes and models are kept; a killed run goes on from there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hidden", type=int, nargs="+", default=RECIPE.hidden, help="widths of the q-nets' hidden layers")
    parser.add_argument("--steps", type=int, default=RECIPE.max_steps)
    parser.add_argument("--batch-size", type=int, default=RECIPE.batch_size)
    options = parser.parse_args()
    recipe = replace(
        RECIPE,
        hidden=tuple(options.hidden),
        max_steps=options.steps,
        batch_size=options.batch_size,
        every=min(RECIPE.every, options.steps),
        warmup_steps=min(RECIPE.warmup_steps, options.steps // 6),
    )
    options.work.mkdir(parents=True, exist_ok=True)

    training, dev, test = (open_collection(options.folder, split) for split in ("train", "dev", None))
    index = adapt.index_collection(options.work, "nfcorpus", test)
    documents = adapt.joined(options.work, "training", {"nfcorpus": index})
    validation = Validation(dev.topics, dev.qrels, index, measures=["nDCG@10"], num_results=100)

    def validate(folder: Path) -> dict[str, float]:
        return {"mean": validation(adapt.load(folder))["nDCG@10"]}

    systems: dict[str, Any] = {"MiniLM": adapt.minilm()}
    for seed in options.seeds:
        rows = with_negatives(training.topics, training.qrels, list(index.docnos), seed)
        path = adapt.write_rows(rows, options.work / f"rows-{seed}.jsonl")
        for kind in adapt.KINDS:
            folder = options.work / f"{kind}-{seed}"
            trained = adapt.train(kind, recipe, path, documents, validate, folder, seed)
            systems[f"{kind} {seed}"] = adapt.load(trained)
    table = adapt.compare(systems, index, test, [nDCG @ 10, RR, R @ 100])
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep=""))
    print("p-value: paired t-test against MiniLM, not corrected\n")
    print(adapt.means(table, ["nDCG@10", "RR", "R@100"]).to_string(float_format=lambda value: f"{value:.4f}"))


if __name__ == "__main__":
    main()
