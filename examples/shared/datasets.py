"""Open a test collection by name, as the option ``--dataset`` of the examples does."""

from pathlib import Path

import pyterrier as pt

from shared import apidocs, wordnet
from shared.collection import Collection, read_collection


def open_collection(name: str, split: str | None = None) -> Collection:
    """Open a test collection.

    Args:
        name: ``apidocs``, ``irds:NAME``, a folder that holds a collection, or the folder of WordNet's database.
        split: Name of another set of topics in a folder. See :func:`shared.collection.read_collection`.

    Raises:
        SystemExit: If the name is not one of these, with a message for the command line.
    """
    if name == "apidocs":
        return apidocs.build_collection()
    if name.startswith("irds:"):
        return _open_ir_dataset(name)
    if wordnet.is_wordnet(Path(name)):
        return wordnet.read_collection(Path(name))
    try:
        return read_collection(name, split)
    except FileNotFoundError as err:
        raise SystemExit(
            f"Cannot open the dataset {name!r}: {err} Give apidocs, irds:NAME or a folder with docs.jsonl[.gz], topics.tsv "
            "and qrels.txt."
        ) from err


def _open_ir_dataset(name: str) -> Collection:
    dataset = pt.get_dataset(name)
    topics = dataset.get_topics()
    if "query" not in topics.columns:  # topics with several fields
        topics = dataset.get_topics("title")
    return Collection(name, dataset.get_corpus_iter, topics[["qid", "query"]], dataset.get_qrels())
