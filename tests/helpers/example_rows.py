"""Training rows as the tests of samplers, streams and collators need them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyterrier_hypencoder.training.row_sampler import RowSampler, SampledRow


def make_row(number: int, items: int = 12, **changes: Any) -> dict[str, Any]:
    """Return a row. The teacher prefers item 3, and items 0 and 1 have the type positive."""
    made = [
        {
            "id": f"q{number}d{i}",
            "content": f"document {i} of {number}",
            "tokenized_content": [2, number % 90 + 5, i + 5, 3],
            "score": 10.0 if i == 3 else float(-i),
            "type": "positive" if i < 2 else "negative",
        }
        for i in range(items)
    ]
    query = {"id": f"q{number}", "content": f"query {number}", "tokenized_content": [2, number % 90 + 5, 3]}
    return {"query": query, "items": made, **changes}


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """Write rows to a file, gzipped if its name says so. Strings are written unchanged."""
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [json.loads(line) for line in file]


def drop_key(row: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a row whose query and items lack a key."""
    query, *items = ({k: v for k, v in record.items() if k != key} for record in (row["query"], *row["items"]))
    return {"query": query, "items": items}


def list_ids(rows: Iterable[SampledRow]) -> list[str | None]:
    """Return the query ids of sampled rows."""
    return [row["query_id"] for row in rows]


def sample(row: Any, seed: int = 0, **options: Any) -> SampledRow:
    """Sample one row."""
    return RowSampler(**options)(row, random.Random(seed))
