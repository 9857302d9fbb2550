"""The index as a PyTerrier artifact: it opens a directory and makes the transformers over it."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pyterrier as pt

from .encoders.base import Encoder
from .encoders.loading import load_recorded_encoder
from .identity import shorten
from .index.docnos import Docnos
from .index.files import read_meta, resolve_path
from .index.graph_builder import open_or_build_graph
from .index.inner_product import InnerProductIndex, build_inner_product_index, open_inner_product_index
from .index.layout import get_graph_path, list_graph_sizes
from .index.neighbour_graph import NeighbourGraph
from .index.reader import IndexReader
from .transformers.adaptive import Gar, LadrAdaptive, LadrProactive
from .transformers.example import build_example_index, make_example_folder
from .transformers.indexer import DocumentIndexer
from .transformers.prf import VectorFeedback
from .transformers.retriever import HypencoderRetriever
from .transformers.scorer import HypencoderScorer
from .transformers.vec_loader import VecLoader

_BLOCK = 4096  # documents that get_corpus_iter converts to float32 together
Parameters = ParamSpec("Parameters")
Made = TypeVar("Made")


def _takes_options_of(
    transformer: Callable[Concatenate[Any, Parameters], Made],
) -> Callable[[Callable[..., Made]], Callable[Concatenate[HypencoderIndex, Parameters], Made]]:
    """Give a factory method the signature of the class that it makes, without the index.

    Then help(), notebooks and type checkers show the options, although they are listed only once, in the class.
    """

    def decorate(method: Callable[..., Made]) -> Callable[Concatenate[HypencoderIndex, Parameters], Made]:
        options = list(inspect.signature(transformer).parameters.values())[1:]
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        signature = inspect.Signature([own, *options], return_annotation=transformer)
        method.__signature__ = signature  # type: ignore[attr-defined]
        return method

    return decorate


class HypencoderIndex(pt.Artifact):
    """Document vectors on disk, opened for searching.

    :class:`HypencoderIndexer` builds an index. It can be shared like every PyTerrier artifact.

    Args:
        path: The index directory. A later change of the working directory does not matter.
        verify: If True, check all files at once; see :meth:`verify`. Without it, blocks are checked when they are read.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If the directory is not an index, has a newer format, or is damaged.

    Example:
        >>> from pyterrier_hypencoder import HypencoderIndex
        >>> index = HypencoderIndex.example()
        >>> len(index), index.vec_size
        (3, 4)
        >>> [document["docno"] for document in index.get_corpus_iter()]
        ['d1', 'd2', 'd3']
        >>> index.retriever(num_results=10)  # doctest: +ELLIPSIS
        HypencoderRetriever(HypencoderIndex('...'), num_results=10)
    """

    ARTIFACT_TYPE = "dense_index"
    ARTIFACT_FORMAT = "hypencoder"
    ARTIFACT_PACKAGE_HINT = "pyterrier-hypencoder"

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = False) -> None:
        folder: Path = resolve_path(path)
        super().__init__(folder)
        self._reader = IndexReader(folder)
        self._models: dict[tuple[str, str], Encoder] = {}
        self._loading = threading.Lock()
        if verify:
            self.verify()

    @classmethod
    def example(cls) -> HypencoderIndex:
        """Return an index with three documents, ``d1`` to ``d3``, and vectors of four dimensions.

        It is built in a temporary folder on the first call. It records no model, so it needs no download: queries need a
        column ``query_vec``.
        """
        return cls(build_example_index())

    @property
    def reader(self) -> IndexReader:
        """The opened directory. It is opened again when the index has been replaced."""
        reader = self._reader
        if not reader.is_current():
            self._reader = reader = IndexReader(reader.path)
        return reader

    def verify(self) -> None:
        """Check all files of the index, its neighbour graphs and its inner-product index against their checksums.

        Opening an index checks the metadata, the docnos and the sizes of all files. Searches check each block of 64 KiB
        when they read it for the first time. This method checks everything, at the speed of the disk: 13 GB in the page
        cache take about two seconds.

        Raises:
            ValueError: If a file is damaged. The message names it.
        """
        reader = self.reader
        reader.vectors.check()
        for size in list_graph_sizes(reader.folder):
            NeighbourGraph(get_graph_path(reader.folder, size), reader).verify()
        open_inner_product_index(reader)

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
        """A copy of the metadata in ``pt_meta.json``."""
        return dict(self.reader.meta)

    @property
    def vec_size(self) -> int:
        """Dimensions of the document vectors, D."""
        return self.reader.vec_size

    @property
    def vectors(self) -> np.ndarray:
        """The document vectors, (N, D), as a read-only memory map. Row i is the document with docid i.

        All blocks are checked on first use, which reads the whole file.
        """
        return self.reader.vectors.check()

    @property
    def docnos(self) -> Docnos:
        """The lookup between docnos and docids; see :class:`pyterrier_hypencoder.index.docnos.Docnos`."""
        return self.reader.docnos

    def model(self, *, device: str = "auto") -> Encoder | None:
        """Return the encoder that is recorded in the index.

        It is loaded on first use and shared by all transformers of this index that were made without a model.

        Args:
            device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``.

        Returns:
            The encoder, or None if the index was built from vectors without a model.
        """
        record = self.meta.get("model")
        if record is None:
            return None
        key = (str(record), device)
        with self._loading:  # threads share the model
            if key not in self._models:
                self._models[key] = load_recorded_encoder(record, device=device, index=self._reader.path)
            return self._models[key]

    @_takes_options_of(HypencoderRetriever)
    def retriever(self, *args: Any, **options: Any) -> HypencoderRetriever:
        """Return a transformer that searches this index.

        The arguments are those of :class:`HypencoderRetriever` after ``index``: ``model``, then its options by keyword.
        """
        return HypencoderRetriever(self, *args, **options)

    @_takes_options_of(HypencoderScorer)
    def scorer(self, *args: Any, **options: Any) -> HypencoderScorer:
        """Return a transformer that re-ranks with the vectors of this index.

        The arguments are those of :class:`HypencoderScorer` after ``index``: ``model``, then its options by keyword.
        """
        return HypencoderScorer(self, *args, **options)

    @_takes_options_of(VecLoader)
    def vec_loader(self) -> VecLoader:
        """Return a transformer that adds the stored vectors of documents as ``doc_vec``; see :class:`VecLoader`."""
        return VecLoader(self)

    @_takes_options_of(VectorFeedback)
    def prf(self, *args: Any, **options: Any) -> VectorFeedback:
        """Return a stage that moves query vectors towards the best documents; see :class:`VectorFeedback`."""
        return VectorFeedback(self, *args, **options)

    @_takes_options_of(Gar)
    def gar(self, *args: Any, **options: Any) -> Gar:
        """Return GAR of pyterrier_adaptive over the neighbour graph of this index; see :class:`Gar`."""
        return Gar(self, *args, **options)

    @_takes_options_of(LadrProactive)
    def ladr_proactive(self, *args: Any, **options: Any) -> LadrProactive:
        """Return LADR of pyterrier_dr over the neighbour graph of this index; see :class:`LadrProactive`."""
        return LadrProactive(self, *args, **options)

    @_takes_options_of(LadrAdaptive)
    def ladr_adaptive(self, *args: Any, **options: Any) -> LadrAdaptive:
        """Return adaptive LADR of pyterrier_dr over the neighbour graph of this index; see :class:`LadrAdaptive`."""
        return LadrAdaptive(self, *args, **options)

    def corpus_graph(
        self, k: int = 100, *, builder: str = "auto", device: str = "auto", verbose: bool = False
    ) -> NeighbourGraph:
        """Return the neighbour graph of this index; build it on first use.

        The graph links each document to its nearest documents by L2 distance. It is stored inside the index directory. A
        graph with more neighbours also serves for fewer. pyterrier_adaptive's ``GAR`` and pyterrier_dr's LADR accept it, and
        ``pt.Artifact.load`` opens its directory as a graph of pyterrier_adaptive.

        Args:
            k: Number of neighbours per document, at most 10,000. The paper uses 100 (section 3.6).
            builder: ``exact``, ``hnsw``, ``nn_descent`` or ``auto``. ``auto`` opens an existing graph. If there is none, it
                builds exactly up to 200,000 documents (20 million on a GPU) and with ``hnsw`` above. See
                :func:`pyterrier_hypencoder.index.graph_builder.build_graph`.
            device: Device of exact comparisons: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda[:n]``.
            verbose: If True, show a progress bar.

        Raises:
            ValueError: If an option is not valid, or the graph on disk is damaged or belongs to another index or an older
                state of this one.
            FileExistsError: If another process or thread is building the same graph.
        """
        return open_or_build_graph(self.reader, k, builder=builder, device=device, verbose=verbose)

    def inner_product_index(self, *, verbose: bool = False) -> InnerProductIndex:
        """Return the inner-product index of this index; build it on first use.

        ``algorithm="hnsw"`` searches it. Surrogate search on a CPU uses it, once it has been built, if that should take less
        time than a product with all vectors. A search never builds it: for 1,000,000 vectors of 384 dimensions, building
        took 16 minutes on two cores. It is stored inside the index directory, and takes the size of the vectors plus about
        280 bytes per document.

        Args:
            verbose: If True, show a progress bar.

        Raises:
            ValueError: If its files are damaged.
        """
        return build_inner_product_index(self.reader, verbose=verbose)

    def get_corpus_iter(
        self, start: int | None = None, stop: int | None = None, *, verbose: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield the documents in the order of their docids.

        Args:
            start: First docid, as in a slice. None starts at 0.
            stop: Docid at which to stop, as in a slice. None stops at the end.
            verbose: If True, show a progress bar.

        Yields:
            Dictionaries with ``docno`` and ``doc_vec`` (D,) float32.
        """
        reader = self.reader
        docids = range(reader.doc_count)[start:stop]
        with pt.tqdm(total=len(docids), desc=str(self.path), unit="doc", disable=not verbose) as progress:
            for first in range(docids.start, docids.stop, _BLOCK):
                block = np.arange(first, min(first + _BLOCK, docids.stop))
                vectors = reader.vectors[block[0] : block[-1] + 1].astype(np.float32)
                for docno, vector in zip(reader.docnos.at(block), vectors, strict=True):
                    yield {"docno": docno, "doc_vec": vector}
                progress.update(len(block))

    def to_flex(self, path: str | Path) -> Any:
        """Write the vectors as a ``FlexIndex`` of pyterrier_dr, to use its search algorithms and back-ends.

        Args:
            path: The directory to create.

        Returns:
            The ``FlexIndex``, with float32 vectors.

        Raises:
            ImportError: If pyterrier_dr is not installed.
        """
        flex = _import_pyterrier_dr().FlexIndex(str(path), verbose=False)
        flex.index(self.get_corpus_iter())
        return flex

    @classmethod
    def from_flex(cls, flex: Any, path: str | Path, *, mode: str = "create", dtype: str = "fp16") -> HypencoderIndex:
        """Build an index from the vectors of a ``FlexIndex`` of pyterrier_dr.

        Args:
            flex: The ``FlexIndex`` or its path.
            path: The index directory to create.
            mode: ``create``, ``overwrite`` or ``resume``; see :class:`HypencoderIndexer`.
            dtype: ``fp16``, or ``fp32`` to keep the numbers of the ``FlexIndex`` exactly.

        Returns:
            The index. It records no model.

        Raises:
            ImportError: If pyterrier_dr is not installed.
            ValueError: If there is no ``FlexIndex`` at the path.
        """
        if isinstance(flex, str | Path):
            pyterrier_dr, found = _import_pyterrier_dr(), _read_format(Path(flex))
            if found != "flex":
                raise ValueError(f"Expected a FlexIndex of pyterrier_dr at {flex}, found {found or 'no artifact'}.")
            flex = pyterrier_dr.FlexIndex(str(flex), verbose=False)
        HypencoderIndexer(path, mode=mode, dtype=dtype).index(flex.get_corpus_iter())
        return cls(path)


class HypencoderIndexer(DocumentIndexer):
    """Build an index from documents.

    Memory does not grow with the collection. The index appears under its name only when it is complete. A build that was
    interrupted continues with ``mode="resume"`` and the same documents: stored documents are compared by docno and skipped.
    The result is byte for byte the same as without the interruption.

    Args:
        path: The index directory to create.
        model: The encoder. It is not needed for documents with ``doc_vec``, whose vectors are stored unchanged. If it is
            passed for such documents, it is recorded as the model that made them.
        mode: ``create`` raises an error if something exists at ``path``. ``overwrite`` replaces an index when the new one is
            complete. ``resume`` continues an interrupted build, or starts one.
        dtype: Precision of the stored vectors: ``fp16`` (half the size, rankings hardly change) or ``fp32``.
        text_field: The field with the text, or several fields, which are joined by a space.
        batch_size: Number of documents that are sorted by length, encoded and stored together. An interrupted build loses at
            most one batch.
        graph_k: If given, also build the neighbour graph with this number of neighbours, as
            ``index.corpus_graph(graph_k)`` does. The index appears together with its graph. If the graph fails,
            ``mode="resume"`` with the same documents continues with it.
        verbose: If True, show a progress bar.

    Example:
        >>> from pyterrier_hypencoder import HypencoderIndexer
        >>> indexer = HypencoderIndexer.example()
        >>> index = indexer.index([{"docno": "d1", "doc_vec": [1.0, 0.0]}, {"docno": "d2", "doc_vec": [0.0, 1.0]}])
        >>> len(index), index.meta["dtype"]
        (2, 'f2')
    """

    @classmethod
    def example(cls) -> HypencoderIndexer:
        """Return an indexer without a model that writes to a temporary folder; it indexes documents with ``doc_vec``."""
        return cls(make_example_folder() / "built.hyp", mode="overwrite")

    def open_index(self, path: Path) -> HypencoderIndex:
        """Return the index at a path."""
        return HypencoderIndex(path)


def _read_format(path: Path) -> str | None:
    """Return the format of the artifact at a path, or None if there is no artifact."""
    try:
        return read_meta(path).get("format")
    except (OSError, ValueError):
        return None


def _import_pyterrier_dr() -> Any:
    try:
        import pyterrier_dr
    except ImportError as err:
        raise ImportError("Exchanging vectors with FlexIndex requires pyterrier_dr: pip install pyterrier-dr") from err
    return pyterrier_dr
