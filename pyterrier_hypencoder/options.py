"""Checks of option values."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Any, ParamSpec

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
        >>> check_choice("dtype", "int4", ["fp16", "fp32"])
        Traceback (most recent call last):
        ValueError: dtype must be one of 'fp16', 'fp32', got 'int4'.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_positive(name: str, value: Any, minimum: int = 1) -> None:
    """Check an option that must be a positive integer.

    Args:
        name: Name of the option, for the error message.
        value: Value that the user gave.
        minimum: Smallest allowed value.

    Raises:
        ValueError: If the value is not an integer above 0, or below the minimum. ``True`` and ``1.0`` are not integers.

    Example:
        >>> check_positive("num_results", 0)
        Traceback (most recent call last):
        ValueError: num_results must be a positive integer, got 0.
    """
    if not _is_integer(value) or value <= 0:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}.")


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


def check_number(name: str, value: Any, minimum: float = -math.inf) -> None:
    """Check an option that must be a finite number.

    Args:
        name: Name of the option, for the error message.
        value: Value that the user gave.
        minimum: Smallest allowed value.

    Raises:
        ValueError: If the value is not a number, is NaN or infinite, or is below the minimum. ``True`` is not a number.

    Example:
        >>> check_number("ridge", float("nan"), 0.0001)
        Traceback (most recent call last):
        ValueError: ridge must be a finite number of at least 0.0001, got nan.
    """
    is_number = _is_integer(value) or isinstance(value, float | np.floating)
    if not is_number or not math.isfinite(value) or value < minimum:
        limit = "" if minimum == -math.inf else f" of at least {minimum:g}"
        raise ValueError(f"{name} must be a finite number{limit}, got {value!r}.")


def check_fields(options: Any) -> None:
    """Check the types of a dataclass's strings, flags and numbers, because a configuration file may hold anything.

    Args:
        options: Instance of a dataclass whose annotations are strings, such as ``"bool | None"``.

    Raises:
        ValueError: If a value has another type. Numbers must be finite.
    """
    for field in dataclasses.fields(options):
        value, kinds = getattr(options, field.name), str(field.type).split(" | ")
        if value is None and "None" in kinds:
            continue
        if "bool" in kinds and not isinstance(value, bool):
            raise ValueError(f"{field.name} must be True or False, got {value!r:.80}.")
        if "str" in kinds and not isinstance(value, str):
            raise ValueError(f"{field.name} must be a string, got {value!r:.80}.")
        if "float" in kinds:
            check_number(field.name, value)


def list_items(name: str, value: Any, kind: Any, noun: str) -> list[Any]:
    """Return the items of an option that is a collection, after checking their type.

    Args:
        name: Name of the option, for the error message.
        value: Collection that the user gave: a list, a set, an array, a column of a frame.
        kind: Type of the items, or a union of types.
        noun: Name of the items in the plural, for the error message.

    Raises:
        ValueError: If the value is a single item or text, cannot be iterated, or has items of another type. Iterators are
            refused, because the first use would consume them.

    Example:
        >>> list_items("entry_points", "d1", str, "docnos")
        Traceback (most recent call last):
        ValueError: entry_points must be a collection of docnos, got 'd1'. Put the docnos in a list.
    """
    is_flat = getattr(value, "ndim", 1) == 1  # a frame iterates over the names of its columns
    if isinstance(value, str | bytes | Iterator) or not isinstance(value, Iterable) or not is_flat:
        raise ValueError(f"{name} must be a collection of {noun}, got {value!r:.80}. Put the {noun} in a list.")
    items = list(value)
    for item in items:
        if not isinstance(item, kind):
            raise ValueError(f"{name} must be a collection of {noun}, got the item {item!r:.80}. Give only {noun}.")
    return items


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


# Names of options

_OTHER_NAMES = {
    "num_results": ("k", "top_k", "topk", "n_results", "limit", "num_hits"),
    "k": ("fb_docs", "n_docs", "graph_k"),
    "graph_k": ("k", "n_neighbours", "num_neighbours"),
    "allowed_docnos": ("allowed", "filter", "docnos"),
    "excluded_docnos": ("excluded", "exclude"),
    "algorithm": ("search", "method"),
    "mode": ("overwrite", "resume"),
    "device": ("gpu", "cuda"),
    "dtype": ("fp16", "fp32", "int8", "precision"),
    "model": ("encoder", "name_or_path"),
    "learning_rate": ("lr",),
    "epochs": ("num_epochs", "num_train_epochs", "n_epochs"),
    "max_steps": ("steps", "n_steps"),
    "measures": ("metrics", "eval_metrics"),
    "query_prefix": ("prefix", "query_prompt"),
    "text_field": ("text_attr", "fields"),
}
"""Names of options, each with the names that other packages use for it."""

Parameters = ParamSpec("Parameters")


def check_option_names(init: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Decorate a constructor: an unknown option is an error that names the right one.

    Args:
        init: The method ``__init__``. Its signature stays visible.

    Example:
        >>> from pyterrier_hypencoder import HypencoderRetriever
        >>> HypencoderRetriever(top_k=10)
        Traceback (most recent call last):
        TypeError: HypencoderRetriever has no option 'top_k'. Did you mean num_results?
    """
    names = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(*args: Parameters.args, **options: Parameters.kwargs) -> None:
        for name in options:
            if name not in names:
                found = _suggest(name, names)
                advice = f"Did you mean {found}?" if found else f"Its options are {', '.join(names)}."
                raise TypeError(f"{type(args[0]).__name__} has no option {name!r}. {advice}")
        init(*args, **options)

    return checked


def _suggest(name: str, names: list[str]) -> str | None:
    """Return the option that a wrong name most likely means, or None."""
    known = next((option for option, others in _OTHER_NAMES.items() if option in names and name in others), None)
    return known or next(iter(get_close_matches(name, names, n=1)), None)
