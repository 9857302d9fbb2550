"""Tests of the committed notebooks: they ran to the end, show something, and hold nothing of the machine they ran on."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import extract_pictures  # noqa: E402

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
LOCAL = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|opt|work|Users)/|\d+it/s|\d+%\|")


def read_cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_notebooks_are_those_of_the_series():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_first_search",
        "02_against_dense_baselines",
        "03_what_a_qnet_does",
        "04_train_your_own",
        "05_bring_your_own_dense_index",
        "06_coming_from_pyterrier_dr",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_ran_from_top_to_bottom_without_error(path):
    cells = read_cells(path, "code")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) >= 4
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small_and_names_no_folder_of_a_machine(path):
    assert path.stat().st_size < 1_000_000
    for cell in read_cells(path, "code"):
        for output in cell["outputs"]:
            shown = {key: value for key, value in output.get("data", {}).items() if not key.startswith("image/")}
            assert not LOCAL.search(json.dumps([shown, output.get("text", "")]))
        assert not LOCAL.search("".join(cell["source"]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_explains_its_code_in_short_sentences(path):
    import check_english

    texts = ["".join(cell["source"]) for cell in read_cells(path, "markdown")]
    assert len(texts) >= 5 and texts[0].startswith("# ")
    assert not [problem for text in texts for problem in check_english.find_problems(text, markdown=True)]


@pytest.mark.parametrize("name", extract_pictures.PICTURES)
def test_documentation_shows_the_pictures_of_the_notebooks(name):
    """A notebook that was run again needs python docs/extract_pictures.py."""
    notebook, position = extract_pictures.PICTURES[name]
    assert (extract_pictures.PAGES / name).read_bytes() == extract_pictures.read_pictures(notebook)[position]
    assert f".. image:: {name}" in (extract_pictures.PAGES / "pictures.rst").read_text(encoding="utf-8")
