"""The index as a PyTerrier artifact: it opens a directory and makes the transformers over it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from .encoders.base import Encoder
from .encoders.loading import load_recorded_encoder
from .encoders.stages import DocEncoder
from .identity import shorten
from .index.files import read_meta, resolve_path
from .index.graph_builder import open_or_build_graph
from .index.inner_product import InnerProductIndex, build_inner_product_index
from .index.neighbour_graph import NeighbourGraph
from .index.unpacking import unpack
from .transformers.adaptive import Gar, LadrAdaptive, LadrProactive
from .transformers.example import build_example_index, make_example_folder
from .transformers.filters import make_mask
from .transformers.indexer import DocumentIndexer
from .transformers.pipeline import IndexedPipeline
from .transformers.prf import VectorFeedback
from .transformers.retriever import HypencoderRetriever
from .transformers.scorer import HypencoderScorer
from .transformers.signatures import takes_options_of
from .transformers.stored_vectors import StoredVectors
from .transformers.vec_loader import VecLoader


class HypencoderIndex(StoredVectors, pt.Artifact, pt.Indexer):
    """Document vectors on disk: the factory of the transformers that build and search them.

    The index can be shared like every PyTerrier artifact. It need not exist yet: :meth:`built`, :meth:`index` and
    :meth:`indexer` work without it, and transformers can be made before it is built.

    Args:
        path: The index directory. A later change of the working directory does not matter.
        verify: If True, check all files at once; see :meth:`verify`. Without it, blocks are checked when they are read.

    Raises:
        ValueError: If the path is not an index, has a newer format, or is damaged.

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
        self._models: dict[tuple[str, str], Encoder] = {}
        self._loading = threading.Lock()
        if verify:
            self.verify()
        elif folder.exists():
            self.reader  # noqa: B018, damage is an error at once

    @classmethod
    def example(cls) -> HypencoderIndex:
        """Return an index with three documents, ``d1`` to ``d3``, and vectors of four dimensions.

        It is built in a temporary folder on the first call. It records no model, so it needs no download: queries need a
        column ``query_vec``.
        """
        return cls(build_example_index())

    def index_inputs(self) -> list[list[str]]:
        """Return the columns that documents must have: ``docno`` and ``doc_vec``."""
        return self.indexer().index_inputs()

    def index(self, iter: Iterable[dict[str, Any]], **kwargs: Any) -> HypencoderIndex:
        """Build the index from document vectors.

        ``(model >> index).index(docs)`` indexes texts and records the model. For other options use :meth:`indexer`.

        Args:
            iter: Dictionaries with ``docno`` and ``doc_vec``.
            **kwargs: Not used; part of PyTerrier's signature.

        Returns:
            This index.

        Raises:
            FileExistsError: If the index is built already.
            ValueError: If a document is not valid.

        Example:
            >>> import tempfile
            >>> from pyterrier_hypencoder import HypencoderIndex
            >>> index = HypencoderIndex(tempfile.mkdtemp() + "/new.hyp")
            >>> index.built()
            False
            >>> len(index.index([{"docno": "d1", "doc_vec": [1.0, 0.0]}]))
            1
        """
        self.indexer().index(iter, **kwargs)
        return self

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Search for topics, or re-rank a result frame, with default options; see :meth:`retriever` and :meth:`scorer`."""
        return (self.scorer() if "docno" in inp.columns else self.retriever()).transform(inp)

    def fuse_left(self, left: Any) -> pt.Transformer | None:
        """Return ``encoder >> index`` as a pipeline whose ``.index()`` records the encoder; None for other stages."""
        if isinstance(left, Encoder):
            return IndexedPipeline(self.indexer(left), self.retriever(left))
        if isinstance(left, DocEncoder) and isinstance(left.model, Encoder):
            options: dict[str, Any] = {name: getattr(left, name) for name in ("text_field", "batch_size", "verbose")}
            return IndexedPipeline(self.indexer(left.model, **options), self.retriever(left.model))
        return None

    def subtransformers(self) -> dict[str, Any]:
        """Return an empty dictionary, because an index has no stages."""
        return {}

    def __repr__(self) -> str:
        return f"HypencoderIndex({shorten(str(self.path))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HypencoderIndex) and other.path == self.path

    def __hash__(self) -> int:
        return hash(("HypencoderIndex", self.path))

    def __reduce__(self) -> tuple[Any, ...]:
        return HypencoderIndex, (self.path,)

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
                self._models[key] = load_recorded_encoder(record, device=device, index=self.path)
            return self._models[key]

    @takes_options_of(DocumentIndexer)
    def indexer(self, *args: Any, **options: Any) -> HypencoderIndexer:
        """Return an indexer that builds this index.

        The arguments are those of :class:`HypencoderIndexer` after ``path``: ``model``, then its options by keyword.
        """
        return HypencoderIndexer(self.path, *args, **options)

    @takes_options_of(HypencoderRetriever)
    def retriever(self, *args: Any, **options: Any) -> HypencoderRetriever:
        """Return a transformer that searches this index.

        The arguments are those of :class:`HypencoderRetriever` after ``index``: ``model``, then its options by keyword.
        """
        return HypencoderRetriever(self, *args, **options)

    @takes_options_of(HypencoderScorer)
    def scorer(self, *args: Any, **options: Any) -> HypencoderScorer:
        """Return a transformer that re-ranks with the vectors of this index.

        The arguments are those of :class:`HypencoderScorer` after ``index``: ``model``, then its options by keyword.
        """
        return HypencoderScorer(self, *args, **options)

    @takes_options_of(VecLoader)
    def vec_loader(self) -> VecLoader:
        """Return a transformer that adds the stored vectors of documents as ``doc_vec``; see :class:`VecLoader`."""
        return VecLoader(self)

    def mask(self, metadata: pd.DataFrame, where: str) -> np.ndarray:
        """Return the documents whose metadata satisfy an expression, for ``index.retriever(mask=...)``.

        Args:
            metadata: A frame with ``docno`` and further columns. Documents without a row do not satisfy any expression, and
                docnos that the index does not contain are ignored.
            where: The expression, as in :meth:`pandas.DataFrame.eval`, which can call methods of the columns. Do not use
                expressions of strangers.

        Returns:
            (N,), True for every docid that satisfies the expression.

        Raises:
            ValueError: If there is no column ``docno``, or the expression is not a condition over the columns.

        Example:
            >>> import pandas as pd
            >>> from pyterrier_hypencoder import HypencoderIndex
            >>> books = pd.DataFrame({"docno": ["d1", "d2", "d3"], "year": [1999, 2020, 2025]})
            >>> HypencoderIndex.example().mask(books, "year >= 2020").tolist()
            [False, True, True]
        """
        return make_mask(self.reader, metadata, where)

    @takes_options_of(VectorFeedback)
    def prf(self, *args: Any, **options: Any) -> VectorFeedback:
        """Return a stage that moves query vectors towards the best documents; see :class:`VectorFeedback`."""
        return VectorFeedback(self, *args, **options)

    @takes_options_of(Gar)
    def gar(self, *args: Any, **options: Any) -> Gar:
        """Return GAR of pyterrier_adaptive over the neighbour graph of this index; see :class:`Gar`."""
        return Gar(self, *args, **options)

    @takes_options_of(LadrProactive)
    def ladr_proactive(self, *args: Any, **options: Any) -> LadrProactive:
        """Return LADR of pyterrier_dr over the neighbour graph of this index; see :class:`LadrProactive`."""
        return LadrProactive(self, *args, **options)

    @takes_options_of(LadrAdaptive)
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

    @classmethod
    def from_package(cls, package: str | os.PathLike[str], path: str | os.PathLike[str]) -> HypencoderIndex:
        """Unpack a local file that ``index.build_package()`` wrote, and open the index.

        Args:
            package: The package, such as ``x.hyp.tar.lz4``. For one on the web use :meth:`pyterrier.Artifact.from_url`.
            path: The index directory to create.

        Raises:
            FileNotFoundError: If there is no package.
            FileExistsError: If the directory exists.
            ValueError: If the package is damaged, or does not contain an index.
        """
        unpack(resolve_path(package), resolve_path(path))
        return cls(path)

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
            dtype: ``fp16``, ``int8``, or ``fp32`` to keep the numbers of the ``FlexIndex`` exactly.

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
        dtype: Precision of the stored vectors: ``fp32``, ``fp16`` (half the size, rankings hardly change) or ``int8`` (a
            quarter, finds over 99 % of the best 100 documents). While an ``int8`` index is built, it takes 3 bytes per
            number on disk.
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
