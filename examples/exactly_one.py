"""What a q-net can rank and an inner product cannot: documents that have exactly one of two properties.

Every document has some of eight properties. Topics ask for one property, for both of two, or for exactly one of two. For
the last kind, no inner product of few dimensions ranks all relevant documents first (the paper's Radon argument, its
section 3): of the four documents ``neither, a, b, a and b`` that are else alike, the two middle ones and the two outer ones
have the same mean in any code that adds up properties, so no direction separates them. Each of the P(P-1)/2 pairs needs
about a dimension of its own, in which that document pattern is written out.

A Hypencoder and a bi-encoder, with the same document encoder and dimension, the same data, losses and steps, are trained from
scratch and judged on documents whose combination of properties neither has seen::

    python examples/exactly_one.py                 # the two models, and what inner products can hold at all; two minutes
    python examples/exactly_one.py --sweep         # also trains bi-encoders of more dimensions; some minutes more

It needs the extra ``.[train]``, and neither a download nor a GPU.
"""

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import torch
import transformers
from pyterrier.measures import Rprec
from tokenizers import Tokenizer, models, pre_tokenizers

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer, checkpoint
from pyterrier_hypencoder.model import DualEncoderConfig, HypencoderDualEncoder
from pyterrier_hypencoder.training.data import RowSampler, TrainingRows
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.trainer import HypencoderTrainer

PROPERTIES = ("red", "round", "heavy", "hollow", "wooden", "old", "smooth", "sweet")
KINDS = ("one property", "both of two", "exactly one of two")
MODELS = ("Hypencoder", "bi-encoder")
DIMENSION = 12
STEPS = 800
SWEEP = (4, 8, 12, 16, 24, 32, 48)
#: Dimensions of the bi-encoders that are trained for the sweep; wider encoders are slower to find out what pairs are.
TRAINED_SWEEP = (8, 12, 24, 48)
TRAINED_SWEEP_STEPS = 2000
#: By how much the teacher prefers a relevant document: a probability of 1/400 for one that is not.
MARGIN = 6.0
ITEMS = 16
ROWS_PER_TOPIC = 60


@dataclass(frozen=True)
class Topic:
    """What is asked for: a kind, and one or two properties by their place in ``PROPERTIES``."""

    qid: str
    kind: str
    properties: tuple[int, ...]

    @property
    def query(self) -> str:
        """The query's words."""
        word = {"one property": "", "both of two": "both ", "exactly one of two": "either "}[self.kind]
        return word + " ".join(PROPERTIES[i] for i in self.properties)

    def is_relevant(self, has: Sequence[int]) -> bool:
        """Whether a document with these properties (1 or 0 each) is relevant."""
        number = sum(has[i] for i in self.properties)
        return number == (1 if self.kind == "exactly one of two" else len(self.properties))


@dataclass(frozen=True)
class Doc:
    """A document: its text names every property, or its absence, in any order."""

    docno: str
    has: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class World:
    """Topics, documents to train on, and documents with other combinations of properties to judge by."""

    topics: list[Topic]
    train: list[Doc]
    held_out: list[Doc]

    def of_kind(self, kind: str) -> list[Topic]:
        """The topics of one kind."""
        return [topic for topic in self.topics if topic.kind == kind]

    def qrels(self) -> pd.DataFrame:
        """The judgements of the held-out documents."""
        relevant = [(t.qid, d.docno, 1) for t in self.topics for d in self.held_out if t.is_relevant(d.has)]
        return pd.DataFrame(relevant, columns=["qid", "docno", "label"])


def build(seed: int = 0, held_out: float = 0.25) -> World:
    """Makes the world: a document for each of the 256 combinations of properties, and 64 topics.

    Args:
        seed: of the texts and of which documents are held out.
        held_out: the share of documents that are.
    """
    rng = random.Random(seed)
    docs = []
    for number, has in enumerate(itertools.product((0, 1), repeat=len(PROPERTIES))):
        words = [name if there else f"non-{name}" for name, there in zip(PROPERTIES, has, strict=True)]
        rng.shuffle(words)
        docs.append(Doc(f"d{number}", has, " ".join(words)))
    rng.shuffle(docs)
    pairs = list(itertools.combinations(range(len(PROPERTIES)), 2))
    asked = [(KINDS[0], (i,)) for i in range(len(PROPERTIES))] + [(kind, pair) for kind in KINDS[1:] for pair in pairs]
    topics = [Topic(f"q{number}", kind, properties) for number, (kind, properties) in enumerate(asked)]
    cut = round(len(docs) * held_out)
    return World(topics, docs[cut:], docs[:cut])
