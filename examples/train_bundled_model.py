"""Train ``hypencoder-minilm``, the Hypencoder that is part of the package, and a bi-encoder to compare it with.

The training pairs come from the documentation of PyPI packages (see ``shared/docpairs.py``) and from the training topics of
NFCorpus and SciFact. Both kinds of model use the same data, steps and selection of the checkpoint. Documents are frozen. The
test topics are used once, at the end.

Example::

    python examples/train_bundled_model.py FOLDER_OF_COLLECTIONS work          # train and print the tables
    python examples/train_bundled_model.py FOLDER_OF_COLLECTIONS work --ship   # also write the model into the package
"""

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pyterrier.measures import RR, R, nDCG
from shared.adapt_minilm import KINDS, Recipe, choose_interpolation, load_model, load_without_network, train_model
from shared.datasets import open_collection
from shared.docpairs import Pair, build_pairs, download_wheels
from shared.evaluation import compare_models, format_table, summarize_seeds
from shared.indexes import DOC_LENGTH, MINILM, index_collection, index_docs, join_indexes, load_minilm
from shared.linearity import compare_with_linear
from shared.training_rows import make_judged_rows, order_in_blocks, write_rows

import pyterrier_hypencoder
from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.training.validation import Validation

RECIPE = Recipe()
EPOCHS = 2
#: Packages whose documentation is used to choose a checkpoint, not for training.
DEV_PACKAGES = ("boltons", "more-itertools", "mpmath", "polars", "scikit-image", "toolz", "xarray")
NUM_DEV_TOPICS = 500
#: Training topics of SciFact that are used to choose a checkpoint, because SciFact has no dev topics.
NUM_SCIFACT_DEV_TOPICS = 200
#: Number of times that a topic of NFCorpus or SciFact occurs per epoch. A pair occurs once.
TOPIC_REPEATS = 4
TEST_COLLECTIONS = ("vaswani", "cranfield", "cacm", "scifact", "nfcorpus")
#: Tokens of a document that the quickstart encodes.
QUICKSTART_DOC_LENGTH = 128
BUNDLED_MODEL = Path(pyterrier_hypencoder.__file__).parent / "models" / "hypencoder-minilm"


def hash_name(name: str) -> bytes:
    """Return a hash to sort names by, which puts them into an arbitrary but fixed order."""
    return hashlib.sha256(name.encode()).digest()


def read_pairs(work: Path) -> list[Pair]:
    """Read the pairs of all packages. Building them takes minutes, so they are kept in a file."""
    path = work / "pairs.jsonl"
    if not path.exists():
        download_wheels(work / "wheels")
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(vars(pair)) + "\n" for pair in build_pairs(work / "wheels")))
        part.rename(path)
    return [Pair(**json.loads(line)) for line in path.read_text().splitlines()]


class Data:
    """Training rows, the vectors of their documents, and validation sets.

    Args:
        collections: Folder that contains the collections nfcorpus and scifact.
        work: Folder for wheels and indexes.
    """

    def __init__(self, collections: Path, work: Path) -> None:
        pairs = read_pairs(work)
        training_pairs = [pair for pair in pairs if pair.package not in DEV_PACKAGES]
        dev_pairs = [pair for pair in pairs if pair.package in DEV_PACKAGES]
        nfcorpus, scifact = (open_collection(str(collections / name), "train") for name in ("nfcorpus", "scifact"))
        is_dev = scifact.topics["qid"].isin(sorted(scifact.topics["qid"], key=hash_name)[:NUM_SCIFACT_DEV_TOPICS])

        self.sources: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for pair in training_pairs:
            self.sources[pair.package].append(pair.make_row("packages"))
        self.sources["nfcorpus"] = make_judged_rows("nfcorpus", nfcorpus.topics, nfcorpus.qrels) * TOPIC_REPEATS
        self.sources["scifact"] = make_judged_rows("scifact", scifact.topics[~is_dev], scifact.qrels) * TOPIC_REPEATS

        indexes = {
            "packages": index_docs(work / "packages.hyp", lambda: (pair.doc for pair in training_pairs), ["text"]),
            "nfcorpus": index_collection(work / "nfcorpus.hyp", nfcorpus),
            "scifact": index_collection(work / "scifact.hyp", scifact),
        }
        self.documents = join_indexes(work / "training.hyp", indexes)
        dev = open_collection(str(collections / "nfcorpus"), "dev")
        self.validations = {
            "packages": self._validate_pairs(dev_pairs, work),
            "nfcorpus": self._make_validation(dev.topics, dev.qrels, indexes["nfcorpus"]),
            "scifact": self._make_validation(scifact.topics[is_dev], scifact.qrels, indexes["scifact"]),
        }

    def _validate_pairs(self, pairs: list[Pair], work: Path) -> Validation:
        index = index_docs(work / "dev-packages.hyp", lambda: (pair.doc for pair in pairs), ["text"])
        chosen = sorted(pairs, key=lambda pair: hash_name(pair.docno))[:NUM_DEV_TOPICS]
        topics = pd.DataFrame([(pair.docno, pair.query) for pair in chosen], columns=["qid", "query"])
        qrels = pd.DataFrame([(pair.docno, pair.docno, 1) for pair in chosen], columns=["qid", "docno", "label"])
        return self._make_validation(topics, qrels, index)

    @staticmethod
    def _make_validation(topics: pd.DataFrame, qrels: pd.DataFrame, index: HypencoderIndex) -> Validation:
        return Validation(topics, qrels, index, measures=["nDCG@10"], num_results=100)

    def validate(self, folder: Path) -> dict[str, float]:
        """Return nDCG@10 of a checkpoint on each validation set, and their mean."""
        model = load_model(folder)
        results = {name: validation(model)["nDCG@10"] for name, validation in self.validations.items()}
        return {**results, "mean": sum(results.values()) / len(results)}


def choose_best_on_packages(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return the interpolation that is best on the packages among those not worse than MiniLM ("0") elsewhere."""

    def measure_elsewhere(interpolation: str) -> float:
        return results[interpolation]["nfcorpus"] + results[interpolation]["scifact"]

    allowed = [interpolation for interpolation in results if measure_elsewhere(interpolation) >= measure_elsewhere("0")]
    return max(allowed, key=lambda interpolation: results[interpolation]["packages"])


def train_models(data: Data, work: Path, seeds: list[int]) -> dict[str, Path]:
    """Train all models that are not trained yet, and return their folders by kind and seed."""
    folders = {}
    for seed in seeds:
        file = write_rows(order_in_blocks(data.sources, seed, EPOCHS), work / f"rows-{seed}.jsonl")
        for kind in KINDS:
            folder = work / f"{kind}-{seed}"
            trained = train_model(kind, RECIPE, file, data.documents, data.validate, folder, seed)
            folders[f"{kind} {seed}"] = choose_interpolation(
                trained, folder / "interpolated", data.validate, choose_best_on_packages
            )
    return folders


def write_bundled_model(model: Path) -> None:
    """Write the weights that training changed into the package, in float16."""
    trained, _ = checkpoint.load(str(model))
    checkpoint.save(trained, BUNDLED_MODEL, base=MINILM, half=True)


def print_report(models: dict[str, Any], collections: Path, work: Path) -> None:
    """Print nDCG@10 on all test topics, and how far the q-nets are from linear."""
    tests = {"apidocs": open_collection("apidocs")}
    tests |= {name: open_collection(str(collections / name)) for name in TEST_COLLECTIONS}
    columns: dict[str, pd.Series] = {}
    for name, collection in tests.items():
        length = QUICKSTART_DOC_LENGTH if name == "apidocs" else DOC_LENGTH
        index = index_collection(work / f"{name}.hyp", collection, length)
        table = compare_models(models, index, collection, [nDCG @ 10, RR, R @ 100]).set_index("name")
        print(f"\n{name}\n{format_table(table)}")
        columns[name] = table["nDCG@10"]
        if name in ("apidocs", "nfcorpus"):
            for system in [system for system in models if system.startswith("hypencoder")]:
                results = compare_with_linear(models[system], index, collection.topics, collection.qrels)
                print(f"{system}: " + ", ".join(f"{key} {value:.4f}" for key, value in results.items()))
    summary = pd.DataFrame(columns)
    summary["mean of five"] = summary[list(TEST_COLLECTIONS)].mean(axis=1)
    print(f"\nnDCG@10\n{format_table(summary)}")
    print(f"\n{format_table(summarize_seeds(summary.reset_index(), list(summary.columns)))}")


def main() -> None:
    """Train, report and write the model as the command line asks."""
    parser = argparse.ArgumentParser(description="Train the model that is part of the package.")
    parser.add_argument("collections", type=Path, help="folder with nfcorpus, scifact and the other test collections")
    parser.add_argument("work", type=Path, help="folder for wheels, indexes and models; an interrupted run is resumed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ship", action="store_true", help="write the Hypencoder of the first seed into the package")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data = Data(options.collections, options.work)
    print({name: len(rows) for name, rows in data.sources.items()})
    folders = train_models(data, options.work, options.seeds)
    if options.ship:
        write_bundled_model(folders[f"hypencoder {options.seeds[0]}"])
    models: dict[str, Any] = {"MiniLM": load_minilm()}
    models |= {name: load_model(folder) for name, folder in folders.items()}
    for seed in options.seeds:
        folder = options.work / f"hypencoder-{seed}-inner-product"
        models[f"its inner product {seed}"] = load_without_network(folders[f"hypencoder {seed}"], folder)
    print_report(models, options.collections, options.work)


if __name__ == "__main__":
    main()
