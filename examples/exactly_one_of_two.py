"""Show a ranking that q-nets can represent and inner products cannot: documents with exactly one of two properties.

Each document has some of 8 properties. Topics ask for one property, for both of two, or for exactly one of two. If vectors
have few dimensions, no inner product ranks all relevant documents of the last kind first (the Radon argument in section 3 of
the paper). For example, four documents differ in two properties: neither, a, b, both. If a vector is a sum of properties, then
"a" and "b" have the same mean vector as "neither" and "both". So they have the same mean score for every query, and cannot
both score higher than the other two. A vector needs further dimensions that tell which pairs of properties agree. There are
28 pairs, and about as many dimensions are enough. A q-net computes this from the properties alone.

The example trains a Hypencoder and a bi-encoder from scratch, with the same document encoder, data, losses and steps. It
evaluates them on documents whose combinations of properties neither has seen::

    python examples/exactly_one_of_two.py            # both models, and fitted inner products; two minutes
    python examples/exactly_one_of_two.py --sweep    # also bi-encoders with more dimensions; ten minutes more

It needs the extra ``.[train]``, but neither a download nor a GPU.
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

from pyterrier_hypencoder import BiEncoder, Hypencoder, HypencoderIndexer, HypencoderTrainer
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.checkpoint_config import DualEncoderConfig
from pyterrier_hypencoder.encoders.networks import HypencoderDualEncoder
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.training_rows import TrainingRows

PROPERTIES = ("red", "round", "heavy", "hollow", "wooden", "old", "smooth", "sweet")
KINDS = ("one property", "both of two", "exactly one of two")
MODELS = ("Hypencoder", "bi-encoder")
DIMENSION = 12
STEPS = 500
FITTED_DIMENSIONS = (4, 8, 12, 16, 24, 32, 48)
TRAINED_DIMENSIONS = (12, 24, 48)
#: Bi-encoders with more dimensions train longer, because they learn late that pairs matter.
SWEEP_STEPS = 2000
#: Difference of the teacher's scores. It makes a relevant document 400 times as likely as another one.
MARGIN = 6.0
ITEMS_PER_ROW = 16
ROWS_PER_TOPIC = 60


@dataclass(frozen=True)
class Topic:
    """A topic that asks for one or two properties.

    Attributes:
        qid: Identifier.
        kind: One of ``KINDS``.
        properties: Positions in ``PROPERTIES``.
    """

    qid: str
    kind: str
    properties: tuple[int, ...]

    @property
    def query(self) -> str:
        """Words of the query."""
        word = {"one property": "", "both of two": "both ", "exactly one of two": "either "}[self.kind]
        return word + " ".join(PROPERTIES[i] for i in self.properties)

    def is_relevant(self, has: Sequence[int]) -> bool:
        """Return True if a document with these properties (1 or 0 for each) is relevant."""
        number = sum(has[i] for i in self.properties)
        return number == (1 if self.kind == "exactly one of two" else len(self.properties))


@dataclass(frozen=True)
class Doc:
    """A document whose text names each property or its absence, in random order."""

    docno: str
    has: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class World:
    """Topics, training documents, and held-out documents with other combinations of properties."""

    topics: list[Topic]
    train: list[Doc]
    held_out: list[Doc]

    def select_topics(self, kind: str) -> list[Topic]:
        """Return the topics of one kind."""
        return [topic for topic in self.topics if topic.kind == kind]

    def make_qrels(self) -> pd.DataFrame:
        """Return the relevance judgements of the held-out documents."""
        relevant = [(t.qid, d.docno, 1) for t in self.topics for d in self.held_out if t.is_relevant(d.has)]
        return pd.DataFrame(relevant, columns=["qid", "docno", "label"])


def build_world(seed: int = 0, held_out: float = 0.25) -> World:
    """Build a document for each of the 256 combinations of properties, and 64 topics.

    Args:
        seed: Random seed of the texts and of the held-out documents.
        held_out: Share of documents that are held out.
    """
    rng = random.Random(seed)
    docs = []
    for number, has in enumerate(itertools.product((0, 1), repeat=len(PROPERTIES))):
        words = [name if is_present else f"non-{name}" for name, is_present in zip(PROPERTIES, has, strict=True)]
        rng.shuffle(words)
        docs.append(Doc(f"d{number}", has, " ".join(words)))
    rng.shuffle(docs)
    pairs = list(itertools.combinations(range(len(PROPERTIES)), 2))
    needs = [(KINDS[0], (i,)) for i in range(len(PROPERTIES))] + [(kind, pair) for kind in KINDS[1:] for pair in pairs]
    topics = [Topic(f"q{number}", kind, properties) for number, (kind, properties) in enumerate(needs)]
    cut = round(len(docs) * held_out)
    return World(topics, docs[cut:], docs[:cut])


def make_tokenizer() -> Any:
    """Make a tokenizer that knows every word of the world."""
    words = ["[PAD]", "[UNK]", "both", "either", *PROPERTIES, *(f"non-{name}" for name in PROPERTIES)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )


def make_encoder(model: str, dimension: int, vocab_size: int, seed: int = 0) -> HypencoderDualEncoder:
    """Make a dual encoder with random weights. Both kinds of model use the same transformer with one layer.

    Args:
        model: One of ``MODELS``.
        dimension: Dimensions of the document vectors and width of the transformer; a multiple of 4.
        vocab_size: Number of words.
        seed: Random seed of the weights.
    """
    backbone = {
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": dimension,
        "num_hidden_layers": 1,
        # Small heads find pairs of words early. A wide head attends to one word at first.
        "num_attention_heads": dimension // 4,
        "intermediate_size": 256,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,  # the usual 0.02 suits wide layers
    }
    query: dict[str, Any] = {"pooling_type": "mean"}
    if model == "Hypencoder":
        qnet = {"vector_dimensions": [dimension, 64, 1], "activation_type": "gelu", "do_layer_norm": False}
        query = {
            "base_encoder_output_dim": dimension,
            "head_init": "dense",  # the released initialization suits vectors with 768 dimensions
            "converter_kwargs": qnet | {"do_residual": False},
        }
    config = DualEncoderConfig(
        "HypencoderDualEncoder" if model == "Hypencoder" else "TextDualEncoder",
        query_encoder_kwargs=query,
        passage_encoder_kwargs={"pooling_type": "mean"},
        extra={"backbone_configs": {"query": backbone, "passage": backbone}},
    )
    return checkpoint.build(config, seed=seed)


def write_rows(world: World, path: Path, seed: int = 0) -> None:
    """Write training rows: a topic with a relevant document and random other documents.

    Some of the other documents are relevant too. The teacher's scores say so, so training does not push them down.
    """
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as out:
        for topic in world.topics * ROWS_PER_TOPIC:
            positive = rng.choice([doc for doc in world.train if topic.is_relevant(doc.has)])
            others = rng.sample([doc for doc in world.train if doc is not positive], ITEMS_PER_ROW - 1)
            items = [
                {"id": doc.docno, "content": doc.text, "score": MARGIN * topic.is_relevant(doc.has)}
                for doc in [positive, *others]
            ]
            out.write(json.dumps({"query": {"id": topic.qid, "content": topic.query}, "items": items}) + "\n")


def train_model(
    model: str, world: World, folder: Path, *, dimension: int = DIMENSION, steps: int = STEPS, seed: int = 0
) -> Hypencoder | BiEncoder:
    """Train a model from scratch. Only the q-nets differ between the two kinds.

    Args:
        model: One of ``MODELS``.
        world: Topics and documents.
        folder: Folder for training rows and checkpoints. It must not exist.
        dimension: Dimensions of the document vectors.
        steps: Optimizer steps.
        seed: Random seed of weights, rows and their order.
    """
    folder.mkdir(parents=True)
    write_rows(world, folder / "rows.jsonl", seed)
    tokenizer = make_tokenizer()
    trainer = HypencoderTrainer(
        make_encoder(model, dimension, len(tokenizer), seed),
        folder / "checkpoints",
        tokenizer=tokenizer,
        losses=["kl"],
        batch_size=64,
        max_steps=steps,
        learning_rate=6e-3,
        warmup_steps=steps // 20,
        lr_scheduler_type="linear",
        seed=seed,
        arguments={"use_cpu": True, "logging_strategy": "no"},  # the model is too small to benefit from a GPU
    )
    rows = TrainingRows(folder / "rows.jsonl", RowSampler(negatives_per_row=ITEMS_PER_ROW - 1))
    path = trainer.fit(rows, Collator(tokenizer))
    encoder_class = Hypencoder if model == "Hypencoder" else BiEncoder
    return encoder_class(str(path), device="cpu", dtype="fp32")


def evaluate(trained: dict[str, Hypencoder | BiEncoder], world: World, folder: Path) -> pd.DataFrame:
    """Measure R-Precision on held-out documents, with a row per kind of topic and a column per model.

    P@10 would be too easy. Documents with exactly one of two properties include many with the same one, and ten of them fill
    the first ranks.
    """
    docs = [{"docno": doc.docno, "text": doc.text} for doc in world.held_out]
    retrievers = []
    for number, model in enumerate(trained.values()):
        index = HypencoderIndexer(folder / f"{number}.hyp", model).index(docs)
        retrievers.append(index.retriever(model, num_results=len(docs)))
    topics = pd.DataFrame({"qid": [t.qid for t in world.topics], "query": [t.query for t in world.topics]})
    table = pt.Experiment(retrievers, topics, world.make_qrels(), [Rprec], names=list(trained), perquery=True)
    table["topics"] = table["qid"].map({topic.qid: topic.kind for topic in world.topics})
    means = table.pivot_table(values="value", index="topics", columns="name", aggfunc="mean")
    return means.loc[list(KINDS), list(trained)].rename_axis(columns=None)


def fit_inner_products(world: World, dimension: int, *, steps: int = 1000, seed: int = 0) -> dict[str, float]:
    """Fit vectors to the judgements of all documents without any encoder, and measure R-Precision by kind of topic.

    The vectors need not be computed from words or generalize to new documents. So errors that remain are due to the inner
    product with so few dimensions, if gradient descent finds the best vectors.

    Args:
        world: Topics and documents, including those that are held out.
        dimension: Dimensions of the vectors.
        steps: Optimizer steps.
        seed: Random seed of the initial vectors.
    """
    docs = world.train + world.held_out
    relevant = torch.tensor([[float(topic.is_relevant(doc.has)) for doc in docs] for topic in world.topics])  # (Q, N)
    target = relevant / relevant.sum(1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    queries, vectors = (torch.randn(n, dimension, generator=generator).mul_(0.5).requires_grad_() for n in relevant.shape)
    optimizer = torch.optim.Adam([queries, vectors], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        loss = -(target * (queries @ vectors.T).log_softmax(1)).sum(1).mean()  # listwise cross-entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    scores = (queries @ vectors.T).detach()
    ranked = relevant.gather(1, scores.argsort(dim=1, descending=True))
    rprec = pd.Series([row[: int(row.sum())].mean().item() for row in ranked])
    return rprec.groupby([topic.kind for topic in world.topics]).mean().to_dict()


def print_table(title: str, table: pd.DataFrame) -> None:
    """Print a table of R-Precision."""
    print(f"\n{title}: R-Precision")
    print(table.to_string(float_format=lambda value: f"{value:.3f}", na_rep=""), flush=True)


def print_sweep(world: World, folder: Path, seed: int) -> None:
    """Train bi-encoders with several dimensions and print their R-Precision."""
    columns = {}
    for dimension in TRAINED_DIMENSIONS:
        path = folder / f"sweep-{dimension}"
        model = train_model("bi-encoder", world, path, dimension=dimension, steps=SWEEP_STEPS, seed=seed)
        columns[dimension] = evaluate({"bi-encoder": model}, world, path)["bi-encoder"]
    table = pd.DataFrame(columns).T.rename_axis("dimension")
    print_table(f"Bi-encoders by dimension, {SWEEP_STEPS} steps, held-out documents", table)


def main() -> None:
    """Fit, train and evaluate as the command line asks."""
    parser = argparse.ArgumentParser(description="Rank documents with exactly one of two properties.")
    parser.add_argument("--dimension", type=int, default=DIMENSION, help=f"a multiple of 4 (default {DIMENSION})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps (default {STEPS})")
    parser.add_argument("--seed", type=int, default=0, help="seed of documents, weights and training (default 0)")
    parser.add_argument("--sweep", action="store_true", help="also train bi-encoders with several dimensions")
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads do not speed up matrices this small

    world = build_world(options.seed)
    n_train, n_held_out, n_pairs = len(world.train), len(world.held_out), len(world.select_topics(KINDS[-1]))
    print(f"{n_train} training documents, {n_held_out} held-out documents; {len(world.topics)} topics, {n_pairs} pairs")
    fitted = pd.DataFrame({dimension: fit_inner_products(world, dimension) for dimension in FITTED_DIMENSIONS})
    print_table(
        f"Inner products fitted to the judgements of all {n_train + n_held_out} documents",
        fitted.T[list(KINDS)].rename_axis("dimension"),
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder, trained = Path(temporary), {}
        print(flush=True)
        for name in MODELS:
            start = time.perf_counter()
            trained[name] = train_model(
                name, world, folder / name, dimension=options.dimension, steps=options.steps, seed=options.seed
            )
            seconds = time.perf_counter() - start
            print(f"{name} with {options.dimension} dimensions: trained in {seconds:.0f} s", flush=True)
        print_table("Held-out documents", evaluate(trained, world, folder))
        if options.sweep:
            print_sweep(world, folder, options.seed)


if __name__ == "__main__":
    main()
