"""Build training pairs from the documentation of packages: the query is a summary, the document is the remaining text.

The packages are downloaded as wheels and read, never installed or run. None of them contributes to the collection of
``apidocs.py``. Pairs whose summary or text occurs in that collection are left out.
"""

import ast
import hashlib
import inspect
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import apidocs
from shared.collection import Collection
from shared.docstrings import make_query, split_docstring

#: Packages whose documentation the bundled model was trained on, with their versions.
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

#: Maximum number of pairs per package, so no package dominates the training data.
MAX_PER_PACKAGE = 1500
QUERY_WORDS = range(3, 33)
MIN_DOC_WORDS = 12
#: Longer texts are cut. An encoder reads about as many words with 256 tokens.
MAX_DOC_WORDS = 120
#: Two texts are near-duplicates if their first 12 words are equal.
DUPLICATE_WORDS = 12
_SKIPPED_FOLDERS = {"test", "tests", "testing", "vendor", "_vendor", "vendored", "extern", "externals"}


@dataclass(frozen=True)
class Pair:
    """A query and the document that it summarizes.

    Attributes:
        docno: Qualified name of the function, class or method.
        package: Name of the package.
        query: Words of the summary.
        text: Remaining text of the docstring.
    """

    docno: str
    package: str
    query: str
    text: str

    @property
    def doc(self) -> dict[str, str]:
        """Document with ``docno`` and ``text``."""
        return {"docno": self.docno, "text": self.text}

    def make_row(self, source: str) -> dict[str, Any]:
        """Return a training row without the document's text, for an index in which docnos start with their source."""
        name = f"{source}/{self.docno}"
        return {"query": {"id": name, "content": self.query}, "items": [{"id": name, "type": "positive"}]}


class SeenTexts:
    """Queries and beginnings of documents that later pairs must not repeat.

    Args:
        collection: Collection whose queries and documents count as seen, or None.
    """

    def __init__(self, collection: Collection | None = None) -> None:
        self.queries: set[str] = set()
        self.beginnings: set[str] = set()
        if collection is not None:
            self.queries = {query.lower() for query in collection.topics["query"]}
            self.beginnings = {self._get_beginning(doc["text"]) for doc in collection.docs()}

    def __contains__(self, pair: Pair) -> bool:
        return pair.query.lower() in self.queries or self._get_beginning(pair.text) in self.beginnings

    def add(self, pair: Pair) -> None:
        """Add the query and the document of a pair."""
        self.queries.add(pair.query.lower())
        self.beginnings.add(self._get_beginning(pair.text))

    @staticmethod
    def _get_beginning(text: str) -> str:
        return " ".join(text.lower().split()[:DUPLICATE_WORDS])


def download_wheels(folder: Path) -> None:
    """Download the wheels that are not in a folder yet.

    Args:
        folder: Folder for the wheels. It is created if it does not exist.

    Raises:
        RuntimeError: If pip cannot download one of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [f"{name}=={version}" for name, version in PACKAGES.items() if not _find_wheel(folder, name)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    if missing and subprocess.run([*command, *missing], check=False).returncode:
        raise RuntimeError(
            f"pip could not download all {len(missing)} missing wheels. Check the connection to the package index. Missing: "
            f"{' '.join(missing)}"
        )


def _find_wheel(folder: Path, name: str) -> Path | None:
    expected = _normalize(f"{name}-{PACKAGES[name]}")
    for path in sorted(folder.glob("*.whl")):
        if _normalize("-".join(path.name.split("-")[:2])) == expected:
            return path
    return None


def _normalize(name: str) -> str:
    return name.replace(".", "_").replace("-", "_").lower()


def build_pairs(folder: Path) -> list[Pair]:
    """Build the pairs of all packages.

    If a package has more than ``MAX_PER_PACKAGE`` pairs, those with the lowest hashes of their docnos are kept.

    Args:
        folder: Folder that contains the wheels.

    Raises:
        FileNotFoundError: If a wheel is missing.
    """
    held_out = SeenTexts(apidocs.build_collection())
    seen = SeenTexts()
    docnos: set[str] = set()
    pairs: list[Pair] = []
    for package, version in PACKAGES.items():
        wheel = _find_wheel(folder, package)
        if wheel is None:
            raise FileNotFoundError(f"{folder} has no wheel of {package} {version}. Download it with download_wheels().")
        kept = []
        for pair in _read_pairs(package, wheel):
            # A docno can occur twice: a property with its setter, or one function per platform.
            if pair.docno not in docnos and pair not in held_out and pair not in seen:
                seen.add(pair)
                docnos.add(pair.docno)
                kept.append(pair)
        kept.sort(key=lambda pair: hashlib.sha256(pair.docno.encode()).digest())
        pairs += kept[:MAX_PER_PACKAGE]
    return pairs


def _read_pairs(package: str, wheel: Path) -> Iterator[Pair]:
    """Yield the pairs of a package whose query and text are long enough."""
    for docno, docstring in read_docstrings(wheel):
        summary, text = split_docstring(docstring)
        query, words = make_query(summary), text.split()
        if len(query.split()) in QUERY_WORDS and len(words) >= MIN_DOC_WORDS:
            yield Pair(docno, package, query, " ".join(words[:MAX_DOC_WORDS]))


def read_docstrings(wheel: Path) -> Iterator[tuple[str, str]]:
    """Read the docstrings of public functions, classes and methods, except those of tests and vendored packages.

    Args:
        wheel: Path of the wheel.

    Yields:
        Qualified name and docstring.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            parts = name.removesuffix(".py").split("/")
            if not name.endswith(".py") or _SKIPPED_FOLDERS & set(parts) or "test" in parts[-1]:
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tree = ast.parse(archive.read(name))
            except (SyntaxError, ValueError):  # a template, or code for another Python version
                continue
            yield from _walk(tree, ".".join(part for part in parts if part != "__init__"))


def _walk(node: ast.AST, path: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            name = f"{path}.{child.name}"
            if (docstring := ast.get_docstring(child, clean=False)) is not None:
                yield name, inspect.cleandoc(docstring)
            if isinstance(child, ast.ClassDef):
                yield from _walk(child, name)
