"""How fast documents are encoded: sorted by length, in fp32 and bf16, against batches in the given order, in one run.

    python benchmarks/encoding.py [--model NAME_OR_PATH] [--documents 512] [--batch-size 32]

Without a model it takes a BERT-base with random weights, whose speed is that of a trained one. The texts are made: lengths
follow a log-normal distribution with a median of 60 words, as passages do.
"""

import argparse
import tempfile
import time

import numpy as np

from pyterrier_hypencoder import BiEncoder


def random_bert(folder: str) -> str:
    """Saves a BERT-base with random weights and a small vocabulary."""
    from pathlib import Path

    from transformers import BertConfig, BertModel, BertTokenizerFast

    (Path(folder) / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "word", "of"]))
    BertModel(BertConfig(vocab_size=8)).save_pretrained(folder)
    BertTokenizerFast(str(Path(folder) / "vocab.txt")).save_pretrained(folder)
    return folder


def main() -> None:
    """Runs the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="directory or hub id of an encoder")
    parser.add_argument("--documents", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    lengths = np.random.default_rng(0).lognormal(np.log(60), 0.6, options.documents).astype(int).clip(1, 400)
    texts = [" ".join(["the word of"] * (n // 3 + 1)) for n in lengths]
    with tempfile.TemporaryDirectory() as folder:
        name = options.model or random_bert(folder)
        speed = {}
        for label, dtype, sort in (("given order, fp32", "fp32", False), ("fp32", "fp32", True), ("bf16", "bf16", True)):
            model = BiEncoder(name, dtype=dtype, batch_size=options.batch_size)
            model.encode_docs(texts[:8])
            start = time.perf_counter()
            if sort:
                model.encode_docs(texts)
            else:
                for first in range(0, len(texts), options.batch_size):
                    model.encode_docs(texts[first : first + options.batch_size])
            speed[label] = len(texts) / (time.perf_counter() - start)
    print(options)
    for label, documents in speed.items():
        print(f"{label:24} {documents:8.2f} documents/s {documents / speed['given order, fp32']:6.2f}x")


if __name__ == "__main__":
    main()
