"""Checks of option values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Check an option that takes one of a few values.

    Args:
        name: Name of the option, for the error message.
        value: Value that the user gave.
        choices: Allowed values, in the order in which the message lists them.

    Raises:
        ValueError: If the value is not one of the choices.

    Example:
        >>> check_choice("dtype", "int8", ["fp16", "fp32"])
        Traceback (most recent call last):
        ValueError: dtype must be one of 'fp16', 'fp32', got 'int8'.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_positive(name: str, value: Any) -> None:
    """Check an option that must be a positive integer.

    Args:
        name: Name of the option, for the error message.
        value: Value that the user gave.

    Raises:
        ValueError: If the value is not an integer above 0. ``True`` and ``1.0`` are not integers.

    Example:
        >>> check_positive("num_results", 0)
        Traceback (most recent call last):
        ValueError: num_results must be a positive integer, got 0.
    """
    if not _is_integer(value) or value <= 0:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def check_non_negative(name: str, value: Any) -> None:
    """Check an option that must be zero or a positive integer.

    Args:
        name: Name of the option, for the error message.
        value: Value that the user gave.

    Raises:
        ValueError: If the value is not an integer of at least 0. ``False`` and ``0.0`` are not integers.

    Example:
        >>> check_non_negative("seed", -1)
        Traceback (most recent call last):
        ValueError: seed must be a non-negative integer, got -1.
    """
    if not _is_integer(value) or value < 0:
        raise ValueError(f"{name} must be a non-negative integer, got {value!r}.")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
