"""Measure steps per second and peak memory of training the paper's recipe at full size.

    python benchmarks/training.py                    # two rows per step, on a CPU
    python benchmarks/training.py --batch-size 64    # the paper's batch size, on a GPU

The model has the shape of BERT-base with random weights, and q-nets with 6 hidden layers of 768 units. A row has a query of 32
tokens and 9 documents of 196 tokens. Training uses bf16 and both losses of the paper.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pyterrier_hypencoder import HypencoderTrainer
from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.checkpoint_config import DualEncoderConfig
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.training_rows import TrainingRows

QUERY_LENGTH, DOC_LENGTH, ITEMS_PER_ROW, VOCAB_SIZE = 32, 196, 9, 30522


def make_config(n_layers: int) -> DualEncoderConfig:
    """Return the configuration of the released models: one BERT-base, and q-nets with layers of 768 units."""
    backbone = {"model_name_or_path": "google-bert/bert-base-uncased"}
    return DualEncoderConfig(
        query_encoder_kwargs={**backbone, "converter_kwargs": {"vector_dimensions": [768] * (n_layers + 1) + [1]}},
        passage_encoder_kwargs=dict(backbone),
        shared_encoder=True,
    )


def write_rows(path: Path, n_rows: int) -> None:
    """Write rows of random tokens with random teacher scores."""
    rng = np.random.default_rng(0)

    def draw_tokens(length: int) -> list[int]:
        return rng.integers(1000, VOCAB_SIZE, length).tolist()

    with open(path, "w") as out:
        for _ in range(n_rows):
            items = [
                {"tokenized_content": draw_tokens(DOC_LENGTH), "score": float(rng.normal())} for _ in range(ITEMS_PER_ROW)
            ]
            out.write(json.dumps({"query": {"tokenized_content": draw_tokens(QUERY_LENGTH)}, "items": items}) + "\n")


def main() -> None:
    """Train for the number of steps that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.jsonl", options.batch_size * min(options.steps, 10))
        trainer = HypencoderTrainer(
            checkpoint.build(make_config(options.layers)),
            Path(folder) / "out",
            losses=["margin_mse", "in_batch_ce"],
            batch_size=options.batch_size,
            max_steps=options.steps,
            warmup_steps=options.steps,
            arguments={
                "bf16": True,
                "save_strategy": "no",
                **({"gradient_checkpointing": True} if options.gradient_checkpointing else {}),
            },
        )
        start = time.perf_counter()
        sampler = RowSampler(positive="top", negatives_per_row=ITEMS_PER_ROW - 1, content="tokens")
        trainer.fit(TrainingRows(Path(folder) / "rows.jsonl", sampler), Collator())
        seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(options)
    print(f"{options.steps / seconds:.3f} steps/s ({seconds:.0f} s including start and saving)")
    print(f"peak memory {memory:.1f} GiB")
    if torch.cuda.is_available():
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()
