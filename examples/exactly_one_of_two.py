"""What a q-net can rank and an inner product cannot: documents that have exactly one of two properties.

Every document has some of P = 8 properties. Topics ask for one property, for both of two, or for exactly one of two. For the
last kind, no inner product of few dimensions ranks *all* relevant documents first (the paper's Radon argument, section 3).
Take four documents that differ in two properties only: neither, a, b, both. In vectors that add up properties, a and b have
the same mean as neither and both, and so have their scores, whatever the query: they cannot both be above both others. It
takes dimensions that say which *pairs* of properties agree. There are P(P-1)/2 = 28 pairs, and about as many dimensions hold
them all; a q-net finds out from the properties alone.

A Hypencoder and a bi-encoder, with the same document encoder and dimension, the same data, losses and steps, are trained from
scratch and judged on documents whose combination of properties neither has seen::

    python examples/exactly_one_of_two.py                 # the two models, and what inner products can hold at all; two minutes
    python examples/exactly_one_of_two.py --sweep         # also trains bi-encoders of more dimensions; ten minutes more

It needs the extra ``.[train]``, and neither a download nor a GPU.
"""

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import torch
import transformers
from pyterrier.measures import Rprec
from tokenizers import Tokenizer, models, pre_tokenizers

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.networks import DualEncoderConfig, HypencoderDualEncoder
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.data import RowSampler, TrainingRows
from pyterrier_hypencoder.training.trainer import HypencoderTrainer

PROPERTIES = ("red", "round", "heavy", "hollow", "wooden", "old", "smooth", "sweet")
KINDS = ("one property", "both of two", "exactly one of two")
MODELS = ("Hypencoder", "bi-encoder")
DIMENSION = 12
STEPS = 500
SWEEP = (4, 8, 12, 16, 24, 32, 48)
#: Dimensions of the bi-encoders that are trained for the sweep, for longer: that pairs matter is learnt late, where there is
#: room for them.
TRAINED_SWEEP = (12, 24, 48)
TRAINED_SWEEP_STEPS = 2000
#: By how much the teacher prefers a relevant document: as if it were 400 times as likely as another.
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


def make_tokenizer() -> Any:
    """A tokenizer that knows every word of the world."""
    words = ["[PAD]", "[UNK]", "both", "either", *PROPERTIES, *(f"non-{name}" for name in PROPERTIES)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )


def make_encoder(kind: str, dimension: int, vocabulary: int, seed: int = 0) -> HypencoderDualEncoder:
    """A dual encoder with random weights: transformers of one layer, which are the same in both kinds of model.

    Args:
        kind: one of ``MODELS``.
        dimension: of the document vectors, and width of the transformers; a multiple of 4.
        vocabulary: number of words.
        seed: of the weights.
    """
    backbone = {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": dimension,
        "num_hidden_layers": 1,
        # Many small heads: with wide ones, attention begins by looking at one word, and pairs of words are found late.
        "num_attention_heads": dimension // 4,
        "intermediate_size": 256,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,  # the usual 0.02 is for wide layers
    }
    query: dict[str, Any] = {"pooling_type": "mean"}
    if kind == "Hypencoder":
        qnet = {"vector_dimensions": [dimension, 64, 1], "activation_type": "gelu", "do_layer_norm": False}
        query = {
            "base_encoder_output_dim": dimension,
            "head_init": "dense",  # the released start is made for vectors of 768 dimensions
            "converter_kwargs": qnet | {"do_residual": False},
        }
    config = DualEncoderConfig(
        "HypencoderDualEncoder" if kind == "Hypencoder" else "TextDualEncoder",
        query_encoder_kwargs=query,
        passage_encoder_kwargs={"pooling_type": "mean"},
        extra={"backbone_configs": {"query": backbone, "passage": backbone}},
    )
    return checkpoint.build(config, seed=seed)


def write_rows(world: World, path: Path, seed: int = 0) -> None:
    """Writes the training data: topics with some relevant document first and other documents as they come.

    The others may be relevant too; the teacher says so, so that no relevant document is pushed down.
    """
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as out:
        for topic in world.topics * ROWS_PER_TOPIC:
            first = rng.choice([doc for doc in world.train if topic.is_relevant(doc.has)])
            others = rng.sample([doc for doc in world.train if doc is not first], ITEMS - 1)
            items = [
                {"id": doc.docno, "content": doc.text, "score": MARGIN * topic.is_relevant(doc.has)}
                for doc in [first, *others]
            ]
            out.write(json.dumps({"query": {"id": topic.qid, "content": topic.query}, "items": items}) + "\n")


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one core: matrices this small gain nothing from more, and lose much where others use those cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    kind: str, world: World, folder: Path, *, dimension: int = DIMENSION, steps: int = STEPS, seed: int = 0
) -> Hypencoder | BiEncoder:
    """Trains a model from scratch: all but the q-nets is the same for both kinds.

    Args:
        kind: one of ``MODELS``.
        world: what to learn.
        folder: where training data and the checkpoint go; must not exist.
        dimension: of the document vectors.
        steps: of the optimiser.
        seed: of weights, data and their order.
    """
    folder.mkdir(parents=True)
    write_rows(world, folder / "rows.jsonl", seed)
    tokenizer = make_tokenizer()
    trainer = HypencoderTrainer(
        make_encoder(kind, dimension, len(tokenizer), seed),
        folder / "checkpoints",
        tokenizer=tokenizer,
        losses=["kl"],
        batch_size=64,
        max_steps=steps,
        learning_rate=6e-3,
        warmup_steps=steps // 20,
        lr_scheduler_type="linear",
        seed=seed,
        arguments={"use_cpu": True, "logging_strategy": "no"},  # too small for a GPU to be of use
    )
    rows = TrainingRows(folder / "rows.jsonl", RowSampler(negatives=ITEMS - 1))
    with one_thread():
        name = trainer.fit(rows, Collator(tokenizer))
    loaded = Hypencoder if kind == "Hypencoder" else BiEncoder
    return loaded(str(name), device="cpu", dtype="fp32")


def judge(trained: dict[str, Hypencoder | BiEncoder], world: World, folder: Path) -> pd.DataFrame:
    """R-Precision on held-out documents, a row for each kind of topic and a column for each model.

    R-Precision and not P@10: of the documents with exactly one of two properties, those with the one are easy to find, and
    ten of them fill the first ranks.
    """
    docs = [{"docno": doc.docno, "text": doc.text} for doc in world.held_out]
    retrievers = []
    for number, model in enumerate(trained.values()):
        index = HypencoderIndexer(folder / f"{number}.hyp", model).index(docs)
        retrievers.append(index.retriever(model, num_results=len(docs)))
    topics = pd.DataFrame({"qid": [t.qid for t in world.topics], "query": [t.query for t in world.topics]})
    table = pt.Experiment(retrievers, topics, world.qrels(), [Rprec], names=list(trained), perquery=True)
    table["topics"] = table["qid"].map({topic.qid: topic.kind for topic in world.topics})
    means = table.pivot_table(values="value", index="topics", columns="name", aggfunc="mean")
    return means.loc[list(KINDS), list(trained)].rename_axis(columns=None)


def fit_inner_products(world: World, dimension: int, *, steps: int = 1000, seed: int = 0) -> dict[str, float]:
    """R-Precision by kind of topic when vectors are fitted to the judgements of all documents, without any encoder.

    Nothing has to be learnt from words or to hold on new documents, so what is missing here is missing from the inner product
    of so few dimensions (as far as gradient descent finds the best vectors).

    Args:
        world: the topics and documents, held-out ones too.
        dimension: of the vectors.
        steps: of the optimiser.
        seed: of the vectors' start.
    """
    docs = world.train + world.held_out
    relevant = torch.tensor([[float(topic.is_relevant(doc.has)) for doc in docs] for topic in world.topics])
    with one_thread():
        scores = _fit(relevant, dimension, steps, seed)
    found = relevant.gather(1, scores.argsort(dim=1, descending=True))
    means = pd.Series([row[: int(row.sum())].mean().item() for row in found])
    return means.groupby([topic.kind for topic in world.topics]).mean().to_dict()


def _fit(relevant: torch.Tensor, dimension: int, steps: int, seed: int) -> torch.Tensor:
    """The scores (Q, N) of vectors of Q topics and N documents, fitted to the judgements with a listwise loss."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randn(n, dimension, generator=generator).mul_(0.5).requires_grad_() for n in relevant.shape]
    optimizer = torch.optim.Adam(sides, lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    wanted = relevant / relevant.sum(1, keepdim=True)
    for _ in range(steps):
        loss = -(wanted * (sides[0] @ sides[1].T).log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return (sides[0] @ sides[1].T).detach()


def show(table: pd.DataFrame) -> None:
    """Prints a table of R-Precision."""
    print(table.to_string(float_format=lambda value: f"{value:.3f}", na_rep=""), flush=True)


def main() -> None:
    """Trains, judges and sweeps as the command line asks."""
    parser = argparse.ArgumentParser(description="Exactly one of two properties: a Hypencoder, a bi-encoder, dimensions.")
    parser.add_argument("--dimension", type=int, default=DIMENSION, help=f"a multiple of 4 (default {DIMENSION})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of training (default {STEPS})")
    parser.add_argument("--seed", type=int, default=0, help="of world, weights and training (default 0)")
    parser.add_argument("--sweep", action="store_true", help="also train bi-encoders of several dimensions")
    options = parser.parse_args()

    world = build(options.seed)
    pairs = len(world.of_kind(KINDS[-1]))
    print(
        f"{len(world.train)} documents to train on, {len(world.held_out)} held out; {len(world.topics)} topics, {pairs} pairs"
    )
    print(f"\nInner products fitted to the judgements of all {len(world.train) + len(world.held_out)} documents: R-Precision")
    fitted = pd.DataFrame({dimension: fit_inner_products(world, dimension) for dimension in SWEEP}).T[list(KINDS)]
    show(fitted.rename_axis("dimension"))
    with tempfile.TemporaryDirectory() as temporary:
        folder, trained = Path(temporary), {}
        print(flush=True)
        for kind in MODELS:
            start = time.perf_counter()
            trained[kind] = train(
                kind, world, folder / kind, dimension=options.dimension, steps=options.steps, seed=options.seed
            )
            print(f"{kind} of {options.dimension} dimensions: trained in {time.perf_counter() - start:.0f} s", flush=True)
        print("\nHeld-out documents: R-Precision")
        show(judge(trained, world, folder))
        if options.sweep:
            print(f"\nBi-encoders by dimension, {TRAINED_SWEEP_STEPS} steps, held-out documents: R-Precision")
            swept = {}
            for dimension in TRAINED_SWEEP:
                place = folder / f"sweep-{dimension}"
                model = train("bi-encoder", world, place, dimension=dimension, steps=TRAINED_SWEEP_STEPS, seed=options.seed)
                swept[dimension] = judge({"bi-encoder": model}, world, place)["bi-encoder"]
            show(pd.DataFrame(swept).T.rename_axis("dimension"))


if __name__ == "__main__":
    main()
