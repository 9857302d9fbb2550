"""Shared fixtures of the search tests."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def vectors() -> np.ndarray:
    """3,000 documents of 16 dimensions in 40 clusters, similar to the vectors of texts."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16))
    return (centres[rng.integers(0, 40, 3000)] + 0.5 * rng.normal(size=(3000, 16))).astype(np.float32)
