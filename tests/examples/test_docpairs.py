"""Tests of training pairs from wheels. Nothing is downloaded."""

from __future__ import annotations

import zipfile

import pandas as pd
import pytest
from shared import apidocs, docpairs
from shared.collection import Collection

BODY = "Parameters: a is the length of the shorter side and b the length of the longer side of it."
SOURCE = f'''
"""Module documentation is no pair."""
def area(a, b):
    """area(a, b) -> float

    Compute the area of a very flat rectangle.

    {BODY}
    """
class Box:
    """Hold things that were put into it before.

    Boxes can be stacked on each other as long as the lower ones are the larger ones of the two.
    """
    @property
    def lid(self):
        """Return the lid of the box, whichever it is.

        The lid may have been lost in the meantime, in which case nothing at all is returned to the caller.
        """
    @lid.setter
    def lid(self, value):
        """Put another lid on the box that is open.

        The lid that was there before is thrown away without asking, as nobody has ever wanted it back again.
        """
    def _secret(self):
        """Tell nobody about what is in the box now.

        It is not for anybody to know, which is why this documentation string is passed over by whatever reads it.
        """
def short(a):
    """Too little is said here to be of any use.

    Nothing more.
    """
'''


def make_held_out(queries, docs):
    topics = pd.DataFrame({"qid": [str(i) for i in range(len(queries))], "query": pd.Series(queries, dtype=str)})
    return Collection("held out", lambda: iter(docs), topics, pd.DataFrame())


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder with the wheels of two packages."""
    for name, content in (("some_thing-1.2", SOURCE), ("other.pkg-3", SOURCE.replace("rectangle", "square"))):
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as archive:
            archive.writestr("thing/__init__.py", content)
            archive.writestr("thing/tests/test_thing.py", content.replace("Compute", "Test"))
            archive.writestr("thing/broken.py", "def :")
    monkeypatch.setattr(docpairs, "PACKAGES", {"some-thing": "1.2", "other.pkg": "3"})
    monkeypatch.setattr(apidocs, "build_collection", lambda: make_held_out([], []))
    return tmp_path


def test_pairs_are_summaries_and_remaining_texts_without_repetition(wheels):
    pairs = docpairs.build_pairs(wheels)
    assert sorted(pair.docno for pair in pairs) == ["thing.Box", "thing.Box.lid", "thing.area"]
    area = next(pair for pair in pairs if pair.docno == "thing.area")
    assert area.query == "Compute the area of a very flat rectangle"
    assert area.text == BODY
    assert area.doc == {"docno": "thing.area", "text": BODY}
    assert area.make_row("packages")["items"] == [{"id": "packages/thing.area", "type": "positive"}]


def test_pairs_of_the_test_collection_are_left_out(wheels, monkeypatch):
    docs = [{"docno": "x", "text": "Boxes can be stacked on each other as long as the lower ones are cut"}]
    held_out = make_held_out(["Compute the area of a very flat rectangle"], docs)
    monkeypatch.setattr(apidocs, "build_collection", lambda: held_out)
    pairs = {pair.docno: pair.query for pair in docpairs.build_pairs(wheels)}
    assert "thing.Box" not in pairs
    assert "rectangle" not in pairs.get("thing.area", "")


def test_pairs_per_package_are_limited(wheels, monkeypatch):
    monkeypatch.setattr(docpairs, "MAX_PER_PACKAGE", 1)
    assert len(docpairs.build_pairs(wheels)) <= 2


def test_missing_wheel_raises(wheels, monkeypatch):
    monkeypatch.setitem(docpairs.PACKAGES, "absent", "9")
    with pytest.raises(FileNotFoundError, match="absent 9"):
        docpairs.build_pairs(wheels)


def test_packages_are_many_and_exclude_those_of_the_test_collection():
    assert len(docpairs.PACKAGES) >= 30
    assert not {name.lower() for name in docpairs.PACKAGES} & set(apidocs.LIBRARIES)
