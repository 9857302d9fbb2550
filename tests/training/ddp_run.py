"""One process of a distributed training run; started by ``torchrun`` in tests/test_training_options.py.

With plain gradient descent, as Adam makes steps of a gradient that is zero but for rounding.
"""

import json
import sys
from pathlib import Path

import torch

from pyterrier_hypencoder.encoders import checkpoint, hub
from pyterrier_hypencoder.training.collator import Collator
from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.trainer import HypencoderTrainer
from pyterrier_hypencoder.training.training_rows import TrainingRows

torch.set_num_threads(1)
options = json.loads(sys.argv[1])
encoder, _ = checkpoint.load(options["start"])
trainer = HypencoderTrainer(
    encoder,
    options["out"],
    tokenizer=hub.load_tokenizer(options["start"], None),
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
asked = Path(options["out"] + ".asked")


def validate(folder: Path) -> dict[str, float]:
    """Counts how often a process is asked."""
    with open(asked, "a") as out:
        out.write("x")
    return {"Rprec": 0.5}


rows = TrainingRows(options["rows"], RowSampler(negatives_per_row=3), shuffle_buffer=0)
trainer.fit(rows, Collator(trainer.tokenizer), validate=validate)
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
