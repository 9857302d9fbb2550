"""A three-document index for examples, doctests and schematics; it needs neither a model nor the network."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from ..index.writer import IndexWriter

DOCNOS = ("d1", "d2", "d3")
VECTORS = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]], dtype=np.float32)


@cache
def make_example_folder() -> Path:
    """Make a temporary folder that is removed when the process ends; the same one on every call."""
    folder = Path(tempfile.mkdtemp(prefix="hypencoder-example-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def build_example_index() -> Path:
    """Build the example index on the first call, and return its directory.

    The index has three documents, ``d1`` to ``d3``, with vectors of four dimensions. It records no model.
    """
    path = make_example_folder() / "example.hyp"
    writer = IndexWriter(path, mode="create", dtype="fp16", facts={"model": None, "text_field": None})
    writer.check(DOCNOS)
    writer.add(DOCNOS, VECTORS)
    writer.finish()
    return path
