"""Rows on a GPU: blocks in order, copies that are shared and freed, and rows that do not fit."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from indexes import write_index
from pretend_cuda import CUDA, pretend_cuda

from pyterrier_hypencoder import HypencoderIndex
from pyterrier_hypencoder.scoring import resident
from pyterrier_hypencoder.scoring.resident import ResidentRows, iter_blocks, load_resident, share_resident_rows

CPU = torch.device("cpu")
ROWS = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float16)


@pytest.fixture
def gpu():
    """Pretend to have a GPU; returns what is seen on it."""
    with pretend_cuda() as seen:
        yield seen


@pytest.fixture
def scaled(tmp_path):
    """Return rows in int8, whose values are near those of ROWS."""
    return write_index(tmp_path / "x.hyp", ROWS, dtype="int8").vectors


def join(blocks, step: int) -> torch.Tensor:
    """Return all rows of the blocks, after checking where they start."""
    blocks = list(blocks)
    assert [start for start, _ in blocks] == list(range(0, step * len(blocks), step))
    return torch.cat([block.cpu() for _, block in blocks])


# Blocks


@pytest.mark.parametrize("step", [1, 7, 50, 999])
@pytest.mark.parametrize("kind", ["array", "tensor", "on the GPU"])
@pytest.mark.parametrize("docids", [None, torch.tensor([0, 3, 17, 18, 49])], ids=["all", "some"])
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_blocks_are_all_rows_in_order_on_the_device(gpu, step, kind, docids, device):
    rows = ROWS if kind == "array" else torch.from_numpy(ROWS)
    rows = rows.to(CUDA) if kind == "on the GPU" else rows
    blocks = list(iter_blocks(rows, step, device, docids))
    assert {block.device for _, block in blocks} == {device} and {block.dtype for _, block in blocks} == {torch.float16}
    expected = ROWS if docids is None else ROWS[docids]
    np.testing.assert_array_equal(join(blocks, step).numpy(), expected)


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_no_rows_give_no_blocks(gpu, device):
    assert list(iter_blocks(ROWS[:0], 5, device)) == list(iter_blocks(ROWS, 5, device, torch.tensor([], dtype=int))) == []


def test_blocks_on_the_cpu_share_memory():
    block = next(iter_blocks(ROWS, 10, CPU))[1]
    assert block.data_ptr() == ROWS.__array_interface__["data"][0]


def test_blocks_of_resident_rows_move_nothing_and_do_not_wait(gpu):
    rows = torch.from_numpy(ROWS).to(CUDA)
    gpu.clear()
    list(iter_blocks(rows, 7, CUDA))
    assert gpu.bytes_to_cuda == gpu.synchronisations == 0


def test_streamed_blocks_move_as_they_are_stored(gpu, scaled):
    list(iter_blocks(ROWS, 7, CUDA))
    assert gpu.bytes_to_cuda == ROWS.nbytes and gpu.synchronisations == 0
    gpu.clear()
    found = join(iter_blocks(scaled, 7, CUDA), 7)
    assert gpu.bytes_to_cuda == ROWS.size + 2 * 8 * 4  # one byte per number, and the scales
    np.testing.assert_array_equal(found.numpy(), scaled[:])


def test_streamed_rows_of_some_docids_in_int8_keep_their_values(gpu, scaled):
    found = join(iter_blocks(scaled, 2, CUDA, torch.tensor([1, 2, 30])), 2)
    np.testing.assert_array_equal(found.numpy(), scaled[np.array([1, 2, 30])])


# Copies


def test_copies_keep_the_stored_dtype(gpu, scaled):
    edges = np.arange(12, dtype=np.uint32).reshape(4, 3)
    for rows, dtype in ((ROWS, torch.float16), (ROWS.astype(np.float32), torch.float32), (edges, torch.int32)):
        found = load_resident(rows, CUDA)
        assert found.device == CUDA and found.dtype == dtype
        np.testing.assert_array_equal(found.cpu().numpy(), rows)
    assert load_resident(found, CUDA) is found
    found = load_resident(scaled, CUDA)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.cpu().numpy(), scaled[:])


def test_copies_are_made_block_by_block(gpu, monkeypatch):
    monkeypatch.setattr(resident, "_LOADED_BYTES", 7 * 16)
    np.testing.assert_array_equal(load_resident(ROWS, CUDA).cpu().numpy(), ROWS)


def test_rows_are_copied_only_if_they_fit_beside_the_reserve(gpu):
    gpu.free_bytes = resident.RESERVE_BYTES + ROWS.nbytes
    assert load_resident(ROWS, CUDA) is not None
    gpu.free_bytes -= 1
    assert load_resident(ROWS, CUDA) is None


def test_memory_that_another_program_takes_first_is_no_error(gpu, monkeypatch):
    def fail(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(resident, "iter_blocks", fail)
    assert load_resident(ROWS, CUDA) is None


def test_other_devices_have_no_copies():
    assert load_resident(ROWS, CPU) is None and load_resident(ROWS, torch.device("mps")) is None
    assert ResidentRows("x.hyp", 1).get("vectors", ROWS, CPU) is ROWS


# Sharing


def test_readers_of_one_state_share_copies_until_the_index_is_replaced(gpu, tmp_path):
    path = tmp_path / "x.hyp"
    (tmp_path / "link.hyp").symlink_to(path)
    shared = share_resident_rows(path, 1)
    copy = shared.get("vectors", ROWS, CUDA)
    assert share_resident_rows(tmp_path / "link.hyp", 1).get("vectors", ROWS, torch.device("cuda")) is copy
    assert share_resident_rows(tmp_path / "y.hyp", 1) is not shared
    held = weakref.ref(copy)
    del copy
    assert share_resident_rows(path, 2) is not shared
    gc.collect()
    assert held() is None


def test_threads_copy_rows_once(gpu, monkeypatch):
    loads = []
    monkeypatch.setattr(resident, "load_resident", lambda rows, device: loads.append(1) or torch.zeros(1))
    shared = ResidentRows("x.hyp", 1)
    threads = [threading.Thread(target=shared.get, args=("vectors", ROWS, torch.device("cuda:0"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1


def test_graph_is_copied_as_int32_and_shared(gpu, tmp_path):
    write_index(tmp_path / "x.hyp", ROWS)
    index = HypencoderIndex(tmp_path / "x.hyp")
    graph = index.corpus_graph(4)
    edges = graph.get_edges(CUDA)
    assert edges.dtype == torch.int32
    np.testing.assert_array_equal(edges.cpu().numpy(), graph.edges_data)
    assert HypencoderIndex(index.path).corpus_graph(4).get_edges(CUDA) is edges
    assert graph.get_edges(CPU) is graph.edges
    assert graph.to_limit_k(2).get_edges(CUDA).shape == (50, 2)
