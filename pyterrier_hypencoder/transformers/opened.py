"""Open the index and the model of a transformer, and check that they fit each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .. import scoring
from ..encoders.base import Encoder
from ..encoders.loading import check_encoder, load_recorded_encoder
from ..encoders.stages import make_qnets, narrow_qnets
from ..identity import ByArguments, make_file_name
from ..index.files import read_file_version, resolve_path
from ..index.reader import IndexReader
from ..qnet import QNets
from ..scoring.rows import take_rows

_ATTEMPTS = 20
"""Attempts to use an index that is replaced at the same time."""

Found = TypeVar("Found")


class IndexTransformer(ByArguments):
    """Base class of the transformers that read an index.

    Subclasses store their constructor's arguments: ``index`` as ``_index``, the others under their own names. The index and
    the model are opened on first use, and again when the index is replaced or an argument changes.
    """

    _index: Any
    model: Any
    device: str = "auto"
    qnet_width: int | None = None

    def __str__(self) -> str:
        """Return the default name in :func:`pyterrier.Experiment`, which is also a name of a file for ``save_dir``."""
        return make_file_name(repr(self))

    def get_parameter(self, name: str) -> Any:
        """Return the value of a constructor argument; see :meth:`pyterrier.Transformer.get_parameter`."""
        self._check_parameter(name)
        return self._index if name == "index" else getattr(self, name)

    def set_parameter(self, name: str, value: Any) -> None:
        """Set a constructor argument, for example in :func:`pyterrier.GridScan`.

        Args:
            name: Name of the argument.
            value: Its new value. It is checked on the next use.

        Raises:
            ValueError: If the constructor has no such argument.
        """
        self._check_parameter(name)
        setattr(self, "_index" if name == "index" else name, resolve_path(value) if name == "index" else value)

    def subtransformers(self) -> dict[str, Any]:
        """Return an empty dictionary, because index and model are not stages of a pipeline."""
        return {}

    def _check_parameter(self, name: str) -> None:
        names = list(self._get_arguments())
        if name not in names:
            raise ValueError(f"{type(self).__name__} has no option {name!r}. Its options are {', '.join(names)}.")

    def _open_reader(self) -> IndexReader:
        path = get_index_path(self._index)
        if path is None:
            raise ValueError(
                f"{type(self).__name__} has no index. Pass an index or its path, or compose a pipeline: "
                "HypencoderIndexer(path, model) >> HypencoderRetriever()."
            )
        shared = getattr(self._index, "reader", None)  # a HypencoderIndex shares its reader among transformers
        if isinstance(shared, IndexReader):
            return shared
        return self._open("reader", read_file_version(path), lambda: IndexReader(path))

    def _read_index(self, use: Callable[[IndexReader], Found]) -> Found:
        """Use one state of the index, and again if an error occurs because the index was replaced in the meantime."""
        for _ in range(_ATTEMPTS):
            reader = self._open_reader()
            try:
                return use(reader)
            except (OSError, ValueError):
                if reader.is_current():
                    raise
        return use(self._open_reader())

    def _get_model(self) -> Encoder | None:
        """Return the model that was passed, or else the model recorded in the index; None if there is neither."""
        if self.model is not None:
            check_encoder(self.model)
            return self.model
        reader = self._open_reader()
        record = reader.meta.get("model")
        if record is None:
            return None
        if hasattr(self._index, "model"):  # a HypencoderIndex shares its model among transformers
            return self._index.model(device=self.device)
        key = (str(record), self.device)
        return self._open("recorded", key, lambda: load_recorded_encoder(record, device=self.device, index=reader.path))

    def _make_fitting_qnets(self, reader: IndexReader, queries: pd.DataFrame) -> QNets:
        """Return the q-nets of a frame's queries, narrowed to ``qnet_width``, after checking that they fit the index."""
        model = self._get_model()
        if "query_vec" not in queries.columns and model is not None:
            self._check_model_fits(reader, model)
        qnets = make_qnets(queries, model, reader.vec_size)
        if qnets.spec.input_dim != reader.vec_size:
            raise ValueError(_describe_mismatch(reader, model, f"{reader.vec_size} dimensions", str(qnets.spec.input_dim)))
        return narrow_qnets(qnets, self.qnet_width)

    def _check_model_fits(self, reader: IndexReader, model: Encoder) -> None:
        try:
            check_model_fits(reader, model)
        except FileNotFoundError as err:
            if self.model is not None:
                raise
            raise FileNotFoundError(
                f"The index at {reader.path} was built with the model {reader.meta['model']['name']!r}, which was not found "
                f"({err}). Pass model=... with the place where the model is now."
            ) from err


def get_index_path(index: Any) -> Path | None:
    """Return the directory of an index that is given as an object or as a path.

    Raises:
        ValueError: If it is neither.
    """
    path = getattr(index, "path", index)
    if path is not None and not isinstance(path, str | os.PathLike):
        raise ValueError(f"index must be a HypencoderIndex or its path, got {index!r}. Pass an encoder as model=...")
    return None if path is None else Path(path)


def gather_vectors(reader: IndexReader, docids: np.ndarray, device: str = "cpu") -> Tensor:
    """Return the stored vectors of some documents.

    Args:
        reader: The index.
        docids: N docids.
        device: Device that scores them. On a GPU, the vectors of the whole index are copied there on first use.

    Returns:
        (N, D) float32, on the device if it is a GPU.
    """
    vectors = reader.get_vectors(scoring.resolve_device(device))
    return take_rows(vectors, torch.from_numpy(docids)).float()


def check_docids(reader: IndexReader, docids: np.ndarray) -> None:
    """Check that docids are of documents of an index.

    Raises:
        ValueError: If one of them is not.
    """
    if docids.size and not (0 <= docids.min() and docids.max() < reader.doc_count):
        raise ValueError(
            f"docids must be between 0 and {reader.doc_count - 1}, got {docids.min()} to {docids.max()}. Use docids of the "
            f"index at {reader.path}."
        )


def check_model_fits(reader: IndexReader, model: Encoder) -> None:
    """Check that an index was built with the document encoder of a model.

    The dimensions are always compared, the fingerprints only if the index records one.

    Raises:
        ValueError: If the model does not fit. The message names both.
    """
    if model.vec_size != reader.vec_size:
        raise ValueError(_describe_mismatch(reader, model, f"{reader.vec_size} dimensions", str(model.vec_size)))
    expected = (reader.meta.get("model") or {}).get("fingerprint")
    if expected is not None and expected != model.fingerprint:
        raise ValueError(_describe_mismatch(reader, model, f"document encoder {expected}", model.fingerprint))


def _describe_mismatch(reader: IndexReader, model: Encoder | None, expected: str, found: str) -> str:
    record = reader.meta.get("model")
    builder = f"by {record['class']}({record['name']!r})" if record else "from vectors without a model"
    return (
        f"{model or 'query_vec'} does not fit the index at {reader.path}, which was built {builder}: expected {expected}, got "
        f"{found}. Search with the model that built the index, or build another index."
    )
