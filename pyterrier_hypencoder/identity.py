"""Equality, hashing, pickling and lazy opening of transformers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from inspect import Parameter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

_MAX_SHOWN_LENGTH = 40
"""Characters of a path that :func:`shorten` keeps. PyTerrier uses representations as names in its result tables."""
_MAX_SHOWN_ITEMS = 3
"""Items of the longest collection that :func:`shorten` shows in full."""
_FILE_NAME_CHARACTERS = str.maketrans({"<": "[", ">": "]", '"': "'"} | dict.fromkeys(":%/\\^|?*\n", "_"))
"""Replacements of characters that PyTerrier or a file system refuses in names of files."""
_MAX_FILE_NAME_BYTES = 200


class ByArguments:
    """Mixin for objects that are equal if their constructor arguments are equal.

    It provides equality, hash, representation and pickling. The constructor must store each argument under the argument's
    name, with or without a leading underscore, and do nothing else. Models and files are opened on first use with
    :meth:`_open`, by one thread. They are neither compared nor pickled.
    """

    _opened: dict[str, tuple[Any, Any]]

    def _get_arguments(self) -> dict[str, Any]:
        """Return the current value of every constructor argument by name."""
        return {a.name: a.value for a in pt.inspect.transformer_attributes(self)}  # type: ignore[arg-type]

    def _open(self, name: str, key: Any, opener: Callable[[], Any]) -> Any:
        """Return the object cached as ``name``, and open it again if ``key`` has changed since the last call.

        Args:
            name: Name of the object in the cache, such as ``"reader"``.
            key: Values that the object depends on.
            opener: Function that opens the object.
        """
        opened = self.__dict__.setdefault("_opened", {})
        entry = opened.get(name)
        if entry is None or entry[0] != key:
            # One lock for each name, because opening one thing may open others. Threads wait instead of opening it again.
            with self.__dict__.setdefault("_locks", {}).setdefault(name, threading.RLock()):
                entry = opened.get(name)
                if entry is None or entry[0] != key:
                    entry = opened[name] = (key, opener())
        return entry[1]

    def __setattr__(self, name: str, value: Any) -> None:
        # An iterator can be read once, so an option keeps its items. Everything else is stored unchanged.
        object.__setattr__(self, name, list(value) if isinstance(value, Iterator) else value)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._make_key() == other._make_key()

    def __hash__(self) -> int:
        return hash(self._make_key())

    def _make_key(self) -> tuple[Any, ...]:
        """Return a hashable tuple of the class name and all arguments."""
        return (type(self).__name__, *((name, _make_hashable(value)) for name, value in self._get_arguments().items()))

    def __repr__(self) -> str:
        attributes = pt.inspect.transformer_attributes(self)  # type: ignore[arg-type]
        changed = [a for a in attributes if _make_hashable(a.value) != _make_hashable(a.init_default_value)]
        text = ", ".join(
            f"{a.name}={shorten(a.value)}" if a.init_parameter_kind is Parameter.KEYWORD_ONLY else shorten(a.value)
            for a in changed
        )
        return f"{type(self).__name__}({text})"

    def __rshift__(self, right: Any) -> Any:
        """Compose ``encoder >> index`` as an indexer that records the encoder; see :meth:`HypencoderIndex.fuse_left`."""
        fuse = getattr(right, "fuse_left", None) if isinstance(right, pt.Artifact) else None
        fused = None if fuse is None else fuse(self)
        if fused is not None:
            return fused
        compose = getattr(super(), "__rshift__", None)
        return NotImplemented if compose is None else compose(right)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_opened", "_locks")}


def _make_hashable(value: Any) -> Any:
    """Return a hashable value that is equal for equal arrays, mappings, sets and lists."""
    if isinstance(value, np.ndarray) and value.dtype == bool:
        return value.shape, value.tobytes()
    if isinstance(value, np.ndarray | pd.Series | pd.Index):
        value = value.tolist()
    if isinstance(value, Mapping):
        return tuple((key, _make_hashable(v)) for key, v in value.items())
    if isinstance(value, Set):
        return frozenset(value)
    if isinstance(value, list | tuple):
        return tuple(map(_make_hashable, value))
    return value


def shorten(value: Any) -> str:
    """Return a short representation of a value for tables and messages.

    Collections of more than three items are shown as their length and a digest, and long strings and paths as their end.

    Args:
        value: Any object.

    Returns:
        The text. Collections with different items have different texts.

    Example:
        >>> shorten(["d1", "d2"])
        "['d1', 'd2']"
        >>> shorten([f"d{i}" for i in range(1000)])
        '<1000 items, f1f875>'
    """
    if isinstance(value, np.ndarray) and value.dtype == bool:
        return f"<{value.sum()} of {value.size}, {_digest(value.tobytes())}>"
    if isinstance(value, Collection) and not isinstance(value, str) and len(value) > _MAX_SHOWN_ITEMS:
        return f"<{len(value)} items, {_digest(chr(0).join(sorted(map(str, value))).encode())}>"
    if isinstance(value, str | Path) and len(str(value)) > _MAX_SHOWN_LENGTH:
        return repr("…" + str(value)[-_MAX_SHOWN_LENGTH:])
    return repr(value)


def make_file_name(text: str) -> str:
    """Return a text as the name of a file: characters that file systems refuse are replaced, and long texts are cut.

    Args:
        text: The text, such as the representation of a transformer.

    Example:
        >>> make_file_name("HypencoderRetriever('runs/x.hyp', num_results=10)")
        "HypencoderRetriever('runs_x.hyp', num_results=10)"
    """
    name = text.translate(_FILE_NAME_CHARACTERS)
    if len(name.encode(errors="replace")) <= _MAX_FILE_NAME_BYTES:
        return name
    return f"{name[: _MAX_FILE_NAME_BYTES // 3]}… {_digest(text.encode(errors='replace'))}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:6]
