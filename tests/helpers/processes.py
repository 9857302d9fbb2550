"""Child processes that begin the same, with one thread, and import the package once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")  # imports once; every process begins the same, with one thread
PROCESSES.set_forkserver_preload(["pyterrier_hypencoder.transformers.indexer", "transformers.models.bert.modeling_bert"])


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, or raises, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=PROCESSES) as pool:
        return pool.submit(function, *args).result(timeout=300)
