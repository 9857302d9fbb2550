"""Worker processes with a time limit: a crash or a hang of one item is an outcome, and the others go on."""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any

from file_calls import use_one_thread
from outcomes import OTHER, Outcome
from processes import PROCESSES

TIME_LIMIT = 20.0
"""Seconds after which an item counts as a hang."""
_MAX_DATA = 6 * 2**30  # bytes of memory without files that a worker may use, so a bomb cannot take the machine down


def run_all(
    function: Callable[..., Any],
    items: Iterable[Any],
    *args: Any,
    n_workers: int | None = None,
    seconds: float = TIME_LIMIT,
) -> Iterator[tuple[Any, Any]]:
    """Yield every item with the result of a function in a worker process, in the order in which they finish.

    Args:
        function: Takes an item and the arguments. It must not raise.
        items: The items.
        *args: Further arguments of the function; ``workplace`` is appended, a number that no other worker has.
        n_workers: Number of processes; None for the number of cores.
        seconds: Time limit of an item.

    Yields:
        The item and its result, or an :class:`Outcome` of class ``other`` if the worker crashed or took too long.
    """
    queue = iter(items)
    workers = [_Worker(number, function, args) for number in range(n_workers or os.cpu_count() or 1)]
    try:
        busy = {worker for worker in workers if worker.take(queue)}
        while busy:
            ready = wait([worker.pipe for worker in busy], timeout=0.2)
            for worker in list(busy):
                outcome = None
                if worker.pipe in ready:
                    outcome = worker.receive()
                elif time.monotonic() > worker.started + seconds:
                    outcome = Outcome(OTHER, f"hangs: no result after {seconds:.0f} seconds")
                    worker.restart()
                if outcome is not None:
                    yield worker.item, outcome
                    if not worker.take(queue):
                        busy.discard(worker)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    def __init__(self, number: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._call = (number, function, args)
        self.item: Any = None
        self.started = 0.0
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = PROCESSES.Pipe()
        self._process = PROCESSES.Process(target=_work, args=(theirs, *self._call), daemon=True)
        self._process.start()
        theirs.close()
        self.pipe.recv()  # it has imported everything

    def take(self, queue: Iterator[Any]) -> bool:
        """Give the worker the next item; return False if there is none."""
        for item in queue:
            self.item, self.started = item, time.monotonic()
            self.pipe.send(item)
            return True
        return False

    def receive(self) -> Any:
        """Return the result of the item."""
        try:
            return self.pipe.recv()
        except EOFError:
            self._process.join()
            outcome = Outcome(OTHER, f"crashes: the process ended with {self._process.exitcode}")
            self._start()
            return outcome

    def restart(self) -> None:
        """Kill the worker and start another one."""
        self.stop()
        self._start()

    def stop(self) -> None:
        """Kill the worker."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _work(pipe: Any, number: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    use_one_thread()
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    pipe.send(None)
    while True:
        pipe.send(function(pipe.recv(), *args, number))


def limit_memory(more: int) -> None:
    """Limit the addresses of this process to those in use and some more bytes."""
    with open("/proc/self/statm") as numbers:
        pages = int(numbers.read().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
