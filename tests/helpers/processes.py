"""Child processes for tests: they start with one thread and import the package once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")  # the server imports once; every child is forked from it
PROCESSES.set_forkserver_preload(["pyterrier_hypencoder.transformers.indexer", "transformers.models.bert.modeling_bert"])


def run_in_child(function: Callable[..., Any], *args: Any, seconds: float = 300.0) -> Any:
    """Run a function in a new process; return its result or raise its exception.

    Args:
        function: The function.
        *args: Its arguments.
        seconds: Time limit.
    """
    with ProcessPoolExecutor(1, mp_context=PROCESSES) as pool:
        return pool.submit(function, *args).result(timeout=seconds)
