"""Read and check columns of frames: texts, queries, docnos, vectors, and the rows of each query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pandas as pd

TextField = str | Sequence[str]


def list_text_fields(text_field: TextField) -> list[str]:
    """Return the names of the fields that make up a document's text.

    Args:
        text_field: The name of a field, or several names.

    Raises:
        ValueError: If there are no names, or they are not strings. A mapping of weights is not supported.
    """
    is_list = isinstance(text_field, list | tuple | np.ndarray | pd.Index)
    fields = [text_field] if isinstance(text_field, str) else list(text_field) if is_list else []
    if not fields or not all(isinstance(field, str) for field in fields):
        raise ValueError(f"text_field must be the name of a field or a list of names, got {text_field!r}.")
    return fields


def join_text(record: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Return the text of a document: its fields joined by a space and stripped, as in the released code.

    If there are several fields, some may be missing (a document without a title), but not all.

    Args:
        record: The document.
        fields: Names of the fields.

    Raises:
        ValueError: If the text is missing, not a string, or has lone surrogates.
    """
    values = [record.get(field) for field in fields]
    present = [value for value in values if isinstance(value, str)]
    if not present or any(not is_missing(value) for value in values if not isinstance(value, str)):
        found = {field: value for field, value in zip(fields, values, strict=True) if not isinstance(value, str)}
        raise ValueError(
            f"Document {record.get('docno')!r} must have a string in {' or '.join(fields)}, got {found}. Give every document "
            "a text (it may be empty), or name the right fields in text_field."
        )
    text = " ".join(present).strip()
    check_text(text, f"The text of document {record.get('docno')!r}")
    return text


def is_missing(value: Any) -> bool:
    """Return True if a cell of a frame is empty: None, NaN or NA."""
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))


def read_texts(frame: pd.DataFrame, text_field: TextField) -> list[str]:
    """Return the texts of a frame's documents; see :func:`join_text`."""
    fields = list_text_fields(text_field)
    columns = [*fields, *(["docno"] if "docno" in frame.columns else [])]
    return [join_text(record, fields) for record in frame[columns].to_dict("records")]


def read_queries(frame: pd.DataFrame) -> list[str]:
    """Return the queries of a frame's rows.

    Raises:
        ValueError: If a query is not a string, or has lone surrogates. Empty queries are allowed.
    """
    queries = frame["query"].tolist()
    qids = frame["qid"].tolist() if "qid" in frame.columns else range(len(queries))
    for qid, query in zip(qids, queries, strict=True):
        check_text(query, f"Query {qid!r}")
    return queries


def list_texts(texts: Any) -> list[Any]:
    """Return an argument with several texts as a list. Iterators are read to their end.

    Raises:
        ValueError: If it is one string, or something without an order, such as a set.
    """
    is_list = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Set | Mapping | pd.DataFrame)
    if not is_list or (isinstance(texts, np.ndarray) and not texts.ndim):
        advice = f"Pass [{texts!r:.40}]" if isinstance(texts, str) else "Pass a list"
        raise ValueError(f"texts must be a list of strings, got {type(texts).__name__}. {advice}.")
    return texts.tolist() if isinstance(texts, np.ndarray) else list(texts)


def check_text(text: Any, name: str) -> None:
    """Check that a text is a string that can be stored and tokenised.

    Args:
        text: The text.
        name: Description of the text, for the message.

    Raises:
        ValueError: If it is not a string, or has lone surrogates: halves of characters, left by a wrong decoding.
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a string (it may be empty), got {text!r}. Texts are lists of strings.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as err:
            raise ValueError(
                f"{name} must be valid Unicode, got {text[err.start]!r} at position {err.start}. Decode the source again, or "
                "repair the text with text.encode('utf-8', 'replace').decode()."
            ) from None


def read_docnos(frame: pd.DataFrame) -> np.ndarray:
    """Return the docnos of a frame's rows.

    Raises:
        ValueError: If a docno is not a string.
    """
    docnos = frame["docno"].to_numpy(dtype=object)
    for docno in docnos:
        if not isinstance(docno, str):
            raise ValueError(f"docno must be a string, got {docno!r}. Convert the column with .astype(str).")
    return docnos


def read_vectors(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column of vectors as one float32 array, (rows, D).

    Args:
        frame: The frame.
        column: Name of the column.

    Raises:
        ValueError: If the vectors have different sizes, are not numbers, or are not finite.
    """
    try:
        vectors = np.stack([np.asarray(value, dtype=np.float32) for value in frame[column]])
    except (ValueError, TypeError) as err:
        raise ValueError(f"{column} must contain one vector of numbers per row, all of the same size: {err}.") from err
    if vectors.ndim != 2:
        raise ValueError(f"{column} must contain one vector per row, got values of shape {vectors.shape[1:]}.")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        name = next((f"{key} {frame[key].iloc[row]!r}" for key in ("docno", "qid") if key in frame.columns), f"row {row}")
        raise ValueError(f"{column} contains NaN or infinity at {name}. Check the model that made the vectors.")
    return vectors


def group_rows(frame: pd.DataFrame) -> list[np.ndarray]:
    """Return the row numbers of each query, in the order in which the queries first occur.

    Raises:
        ValueError: If a qid is missing.
    """
    if frame["qid"].isna().any():
        raise ValueError("qid is missing in some rows; give every row a query id.")
    codes, _ = pd.factorize(frame["qid"])
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def pick_queries(frame: pd.DataFrame, groups: list[np.ndarray]) -> pd.DataFrame:
    """Return one row of each query: the first that has the query, or the first if none has.

    In PyTerrier, ``a + b`` leaves the query out of the rows of documents that only ``b`` has found.

    Args:
        frame: A frame with ``qid``.
        groups: Row numbers of each query; see :func:`group_rows`.
    """
    columns = [column for column in ("query", "query_vec") if column in frame.columns]
    complete = frame[columns].notna().all(axis=1).to_numpy()
    return frame.iloc[[rows[np.argmax(complete[rows])] for rows in groups]]


def rank_rows(scores: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Return positions by descending score; equal scores are ordered by ``ties``, such as docids."""
    return np.lexsort((ties, -scores))
