"""Signatures: factories show the options of the class that they make, and an unknown option names the right one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Concatenate, ParamSpec, TypeVar

_OTHER_NAMES = {
    "num_results": ("k", "top_k", "topk", "n_results", "limit", "num_hits"),
    "graph_k": ("k", "n_neighbours", "num_neighbours"),
    "allowed_docnos": ("allowed", "filter", "docnos"),
    "excluded_docnos": ("excluded", "exclude"),
    "algorithm": ("search", "method"),
    "mode": ("overwrite", "resume"),
    "device": ("gpu", "cuda"),
    "dtype": ("fp16", "fp32", "int8", "precision"),
    "model": ("encoder", "name_or_path"),
    "text_field": ("text_attr", "fields"),
}
"""Names of options, each with the names that other packages use for it."""

Parameters = ParamSpec("Parameters")
Made = TypeVar("Made")


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


def takes_options_of(
    made: Callable[Concatenate[Any, Parameters], Made],
) -> Callable[[Callable[..., Made]], Callable[Concatenate[Any, Parameters], Made]]:
    """Decorate a factory method: it gets the signature of the class that it makes, without the first argument.

    Then help(), notebooks and type checkers show the options, although they are listed only once, in the class.

    Args:
        made: The class. The factory's owner takes the place of its first argument.
    """

    def decorate(method: Callable[..., Made]) -> Callable[Concatenate[Any, Parameters], Made]:
        options = list(inspect.signature(made).parameters.values())[1:]
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        signature = inspect.Signature([own, *options], return_annotation=made)
        method.__signature__ = signature  # type: ignore[attr-defined]
        return method

    return decorate
