"""Training uses the global random state and default device of torch. Put both back when it ends."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def keep_global_state() -> Iterator[None]:
    """Make the CPU the default device of this thread, and restore all random states at the end.

    Hugging Face's Trainer sets the seeds of random, NumPy and torch for the whole process.
    """
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    default = torch.empty(0).device
    with torch.random.fork_rng(devices), torch.device("cpu") if default.type != "cpu" else contextlib.nullcontext():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
