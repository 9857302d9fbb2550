"""Read WordNet as a test collection: definitions are the documents, example sentences are the topics.

There are 117,659 definitions. The only relevant document of an example sentence is the definition of the sense that it
illustrates. Example sentences are not part of the documents.

Many systems package WordNet. On Debian, the package ``wordnet-base`` installs it in ``/usr/share/wordnet``.

Fellbaum, C. (ed.): WordNet, An Electronic Lexical Database. MIT Press, 1998.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from shared.collection import Collection

PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
NUM_TOPICS = 200
MIN_TOPIC_WORDS = 4
SEED = 0


def is_wordnet(folder: Path) -> bool:
    """Return True if a folder contains WordNet's database."""
    return all((folder / f"data.{part}").is_file() for part in PARTS_OF_SPEECH)


def read_senses(folder: Path) -> Iterator[dict[str, Any]]:
    """Read all senses.

    Args:
        folder: Folder with WordNet's database.

    Yields:
        Dictionaries with ``docno``, ``text`` (words and definition) and ``examples`` (list of sentences).
    """
    for part in PARTS_OF_SPEECH:
        with open(folder / f"data.{part}", encoding="utf-8") as lines:
            for line in lines:
                if not line.startswith("  "):  # lines of the licence are indented
                    yield _parse_sense(line)


def _parse_sense(line: str) -> dict[str, Any]:
    fields, gloss = line.split(" | ", 1)
    offset, _, part, n_words, *rest = fields.split()
    words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in rest[: 2 * int(n_words, 16) : 2]]
    definition, *examples = re.split(r';\s*(?=")', gloss.strip())
    return {
        "docno": f"{part}{offset}",
        "text": f"{', '.join(words)}: {definition}",
        "examples": [sentence for example in examples for sentence in re.findall(r'^"([^"]+)"', example)],
    }


def read_docs(folder: Path) -> Iterator[dict[str, str]]:
    """Read one document per sense."""
    return ({"docno": sense["docno"], "text": sense["text"]} for sense in read_senses(folder))


def read_collection(folder: Path) -> Collection:
    """Read the documents, and draw topics: the longest example sentence of random senses.

    Args:
        folder: Folder with WordNet's database.
    """
    topics = pd.DataFrame(
        [(sense["docno"], max(sense["examples"], key=len)) for sense in read_senses(folder) if sense["examples"]],
        columns=["qid", "query"],
    )
    topics = topics[topics["query"].str.split().str.len() >= MIN_TOPIC_WORDS]
    topics = topics.sample(NUM_TOPICS, random_state=SEED).sort_values("qid").reset_index(drop=True)
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": topics["qid"], "label": 1})
    return Collection("WordNet", lambda: read_docs(folder), topics, qrels)
