"""Damage of every file of an index: each answer is right or a clear error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mutations import Mutation, list_mutations, mutate
from outcomes import CLEAR, OTHER, RIGHT, UNCHECKABLE, Outcome, find_worst, judge_error
from searched_index import USES, answer, build_index, is_same_answer, remove_checksums
from workers import run_all

from pyterrier_hypencoder import HypencoderIndex

_EXPECTED: dict[tuple[Path, str], Any] = {}


def try_mutation(mutation: Mutation, whole: Path, other: Path, worker: int) -> Outcome:
    """Damage a copy of an index, use it in every way, and return the worst outcome."""
    path = whole.with_name(f"damaged-{worker}") / "x.hyp"
    shutil.rmtree(path.parent, ignore_errors=True)
    shutil.copytree(whole, path, symlinks=True)
    mutate(path, mutation, other)
    names = (Path(mutation.file).name, str(path))
    outcomes = [try_use(path, use, whole, names) for use in USES]
    return find_worst([*outcomes, try_verify(path, mutation, whole, names)])


def try_use(path: Path, use: str, whole: Path, names: tuple[str, str]) -> Outcome:
    if (whole, use) not in _EXPECTED:
        _EXPECTED[whole, use] = answer(whole, use)
    expected = _EXPECTED[whole, use]
    try:
        found = answer(path, use)
    except Exception as err:
        kind, detail = judge_error(err, (*names, "document 'doc-"))
        return Outcome(kind, f"{use}: {detail}")
    if is_same_answer(found, expected):
        return Outcome(RIGHT)
    has_checksums = "checksums" in json.loads((whole / "pt_meta.json").read_text())
    is_lost = len(found) != len(expected)
    return Outcome(OTHER if has_checksums or is_lost else UNCHECKABLE, f"{use}: {'lost documents' if is_lost else 'wrong'}")


def try_verify(path: Path, mutation: Mutation, whole: Path, names: tuple[str, str]) -> Outcome:
    """Check that index.verify() notices every change of a file that has a checksum."""
    try:
        HypencoderIndex(path, verify=True)
    except Exception as err:
        kind, detail = judge_error(err, (*names, "document 'doc-"))
        return Outcome(kind, f"verify: {detail}")
    if need_not_be_noticed(mutation.file, whole) or is_same_content(path / mutation.file, whole / mutation.file):
        return Outcome(RIGHT)
    return Outcome(OTHER, "verify noticed nothing")


def need_not_be_noticed(file: str, whole: Path) -> bool:
    """Return True for indexes without checksums, and for facts whose damage means that there is no inner-product index."""
    return "checksums" not in json.loads((whole / "pt_meta.json").read_text()) or file.startswith("inner_product.json")


def is_same_content(file: Path, whole: Path) -> bool:
    """Return True if two files say the same. Metadata may lack their own checksum, so that people can edit them."""
    if not file.is_file():
        return False
    try:
        if file.suffix != ".json":
            return file.read_bytes() == whole.read_bytes()
        found, expected = (json.loads(f.read_text()) for f in (file, whole))
        return isinstance(found, dict) and found | {"checksum": expected.get("checksum")} == expected
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("kind", "full", "short"), [("checksums", 2400, 260), ("checksums, int8", 400, 60), ("no checksums", 400, 60)]
)
def test_damaged_index_answers_rightly_or_with_a_clear_error(tmp_path, open_table, campaign_size, kind, full, short):
    dtype = "int8" if "int8" in kind else "fp16"
    whole, other = (build_index(tmp_path / f"{seed}.hyp", seed, dtype) for seed in (0, 1))
    if kind == "no checksums":
        for path in (whole, other):
            remove_checksums(path)
    number = campaign_size(full, short)
    table = open_table(f"damaged index, {kind}")
    for mutation, outcome in run_all(try_mutation, list_mutations(whole, number), whole, other):
        table.add(mutation.file, outcome, str(mutation))
    table.check(at_least=number)


def test_undamaged_index_is_right(tmp_path):
    whole = build_index(tmp_path / "whole.hyp")
    assert all(try_use(whole, use, whole, ("", "")).kind == RIGHT for use in USES)
    assert try_verify(whole, Mutation("vecs.f2", "nothing", 0), whole, ("", "")).kind == RIGHT


def test_a_wrong_answer_is_found(tmp_path):
    whole, other = build_index(tmp_path / "whole.hyp"), build_index(tmp_path / "other.hyp", seed=1)
    assert {use: try_use(other, use, whole, ("", "")).kind for use in USES} == dict.fromkeys(USES, OTHER) | {
        use: CLEAR for use in ("re-rank", "vec_loader", "corpus_graph")
    }
