"""Docnos: lookup in both directions for any strings, damaged files, and the detection of duplicates."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pyterrier_hypencoder.index import docnos as docnos_module
from pyterrier_hypencoder.index.docnos import Docnos, DuplicateChecker, write_docnos

COLLECTIONS = {
    "one": ["d1"],
    "one letter": ["a"],
    "one accent": ["é"],
    "growing": ["d" + "x" * length for length in range(300)],
    "shrinking": ["x" * length for length in range(300, 0, -1)],
    "unicode": ["日本", "日曜", "été", "e\u0301te\u0301", "🙂", "🙃", "ß", "ﬀ", "עברית"],
    "first byte shared": ["é", "è"],
    "spaces": [" ", "  ", " a", "a ", "a", "a b", "a\tb", "a\nb", "\u00a0"],
    "quotes": ['"', "\\", "'", "{}", "\u2028", "\x7f", "a/b#c?d=e"],
    "numbers": ["1", "01", "001", "10", "0", "00", "-1", "+1", "1.0", "1e3", "99999999999999999999"],
    "sequence": [str(number) for number in range(5, 405)],
    "padded sequence": [f"{number:05d}" for number in range(300)],
    "prefixes of one another": ["abc"[:length] + "d" * more for length in (1, 2, 3) for more in range(1, 4)] + ["a", "ab"],
    "longest": ["x" * 4096, "y"],
    "hashes": [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(300)],
    **{f"{count} documents": [f"MARCO_{number}" for number in range(count)] for count in (255, 256, 257, 512, 513)},
    "blocks of several kinds": [
        *(f"MARCO_{number}" for number in range(300)),
        *(f"été/{number}" for number in range(300)),
        *(str(number) for number in range(300)),
        *(f"{number:04x}-" * 8 for number in range(300)),
    ],
    "10,001 documents": [f"d{number * 7919 % 10_007}" for number in range(10_001)],
}


def write(path: Path, docnos: list[str]) -> Docnos:
    write_docnos(path, docnos)
    return Docnos(path, len(docnos))


@pytest.fixture(params=COLLECTIONS)
def collection(request) -> list[str]:
    return COLLECTIONS[request.param]


def test_iterating_returns_docnos_in_order(tmp_path, collection):
    docnos = write(tmp_path / "x", collection)
    assert list(docnos) == collection
    assert len(docnos) == len(collection)


def test_find_is_the_inverse_of_at(tmp_path, collection):
    docnos = write(tmp_path / "x", collection)
    docids = np.random.default_rng(0).integers(0, len(collection), 500)
    found = docnos.at(docids)
    assert found.tolist() == [collection[i] for i in docids]
    assert all(type(docno) is str for docno in found)
    np.testing.assert_array_equal(docnos.find(found), docids)
    assert docnos.find(found.tolist()).dtype == np.int64


def test_find_returns_minus_one_for_unknown_docnos(tmp_path, collection):
    docnos = write(tmp_path / "x", collection)
    near = {variant for d in collection[:100] for variant in (d + "x", d[:-1], d[1:], f" {d}", f"{d} ", f"0{d}", d.upper())}
    unknown = sorted({"", "nope", "x" * 20_000, "é" * 500, *near} - set(collection))
    assert set(docnos.find(unknown)) == {-1}
    np.testing.assert_array_equal(docnos.find([unknown[-1], collection[-1]]), [-1, len(collection) - 1])


def test_find_does_not_take_unusable_strings_for_similar_docnos(tmp_path):
    docnos = write(tmp_path / "x", ["a?", "a", "b"])
    assert docnos.find(["a\ud83d", "a\0", "\0", "a"]).tolist() == [-1, -1, -1, 1]


def test_at_keeps_the_shape_of_docids(tmp_path):
    docnos = write(tmp_path / "x", ["a", "b", "c"])
    assert docnos.at(np.array([[2, 0], [1, 1]])).tolist() == [["c", "a"], ["b", "b"]]
    assert docnos.at(np.empty((0, 4), dtype=np.int64)).shape == (0, 4)
    assert docnos.find([]).shape == (0,)


def test_require_names_unknown_docnos(tmp_path):
    docnos = write(tmp_path / "x", ["a", "b"])
    np.testing.assert_array_equal(docnos.require(["b", "a"]), [1, 0])
    with pytest.raises(
        ValueError, match=r"docno must be in the index .*, got unknown docnos: u0, u1, u2, u3, u4 and 2 more. Check"
    ):
        docnos.require(["a", *(f"u{i}" for i in range(7)), "u0"])


def test_write_docnos_replaces_half_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"half a file")
    assert list(write(tmp_path / "x", ["a", "b"])) == ["a", "b"]


@pytest.mark.parametrize("every", [2, 100, 3000])
def test_long_docnos_cost_no_space_for_the_short_ones(tmp_path, every):
    docnos = [f"{i}-{'x' * 4000 if i % every == 0 else ''}" for i in range(3000)]
    written = write(tmp_path / "x", docnos)
    assert (tmp_path / "x").stat().st_size < 5 * sum(map(len, docnos)) + 16 * 3000 + 1000
    tracemalloc.start()
    assert written.at(np.arange(3000)).tolist() == docnos
    short = np.arange(1, 3000, every + 1 if every == 2 else 1)[:1000].repeat(20)
    found = written.find(written.at(short))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, short)
    assert peak < 40 * sum(map(len, docnos)) + 10_000_000


def test_a_long_docno_makes_lookups_of_short_ones_no_more_expensive(tmp_path):
    """An array of strings takes the space of the longest one for all: here 80 MB."""
    docnos = write(tmp_path / "x", ["y" * 4096, *(f"d{i}" for i in range(2000))])
    names = docnos.at(np.arange(20_000) % 2001)
    tracemalloc.start()
    found = docnos.find(names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, np.arange(20_000) % 2001)
    assert peak < 20_000_000


def test_out_of_memory_is_not_reported_as_damage(tmp_path, monkeypatch):
    write_docnos(tmp_path / "x", ["a", "b"])
    for error in (MemoryError("too much"), OSError(24, "Too many open files", "x")):

        def fail(path: Path, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(docnos_module, "Lookup", fail)
        with pytest.raises(
            type(error), match=str(error.args[-1]) if isinstance(error, MemoryError) else "Too many open files"
        ):
            Docnos(tmp_path / "x", 2)


DAMAGES = {
    "missing": None,
    "empty": b"",
    "zeros": bytes(5000),
    "random": random.Random(3).randbytes(5000),
    "text": b"other text\n" * 100,
    "json": json.dumps({"format": "hash"}).encode(),
}


@pytest.mark.filterwarnings("ignore:magic header not found")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_of_another_format_is_an_error(tmp_path, damage):
    if DAMAGES[damage] is not None:
        (tmp_path / "x").write_bytes(DAMAGES[damage])
    with pytest.raises(ValueError, match="are (missing|damaged).* Copy the index again or rebuild it"):
        Docnos(tmp_path / "x", 3)


def test_a_directory_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="must be a file, got a directory"):
        Docnos(tmp_path, 3)


@pytest.mark.parametrize("name", ["one", "unicode", "257 documents", "blocks of several kinds"])
def test_a_file_truncated_anywhere_is_an_error(tmp_path, name):
    docnos, path = COLLECTIONS[name], tmp_path / "x"
    write_docnos(path, docnos)
    whole = path.read_bytes()
    for end in {*range(0, len(whole), 1 + len(whole) // 200), *range(len(whole) - 20, len(whole))}:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="Copy the index again or rebuild it"):
            Docnos(path, len(docnos))


def test_a_file_with_changed_docnos_is_an_error(tmp_path):
    write_docnos(tmp_path / "x", COLLECTIONS["257 documents"])
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole.replace(b"MARCO_", b"marco-"))
    with pytest.raises(ValueError, match="the first or last docno is not found"):
        Docnos(tmp_path / "x", 257)


def test_damage_between_the_first_and_the_last_docno_is_an_error_that_names_the_file(tmp_path):
    names = COLLECTIONS["257 documents"]
    write_docnos(tmp_path / "x", names)
    docnos = Docnos(tmp_path / "x", 257)
    docnos._lookup.inv.codec.dids = np.full(257, 10**6, dtype=np.uint32)
    with pytest.raises(ValueError, match=r"x are damaged .*out of bounds.* Copy the index again"):
        docnos.find(names)
    write_docnos(tmp_path / "x", ["first", "middle", "last one"])
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes().replace(b"middle", b"midd\xff\xff"))
    with pytest.raises(ValueError, match=r"x are damaged .*invalid start byte.* Copy the index again"):
        list(Docnos(tmp_path / "x", 3))


@pytest.mark.parametrize("count", [256, 258, 1])
def test_another_number_of_docnos_is_an_error(tmp_path, count):
    write_docnos(tmp_path / "x", COLLECTIONS["257 documents"])
    with pytest.raises(ValueError, match=f"must have {count} docnos, got 257. Copy the index again or rebuild it"):
        Docnos(tmp_path / "x", count)


def make_checker(*batches: list[str]) -> DuplicateChecker:
    stored: list[str] = []
    checker = DuplicateChecker(lambda: iter(stored))
    for batch in batches:
        checker.check(batch)
        checker.add(batch)
        stored += batch
    return checker


@pytest.mark.parametrize("docno", ["", None, 7, 1.5, np.nan, b"d1", "a\0b", "a\0", "x" * 4097, "é" * 2049, "\ud800", ["d1"]])
def test_check_refuses_unusable_docnos(docno):
    with pytest.raises(ValueError, match="docno must be a non-empty string of at most 4096 bytes, got .* Give every"):
        make_checker().check(["d1", docno, "d2"])


@pytest.mark.parametrize(
    "batches",
    [
        [["a", "b", "a"]],
        [["a", "b"], ["c", "a"]],
        [["a"], ["b"], ["c"], ["d"], ["e", "a"]],
        [[f"d{i}" for i in range(1000)], [f"d{i}" for i in range(1000, 1500)], ["a", "a"]],
        [[f"d{i}" for i in range(1000)], *([f"e{i}"] for i in range(20)), ["a"], ["f"], ["a"]],
    ],
)
def test_check_finds_a_repeated_docno_in_its_batch(batches):
    checker = make_checker(*batches[:-1])
    with pytest.raises(ValueError, match="docno must be unique, got 'a' twice. Remove or rename"):
        checker.check(batches[-1])


def test_a_refused_batch_is_not_remembered():
    checker = make_checker(["a"])
    with pytest.raises(ValueError, match="twice"):
        checker.check(["b", "a"])
    checker.check(["b"])


@pytest.mark.parametrize("buckets", [1, 3])
def test_docnos_with_equal_hashes_are_not_duplicates(monkeypatch, buckets):
    monkeypatch.setattr(
        docnos_module, "_hash_docnos", lambda docnos: np.array([len(d) % buckets for d in docnos], dtype=np.int64)
    )
    checker = make_checker(*([f"{'x' * i}{j}" for j in range(5)] for i in range(20)))
    with pytest.raises(ValueError, match="got 'xx3' twice"):
        checker.check(["new", "xx3"])
