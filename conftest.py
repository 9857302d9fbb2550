"""Settings of all tests and doctests: no network, and an empty directory for every doctest."""

from __future__ import annotations

import os

import pyterrier as pt
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PT_TEST_TRANSFORMER_REPORTS", "0")
# Drawing a pipeline would download the list of PyTerrier's documentation pages.
pt.documentation._cached_objects_inv = {}


@pytest.fixture(autouse=True)
def doctest_directory(request):
    """Run every doctest in an empty directory."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))
