"""Report sentences that are too long or begin like a riddle, in README, pt_docs and docstrings.

    python docs/check_english.py [FILE ...]

Without files it reads README.md, CHANGELOG.md, CITATION.cff, all pages of ``pt_docs`` and all docstrings of the package,
the examples and the benchmarks. The exit status is 1 if it found something.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_WORDS = 35
# A sentence should name the thing first (not "What a round evaluates is ...").
OPENINGS = re.compile(r"(What|Where|Of|Whether|That which) [a-z]")
ITEM = re.compile(r"^\s*([-*|]|\d+\.|[\w*`.]+( \([^)]*\))?:( |$)|\.\. |:\w+)")


def split_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text: code, tables and directives are left out, list items stand for themselves."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"(::|code-block:: \w+|schematic::)\n(\s*:\w+:.*\n)*\n((    |\t).*\n|\s*\n)*", ".\n\n", text + "\n")
    lines, block = text.split("\n"), []
    for line in [*lines, ""]:
        if not line.strip() or ITEM.match(line) or line.lstrip().startswith((">>>", "...", "|", "=", "-----", "+")):
            yield from re.split(r"(?<=[.!?])[\"')]*\s+", " ".join(block))
            block = []
        if line.strip() and not line.lstrip().startswith((">>>", "...", "|", ".. ", "+")):
            block.append(line.strip())


def read_docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and text of every docstring of a Python file, and of the strings below constants."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'name', 'module')}", text
        for before, after in (
            zip(getattr(node, "body", [])[:-1], getattr(node, "body", [])[1:], strict=True)
            if isinstance(node, ast.Module | ast.ClassDef)
            else ()
        ):
            is_text = (
                isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
            )
            if isinstance(before, ast.Assign | ast.AnnAssign) and is_text:
                yield f"{path.relative_to(ROOT)}:{after.lineno}", after.value.value  # type: ignore[attr-defined]


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of a file that a person reads."""
    if path.suffix == ".py":
        yield from read_docstrings(path)
    else:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def find_problems(paths: list[Path]) -> Iterator[str]:
    """Yield one line for every sentence that is too long or begins like a riddle."""
    for path in paths:
        for name, text in read_texts(path):
            for sentence in split_sentences(text):
                n = len(sentence.split())
                if n > MAX_WORDS:
                    yield f"{name}: {n} words: {sentence[:100]}..."
                elif OPENINGS.match(sentence) and not sentence.endswith("?"):
                    yield f"{name}: say it plainly: {sentence[:100]}"


def list_files() -> list[Path]:
    """Return all files that a person reads."""
    package = ROOT / "pyterrier_hypencoder"
    pages = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CITATION.cff") if (ROOT / name).exists()]
    pages += sorted(package.glob("**/README.md")) + sorted(package.glob("pt_docs/*.rst"))
    return pages + [
        path for folder in ("pyterrier_hypencoder", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))
    ]


if __name__ == "__main__":
    problems = list(find_problems([Path(name).resolve() for name in sys.argv[1:]] or list_files()))
    print("\n".join(problems) or "no sentence is too long")
    sys.exit(bool(problems))
