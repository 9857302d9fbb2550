"""Checks of option values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Checks an option that has a few values.

    Raises:
        ValueError: naming the choices, where the value is none of them.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, found {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Checks an option that counts something.

    Raises:
        ValueError: where the value is no whole number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value <= 0:
        raise ValueError(f"{name}: expected a whole number above 0, found {value!r}")
