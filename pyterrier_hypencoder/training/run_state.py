"""Checkpoints of a training run: find the last one, and check that it belongs to the run that resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FACTS_FILE = "run.json"
_OPTIMISER_FILES = ("optimizer.pt", "scheduler.pt")
_DROPPED_FILE = "no_optimizer"
"""Empty file in a checkpoint without the state of the optimiser. A run cannot resume from it."""
_STATE_FILE = "trainer_state.json"
"""File that transformers writes last, so a checkpoint with it is complete."""


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run in order."""
    found = [path for path in folder.glob("checkpoint-*") if (path / _STATE_FILE).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def find_last_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint from which a run can resume, or None if there is none."""
    return next((path for path in reversed(list_checkpoints(folder)) if not (path / _DROPPED_FILE).exists()), None)


def drop_states(folder: Path) -> None:
    """Delete the optimiser's state, which is larger than the model, from all checkpoints but the last one."""
    for path in list_checkpoints(folder)[:-1]:
        (path / _DROPPED_FILE).touch()
        for name in _OPTIMISER_FILES:
            (path / name).unlink(missing_ok=True)


def read_step(checkpoint: Path) -> int:
    """Return the number of optimiser steps before a checkpoint was written."""
    return int(json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))["global_step"])


def write_facts(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts that a resumed run must share with a checkpoint into ``run.json``."""
    (checkpoint / _FACTS_FILE).write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")


def check_facts(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Check that a run has the same facts as a checkpoint.

    Raises:
        ValueError: If they differ (the message names the differences), or if ``run.json`` cannot be read.
    """
    try:
        stored = _flatten(json.loads((checkpoint / _FACTS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as err:
        raise ValueError(f"{_FACTS_FILE} in {checkpoint} cannot be read ({err}). Give another output_dir.") from err
    present = _flatten(json.loads(json.dumps(facts, default=str)))
    differing = [
        f"{key}={stored.get(key)!r:.120} (now {present.get(key)!r:.120})"
        for key in present | stored
        if stored.get(key) != present.get(key)
    ]
    if differing:
        raise ValueError(
            f"Cannot resume from {checkpoint}, because it belongs to another model or run: {', '.join(differing)}. Use the "
            "same options as before, or give another output_dir."
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names, so differences can be named."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
