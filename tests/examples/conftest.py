"""Fixtures of the examples' tests, which import the examples as scripts do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(scope="session")
def apidocs_collection():
    """The quickstart's collection."""
    from shared import apidocs

    return apidocs.build_collection()
