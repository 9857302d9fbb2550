"""Checks of the options of a retriever."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import scoring
from ..options import check_choice, check_positive
from ..search.choose import ALGORITHMS
from ..search.graph import VARIANTS

MIN_SURROGATE_DOCUMENTS = 16
"""Smallest number of documents for ``n_initial`` and ``n_per_round``: fewer do not determine a linear function."""


def check_search_options(retriever: Any) -> None:
    """Check the options of a :class:`pyterrier_hypencoder.HypencoderRetriever`.

    Raises:
        ValueError: If an option is not valid.
    """
    check_choice("algorithm", retriever.algorithm, ALGORITHMS)
    check_choice("precision", retriever.precision, scoring.PRECISIONS)
    check_choice("variant", retriever.variant, VARIANTS)
    counts = ("num_results", "batch_size", "initial_candidates", "n_candidates", "max_iter", "graph_k", "max_rounds")
    for name in counts:
        check_positive(name, getattr(retriever, name))
    for name in ("n_initial", "n_per_round"):
        number = getattr(retriever, name)
        if number is None:
            continue
        check_positive(name, number)
        if number < MIN_SURROGATE_DOCUMENTS:
            raise ValueError(f"{name} must be at least {MIN_SURROGATE_DOCUMENTS}, got {number!r}.")
    if not 1e-4 <= retriever.ridge < np.inf:
        raise ValueError(f"ridge must be a number of at least 0.0001, got {retriever.ridge!r}.")
    if retriever.entry_points is not None and (isinstance(retriever.entry_points, str) or not len(retriever.entry_points)):
        raise ValueError(f"entry_points must be a list with at least one docno, got {retriever.entry_points!r}.")
    scoring.resolve_device(retriever.device)
