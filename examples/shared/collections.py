"""Test collections: from ir_datasets, from a folder, or made of installed documentation."""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from shared import apidocs, wordnet

TEXT_FIELDS = ("title", "text", "abstract", "body")


@dataclass(frozen=True)
class Collection:
    """Documents (a function that reads them anew), topics and judgements."""

    name: str
    docs: Callable[[], Iterator[dict[str, Any]]]
    topics: pd.DataFrame
    qrels: pd.DataFrame

    @property
    def text_fields(self) -> list[str]:
        """The fields in which documents have text."""
        first = list(islice(self.docs(), 1000))
        return [field for field in TEXT_FIELDS if any(field in doc for doc in first)]


def open_collection(name: str, split: str | None = None) -> Collection:
    """Opens a collection.

    Args:
        name: ``apidocs``, ``irds:...``, a folder with docs.jsonl[.gz], topics.tsv and qrels.txt, or WordNet's folder.
        split: of a folder, other topics than its test topics: ``train`` reads topics.train.tsv and qrels.train.txt.
    """
    if name == "apidocs":
        made = apidocs.build()
        return Collection("documentation of installed libraries", lambda: iter(made.docs), made.topics, made.qrels)
    if name.startswith("irds:"):
        dataset = pt.get_dataset(name)
        return Collection(name, dataset.get_corpus_iter, _split_topics(dataset), dataset.get_qrels())
    folder, dot = Path(name), f".{split}" if split else ""
    if wordnet.is_wordnet(folder):
        return Collection("WordNet", lambda: wordnet.documents(folder), *wordnet.topics(folder))
    files = [file for file in ("docs.jsonl.gz", "docs.jsonl") if (folder / file).is_file()]
    if not files:
        raise SystemExit(f"--dataset: expected apidocs, irds:NAME or a folder with docs.jsonl[.gz], found {name!r}")
    topics_file = folder / f"topics{dot}.tsv"
    topics = pd.read_csv(topics_file, sep="\t", names=["qid", "query"], dtype=str, quoting=3, keep_default_na=False)
    return Collection(name, lambda: _read_docs(folder / files[0]), topics, pt.io.read_qrels(str(folder / f"qrels{dot}.txt")))


def _split_topics(dataset: Any) -> pd.DataFrame:
    topics = dataset.get_topics()
    if "query" not in topics.columns:  # topics of several fields
        topics = dataset.get_topics("title")
    return topics[["qid", "query"]]


def _read_docs(file: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
