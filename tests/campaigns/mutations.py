"""Damage of files, repeatable by a seed: bytes, JSON values, and the kind of a file."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """One damage of one file."""

    file: str
    """Path relative to the damaged directory."""
    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name} (seed {self.seed})"


def list_mutations(folder: Path, number: int, seed: int = 0) -> list[Mutation]:
    """Return mutations of all files below a folder. Each file gets each kind of mutation about equally often.

    Args:
        folder: The folder.
        number: Number of mutations.
        seed: Seed of their order and their details.
    """
    rng = random.Random(seed)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    found: list[Mutation] = []
    while len(found) < number:
        kinds = [(file, name) for file in files for name in [*BYTES, *KINDS, *(JSON if file.endswith(".json") else {})]]
        rng.shuffle(kinds)
        found += [Mutation(*kind, seed=len(found) + i) for i, kind in enumerate(kinds)]
    return found[:number]


def mutate(folder: Path, mutation: Mutation, other: Path) -> None:
    """Damage a file.

    Args:
        folder: The folder.
        mutation: The mutation.
        other: A folder with the same files, but other contents.
    """
    file = folder / mutation.file
    rng = random.Random(f"{mutation.seed} {mutation.file} {mutation.name}")
    if mutation.name in KINDS:
        remove(file)
        KINDS[mutation.name](file)
        return
    before = file.read_bytes()
    theirs = (other / mutation.file).read_bytes() if (other / mutation.file).is_file() else before[::-1]
    after = before
    for _ in range(20 if before else 0):  # a mutation can do nothing by chance, for example swap two equal blocks
        if mutation.name in JSON:
            after = _mutate_json(before, JSON[mutation.name], rng)
        else:
            after = bytes(BYTES[mutation.name](bytearray(before), rng, theirs))
        if after != before:
            break
    if after == before:
        after = before + b"\0"
    remove(file)  # the file may be a link to another one
    file.write_bytes(after)


def remove(path: Path) -> None:
    """Delete a file, a link or a directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# Bytes


def _pick_range(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice([1, 2, 4, 16, 64, 512, 4096]))


def _flip_bits(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _change_bytes(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    for _ in range(rng.choice([1, 3, 16])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data


def _zero_range(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    start, stop = _pick_range(data, rng)
    data[start:stop] = bytes(stop - start)
    return data


def _fill_with_ones(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    start, stop = _pick_range(data, rng)
    data[start:stop] = b"\xff" * (stop - start)
    return data


def _write_number(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    """Write NaN, infinity or a large number where a number may be."""
    number = bytes.fromhex(
        rng.choice(["007e", "007c", "00fc", "0000c07f", "0000807f", "ffffff7f", "ff7b", "ffffffffffffff7f"])
    )
    at = rng.randrange(len(data)) // len(number) * len(number)
    data[at : at + len(number)] = number
    return data


def _swap_blocks(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    size = max(1, len(data) // rng.choice([2, 4, 16, 64]))
    first, second = (rng.randrange(max(1, len(data) // size)) * size for _ in range(2))
    data[first : first + size], data[second : second + size] = data[second : second + size], data[first : first + size]
    return data


def _copy_block(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    size = max(1, len(data) // rng.choice([4, 16, 64]))
    source, target = rng.randrange(len(data) - size + 1), rng.randrange(len(data) - size + 1)
    data[target : target + size] = data[source : source + size]
    return data


def _insert_bytes(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.choice([1, 2, 8]))
    return data


def _remove_bytes(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    start, stop = _pick_range(data, rng)
    del data[start:stop]
    return data


def _truncate(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    return data[: rng.choice([len(data) - 1, len(data) // 2, rng.randrange(len(data))])]


def _extend(data: bytearray, rng: random.Random, theirs: bytes) -> bytes:
    return data + rng.choice([b"\0", bytes(4096), rng.randbytes(64), bytes(data)])


BYTES: dict[str, Callable[[bytearray, random.Random, bytes], bytes]] = {
    "flip bits": _flip_bits,
    "change bytes": _change_bytes,
    "zero a range": _zero_range,
    "fill a range with ones": _fill_with_ones,
    "write a number": _write_number,
    "swap blocks": _swap_blocks,
    "copy a block": _copy_block,
    "insert bytes": _insert_bytes,
    "remove bytes": _remove_bytes,
    "truncate": _truncate,
    "extend": _extend,
    "empty": lambda data, rng, theirs: b"",
    "random bytes": lambda data, rng, theirs: rng.randbytes(len(data)),
    "file of another directory": lambda data, rng, theirs: theirs,
    "part of another directory's file": lambda data, rng, theirs: theirs[: len(theirs) // 2] + data[len(theirs) // 2 :],
}
"""Functions of the content, a random generator, and the content of the same file in another directory."""


# JSON


def _mutate_json(content: bytes, change: Callable[[Any, Any, Any, random.Random], Any], rng: random.Random) -> bytes:
    """Change one place of a JSON document: a container and a key in it."""
    document = json.loads(content)
    places = list(_list_places(document))
    if not places:
        return content
    container, key = rng.choice(places)
    changed = change(document, container, key, rng)
    return changed if isinstance(changed, bytes) else json.dumps(document, indent=2).encode()


def _list_places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _list_places(value[key])


_VALUES = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 1.5, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "1", "\0", "/", "../..", "é" * 300, [], [1], [[]], {}, {"x": 1}, [None] * 3),
]


def _set_other_value(document: Any, container: Any, key: Any, rng: random.Random) -> None:
    container[key] = rng.choice(_VALUES)


def _set_similar_value(document: Any, container: Any, key: Any, rng: random.Random) -> None:
    value = container[key]
    if isinstance(value, bool) or value is None:
        container[key] = not value
    elif isinstance(value, int | float):
        container[key] = rng.choice([value + 1, value - 1, value * 2, value // 2, -value, float(value), str(value)])
    elif isinstance(value, str):
        container[key] = rng.choice([value + "x", value[:-1], value.upper(), value[::-1]])
    else:
        container[key] = rng.choice([list(value), dict.fromkeys(map(str, value)), [value]])


def _remove_key(document: Any, container: Any, key: Any, rng: random.Random) -> None:
    del container[key]


def _rename_key(document: Any, container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    else:
        container.append(container[key])


def _swap_values(document: Any, container: Any, key: Any, rng: random.Random) -> None:
    other, there = rng.choice(list(_list_places(document)))
    container[key], other[there] = copy.deepcopy((other[there], container[key]))


def _put_marker(document: Any, container: Any, key: Any, text: str) -> bytes:
    container[key] = "MARKER"
    return json.dumps(document).replace('"MARKER"', text, 1).encode()


JSON: dict[str, Callable[[Any, Any, Any, random.Random], Any]] = {
    "JSON: other value": _set_other_value,
    "JSON: other value, again": _set_other_value,
    "JSON: similar value": _set_similar_value,
    "JSON: similar value, again": _set_similar_value,
    "JSON: removed key": _remove_key,
    "JSON: renamed key": _rename_key,
    "JSON: swapped values": _swap_values,
    "JSON: deep nesting": lambda doc, box, key, rng: _put_marker(doc, box, key, "[" * 100_000 + "]" * 100_000),
    "JSON: huge number": lambda doc, box, key, rng: _put_marker(doc, box, key, rng.choice(["1" * 5000, "1e99999", "9" * 400])),
    "JSON: long text": lambda doc, box, key, rng: _put_marker(doc, box, key, f'"{"x" * 2**20}"'),
    "JSON: not an object": lambda doc, box, key, rng: rng.choice([b"[]", b"1", b"null", b'"x"', b"{}", b"[[]]", b"{", b"NaN"]),
    "JSON: another encoding": lambda doc, box, key, rng: json.dumps(doc).encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"])),
}
"""Functions of the document, a container in it, a key of the container, and a random generator. They may return bytes."""


# Kinds of files


def _link_to(target: str) -> Callable[[Path], None]:
    return lambda file: file.symlink_to(target)


KINDS: dict[str, Callable[[Path], Any]] = {
    "deleted": lambda file: None,
    "directory": lambda file: file.mkdir(),
    "FIFO": lambda file: os.mkfifo(file),
    "link to nothing": _link_to("nowhere"),
    "link to /dev/zero": _link_to("/dev/zero"),
    "link to /dev/null": _link_to("/dev/null"),
    "link to itself": lambda file: file.symlink_to(file.name),
    "link to its directory": _link_to("."),
}
"""What stands in the place of the file, which has been deleted."""
