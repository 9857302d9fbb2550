"""Equality, hashing, pickling and lazy opening of transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Set
from inspect import Parameter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

_LONGEST_SHOWN = 40  # characters of a path; PyTerrier takes representations as names in its tables


class ByArguments:
    """Equality, hash, representation and pickling of objects that are their constructor's arguments.

    A constructor stores each argument under its own name (or with a leading underscore). What is opened lazily lives in
    ``_opened``, keyed on the arguments' current values, and is neither compared nor pickled.
    """

    _opened: dict[str, tuple[Any, Any]]

    def _arguments(self) -> dict[str, Any]:
        return {a.name: a.value for a in pt.inspect.transformer_attributes(self)}  # type: ignore[arg-type]

    def _open(self, what: str, key: Any, opener: Any) -> Any:
        """The object ``what``, opened again only when ``key`` has changed since the last time."""
        opened = self.__dict__.setdefault("_opened", {})
        if what not in opened or opened[what][0] != key:
            opened[what] = (key, opener())
        return opened[what][1]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return (type(self).__name__, *((name, _hashable(value)) for name, value in self._arguments().items()))

    def __repr__(self) -> str:
        attributes = pt.inspect.transformer_attributes(self)  # type: ignore[arg-type]
        shown = [a for a in attributes if _hashable(a.value) != _hashable(a.init_default_value)]
        text = ", ".join(
            f"{a.name}={short(a.value)}" if a.init_parameter_kind is Parameter.KEYWORD_ONLY else short(a.value) for a in shown
        )
        return f"{type(self).__name__}({text})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_opened"}


def _hashable(value: Any) -> Any:
    if isinstance(value, np.ndarray | pd.Series | pd.Index):
        value = value.tolist()
    if isinstance(value, Mapping):
        return tuple((key, _hashable(v)) for key, v in value.items())
    if isinstance(value, Set):
        return frozenset(value)
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return value


def short(value: Any) -> str:
    """A representation for tables and messages: long collections and paths are cut."""
    if isinstance(value, Collection) and not isinstance(value, str) and len(value) > 3:
        digest = hashlib.sha256("\0".join(sorted(map(str, value))).encode()).hexdigest()[:6]
        return f"<{len(value)} items, {digest}>"  # other items, another representation
    if isinstance(value, str | Path) and len(str(value)) > _LONGEST_SHOWN:
        return repr("…" + str(value)[-_LONGEST_SHOWN:])
    return repr(value)
