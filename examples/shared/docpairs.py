"""Makes training pairs from the documentation of packages: a summary is the query, the rest of the text its document.

Packages are fetched as wheels and read, never installed or run. They are none of those whose documentation makes up the
collection of ``apidocs.py``, and pairs whose summary or text is found there as well are left out.

Example::

    python examples/shared/docpairs.py wheels
"""

import argparse
import ast
import hashlib
import inspect
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import apidocs

#: The packages, each with the version whose documentation the bundled model was trained on.
PACKAGES: dict[str, str] = dict(
    entry.split("==")
    for entry in """
    accelerate==1.15.0 aiohttp==3.14.5 altair==6.3.0 anndata==0.12.19 arviz==0.23.4 astropy==8.0.2 babel==2.18.0
    beautifulsoup4==4.15.0 biopython==1.88 bokeh==3.9.2 boltons==26.2.0 botorch==0.18.1 captum==0.9.0 celery==5.7.0
    cirq-core==1.7.0 click==8.5.1 control==0.10.2 cryptography==50.0.2 cvxpy==1.9.3 dash==4.4.1 dask-ml==2025.1.0
    datasets==5.2.0 datashader==0.19.1 diffusers==0.42.1 discord-py==2.7.1 django==5.2.19 docutils==0.23 duckdb==2.0.0
    elasticsearch==9.5.1 fastapi==0.165.0 featuretools==1.31.0 fiona==1.10.1 flask==3.1.3 galois==0.4.11 gensim==4.4.0
    geopandas==1.2.0 gpytorch==1.15.2 gradio==6.31.0 h5py==3.16.0 hdbscan==0.8.44 holoviews==1.23.2 httpx==0.28.1
    hypothesis==6.170.15 ibis-framework==12.0.0 imageio==2.38.1 imbalanced-learn==0.14.2 ipython==9.18.1 jinja2==3.1.6
    keras==3.15.1 kornia==0.9.0 langchain-core==1.8.1 libpysal==4.14.1 librosa==0.11.0 lightgbm==4.7.0
    lightning==2.6.6 llama-index-core==0.14.25 lmfit==1.3.4 lxml==6.1.3 markdown==3.11.3 matplotlib==3.11.2
    mlflow==3.18.0 mne==1.13.2 more-itertools==11.2.1 mpmath==1.4.1 music21==10.5.1 nbconvert==7.17.2
    networkx==3.6.1 nibabel==5.4.2 nilearn==0.14.1 nltk==3.10.4 numba==0.68.1 obspy==1.5.1
    openpyxl==3.1.5 optuna==5.0.0 panel==1.9.4 paramiko==5.1.0 peewee==4.5.3 peft==0.21.2 pennylane==0.45.1
    pillow==13.0.0 pint==0.25.3 plotly==7.1.0 polars==2.1.0 prompt-toolkit==3.0.53 pulp==3.3.2 pyarrow==26.0.1
    pydantic==2.14.3 pygments==2.21.0 pymc==5.28.5 pymongo==4.20.0 pyod==3.6.7 pyomo==6.10.1 pyro-ppl==1.9.2
    pytest==9.2.0 python-telegram-bot==22.8 pyvista==0.49.1 qiskit==2.6.2 rasterio==1.4.4 redis==8.1.0
    requests==2.34.2 rich==15.0.0 scanpy==1.11.5 scapy==2.8.0 scikit-image==0.26.0 scikit-learn==1.9.1 scrapy==2.19.0
    seaborn==0.13.2 selenium==4.52.0 sentence-transformers==6.2.0 setuptools==84.2.1 shap==0.51.0 shapely==2.2.0
    simpy==4.1.2 skops==0.16.0 sktime==1.2.0 spacy==3.8.18 sphinx==9.0.4 sqlalchemy==2.1.9 sqlglot==30.30.0
    starlette==1.10.0 statsmodels==0.15.0 streamlit==1.67.0 sunpy==7.0.5 sympy==1.14.0 tables==3.11.1 textual==8.2.8
    timm==1.0.31 toolz==1.2.0 torchmetrics==1.9.0 torchvision==0.29.2 tornado==6.6.1 traitlets==5.16.1
    transformers==5.23.0 trimesh==5.2.0 tslearn==0.10.0 twisted==26.10.0 umap-learn==0.5.12 werkzeug==3.1.9
    xarray==2026.9.0 xgboost==3.2.0 xlsxwriter==3.3.1 zarr==3.1.6
""".split()
)

#: Pairs of one package at most, so that none of them rules the collection.
MAX_PER_PACKAGE = 1500
QUERY_WORDS = range(3, 33)
MIN_WORDS = 12
#: Words of a text that are kept; about as many as an encoder of 256 tokens reads.
MAX_WORDS = 120
_SKIPPED = {"test", "tests", "testing", "vendor", "_vendor", "vendored", "extern", "externals"}


@dataclass(frozen=True)
class Pair:
    """A summary as plain words, and the documentation that it sums up."""

    docno: str
    package: str
    query: str
    text: str

    @property
    def doc(self) -> dict[str, str]:
        """The document."""
        return {"docno": self.docno, "text": self.text}

    def row(self, source: str) -> dict[str, Any]:
        """The training row, its item without text: documents are found by docno in an index of several sources."""
        items = [{"id": f"{source}/{self.docno}", "type": "positive"}]
        return {"query": {"id": f"{source}/{self.docno}", "content": self.query}, "items": items}


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
    names: set[str] = set()
    for package in PACKAGES:
        wheel = _wheel(folder, package)
        if wheel is None:
            raise FileNotFoundError(f"expected the wheel of {package} {PACKAGES[package]} in {folder}, found none; fetch it")
        own = []
        for name, doc in docstrings(wheel):
            summary, text = apidocs.split(doc)
            query, text = apidocs.make_query(summary), " ".join(text.split()[:MAX_WORDS])
            long_enough = len(query.split()) in QUERY_WORDS and len(text.split()) >= MIN_WORDS
            # A name can come twice: a property with its setter, or one function for each platform.
            if long_enough and name not in names and not held_out.has(query, text) and not seen.has(query, text):
                seen.add(query, text)
                names.add(name)
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


def main() -> None:
    """Fetches the packages, and counts their pairs."""
    parser = argparse.ArgumentParser(description="Makes training pairs from the documentation of packages.")
    parser.add_argument("wheels", type=Path, help="folder with the wheels, fetched where they are missing")
    options = parser.parse_args()
    fetch(options.wheels)
    found = pairs(options.wheels)
    for package, number in Counter(pair.package for pair in found).most_common():
        print(f"{number:6d} {package}")
    print(f"{len(found):6d} pairs")


if __name__ == "__main__":
    main()
