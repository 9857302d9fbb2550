"""A test collection: documents, topics and relevance judgements."""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

TEXT_FIELDS = ("title", "text", "abstract", "body")


@dataclass(frozen=True)
class Collection:
    """Documents, topics and relevance judgements.

    Attributes:
        name: Name for people to read.
        docs: Function that returns an iterator over the documents, from the beginning at each call.
        topics: Frame with the columns ``qid`` and ``query``.
        qrels: Frame with the columns ``qid``, ``docno`` and ``label``.
    """

    name: str
    docs: Callable[[], Iterator[dict[str, Any]]]
    topics: pd.DataFrame
    qrels: pd.DataFrame

    @property
    def text_fields(self) -> list[str]:
        """Text fields that occur in the first 1000 documents."""
        first = list(islice(self.docs(), 1000))
        return [field for field in TEXT_FIELDS if any(field in doc for doc in first)]

    def write(self, folder: str | Path) -> None:
        """Write ``docs.jsonl``, ``topics.tsv`` and ``qrels.txt`` (TREC format) to a folder.

        Args:
            folder: Folder to write to. It is created if it does not exist.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lines = {
            "docs.jsonl": (json.dumps(doc) for doc in self.docs()),
            "topics.tsv": (f"{topic.qid}\t{topic.query}" for topic in self.topics.itertuples()),
            "qrels.txt": (f"{row.qid} 0 {row.docno} {row.label}" for row in self.qrels.itertuples()),
        }
        for name, content in lines.items():
            (folder / name).write_text("".join(f"{line}\n" for line in content), encoding="utf-8", newline="\n")


def read_collection(folder: str | Path, split: str | None = None) -> Collection:
    """Read a collection from a folder that holds ``docs.jsonl[.gz]``, ``topics.tsv`` and ``qrels.txt``.

    Args:
        folder: Folder to read from.
        split: Name of another set of topics. For example, "train" reads ``topics.train.tsv`` and ``qrels.train.txt``.

    Raises:
        FileNotFoundError: If the folder has no documents.
    """
    folder, suffix = Path(folder), "" if split is None else f".{split}"
    files = [folder / name for name in ("docs.jsonl.gz", "docs.jsonl") if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder} contains neither docs.jsonl.gz nor docs.jsonl.")
    topics = pd.read_csv(
        folder / f"topics{suffix}.tsv", sep="\t", names=["qid", "query"], dtype=str, quoting=3, keep_default_na=False
    )
    qrels = pt.io.read_qrels(str(folder / f"qrels{suffix}.txt"))
    return Collection(str(folder), partial(_read_docs, files[0]), topics, qrels)


def _read_docs(file: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
