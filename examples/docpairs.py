"""Makes training pairs from the documentation of packages: a summary is the query, the rest of the text its document.

Packages are fetched as wheels and read, never installed or run. They are none of those whose documentation makes up the
collection of ``apidocs.py``, and pairs whose summary or text is found there as well are left out.

Example::

    python examples/docpairs.py wheels pairs.jsonl
"""

import argparse
import ast
import hashlib
import inspect
import json
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import apidocs

#: The packages, each with the version whose documentation the bundled model was trained on.
PACKAGES: dict[str, str] = {}

#: Pairs of one package at most, so that none of them rules the collection.
MAX_PER_PACKAGE = 1500
QUERY_WORDS = range(3, 33)
MIN_WORDS = 12
#: Words of a text that are kept; more than any encoder of 256 tokens reads.
MAX_WORDS = 220
_SKIPPED = {"test", "tests", "testing", "vendor", "_vendor", "vendored", "extern", "externals"}


@dataclass(frozen=True)
class Pair:
    """A summary as plain words, and the documentation that it sums up."""

    docno: str
    package: str
    query: str
    text: str


def fetch(folder: Path) -> None:
    """Downloads the wheels that are not there yet.

    Args:
        folder: where to, created if need be.

    Raises:
        RuntimeError: where the package index has one of them no more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}=={version}" for name, version in PACKAGES.items() if not _wheel(folder, name)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    if wanted and subprocess.run([*command, *wanted], check=False).returncode:
        raise RuntimeError(f"could not fetch all of {len(wanted)} wheels; is there a package index? {' '.join(wanted)}")


def _wheel(folder: Path, name: str) -> Path | None:
    stem = f"{name}-{PACKAGES[name]}".replace(".", "_").replace("-", "_").lower()
    for path in sorted(folder.glob("*.whl")):
        if "_".join(path.name.split("-")[:2]).replace(".", "_").lower() == stem:
            return path
    return None


def docstrings(wheel: Path) -> Iterator[tuple[str, str]]:
    """Reads the documentation strings of public functions, classes and methods.

    Args:
        wheel: the file.

    Yields:
        Qualified name and documentation string.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            parts = name.removesuffix(".py").split("/")
            if not name.endswith(".py") or _SKIPPED & set(parts) or any("test" in part for part in parts[-1:]):
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tree = ast.parse(archive.read(name))
            except (SyntaxError, ValueError):  # a template, or code for another Python
                continue
            yield from _walk(tree, ".".join(part for part in parts if part != "__init__"))


def _walk(node: ast.AST, path: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            name = f"{path}.{child.name}"
            if (doc := ast.get_docstring(child, clean=False)) is not None:
                yield name, inspect.cleandoc(doc)
            if isinstance(child, ast.ClassDef):
                yield from _walk(child, name)


def pairs(folder: Path) -> list[Pair]:
    """Makes the pairs of all packages, those nearest to a package's beginning in an order that is as good as random.

    Args:
        folder: where the wheels are.

    Raises:
        FileNotFoundError: where one is missing.
    """
    held_out = _Known(apidocs.build())
    seen = _Known()
    found: list[Pair] = []
    for package in PACKAGES:
        wheel = _wheel(folder, package)
        if wheel is None:
            raise FileNotFoundError(f"expected the wheel of {package} {PACKAGES[package]} in {folder}, found none; fetch it")
        own = []
        for name, doc in docstrings(wheel):
            summary, text = apidocs.split(doc)
            query, text = apidocs.query_of(summary), " ".join(text.split()[:MAX_WORDS])
            long_enough = len(query.split()) in QUERY_WORDS and len(text.split()) >= MIN_WORDS
            if long_enough and not held_out.has(query, text) and not seen.has(query, text):
                seen.add(query, text)
                own.append(Pair(name, package, query, text))
        own.sort(key=lambda pair: hashlib.sha256(pair.docno.encode()).digest())
        found += own[:MAX_PER_PACKAGE]
    return found


class _Known:
    """Queries, and the beginnings of texts, that were met before."""

    def __init__(self, collection: apidocs.Collection | None = None) -> None:
        self.queries: set[str] = set()
        self.beginnings: set[str] = set()
        if collection is not None:
            self.queries = {query.lower() for query in collection.topics["query"]}
            self.beginnings = {self._beginning(doc["text"]) for doc in collection.docs}

    def has(self, query: str, text: str) -> bool:
        return query.lower() in self.queries or self._beginning(text) in self.beginnings

    def add(self, query: str, text: str) -> None:
        self.queries.add(query.lower())
        self.beginnings.add(self._beginning(text))

    @staticmethod
    def _beginning(text: str) -> str:
        return " ".join(text.lower().split()[:12])


def write(found: Iterable[Pair], path: Path) -> None:
    """Writes pairs as training rows, one positive item each."""
    with open(path, "w", encoding="utf-8") as out:
        for pair in found:
            row = {
                "query": {"id": f"doc:{pair.docno}", "content": pair.query},
                "items": [{"id": pair.docno, "content": pair.text, "type": "positive"}],
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    """Fetches the packages, and writes their pairs."""
    parser = argparse.ArgumentParser(description="Makes training pairs from the documentation of packages.")
    parser.add_argument("wheels", type=Path, help="folder with the wheels, fetched where they are missing")
    parser.add_argument("pairs", type=Path, help="the JSONL file to write")
    options = parser.parse_args()
    fetch(options.wheels)
    found = pairs(options.wheels)
    write(found, options.pairs)
    for package, number in Counter(pair.package for pair in found).most_common():
        print(f"{number:6d} {package}")
    print(f"{len(found):6d} pairs")


if __name__ == "__main__":
    main()
