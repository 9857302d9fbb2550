"""Signatures: factories show the options of the class that they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Made = TypeVar("Made")


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
