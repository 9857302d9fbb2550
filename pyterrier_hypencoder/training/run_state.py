"""The checkpoints of a run: which one to go on from, and whether it is of the same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FACTS = "run.json"
_STATE = "trainer_state.json"  # what transformers writes last


def last_in(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end."""
    found = [path for path in folder.glob("checkpoint-*") if (path / _STATE).is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def read_step(folder: Path) -> int:
    """The optimiser steps that led to a checkpoint."""
    return int(json.loads((folder / _STATE).read_text(encoding="utf-8"))["global_step"])


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes down beside a checkpoint what a run that goes on from it must have in common with it."""
    (folder / _FACTS).write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")


def check_same(folder: Path, facts: Mapping[str, Any]) -> None:
    """Checks that a checkpoint has the same facts beside it.

    Raises:
        ValueError: where they are others, naming them, or there are none.
    """
    try:
        stored = _flat(json.loads((folder / _FACTS).read_text(encoding="utf-8")))
    except (OSError, ValueError) as err:
        raise ValueError(f"expected {_FACTS} in {folder}, found none to read ({err}); give another output_dir") from err
    present = _flat(json.loads(json.dumps(facts, default=str)))
    others = {key: (stored.get(key), present.get(key)) for key in present | stored if stored.get(key) != present.get(key)}
    if others:
        differing = [f"{key}={there!r:.120} (now {value!r:.120})" for key, (there, value) in others.items()]
        raise ValueError(
            f"expected a checkpoint of the model that is trained, in the way it is trained, found another in {folder}: "
            f"{', '.join(differing)}; go on as it was begun, or give another output_dir"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names, so that what differs can be named."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
