"""The opened index and the model that fits it, shared by all transformers over an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..encoders.base import Encoder
from ..encoders.loading import check_encoder, load_recorded_encoder
from ..encoders.stages import make_qnets, narrow_qnets
from ..identity import ByArguments
from ..index.files import identity
from ..index.reader import IndexReader
from ..qnet import QNets


class IndexTransformer(ByArguments):
    """What transformers over an index share: the opened directory and the model that fits it."""

    _index: Any
    model: Any
    device: str = "auto"
    qnet_width: int | None = None

    def _reader(self) -> IndexReader:
        """The opened index; opened anew when the index was replaced, or the attribute set to another."""
        path = get_index_path(self._index)
        if path is None:
            raise ValueError(
                f"{type(self).__name__}: expected an index, found none; pass one (an index or its path), or compose it: "
                "HypencoderIndexer(path, model) >> HypencoderRetriever()"
            )
        shared = getattr(self._index, "reader", None)  # a HypencoderIndex has it open
        return shared if isinstance(shared, IndexReader) else self._open("reader", identity(path), lambda: IndexReader(path))

    def _encoder(self) -> Encoder | None:
        """The model given, or the one that the index names."""
        if self.model is not None:
            check_encoder(self.model)
            return self.model
        record = self._reader().meta.get("model")
        if record is None:
            return None
        if hasattr(self._index, "model"):  # a HypencoderIndex shares it among its transformers
            return self._index.model(device=self.device)
        return self._open("recorded", (str(record), self.device), lambda: load_recorded_encoder(record, device=self.device))

    def _fitting_qnets(self, queries: pd.DataFrame) -> QNets:
        """The q-nets of a frame's queries, narrowed where asked for, which take the index's vectors."""
        reader, model = self._reader(), self._encoder()
        if "query_vec" not in queries.columns and model is not None:
            self._check_fit(reader, model)
        qnets = make_qnets(queries, model, reader.vec_size)
        if qnets.spec.input_dim != reader.vec_size:
            raise ValueError(_misfit(reader, model, f"{reader.vec_size} dimensions", f"{qnets.spec.input_dim}"))
        return narrow_qnets(qnets, self.qnet_width)

    def _check_fit(self, reader: IndexReader, model: Encoder) -> None:
        try:
            _check_fit(reader, model)
        except FileNotFoundError as err:
            if self.model is not None:
                raise
            raise FileNotFoundError(
                f"the index {reader.path} names the model {reader.meta['model']['name']!r}, which cannot be found here; pass "
                f"model=... with the place where you have it ({err})"
            ) from err


def get_index_path(index: Any) -> Path | None:
    """The directory of an index object, or of a path."""
    path = getattr(index, "path", index)
    if path is not None and not isinstance(path, str | Path):
        raise ValueError(f"index: expected a HypencoderIndex or its path, found {index!r}; pass an encoder as model=...")
    return None if path is None else Path(path)


def _gather(reader: IndexReader, docids: np.ndarray) -> torch.Tensor:
    """Stored vectors by docid, (n, D) float32."""
    return torch.from_numpy(reader.vectors[docids].astype(np.float32))


def _check_fit(reader: IndexReader, model: Encoder) -> None:
    """Checks that a model's document vectors are those of the index, as far as the index knows.

    Raises:
        ValueError: naming both.
    """
    if model.vec_size != reader.vec_size:
        raise ValueError(_misfit(reader, model, f"{reader.vec_size} dimensions", f"{model.vec_size}"))
    expected = (reader.meta.get("model") or {}).get("fingerprint")
    if expected is not None and expected != model.fingerprint:
        raise ValueError(_misfit(reader, model, f"document encoder {expected}", f"{model.fingerprint}"))


def _misfit(reader: IndexReader, model: Encoder | None, expected: str, found: str) -> str:
    record = reader.meta.get("model")
    made_by = f"{record['class']}({record['name']!r})" if record else "vectors from elsewhere"
    return (
        f"the index {reader.path} was made by {made_by}: expected a model of {expected}, found {model or 'query vectors'} of "
        f"{found}; search with the model that the index was made with, or build another index"
    )
