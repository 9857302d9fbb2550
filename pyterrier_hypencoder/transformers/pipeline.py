"""``indexer >> retriever`` as one pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import pyterrier as pt

from ..identity import ByArguments
from .retriever import HypencoderRetriever


class IndexedPipeline(ByArguments, pt.Transformer):
    """``indexer >> retriever``: ``.index(corpus)`` builds the index, ``.transform(topics)`` searches it.

    Args:
        indexer: what builds.
        searcher: what searches: the retriever and the stages after it.
    """

    def __init__(self, indexer: Any, searcher: pt.Transformer) -> None:
        self.indexer = indexer
        self.searcher = searcher

    def index(self, iter: Iterable[dict[str, Any]] | pd.DataFrame, **kwargs: Any) -> pt.Artifact:
        """Builds the index, which is then searched; see :meth:`HypencoderIndexer.index`."""
        index = self.indexer.index(iter, **kwargs)
        for stage in _stages(self.searcher):
            if isinstance(stage, HypencoderRetriever):
                stage._index = self.indexer.path  # it may have been set to another one since
        return index

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Searches the index."""
        return self.searcher.transform(inp)

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        return IndexedPipeline(self.indexer, self.searcher >> right)

    def compile(self) -> pt.Transformer:
        """The same with the searching side compiled."""
        return IndexedPipeline(self.indexer, self.searcher.compile())

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """The same with a retriever that returns at most k documents, where that is fewer."""
        fuse = getattr(self.searcher, "fuse_rank_cutoff", None)
        fused = fuse(k) if fuse is not None else None
        return None if fused is None else IndexedPipeline(self.indexer, fused)

    def schematic(self, *, input_columns: list[str] | None = None) -> dict[str, Any]:
        """Drawn as what searches."""
        return pt.schematic.transformer_schematic(self.searcher, input_columns=input_columns)

    def transform_inputs(self) -> list[list[str]]:
        """As what searches."""
        return pt.inspect.transformer_inputs(self.searcher) or []

    def transform_outputs(self, input_columns: list[str]) -> list[str]:
        """As what searches."""
        return pt.inspect.transformer_outputs(self.searcher, input_columns)

    def __repr__(self) -> str:
        return f"({self.indexer} >> {self.searcher})"


def _stages(pipeline: pt.Transformer) -> Iterator[pt.Transformer]:
    """A transformer and all that it is made of: the stages of a pipeline, the sides of ``+``, what a cache is around."""
    yield pipeline
    for parts in pt.inspect.subtransformers(pipeline).values():
        for part in parts if isinstance(parts, list) else [parts]:
            yield from _stages(part)
