"""WordNet as a test collection: 117,659 definitions, and the example sentences of some as topics.

A topic is an example sentence, and its one relevant document is the definition of the sense that the sentence shows. WordNet
comes with many systems (Debian: the package wordnet-base, in /usr/share/wordnet); its sentences are not part of the documents.

Fellbaum, C. (ed.): WordNet, An Electronic Lexical Database. MIT Press, 1998.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

PARTS = ("noun", "verb", "adj", "adv")
TOPICS = 200
SEED = 0


def is_wordnet(folder: Path) -> bool:
    """Whether a folder has WordNet's database."""
    return all((folder / f"data.{part}").is_file() for part in PARTS)


def senses(folder: Path) -> Iterator[dict[str, Any]]:
    """The senses with ``docno``, ``text`` (words and definition) and ``examples``."""
    for part in PARTS:
        with open(folder / f"data.{part}", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("  "):  # the licence
                    continue
                facts, gloss = line.split(" | ", 1)
                offset, _, kind, count, *rest = facts.split()
                words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]]
                definition, *examples = re.split(r';\s*(?=")', gloss.strip())
                yield {
                    "docno": f"{kind}{offset}",
                    "text": f"{', '.join(words)}: {definition}",
                    "examples": [found for example in examples for found in re.findall(r'^"([^"]+)"', example)],
                }


def documents(folder: Path) -> Iterator[dict[str, str]]:
    """The documents, one a sense."""
    return ({"docno": sense["docno"], "text": sense["text"]} for sense in senses(folder))


def topics(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Topics, the longest example of senses drawn at random, and judgements."""
    shown = pd.DataFrame(
        [(sense["docno"], max(sense["examples"], key=len)) for sense in senses(folder) if sense["examples"]],
        columns=["docno", "query"],
    )
    shown = shown[shown["query"].str.split().str.len() >= 4].sample(TOPICS, random_state=SEED).sort_values("docno")
    qrels = pd.DataFrame({"qid": shown["docno"], "docno": shown["docno"], "label": 1})
    return shown.rename(columns={"docno": "qid"}).reset_index(drop=True), qrels.reset_index(drop=True)
