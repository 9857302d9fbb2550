"""A network on one or several devices, which share the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from ..options import list_items
from ..scoring import resolve_device

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def resolve_devices(device: str | Sequence[str]) -> list[torch.device]:
    """Return the torch devices of the option ``device``.

    Raises:
        ValueError: If a device is unknown or missing on this machine, or if the list is empty.
    """
    names = [device] if isinstance(device, str | torch.device) else list_items("device", device, str, "devices")
    if not names:
        raise ValueError("device must name at least one device, got an empty list.")
    return [resolve_device(name) for name in names]


class Replicas:
    """Copies of a network, one per device. A device that is listed several times runs several batches of one copy at once.

    Args:
        network: The network, on the first device.
        devices: The devices.
    """

    def __init__(self, network: Any, devices: Sequence[torch.device]) -> None:
        copies = {devices[0]: network}
        for device in devices:
            if device not in copies:
                copies[device] = deepcopy(network).to(device)
        self.networks = [copies[device] for device in devices]

    def map(self, run: Callable[[Any, Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
        """Yield the results of batches in their order. Several devices read all batches first.

        Args:
            run: Function of a network and a batch.
            batches: The batches.
        """
        if len(self.networks) == 1:
            yield from (run(self.networks[0], batch) for batch in batches)
            return
        free: SimpleQueue[Any] = SimpleQueue()
        for network in self.networks:
            free.put(network)

        def run_on_free_network(batch: Batch) -> Result:
            network = free.get()
            try:
                return run(network, batch)
            finally:
                free.put(network)

        with ThreadPoolExecutor(len(self.networks)) as pool:
            yield from pool.map(run_on_free_network, batches)
