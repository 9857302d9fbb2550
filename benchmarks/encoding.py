"""Measure how fast documents are encoded, and how fast queries become q-nets.

    python benchmarks/encoding.py [--model NAME_OR_PATH] [--documents 512] [--batch-size 32] [--queries 32] [--layers 6]

Documents sorted by length, in fp32 and bf16, are compared with documents in the given order. Without ``--model``, the encoder
is a BERT-base with random weights, which is as fast as a trained one. The texts are synthetic. Their lengths follow a
log-normal distribution with a median of 60 words, like passages.

With ``--queries``, queries of 9 words become q-nets in fp32 and bf16, one at a time and in batches. The cosine compares the
bf16 q-nets with those of fp32. The head is untrained: it starts from the encoder, with ``--layers`` hidden layers as wide as
the vectors.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from transformers import BertConfig, BertModel, BertTokenizerFast

from pyterrier_hypencoder import BiEncoder, Hypencoder

BASELINE = "given order, fp32"


def save_random_bert(folder: str) -> str:
    """Save a BERT-base with random weights and a small vocabulary, and return the folder."""
    vocabulary = Path(folder) / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "word", "of"]))
    BertModel(BertConfig(vocab_size=8)).save_pretrained(folder)
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    return folder


def make_texts(number: int) -> list[str]:
    """Make texts with log-normal lengths."""
    lengths = np.random.default_rng(0).lognormal(np.log(60), 0.6, number).astype(int).clip(1, 400)
    return [" ".join(["the word of"] * (length // 3 + 1)) for length in lengths]


def measure_speed(model: BiEncoder, texts: list[str], *, sort: bool) -> float:
    """Return documents per second, with documents sorted by length or in the given order."""
    model.encode_docs(texts[:8])  # warm up
    batch_size = len(texts) if sort else model.batch_size  # the encoder sorts the texts of one call
    start = time.perf_counter()
    for first in range(0, len(texts), batch_size):
        model.encode_docs(texts[first : first + batch_size])
    return len(texts) / (time.perf_counter() - start)


def measure_queries(name: str, n_queries: int, n_layers: int, batch_size: int) -> None:
    """Print the time per query, and the smallest cosine between q-nets in bf16 and in fp32."""
    texts = [" ".join(["the word of"] * 3)] * n_queries
    exact = None
    for dtype in ("fp32", "bf16"):
        dense = BiEncoder(name, dtype=dtype)
        model = Hypencoder.from_dense(dense, hidden=[dense.vec_size] * n_layers)
        for size in (1, batch_size):
            model.batch_size = size
            model.encode_queries(texts[:1])  # warm up
            start = time.perf_counter()
            flat = model.encode_queries(texts).flatten()
            ms = 1000 * (time.perf_counter() - start) / n_queries
            exact = flat if exact is None else exact
            cosine = float(F.cosine_similarity(exact, flat).min())
            print(f"queries, {dtype}, batches of {size:3} {ms:8.1f} ms per query, cosine with fp32 {cosine:.6f}")


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="directory or hub id of an encoder")
    parser.add_argument("--documents", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--queries", type=int, default=0, help="number of queries to turn into q-nets (default 0)")
    parser.add_argument("--layers", type=int, default=6, help="hidden layers of the q-nets (default 6)")
    options = parser.parse_args(arguments)
    texts = make_texts(options.documents)
    speed = {}
    with tempfile.TemporaryDirectory() as folder:
        name = options.model or save_random_bert(folder)
        for label, dtype, sort in ((BASELINE, "fp32", False), ("sorted, fp32", "fp32", True), ("sorted, bf16", "bf16", True)):
            model = BiEncoder(name, dtype=dtype, batch_size=options.batch_size)
            speed[label] = measure_speed(model, texts, sort=sort)
        if options.queries:
            measure_queries(name, options.queries, options.layers, options.batch_size)
    print(options)
    for label, docs_per_second in speed.items():
        print(f"{label:24} {docs_per_second:8.2f} documents/s {docs_per_second / speed[BASELINE]:6.2f}x")


if __name__ == "__main__":
    main()
