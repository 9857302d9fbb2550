"""What every transformer of this package does with frames and with its own arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

TextField = str | Sequence[str]


def list_text_fields(text_field: TextField) -> list[str]:
    """The names of the fields that make a document's text.

    Raises:
        ValueError: where there are none.
    """
    fields = [text_field] if isinstance(text_field, str) else list(text_field)
    if not fields or not all(isinstance(field, str) for field in fields):
        raise ValueError(f"text_field: expected the name of a field or a list of names, found {text_field!r}")
    return fields


def join_text(record: Mapping[str, Any], fields: Sequence[str]) -> str:
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


def read_texts(frame: pd.DataFrame, text_field: TextField) -> list[str]:
    """The texts of a frame's documents; see :func:`join_text`."""
    fields = list_text_fields(text_field)
    columns = [*fields, *(["docno"] if "docno" in frame.columns else [])]
    return [join_text(record, fields) for record in frame[columns].to_dict("records")]


def read_queries(frame: pd.DataFrame) -> list[str]:
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


def read_docnos(frame: pd.DataFrame) -> np.ndarray:
    """The docnos of a frame's rows.

    Raises:
        ValueError: where one is not a string.
    """
    docnos = frame["docno"].to_numpy(dtype=object)
    for docno in docnos:
        if not isinstance(docno, str):
            raise ValueError(f"docno: expected strings, found {docno!r}; convert the column with .astype(str)")
    return docnos


def read_vectors(frame: pd.DataFrame, column: str) -> np.ndarray:
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


def group_rows(frame: pd.DataFrame) -> list[np.ndarray]:
    """Row numbers of each query, queries in the order in which they first come.

    Raises:
        ValueError: where a qid is missing.
    """
    if frame["qid"].isna().any():
        raise ValueError("qid: expected a query id in every row, found missing ones")
    codes, _ = pd.factorize(frame["qid"])
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def rank_rows(scores: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Positions by score, best first, equal scores by ``ties`` (docids)."""
    return np.lexsort((ties, -scores))
