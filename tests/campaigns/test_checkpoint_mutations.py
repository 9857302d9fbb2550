"""Damage of every file of a checkpoint: vectors and q-nets are right, or there is a clear error."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from mutations import Mutation, list_mutations, mutate
from outcomes import OTHER, RIGHT, UNCHECKABLE, Outcome, judge_error
from small_checkpoints import SAVERS, encode, save
from workers import run_all

_EXPECTED: dict[str, list[np.ndarray]] = {}


def try_mutation(mutation: Mutation, kind: str, whole: Path, other: Path, worker: int) -> Outcome:
    """Damage a copy of a checkpoint and encode texts with it."""
    folder = whole.with_name(f"damaged-{worker}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    mutate(folder, mutation, other)
    return try_checkpoint(kind, folder, whole, Path(mutation.file).name)


def try_checkpoint(kind: str, folder: Path, whole: Path, file: str) -> Outcome:
    if kind not in _EXPECTED:
        _EXPECTED[kind] = encode(kind, whole)
    expected = _EXPECTED[kind]
    try:
        found = encode(kind, folder)
    except Exception as err:
        return judge_error(err, (file, str(folder)))
    if not all(np.isfinite(array).all() for array in found):
        return Outcome(OTHER, "NaN or infinity without an error")
    if all(a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, expected, strict=True)):
        return Outcome(RIGHT)
    return Outcome(OTHER if SAVERS[kind][2] else UNCHECKABLE, "other vectors or q-nets without an error")


@pytest.mark.parametrize("kind", SAVERS)
def test_damaged_checkpoint_encodes_rightly_or_with_a_clear_error(tmp_path, open_table, campaign_size, kind):
    whole, other = save(kind, tmp_path / "whole"), save(kind, tmp_path / "other", seed=1)
    number, seed = campaign_size(260, 36), list(SAVERS).index(kind)
    table = open_table(f"damaged checkpoint, {kind}")
    for mutation, outcome in run_all(try_mutation, list_mutations(whole, number, seed), kind, whole, other):
        table.add(mutation.file, outcome, str(mutation))
    table.check(at_least=number)


@pytest.mark.parametrize("kind", SAVERS)
def test_undamaged_checkpoint_is_right_and_another_one_is_not(tmp_path, kind):
    whole, other = save(kind, tmp_path / "whole"), save(kind, tmp_path / "other", seed=1)
    assert try_checkpoint(kind, whole, whole, "").kind == RIGHT
    assert try_checkpoint(kind, other, whole, "").kind != RIGHT
    _EXPECTED.clear()
