"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from pyterrier_hypencoder.scoring import resolve_device


@pytest.mark.parametrize("device", ["tpu", "mps", "gpu", 3.5, None])
def test_unknown_device_raises_value_error(device):
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu' or"):
        resolve_device(device)


def test_missing_cuda_device_raises_value_error():
    with pytest.raises(ValueError, match=r"'cuda:77' is not available: this machine has \d+ CUDA devices"):
        resolve_device("cuda:77")


def test_auto_takes_a_gpu_if_there_is_one():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_names_and_torch_devices_are_accepted(device):
    assert resolve_device(device) == torch.device("cpu")
