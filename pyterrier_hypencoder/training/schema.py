"""Values of configurations: read from YAML, and checked into dataclasses by their type hints."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Collection, Mapping
from types import NoneType, UnionType
from typing import Any

import yaml  # type: ignore[import-untyped]

_MISFIT = object()


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-5 is a number, as it is not in YAML 1.1, and no key comes twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := sorted({str(name) for name in names if names.count(name) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"found the key {twice[0]} twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def parse(text: str, where: str) -> Any:
    """What a YAML text says.

    Args:
        text: the text.
        where: what errors call it.

    Raises:
        ValueError: where it is not YAML, or a key comes twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as err:
        raise ValueError(f"{where}: expected YAML, found something else: {err}") from err


class UnknownKeyError(ValueError):
    """A key that does not exist."""

    def __init__(self, section: str, name: object) -> None:
        super().__init__(f"{_path(section, name)}: expected a key that exists, found one that does not")
        self.section = section
        self.name = str(name)


def read(cls: Any, values: Any, where: str = "") -> Any:
    """A dataclass made of a dictionary, every key and value checked.

    Args:
        cls: the dataclass; its hints are ``int``, ``float``, ``bool``, ``str``, ``Any``, None, dataclasses, ``tuple[X, ...]``,
            ``Mapping[str, X]``, and unions of them.
        values: the dictionary.
        where: the keys that lead to it.

    Raises:
        UnknownKeyError: where a key does not exist.
        ValueError: where a value is missing, or not what its hint says.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected keys and values, found {values!r:.80}")
    hints = typing.get_type_hints(cls)
    check_keys(values, hints, where)
    for entry in dataclasses.fields(cls):
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and entry.name not in values:
            path = _path(where, entry.name)
            raise ValueError(f"{path}: expected a value, found none; write it into the file, or give {path}=...")
    return cls(**{name: _fitted(value, hints[name], _path(where, name)) for name, value in values.items()})


def _fitted(value: Any, hint: Any, where: str) -> Any:
    """A value as a type hint has it: one of the kinds below, or several."""
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for kind in kinds:
        if dataclasses.is_dataclass(kind) and not (value is None and NoneType in kinds):
            return read(kind, value, where)
        if (fitted := _as(value, kind)) is not _MISFIT:
            return fitted
    raise ValueError(f"{where}: expected {' or '.join(map(_words, kinds))}, found {value!r:.80}")


def _as(value: Any, kind: Any) -> Any:
    """A value as one kind, or ``_MISFIT``; a single one is also a list, and 1e6 a whole number."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        items = [_as(item, inner[0]) for item in (value if isinstance(value, list) else [value])]
        return _MISFIT if _MISFIT in items or not items else tuple(items)
    if typing.get_origin(kind) is Mapping:
        fits = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        fitted = {key: _as(item, inner[1]) for key, item in value.items()} if fits else {"": _MISFIT}
        return _MISFIT if _MISFIT in fitted.values() else fitted
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is float:
        return float(value) if number else _MISFIT
    if kind is int:
        return int(value) if number and value == int(value) else _MISFIT
    return value if kind is Any or isinstance(value, kind) else _MISFIT


def _words(kind: Any) -> str:
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return f"{_words(inner[0])}, one or a list"
    if typing.get_origin(kind) is Mapping:
        return "keys and values"
    words = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    return words.get(kind, "text (in quotes where YAML sees something else)")


def _path(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def check_keys(values: Mapping[Any, Any], known: Collection[str], where: str) -> None:
    """Checks that all keys of a section exist.

    Raises:
        UnknownKeyError: where one does not.
    """
    for name in values:
        if name not in known:
            raise UnknownKeyError(where, name)


def list_keys(cls: Any, where: str = "") -> list[str]:
    """All keys of a dataclass and those within it, each after the keys that lead to it."""
    keys = []
    for name, hint in typing.get_type_hints(cls).items():
        keys.append(_path(where, name))
        for kind in (hint, *typing.get_args(hint)):
            keys += list_keys(kind, keys[-1]) if dataclasses.is_dataclass(kind) else []
    return keys
