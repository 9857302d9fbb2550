"""Trains ``hypencoder-minilm``, the Hypencoder that comes with the package, and the bi-encoder that it is compared with.

Pairs come from the documentation of PyPI packages (see shared/docpairs.py) and from the training topics of NFCorpus and SciFact. Both
kinds of model have the same data, steps and selection, with documents frozen. Test topics are looked at once, at the end.

Example::

    python examples/train_bundled_model.py FOLDER_OF_COLLECTIONS work          # trains, and prints the tables
    python examples/train_bundled_model.py FOLDER_OF_COLLECTIONS work --ship   # and puts the model into the package
"""

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure_linearity as linearity
import pandas as pd
from pyterrier.measures import RR, R, nDCG
from shared import adapt_minilm as adapt
from shared import docpairs
from shared.collections import Collection, open_collection

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.training.validation import Validation

RECIPE = adapt.Recipe()
EPOCHS = 2
#: Packages whose documentation is searched to choose the best checkpoint, rather than trained on.
DEV_PACKAGES = ("boltons", "more-itertools", "mpmath", "polars", "scikit-image", "toolz", "xarray")
DEV_TOPICS = 500
#: Training topics of SciFact, which has no dev topics, that are kept for the same.
SCIFACT_DEV = 200
#: Times that topics of the collections come in an epoch, in which every pair comes once.
REPEATED = 4
TESTS = ("vaswani", "cranfield", "cacm", "scifact", "nfcorpus")
#: Tokens of a document that the quickstart encodes.
QUICKSTART_LENGTH = 128
SHIPPED = Path(__file__).parent.parent / "pyterrier_hypencoder" / "encoders" / "models" / "hypencoder-minilm"


def _order(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _first(frame: pd.DataFrame, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits topics in two, in an order that is as good as random."""
    order = sorted(frame["qid"], key=_order)
    chosen = frame["qid"].isin(order[:number])
    return frame[chosen], frame[~chosen]


class Data:
    """Everything that is trained and chosen on.

    Args:
        collections: the folder with the collections nfcorpus and scifact.
        work: where files are kept.
    """

    def __init__(self, collections: Path, work: Path) -> None:
        docpairs.fetch(work / "wheels")
        found = self._pairs(work)
        kept = [pair for pair in found if pair.package not in DEV_PACKAGES]
        held = [pair for pair in found if pair.package in DEV_PACKAGES]
        nfcorpus, scifact = (open_collection(str(collections / name), "train") for name in ("nfcorpus", "scifact"))
        scifact_dev, scifact_train = _first(scifact.topics, SCIFACT_DEV)

        self.sources: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for pair in kept:
            self.sources[pair.package].append(pair.row("packages"))
        self.sources["nfcorpus"] = adapt.judged_rows("nfcorpus", nfcorpus.topics, nfcorpus.qrels) * REPEATED
        self.sources["scifact"] = adapt.judged_rows("scifact", scifact_train, scifact.qrels) * REPEATED

        indexes = {
            "packages": adapt.indexed(work, "packages", lambda: (pair.doc for pair in kept), ["text"]),
            "nfcorpus": adapt.index_collection(work, "nfcorpus", nfcorpus),
            "scifact": adapt.index_collection(work, "scifact", scifact),
        }
        self.documents = adapt.joined(work, "training", indexes)
        dev_index = adapt.indexed(work, "dev-packages", lambda: (pair.doc for pair in held), ["text"])
        asked = sorted(held, key=lambda pair: _order(pair.docno))[:DEV_TOPICS]
        dev = open_collection(str(collections / "nfcorpus"), "dev")
        self.dev = {
            "packages": self._validation(
                pd.DataFrame([(pair.docno, pair.query) for pair in asked], columns=["qid", "query"]),
                pd.DataFrame([(pair.docno, pair.docno, 1) for pair in asked], columns=["qid", "docno", "label"]),
                dev_index,
            ),
            "nfcorpus": self._validation(dev.topics, dev.qrels, indexes["nfcorpus"]),
            "scifact": self._validation(scifact_dev, scifact.qrels, indexes["scifact"]),
        }

    @staticmethod
    def _validation(topics: pd.DataFrame, qrels: pd.DataFrame, index: HypencoderIndex) -> Validation:
        return Validation(topics, qrels, index, measures=["nDCG@10"], num_results=100)

    @staticmethod
    def _pairs(work: Path) -> list[docpairs.Pair]:
        """The pairs, made once, as reading the wheels takes minutes."""
        path = work / "pairs.jsonl"
        if not path.exists():
            part = path.with_suffix(".part")
            part.write_text("".join(json.dumps(vars(pair)) + "\n" for pair in docpairs.pairs(work / "wheels")))
            part.rename(path)
        return [docpairs.Pair(**json.loads(line)) for line in path.read_text().splitlines()]

    def validate(self, folder: Path) -> dict[str, float]:
        """nDCG@10 of a checkpoint on each dev set, and their mean."""
        model = adapt.load(folder)
        found = {name: validation(model)["nDCG@10"] for name, validation in self.dev.items()}
        return {**found, "mean": sum(found.values()) / len(found)}


def general(found: Mapping[str, Mapping[str, float]]) -> str:
    """The share that is best at documentation, of those that are no worse than MiniLM at all else."""

    def elsewhere(share: str) -> float:
        return found[share]["nfcorpus"] + found[share]["scifact"]

    return max((share for share in found if elsewhere(share) >= elsewhere("0")), key=lambda share: found[share]["packages"])


def train(data: Data, work: Path, seeds: list[int]) -> dict[str, Path]:
    """Trains what is not trained yet; gives the folders by kind and seed."""
    folders = {}
    for seed in seeds:
        path = adapt.write_rows(adapt.rows_in_blocks(data.sources, seed, EPOCHS), work / f"rows-{seed}.jsonl")
        for kind in adapt.KINDS:
            name = f"{kind} {seed}"
            folder = work / name.replace(" ", "-")
            trained = adapt.train(kind, RECIPE, path, data.documents, data.validate, folder, seed)
            folders[name] = adapt.blended(trained, folder / "blended", data.validate, general)
    return folders


def ship(model: Path) -> None:
    """Puts what training changed into the package."""
    trained, _ = checkpoint.load(str(model))
    checkpoint.save(trained, SHIPPED, base=adapt.MINILM, half=True)


def report(systems: dict[str, Any], collections: Path, work: Path) -> None:
    """Prints nDCG@10 on all test topics, and how far the q-nets are from linear."""
    tests: dict[str, Collection] = {"apidocs": open_collection("apidocs")}
    tests |= {name: open_collection(str(collections / name)) for name in TESTS}
    columns: dict[str, pd.Series] = {}
    for name, collection in tests.items():
        length = QUICKSTART_LENGTH if name == "apidocs" else adapt.DOC_LENGTH
        index = adapt.index_collection(work, name, collection, length)
        table = adapt.compare(systems, index, collection, [nDCG @ 10, RR, R @ 100]).set_index("name")
        print(f"\n{name}\n{table.to_string(float_format=lambda value: f'{value:.4f}', na_rep='')}")
        columns[name] = table["nDCG@10"]
        if name in ("apidocs", "nfcorpus"):
            for system in [system for system in systems if system.startswith("hypencoder")]:
                found = linearity.compare(systems[system], index, collection.topics, collection.qrels)
                print(f"{system}: " + ", ".join(f"{key} {value:.4f}" for key, value in found.items()))
    summary = pd.DataFrame(columns)
    summary["mean of five"] = summary[list(TESTS)].mean(axis=1)
    print(f"\nnDCG@10\n{summary.to_string(float_format=lambda value: f'{value:.4f}')}")
    print(
        f"\n{adapt.means(summary.reset_index(), list(summary.columns)).to_string(float_format=lambda value: f'{value:.4f}')}"
    )


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description="Trains the model that comes with the package.")
    parser.add_argument("collections", type=Path, help="a folder with nfcorpus, scifact and the other test collections")
    parser.add_argument("work", type=Path, help="where wheels, indexes and models are kept; a killed run goes on from there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ship", action="store_true", help="put the Hypencoder of the first seed into the package")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data = Data(options.collections, options.work)
    print({name: len(rows) for name, rows in data.sources.items()})
    folders = train(data, options.work, options.seeds)
    if options.ship:
        ship(folders[f"hypencoder {options.seeds[0]}"])
    systems: dict[str, Any] = {"MiniLM": adapt.minilm()}
    systems |= {name: adapt.load(folder) for name, folder in folders.items()}
    for seed in options.seeds:
        alone = options.work / f"hypencoder-{seed}-inner-product"
        systems[f"its inner product {seed}"] = adapt.without_network(folders[f"hypencoder {seed}"], alone)
    report(systems, options.collections, options.work)


if __name__ == "__main__":
    main()
