"""Checks of the options of a retriever."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import scoring
from ..options import check_choice, check_non_negative, check_number, check_positive, list_items
from ..qnet import QNets
from ..search.choose import ALGORITHMS
from ..search.graph import VARIANTS
from .filters import check_mask
from .opened import get_index_path

MIN_SURROGATE_DOCUMENTS = 16
"""Smallest number of documents for ``n_initial`` and ``n_per_round``: fewer do not determine a linear function."""


def check_search_options(retriever: Any) -> None:
    """Check the options of a :class:`pyterrier_hypencoder.HypencoderRetriever`.

    The constructor calls this too, so the machine need not have the device yet.

    Raises:
        ValueError: If an option is not valid.
    """
    check_choice("algorithm", retriever.algorithm, ALGORITHMS)
    check_choice("precision", retriever.precision, scoring.PRECISIONS)
    check_choice("variant", retriever.variant, VARIANTS)
    counts = ("num_results", "batch_size", "initial_candidates", "n_candidates", "max_iter", "max_rounds", "ef_search")
    for name in counts:
        check_positive(name, getattr(retriever, name))
    for name in ("graph_k", "max_scored"):
        if getattr(retriever, name) is not None:
            check_positive(name, getattr(retriever, name))
    for name in ("n_initial", "n_per_round"):
        if getattr(retriever, name) is not None:
            check_positive(name, getattr(retriever, name), MIN_SURROGATE_DOCUMENTS)
    check_non_negative("seed", retriever.seed)
    check_number("ridge", retriever.ridge, 1e-4)
    if retriever.entry_points is not None and not list_items("entry_points", retriever.entry_points, str, "docnos"):
        raise ValueError(f"entry_points must be a collection with at least one docno, got {retriever.entry_points!r}.")
    scoring.parse_device(retriever.device)
    if retriever.mask is not None:
        check_mask(retriever.mask)
    get_index_path(retriever._index)


def read_linear_queries(qnets: QNets) -> Tensor:
    """Return the query vectors (Q, D) of q-nets for HNSW search.

    Raises:
        ValueError: If the q-nets are networks.
    """
    if not qnets.spec.is_linear:
        raise ValueError(
            "algorithm='hnsw' must have q-nets that are single vectors, as those of a BiEncoder are, got networks "
            f"{qnets.spec.vector_dimensions}. HNSW finds documents by inner products, and no vector ranks them like a "
            "network. Use algorithm='surrogate' or 'graph'."
        )
    return qnets.weights[0].squeeze(-1)
