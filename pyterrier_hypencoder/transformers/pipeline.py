"""``indexer >> retriever`` as one pipeline that builds an index and searches it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from ..encoders.base import Encoder
from ..identity import ByArguments, make_file_name
from .opened import get_index_path
from .retriever import HypencoderRetriever


class IndexedPipeline(ByArguments, pt.Transformer):
    """Build an index with ``.index(corpus)``, search it with ``.transform(topics)``.

    Args:
        indexer: The indexer that builds the index.
        searcher: The pipeline that searches it: the retriever and the stages around it.
    """

    def __init__(self, indexer: Any, searcher: pt.Transformer) -> None:
        self.indexer = indexer
        self.searcher = searcher

    def index(self, iter: Iterable[dict[str, Any]] | pd.DataFrame, **kwargs: Any) -> pt.Artifact:
        """Build the index that the pipeline then searches; see :meth:`HypencoderIndexer.index`."""
        index = self.indexer.index(iter, **kwargs)
        for retriever in list_retrievers(self.searcher):
            retriever.set_parameter("index", self.indexer.path)  # the indexer's path may have been changed since
        return index

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Search the index."""
        return self.searcher.transform(inp)

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        return IndexedPipeline(self.indexer, self.searcher >> right)

    def compile(self) -> pt.Transformer:
        """Return the same pipeline with a compiled searcher."""
        return IndexedPipeline(self.indexer, self.searcher.compile())

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Return the same pipeline with at most k results per query, or None if the searcher cannot be fused."""
        fuse = getattr(self.searcher, "fuse_rank_cutoff", None)
        fused = fuse(k) if fuse is not None else None
        return None if fused is None else IndexedPipeline(self.indexer, fused)

    def schematic(self, *, input_columns: list[str] | None = None) -> dict[str, Any]:
        """Return the schematic of the searcher."""
        return pt.schematic.transformer_schematic(self.searcher, input_columns=input_columns)

    def transform_inputs(self) -> list[list[str]]:
        """Return the input columns of the searcher."""
        return pt.inspect.transformer_inputs(self.searcher) or []

    def transform_outputs(self, input_columns: list[str]) -> list[str]:
        """Return the output columns of the searcher."""
        return pt.inspect.transformer_outputs(self.searcher, input_columns)

    def __repr__(self) -> str:
        return f"({self.indexer!r} >> {self.searcher!r})"

    def __str__(self) -> str:
        """Return the default name in :func:`pyterrier.Experiment`, which is also a name of a file for ``save_dir``."""
        return make_file_name(f"({self.indexer!r}, {self.searcher!r})")


def list_retrievers(pipeline: pt.Transformer) -> list[HypencoderRetriever]:
    """Return all retrievers of this package in a pipeline, wherever they stand."""
    return [stage for stage in _walk(pipeline) if isinstance(stage, HypencoderRetriever)]


def bind_retrievers(retrievers: Iterable[HypencoderRetriever], path: str | Path, model: Encoder | None) -> None:
    """Set the index of retrievers that were made without one, and the model of those that have none.

    Args:
        retrievers: The retrievers.
        path: The directory of the index.
        model: The model of the indexer.

    Raises:
        ValueError: If one of the retrievers belongs to another index. Then none of them is changed.
    """
    retrievers = list(retrievers)
    for retriever in retrievers:
        current = get_index_path(retriever.get_parameter("index"))
        if current is not None and os.path.abspath(current) != os.path.abspath(path):
            raise ValueError(
                f"The retriever already searches the index at {current}, so it cannot follow the indexer of {path}. Use a "
                "new HypencoderRetriever() in this pipeline."
            )
    for retriever in retrievers:
        retriever.set_parameter("index", path)
        if retriever.model is None:
            retriever.model = model


def _walk(pipeline: pt.Transformer) -> Iterator[pt.Transformer]:
    """Yield a transformer and all its parts: stages, sides of operators, what a cache wraps."""
    yield pipeline
    for parts in pt.inspect.subtransformers(pipeline).values():
        for part in parts if isinstance(parts, list) else [parts]:
            yield from _walk(part)
