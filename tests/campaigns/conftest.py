"""Sizes of campaigns, and the tables that they print at the end of the run."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from outcomes import Table

FULL = os.environ.get("HYPENCODER_CAMPAIGN") == "full"
_TABLES: list[Table] = []


def pytest_collection_modifyitems(items):
    for item in items:
        if "campaigns" in item.path.parts:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
    for table in _TABLES:
        terminalreporter.write_line(f"\n{table}")


@pytest.fixture
def campaign_size() -> Callable[[int, int], int]:
    """Return a function that chooses between the full size of a campaign and its size in every run of the slow tests."""
    return lambda full, short: full if FULL else short


@pytest.fixture
def open_table() -> Callable[[str], Table]:
    """Return a function that makes a table, which is printed at the end of the run."""

    def make(title: str) -> Table:
        _TABLES.append(Table(title))
        return _TABLES[-1]

    return make
