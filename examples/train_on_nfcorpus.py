"""Train a bi-encoder and a Hypencoder on NFCorpus and compare them on its test topics.

Both start from MiniLM and use the same data, steps and selection of the checkpoint (nDCG@10 on the dev topics). MiniLM itself
stays frozen. Both models learn a linear map of its query vectors. The Hypencoder also learns a small network that is added
to the inner product. Each model is trained with several seeds.

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
from shared.adapt_minilm import KINDS, Recipe, load_model, train_model
from shared.datasets import open_collection
from shared.evaluation import compare_models, format_table, summarize_seeds
from shared.indexes import index_collection, join_indexes, load_minilm
from shared.training_rows import make_judged_rows, write_rows

from pyterrier_hypencoder.training.validation import Validation

RECIPE = Recipe(
    hidden=(96,),
    backbone_layers=0,
    max_steps=1000,
    eval_steps=100,
    learning_rate=3e-4,
    warmup_steps=50,
    losses=("listwise_ce",),
    negatives_per_row=63,
)
EPOCHS = 10


def make_rows(topics: pd.DataFrame, qrels: pd.DataFrame, docnos: list[str], seed: int) -> list[dict[str, Any]]:
    """Make rows with the relevant documents of a topic, and random documents that are not judged relevant.

    The documents of other topics cannot serve as negatives. A topic has 43 relevant documents on average and shares many of
    them with other topics.
    """
    rng, ordered = random.Random(seed), []
    rows = make_judged_rows("nfcorpus", topics, qrels)
    for _ in range(EPOCHS):
        for row in rng.sample(rows, len(rows)):
            relevant = {item["id"] for item in row["items"]}
            drawn = (f"nfcorpus/{docno}" for docno in rng.sample(docnos, 2 * RECIPE.negatives_per_row))
            negatives = [{"id": docno, "type": "negative"} for docno in drawn if docno not in relevant]
            ordered.append({**row, "items": [*row["items"], *negatives]})
    return ordered


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train a bi-encoder and a Hypencoder on NFCorpus and compare them.")
    parser.add_argument("folder", help="NFCorpus: docs.jsonl.gz, and topics and qrels of train, dev and test")
    parser.add_argument("work", type=Path, help="folder for indexes and models; an interrupted run is resumed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hidden", type=int, nargs="+", default=RECIPE.hidden, help="widths of the q-nets' hidden layers")
    parser.add_argument("--steps", type=int, default=RECIPE.max_steps)
    parser.add_argument("--batch-size", type=int, default=RECIPE.batch_size)
    return parser.parse_args()


def main() -> None:
    """Train all models that are not trained yet, and print the comparison."""
    options = parse_options()
    recipe = replace(
        RECIPE,
        hidden=tuple(options.hidden),
        max_steps=options.steps,
        batch_size=options.batch_size,
        eval_steps=min(RECIPE.eval_steps, options.steps),
        warmup_steps=min(RECIPE.warmup_steps, options.steps // 6),
    )
    options.work.mkdir(parents=True, exist_ok=True)

    training, dev, test = (open_collection(options.folder, split) for split in ("train", "dev", None))
    index = index_collection(options.work / "nfcorpus.hyp", test)
    documents = join_indexes(options.work / "training.hyp", {"nfcorpus": index})
    validation = Validation(dev.topics, dev.qrels, index, measures=["nDCG@10"], num_results=100)

    def validate(folder: Path) -> dict[str, float]:
        return {"mean": validation(load_model(folder))["nDCG@10"]}

    models: dict[str, Any] = {"MiniLM": load_minilm()}
    for seed in options.seeds:
        rows = make_rows(training.topics, training.qrels, list(index.docnos), seed)
        file = write_rows(rows, options.work / f"rows-{seed}.jsonl")
        for kind in KINDS:
            folder = train_model(kind, recipe, file, documents, validate, options.work / f"{kind}-{seed}", seed)
            models[f"{kind} {seed}"] = load_model(folder)
    table = compare_models(models, index, test, [nDCG @ 10, RR, R @ 100])
    print(format_table(table, index=False))
    print("p-value: paired t-test against MiniLM, not corrected\n")
    print(format_table(summarize_seeds(table, ["nDCG@10", "RR", "R@100"])))


if __name__ == "__main__":
    main()
