"""Run one process of a distributed training; tests/training/test_distributed.py starts it with ``torchrun``.

The optimiser is plain gradient descent. Adam would turn gradients that are zero but for rounding into full steps.
"""

import json
import sys
from pathlib import Path

import torch

from pyterrier_hypencoder.encoders import checkpoint
from pyterrier_hypencoder.encoders.tokenizer_files import load_tokenizer
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.trainer import HypencoderTrainer
from pyterrier_hypencoder.training.training_rows import TrainingRows


def main(options: dict) -> None:
    """Train for three steps with a validation in between."""
    torch.set_num_threads(1)
    encoder, _ = checkpoint.load(options["model"])
    trainer = HypencoderTrainer(
        encoder,
        options["output_dir"],
        tokenizer=load_tokenizer(options["model"], None),
        losses=["margin_mse", "in_batch_ce", "in_batch_ce_all"],
        batch_size=2,
        max_steps=3,
        learning_rate=3e-2,
        arguments={
            "use_cpu": True,
            "optim": "sgd",
            "gradient_accumulation_steps": options["accumulation"],
            "eval_strategy": "steps",
            "eval_steps": 2,
        },
    )
    validations = Path(options["output_dir"] + ".validations")

    def validate(folder: Path) -> dict[str, float]:
        """Record the call in a file, because each process has its own memory."""
        with open(validations, "a") as out:
            out.write("x")
        return {"Rprec": 0.5}

    rows = TrainingRows(options["rows"], RowSampler(negatives_per_row=3), shuffle_buffer=0)
    trainer.fit(rows, Collator(trainer.tokenizer), validate=validate)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
