"""Training pairs from wheels, and the order of training rows; nothing is fetched."""

import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
pytest.importorskip("datasets")

from shared import adapt_minilm as adapt  # noqa: E402
from shared import (
    apidocs,  # noqa: E402
    docpairs,  # noqa: E402
)

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


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder with the wheels of two packages."""
    for name, content in (("some_thing-1.2", SOURCE), ("other.pkg-3", SOURCE.replace("rectangle", "square"))):
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as archive:
            archive.writestr("thing/__init__.py", content)
            archive.writestr("thing/tests/test_thing.py", content.replace("Compute", "Test"))
            archive.writestr("thing/broken.py", "def :")
    monkeypatch.setattr(docpairs, "PACKAGES", {"some-thing": "1.2", "other.pkg": "3"})
    nothing = apidocs.Collection([], __import__("pandas").DataFrame({"qid": [], "query": []}), None)
    monkeypatch.setattr(apidocs, "build", lambda: nothing)
    return tmp_path


def test_pairs_are_summaries_and_what_follows_them(wheels):
    found = {pair.docno: pair for pair in docpairs.pairs(wheels)}
    assert found.keys() == {"thing.area", "thing.Box", "thing.Box.lid"}  # nor any of them a second time
    area = found["thing.area"]
    assert area.query == "Compute the area of a very flat rectangle"
    assert area.text == BODY
    assert area.doc == {"docno": "thing.area", "text": BODY}
    assert area.row("packages")["items"] == [{"id": "packages/thing.area", "type": "positive"}]


def test_what_the_test_collection_has_is_left_out(wheels, monkeypatch):
    import pandas as pd

    topics = pd.DataFrame({"qid": ["1"], "query": ["Compute the area of a very flat rectangle"]})
    docs = [{"docno": "x", "text": "Boxes can be stacked on each other as long as the lower ones are cut"}]
    monkeypatch.setattr(apidocs, "build", lambda: apidocs.Collection(docs, topics, None))
    found = {pair.docno: pair.query for pair in docpairs.pairs(wheels)}
    assert "thing.Box" not in found
    assert "rectangle" not in found.get("thing.area", "")


def test_no_package_rules_and_missing_wheels_are_named(wheels, monkeypatch):
    monkeypatch.setattr(docpairs, "MAX_PER_PACKAGE", 1)
    assert len(docpairs.pairs(wheels)) <= 2
    monkeypatch.setitem(docpairs.PACKAGES, "absent", "9")
    with pytest.raises(FileNotFoundError, match="absent 9"):
        docpairs.pairs(wheels)


def test_the_packages_are_many_and_none_of_the_test_collection():
    assert len(docpairs.PACKAGES) >= 30
    assert not {name.lower() for name in docpairs.PACKAGES} & set(apidocs.LIBRARIES)


def test_rows_come_in_blocks_of_one_source_each_once_an_epoch():
    sources = {name: [{"name": name, "row": row} for row in range(size)] for name, size in (("a", 70), ("b", 33), ("c", 5))}
    ordered = adapt.rows_in_blocks(sources, seed=1, epochs=2, size=32)
    assert ordered == adapt.rows_in_blocks(sources, seed=1, epochs=2, size=32)
    assert ordered != adapt.rows_in_blocks(sources, seed=2, epochs=2, size=32)
    for epoch in (ordered[:108], ordered[108:]):
        assert sorted((row["name"], row["row"]) for row in epoch) == sorted(
            (name, row["row"]) for name, rows in sources.items() for row in rows
        )
    runs = [1]
    for one, two in zip(ordered, ordered[1:], strict=False):
        runs = [*runs[:-1], runs[-1] + 1] if one["name"] == two["name"] else [*runs, 1]
    assert len(runs) <= 2 * 6
