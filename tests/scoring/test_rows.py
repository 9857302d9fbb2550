"""Rows of arrays: shared memory with memory maps, and rows by docid."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from pretend_cuda import CUDA, pretend_cuda

from pyterrier_hypencoder import QNets, QNetSpec, scoring
from pyterrier_hypencoder.scoring.rows import as_tensor, take_rows

SPEC = QNetSpec((8, 8, 1))


@pytest.fixture
def memory_map(tmp_path):
    """A read-only memory map (50, 8) and its file."""
    file = tmp_path / "vectors"
    np.random.default_rng(0).normal(size=(50, 8)).astype(np.float16).tofile(file)
    return np.memmap(file, np.float16, "r", shape=(50, 8)), file


@pytest.fixture
def always_warn():
    """Let torch repeat warnings that it otherwise gives once per process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.filterwarnings("error")
def test_as_tensor_shares_read_only_memory_without_a_warning(memory_map, always_warn):
    rows, _ = memory_map
    with pytest.raises(UserWarning, match="not writable"):
        torch.from_numpy(rows)  # the warning that as_tensor avoids
    for part in (rows, rows[3:7], rows[:, ::2], rows[:0], np.asarray(rows), np.broadcast_to(rows[0], (4, 8))):
        found = as_tensor(part)
        assert found.dtype == torch.float16 and found.shape == part.shape
        np.testing.assert_array_equal(found.numpy(), part)
        assert not len(part) or found.data_ptr() == part.__array_interface__["data"][0]
    assert not rows.flags.writeable


def test_as_tensor_keeps_a_memory_map_open(memory_map):
    _, file = memory_map
    found = as_tensor(np.memmap(file, np.float16, "r", shape=(50, 8)))
    gc.collect()
    np.testing.assert_array_equal(found.numpy(), np.fromfile(file, np.float16).reshape(50, 8))


def test_as_tensor_of_writable_arrays_and_tensors():
    array = np.zeros((3, 2), np.float32)
    as_tensor(array)[1, 1] = 5.0
    assert array[1, 1] == 5.0
    tensor = torch.zeros(3, 2)
    assert as_tensor(tensor) is tensor


def test_scoring_a_memory_map_leaves_the_file_unchanged(memory_map):
    rows, file = memory_map
    before = file.read_bytes()
    nets = QNets.unflatten(torch.randn(2, SPEC.size, generator=torch.Generator().manual_seed(0)), SPEC)
    for precision in ("fp32", "bf16"):
        scoring.make_scorer(nets, device="cpu", precision=precision)(as_tensor(rows))
    assert file.read_bytes() == before


@pytest.mark.parametrize("dtype", [np.uint32, np.uint16, np.int64])
def test_take_rows_of_integers_gives_int64(dtype):
    rows = np.arange(12, dtype=dtype).reshape(4, 3)
    found = take_rows(rows, torch.tensor([3, 0, 3]))
    assert found.dtype == torch.int64 and found.tolist() == [[9, 10, 11], [0, 1, 2], [9, 10, 11]]


def test_take_rows_of_memory_maps_and_tensors_are_equal(memory_map):
    rows, _ = memory_map
    docids = torch.tensor([[49, 0], [7, 7]])
    assert torch.equal(take_rows(rows, docids), take_rows(as_tensor(rows), docids))
    assert take_rows(rows, docids).shape == (2, 2, 8)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_take_rows_of_integer_tensors_gives_int64(dtype):
    found = take_rows(torch.arange(12).to(dtype).reshape(4, 3), torch.tensor([3, 0]))
    assert found.dtype == torch.int64 and found.tolist() == [[9, 10, 11], [0, 1, 2]]


def test_take_rows_accepts_docids_on_another_device(memory_map):
    rows, _ = memory_map
    docids = torch.tensor([4, 1])
    with pretend_cuda():
        on_disk, resident = take_rows(rows, docids.to(CUDA)), take_rows(as_tensor(rows).to(CUDA), docids)
        assert on_disk.device.type == "cpu" and resident.device == CUDA
        assert torch.equal(on_disk, resident.cpu()) and on_disk.tolist() == rows[[4, 1]].tolist()
