"""Settings of all tests and doctests: no network, and an empty directory for every doctest."""

from __future__ import annotations

import os
from importlib.util import find_spec

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


# Doctests import every module; this one needs Triton, which is optional.
collect_ignore = [] if find_spec("triton") else ["pyterrier_hypencoder/scoring/triton_kernels.py"]
