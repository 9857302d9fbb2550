"""Names and data types of the files in an index directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1
META_FILE = "pt_meta.json"
DOCNOS_FILE = "docnos.npids"
STORED_DTYPES: dict[str, np.dtype[Any]] = {"f2": np.dtype("<f2"), "f4": np.dtype("<f4"), "i1": np.dtype("i1")}
"""Data type of the document vectors by the suffix of their file."""
SUFFIXES = {"fp16": "f2", "fp32": "f4", "int8": "i1"}
"""Suffix of the vector file by the value of the option ``dtype``."""
SCALES_FILE, SCALE_DTYPE = "scales.f4", np.dtype("<f4")

EDGES_FILE, EDGE_DTYPE = "edges.u32.np", np.dtype("<u4")
WEIGHTS_FILE, WEIGHT_DTYPE = "weights.f16.np", np.dtype("<f2")


def get_vectors_name(suffix: str) -> str:
    """Return the name of the file with the document vectors."""
    return f"vecs.{suffix}"


def get_graph_path(index: Path, k: int) -> Path:
    """Return the directory of the neighbour graph with k neighbours per document."""
    return index / f"corpusgraph_k{k}"


def list_graph_sizes(index: Path) -> list[int]:
    """Return the numbers of neighbours of all graphs in an index directory, in ascending order."""
    names = (re.fullmatch(r"corpusgraph_k([1-9][0-9]*)", path.name) for path in index.iterdir())
    return sorted(int(name[1]) for name in names if name)
