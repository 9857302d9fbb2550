"""What every transformer of this package does with frames and with its own arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from inspect import Parameter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

TextField = str | Sequence[str]
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


def fields_of(text_field: TextField) -> list[str]:
    """The names of the fields that make a document's text.

    Raises:
        ValueError: where there are none.
    """
    fields = [text_field] if isinstance(text_field, str) else list(text_field)
    if not fields or not all(isinstance(field, str) for field in fields):
        raise ValueError(f"text_field: expected the name of a field or a list of names, found {text_field!r}")
    return fields


def text_of(record: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The text of a document: its fields joined by a space and stripped, as the released code does for ir_datasets.

    Of several fields some may be missing (a document without a title), not all.

    Raises:
        ValueError: where the text is missing or no string.
    """
    values = [record.get(field) for field in fields]
    present = [value for value in values if isinstance(value, str)]
    if not present or any(not is_missing(value) for value in values if not isinstance(value, str)):
        found = {field: value for field, value in zip(fields, values, strict=True) if not isinstance(value, str)}
        raise ValueError(
            f"document {record.get('docno')!r}: expected a string in {' or '.join(fields)}, found {found}; give every "
            "document a text (it may be empty), or name the right fields in text_field"
        )
    return " ".join(present).strip()


def is_missing(value: Any) -> bool:
    """Whether a cell of a frame is empty: None, NaN or NA."""
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def texts_of(frame: pd.DataFrame, text_field: TextField) -> list[str]:
    """The texts of a frame's documents; see :func:`text_of`."""
    fields = fields_of(text_field)
    columns = [*fields, *(["docno"] if "docno" in frame.columns else [])]
    return [text_of(record, fields) for record in frame[columns].to_dict("records")]


def queries_of(frame: pd.DataFrame) -> list[str]:
    """The queries of a frame's rows.

    Raises:
        ValueError: where one is not a string; an empty one is allowed.
    """
    queries = frame["query"].tolist()
    for position, query in enumerate(queries):
        if not isinstance(query, str):
            qid = frame["qid"].iloc[position] if "qid" in frame.columns else position
            raise ValueError(f"query {qid!r}: expected a string (it may be empty), found {query!r}")
    return queries


def docnos_of(frame: pd.DataFrame) -> np.ndarray:
    """The docnos of a frame's rows.

    Raises:
        ValueError: where one is not a string.
    """
    docnos = frame["docno"].to_numpy(dtype=object)
    for docno in docnos:
        if not isinstance(docno, str):
            raise ValueError(f"docno: expected strings, found {docno!r}; convert the column with .astype(str)")
    return docnos


def vectors_of(frame: pd.DataFrame, column: str) -> np.ndarray:
    """A column of vectors as one float32 array (rows, D).

    Raises:
        ValueError: where rows have different sizes or are no vectors.
    """
    try:
        vectors = np.stack([np.asarray(value, dtype=np.float32) for value in frame[column]])
    except (ValueError, TypeError) as err:
        raise ValueError(f"{column}: expected one vector of numbers of the same size in every row, found {err}") from err
    if vectors.ndim != 2:
        raise ValueError(f"{column}: expected one vector in every row, found values of shape {vectors.shape[1:]}")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        name = next((f"{key} {frame[key].iloc[row]!r}" for key in ("docno", "qid") if key in frame.columns), f"row {row}")
        raise ValueError(f"{column}: expected finite numbers, found NaN or infinity at {name}; look at what made the vectors")
    return vectors


def groups_of(frame: pd.DataFrame) -> list[np.ndarray]:
    """Row numbers of each query, queries in the order in which they first come.

    Raises:
        ValueError: where a qid is missing.
    """
    if frame["qid"].isna().any():
        raise ValueError("qid: expected a query id in every row, found missing ones")
    codes, _ = pd.factorize(frame["qid"])
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def order_of(scores: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Positions by score, best first, equal scores by ``ties`` (docids)."""
    return np.lexsort((ties, -scores))


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
