"""Report long sentences and riddle openings in README, pages and docstrings.

    python docs/check_english.py [FILE ...]

Without files, the script reads README.md, CHANGELOG.md, the model cards, all pages of ``pt_docs``, and all docstrings of the
package, the examples, the benchmarks and this folder. The exit status is 1 if it found a problem.

Code, directives, headings and links are not counted. A list item, a table cell and the text of an argument each stand alone.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MAX_WORDS = 35
RIDDLE = re.compile(r"(What|Where|Of|Whether|That which) [a-z]")
"""Openings that hide the subject, for example "What a round evaluates is ..."."""

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note|Notes|References):$")
"""Headings of Google docstrings."""
ARGUMENT = re.compile(r"\*{0,2}[\w.]+( \([^)]*\))?: ")
BULLET = re.compile(r"(([-*•]|\d+\.|#\.) +)+")
FIELD = re.compile(r":[\w -]+:( |$)")
DIRECTIVE = re.compile(r"\.\. +(\|[^|]*\| )?([\w.:-]+)::( |$)")
PROSE = frozenset("note warning caution important hint tip seealso admonition how-to list-table container".split())
"""Directives whose body is text that people read; the body of every other directive is skipped."""
RULE = re.compile(r"([=\-~^\"'`+#*.:|]{3,} *)+$|(\|?[ :|-]*-{3,}[ :|-]*\|?)$|(=+ +)+=+$|(\+[-=]+)+\+$")
"""Lines that are drawn: underlines, table borders, the second line of a Markdown table."""
FENCE = re.compile(r" *(```|~~~)")
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|cf|al|Fig|Eq|Sec|no)\.$")
SENTENCE_END = re.compile(r"[.!?][\"')\]*_]*\s+")


class Block(NamedTuple):
    """A paragraph, list item or table cell, on one line."""

    line: int
    text: str


class Problem(NamedTuple):
    """A sentence to rewrite."""

    line: int
    message: str


class _Reader:
    """Split a text into blocks, line by line.

    Args:
        markdown: Read fences and front matter of Markdown if True, directives of reStructuredText if False.
    """

    def __init__(self, markdown: bool) -> None:
        self.markdown = markdown
        self.blocks: list[Block] = []
        self._lines: list[str] = []
        self._start = 0
        self._indent = 0
        self._is_item = False
        self._skip_below: int | None = None  # skip all lines that are indented deeper than this
        self._section: int | None = None  # indentation of the heading of a docstring section
        self._fenced = False
        self._literal_next = False

    def read(self, text: str) -> list[Block]:
        """Return the blocks of a text."""
        lines = text.expandtabs().split("\n")
        if self.markdown and lines[0] == "---" and "---" in lines[1:]:  # front matter
            end = lines.index("---", 1)
            lines[: end + 1] = [""] * (end + 1)
        for number, line in enumerate(lines, 1):
            self._take(number, line.rstrip())
        self._close()
        return self.blocks

    def _take(self, number: int, line: str) -> None:
        content, indent = line.lstrip(), len(line) - len(line.lstrip())
        if self.markdown and FENCE.match(line):
            self._close()
            self._fenced = not self._fenced
        elif self._fenced:
            return
        elif not content:
            self._close()
        elif self._skip_below is not None and indent > self._skip_below:
            return
        else:
            self._skip_below = None
            self._take_content(number, content, indent)

    def _take_content(self, number: int, content: str, indent: int) -> None:
        if self._literal_next and self._lines == [] and indent > self._indent:
            self._skip_below = self._indent
            self._literal_next = False
            return
        self._literal_next = False
        if self._section is not None and indent <= self._section:
            self._section = None
        if content.startswith((">>>", "<!--", "![", "#")) and (content[0] != "#" or self.markdown):
            self._close()
            self._skip_below = None if self.markdown else indent - 1 if content.startswith(">>>") else indent
        elif SECTION.match(content):
            self._close()
            self._section = indent
        elif content.startswith(".. ") or content == "..":
            self._take_directive(number, content, indent)
        elif RULE.match(content):
            self._lines = [] if set(content) <= set("=-~^\"'`#*") and len(self._lines) == 1 else self._lines  # a heading
            self._close()
        elif content[0] in "|+" or content.startswith("    |"):
            self._close()
            for cell in content.strip("|+").split("|"):
                self._add(number, cell.strip(), indent)
                self._close()
        else:
            self._take_text(number, content, indent)

    def _take_directive(self, number: int, content: str, indent: int) -> None:
        self._close()
        match = DIRECTIVE.match(content)
        if match is None or match[2] not in PROSE:  # a comment, a target or a directive without prose
            self._skip_below = indent
        elif argument := content[match.end() :].strip():
            self._add(number, argument, indent)
            self._is_item = True

    def _take_text(self, number: int, content: str, indent: int) -> None:
        is_argument = self._section is not None and not self._is_deeper(indent) and ARGUMENT.match(content)
        label = BULLET.match(content) or FIELD.match(content) or is_argument
        if label or (self._lines and indent != self._indent and not (self._is_item and indent > self._indent)):
            self._close()
        for cell in re.split(r" {3,}", content[label.end() :] if label else content):  # cells of a simple table
            if len(self._lines) and not label and "   " in content:
                self._close()
            self._add(number, cell, indent)
        if label:
            self._is_item = True

    def _is_deeper(self, indent: int) -> bool:
        return bool(self._lines) and self._is_item and indent > self._indent

    def _add(self, number: int, content: str, indent: int) -> None:
        if not self._lines:
            self._start, self._indent, self._is_item = number, indent, False
        self._lines.append(content)

    def _close(self) -> None:
        text = " ".join(self._lines).strip()
        if text:
            self._literal_next = not self.markdown and text.endswith("::")
            self.blocks.append(Block(self._start, text))
        self._lines, self._is_item = [], False


def strip_markup(text: str) -> str:
    """Return a text without link targets, roles and emphasis."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)  # [text](target)
    text = re.sub(r":[\w:.+-]+:`~?([^`<]*?)( *<[^`]*>)?`", r"\1", text)  # :role:`text <target>`
    text = re.sub(r"`([^`<]+?) *<[^`]*>`_+", r"\1", text)  # `text <target>`_
    return re.sub(r"\*\*|``?|https?://\S+", "", text)


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a block."""
    sentences, start = [], 0
    for match in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text[: match.start() + 1]):
            sentences.append(text[start : match.end()].strip())
            start = match.end()
    return [sentence for sentence in (*sentences, text[start:].strip()) if sentence]


def count_words(text: str) -> int:
    """Return the number of words; signs alone are not counted."""
    return sum(any(map(str.isalnum, word)) for word in text.split())


def find_problems(text: str, *, markdown: bool = False) -> Iterator[Problem]:
    """Yield the sentences of a text that are too long or begin like a riddle.

    Args:
        text: Text in reStructuredText, a docstring, or Markdown.
        markdown: If True, the text is Markdown.
    """
    for line, block in _Reader(markdown).read(text):
        for sentence in split_sentences(strip_markup(block)):
            n_words = count_words(sentence)
            if n_words > MAX_WORDS:
                yield Problem(line, f"{n_words} words: {sentence[:100]}...")
            elif RIDDLE.match(sentence) and not sentence.endswith("?"):
                yield Problem(line, f"name the subject first: {sentence[:100]}")


def read_docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring in Python source, and of the strings below constants."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (text := ast.get_docstring(node)) is not None:
            yield node.body[0].lineno, text
        if isinstance(node, ast.Module | ast.ClassDef):
            for before, after in zip(node.body[:-1], node.body[1:], strict=True):
                value = after.value if isinstance(after, ast.Expr) else None
                if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(value, ast.Constant):
                    yield after.lineno, str(value.value)


def check_file(path: Path) -> Iterator[str]:
    """Yield one line for every problem in a file."""
    source = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    texts = read_docstrings(source) if path.suffix == ".py" else [(1, source)]
    for start, text in texts:
        for line, message in find_problems(text, markdown=path.suffix == ".md"):
            yield f"{name}:{start + line - 1}: {message}"


def list_files() -> list[Path]:
    """Return all files of the repository that people read."""
    package = ROOT / "pyterrier_hypencoder"
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(package.rglob("README.md"))]
    pages += sorted(package.glob("pt_docs/*.rst"))
    folders = (package, ROOT / "examples", ROOT / "benchmarks", ROOT / "docs")
    return pages + [path for folder in folders for path in sorted(folder.rglob("*.py")) if "_build" not in path.parts]


if __name__ == "__main__":
    problems = [line for path in map(Path, sys.argv[1:] or list_files()) for line in check_file(path.resolve())]
    print("\n".join(problems) or "No sentence is too long or begins like a riddle.")
    sys.exit(bool(problems))
