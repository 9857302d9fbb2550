"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from pyterrier_hypencoder.scoring import choose_search_device, has_native_bf16, resolve_device


@pytest.mark.parametrize(
    "device", ["tpu", "gpu", "CPU", "Cuda", "meta", "cuda:-1", "cpu:x", "", 0, 3.5, None, torch.device("meta")]
)
def test_unknown_device_raises_value_error(device):
    with pytest.raises(ValueError, match=r"device must be 'auto', 'cpu' or 'cuda\[:n\]' \(on a Mac also 'mps'\), got"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["cuda:77", torch.device("cuda:77")])
def test_missing_cuda_device_raises_value_error(device):
    with pytest.raises(ValueError, match=r"'cuda:77' is not available: this machine has \d+ CUDA devices"):
        resolve_device(device)


def test_missing_mps_device_raises_value_error(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'mps' is not available: this machine has 0 MPS devices. Use device='auto'"):
        resolve_device("mps")


def test_mps_is_accepted_but_never_chosen(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps").type == resolve_device(torch.device("mps")).type == "mps"
    with pytest.raises(ValueError, match="this machine has 1 MPS devices"):
        resolve_device("mps:1")
    assert resolve_device("auto").type != "mps"


def test_auto_takes_a_gpu_if_there_is_one():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_names_and_torch_devices_are_accepted(device):
    assert resolve_device(device) == torch.device("cpu")


def test_searches_keep_their_candidates_on_the_cpu_if_scores_come_from_mps():
    assert choose_search_device(None) == choose_search_device(torch.device("mps")) == torch.device("cpu")
    assert choose_search_device(torch.device("cuda:1")) == torch.device("cuda:1")


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_native_bf16_of_gpus_follows_the_compute_capability(capability, native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_native_bf16(torch.device("cuda:1")) == native


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True), (None, True), (None, None)])
def test_native_bf16_of_cpus_follows_their_instructions(avx512, amx, monkeypatch):
    """The probes are private functions of torch, so they may be missing."""
    for name, found in (("_is_avx512_bf16_supported", avx512), ("_is_amx_tile_supported", amx)):
        if found is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda found=found: found, raising=False)
    assert has_native_bf16(torch.device("cpu")) == bool(avx512 or amx)
    assert not has_native_bf16(torch.device("mps"))
