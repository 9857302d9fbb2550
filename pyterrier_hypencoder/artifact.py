"""The index as a PyTerrier artifact: opens a directory and is the factory of its transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt

from .encoders.base import Encoder
from .encoders.columns import TextField
from .encoders.loading import load_recorded_encoder
from .identity import shorten
from .index.files import META_FILE, identity
from .index.graph_builder import corpus_graph
from .index.inner_product import InnerProductIndex
from .index.neighbour_graph import NeighbourGraph
from .index.reader import IndexReader
from .transformers.indexer import DocumentIndexer
from .transformers.retriever import HypencoderRetriever
from .transformers.scorer import HypencoderScorer
from .transformers.vec_loader import VecLoader


class HypencoderIndex(pt.Artifact):
    """Document vectors on disk; made by :class:`HypencoderIndexer`, shared like every PyTerrier artifact.

    Args:
        path: the index directory.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is no index, one of a newer format, or damaged.
    """

    ARTIFACT_TYPE = "dense_index"
    ARTIFACT_FORMAT = "hypencoder"
    ARTIFACT_PACKAGE_HINT = "pyterrier-hypencoder"

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._opened = identity(Path(path)), IndexReader(Path(path))
        self._models: dict[tuple[str, str], Encoder] = {}

    @property
    def reader(self) -> IndexReader:
        """The opened directory; opened anew when the index has been replaced."""
        now = identity(Path(str(self.path)))
        if self._opened[0] != now:
            self._opened = now, IndexReader(Path(str(self.path)))
        return self._opened[1]

    def __len__(self) -> int:
        return self.reader.doc_count

    def __repr__(self) -> str:
        return f"HypencoderIndex({shorten(str(self.path))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HypencoderIndex) and other.path == self.path

    def __hash__(self) -> int:
        return hash(("HypencoderIndex", self.path))

    def __reduce__(self) -> tuple[Any, ...]:
        return HypencoderIndex, (self.path,)

    @property
    def meta(self) -> dict[str, Any]:
        """What ``pt_meta.json`` says."""
        return dict(self.reader.meta)

    @property
    def vec_size(self) -> int:
        """Dimensions of the document vectors, D."""
        return self.reader.vec_size

    @property
    def vectors(self) -> np.ndarray:
        """The document vectors, (N, D), a read-only memory map; row i is the document of docid i."""
        return self.reader.vectors

    @property
    def docnos(self) -> Any:
        """The lookup docno <-> docid; see :class:`pyterrier_hypencoder.docnos.Docnos`."""
        return self.reader.docnos

    def model(self, *, device: str = "auto") -> Encoder | None:
        """The encoder recorded in the index; None where the vectors came from elsewhere.

        It is loaded on first use and shared by all transformers of this index that were made without a model.

        Args:
            device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda[:n]``.
        """
        record = self.meta.get("model")
        if record is None:
            return None
        key = (str(record), device)
        if key not in self._models:
            self._models[key] = load_recorded_encoder(record, device=device)
        return self._models[key]

    def retriever(self, model: Encoder | None = None, **options: Any) -> HypencoderRetriever:
        """A transformer that searches this index.

        Args:
            model: the encoder of the queries; None takes the one recorded in the index.
            **options: those of :class:`HypencoderRetriever`, such as ``num_results`` and ``search``.
        """
        return HypencoderRetriever(self, model, **options)

    def scorer(
        self,
        model: Encoder | None = None,
        *,
        text_field: TextField = "text",
        batch_size: int = 32,
        device: str = "auto",
        precision: str = "auto",
        qnet_width: int | None = None,
        verbose: bool = False,
    ) -> HypencoderScorer:
        """A transformer that re-ranks with the vectors of this index; see :class:`HypencoderScorer`."""
        return HypencoderScorer(
            self,
            model,
            text_field=text_field,
            batch_size=batch_size,
            device=device,
            precision=precision,
            qnet_width=qnet_width,
            verbose=verbose,
        )

    def vec_loader(self) -> VecLoader:
        """A transformer that adds the stored vectors of documents as ``doc_vec``."""
        return VecLoader(self)

    def corpus_graph(
        self, k: int = 100, *, builder: str = "auto", device: str = "auto", verbose: bool = False
    ) -> NeighbourGraph:
        """The graph of nearest documents by L2 distance, opened, or built on first use inside the index directory.

        It serves pyterrier_adaptive's ``GAR`` and pyterrier_dr's LADR; ``pt.Artifact.load`` opens its directory
        as a graph of pyterrier_adaptive. A graph with more neighbours serves for fewer.

        Args:
            k: neighbours of each document, at most 10,000.
            builder: ``exact``, ``hnsw`` or ``nn_descent``; ``auto`` opens what there is, and builds exactly for up to
                200,000 documents (20 million on a GPU), above with ``hnsw``. See :func:`pyterrier_hypencoder.graph.build`.
            device: where exact comparisons are made: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda[:n]``.
            verbose: whether to show progress.

        Raises:
            ValueError: for bad options, or where the graph on disk is damaged or of another index or an older state.
            RuntimeError: while another process builds the same graph.
        """
        return corpus_graph(self.reader, k, builder=builder, device=device, verbose=verbose)

    def inner_product_index(self, *, verbose: bool = False) -> InnerProductIndex:
        """The index for maximum inner product, opened, or built on first use inside the index directory.

        Where there is one, surrogate search on a CPU asks it, in place of a product with all vectors, while that should cost
        less; see :class:`HypencoderRetriever`. It takes as much space as the vectors, and some 280 bytes for each document.

        Args:
            verbose: whether to show progress of building.

        Raises:
            ValueError: where its files are damaged or not of this index.
        """
        return InnerProductIndex(self.reader, verbose=verbose)

    def get_corpus_iter(
        self, start: int | None = None, stop: int | None = None, *, verbose: bool = False
    ) -> Iterator[dict[str, Any]]:
        """The documents in order, as dictionaries with ``docno`` and ``doc_vec`` (float32).

        Args:
            start: first docid; None for 0.
            stop: docid to stop before; None for all.
            verbose: whether to show progress.
        """
        ids = range(len(self))[start:stop]
        with pt.tqdm(total=len(ids), desc=str(self.path), unit="doc", disable=not verbose) as progress:
            for first in range(ids.start, ids.stop, 4096):
                block = np.arange(first, min(first + 4096, ids.stop))
                vectors = self.vectors[block[0] : block[-1] + 1].astype(np.float32)
                for docno, vector in zip(self.docnos.at(block), vectors, strict=True):
                    yield {"docno": docno, "doc_vec": vector}
                progress.update(len(block))

    def to_flex(self, path: str | Path) -> Any:
        """Writes the vectors as a pyterrier_dr ``FlexIndex`` (float32), for its search methods and back-ends.

        Args:
            path: the directory to make.

        Returns:
            The ``FlexIndex``.

        Raises:
            ImportError: where pyterrier_dr is not installed.
        """
        flex = _pyterrier_dr().FlexIndex(str(path), verbose=False)
        flex.index(self.get_corpus_iter())
        return flex

    @classmethod
    def from_flex(cls, flex: Any, path: str | Path, *, mode: str = "create", dtype: str = "fp16") -> HypencoderIndex:
        """Takes over the vectors of a pyterrier_dr ``FlexIndex``.

        Args:
            flex: the ``FlexIndex``, or its path.
            path: the directory to make.
            mode: see :class:`HypencoderIndexer`.
            dtype: ``fp16`` or ``fp32``, which is what a ``FlexIndex`` has.

        Raises:
            ImportError: where pyterrier_dr is not installed.
            ValueError: where there is no ``FlexIndex``.
        """
        if isinstance(flex, str | Path):
            pyterrier_dr, found = _pyterrier_dr(), _read_format(Path(flex))
            if found != "flex":
                raise ValueError(f"expected a FlexIndex of pyterrier_dr at {flex}, found {found or 'nothing of the kind'}")
            flex = pyterrier_dr.FlexIndex(str(flex), verbose=False)
        HypencoderIndexer(path, mode=mode, dtype=dtype).index(flex.get_corpus_iter())
        return cls(path)


class HypencoderIndexer(DocumentIndexer):
    """Writes the vectors of documents to an index directory.

    Memory does not grow with the collection. A build that was killed goes on with ``mode="resume"`` and the same stream:
    documents that are stored are checked by docno and skipped, and the result is the same to the byte.

    Args:
        path: the directory to make.
        model: the encoder; not needed for documents that bring ``doc_vec``, which are stored as they are. Where it is given
            all the same, it is recorded as what made them.
        mode: ``create`` (refuses what exists), ``overwrite`` (replaces an index once the new one is complete) or
            ``resume`` (goes on with an interrupted build, or begins one).
        dtype: how vectors are stored: ``fp16`` (half the size; rankings hardly change) or ``fp32``.
        text_field: the field with the text, or several, joined by a space.
        batch_size: documents that are sorted by length, encoded and stored together; what a killed build loses at most.
        graph_k: where given, the graph of so many nearest documents is built after the index is in place, as
            ``index.corpus_graph(graph_k)`` does. Where that fails or is killed the index stays, and ``mode="resume"`` with
            the same documents goes on with the graph.
        verbose: whether to show progress.
    """

    def open_index(self, path: Path) -> HypencoderIndex:
        """Return the index at a path."""
        return HypencoderIndex(path)


def _read_format(path: Path) -> str | None:
    """The format that an artifact says it has."""
    try:
        return json.loads((path / META_FILE).read_text()).get("format")
    except (OSError, ValueError):
        return None


def _pyterrier_dr() -> Any:
    try:
        import pyterrier_dr
    except ImportError as err:
        raise ImportError("exchanging vectors with FlexIndex needs pyterrier_dr: pip install pyterrier-dr") from err
    return pyterrier_dr
