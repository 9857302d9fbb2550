"""The order of imports is the order in which data flows; and what importing the package may load.

The order is that of the design with one change: ``scoring`` stands above the encoders. It needs q-nets only, and the stages
that re-rank by text (``stages``, made by the encoders) need it. ``frames``, ``hub``, ``docnos``, ``neighbours``, ``staging``
and ``scorer`` are parts that the design has inside its modules.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pyterrier_hypencoder"
# A module imports only from modules above it.
LAYERS = [
    "qnet",
    "frames",
    "model",
    "hub",
    "checkpoint",
    "scoring",
    "stages",
    "encoder",
    "biencoder",
    "hypencoder",
    "docnos",
    "storage",
    "neighbours",
    "staging",
    "graph",
    "inner_product",
    "search",
    "scorer",
    "retriever",
    "measures",
    "indexer",
    "index",
    "training",
    "validation",
    "estimator",
    "__main__",
]
FORBIDDEN_FOR_TRAINING = {
    "storage",
    "neighbours",
    "staging",
    "graph",
    "inner_product",
    "search",
    "scorer",
    "retriever",
    "measures",
    "indexer",
    "index",
    "docnos",
}


def layer_of(path: Path) -> str:
    """A command puts everything together, in whatever folder it lies."""
    if path.name == "__main__.py":
        return "__main__"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    """The modules of this package that a file imports, at its top or inside functions."""
    depth = len(path.relative_to(PACKAGE).parts)
    layers = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            layers |= {name.split(".")[1] for name in names if name.startswith("pyterrier_hypencoder.")}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            if node.level == depth:  # relative to the package itself
                layers |= {module[0]} if node.module else {alias.name for alias in node.names}
            elif node.level == 0 and module[0] == "pyterrier_hypencoder":
                layers |= {module[1]} if len(module) > 1 else {alias.name for alias in node.names}
    return layers


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py" or path.parent != PACKAGE]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_upwards(path):
    own = layer_of(path)
    assert own in LAYERS, f"{own} has no place in LAYERS yet"
    for other in imported_layers(path) - {own}:
        assert other in LAYERS, f"{path} imports {other}, which has no place in LAYERS yet"
        assert LAYERS.index(other) < LAYERS.index(own), f"{own} imports {other}, which comes after it"
        assert own != "training" or other not in FORBIDDEN_FOR_TRAINING


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "sub").mkdir()
    top, sub = tmp_path / "a.py", tmp_path / "sub" / "b.py"
    top.write_text("from . import x\nfrom .y import z\ndef f():\n    from pyterrier_hypencoder.late import q\n")
    sub.write_text("from ..up import x\nfrom .own import y\nimport pyterrier_hypencoder.whole\n")
    assert imported_layers(top) == {"x", "y", "late"}
    assert imported_layers(sub) == {"up", "whole"}


def loaded_after(statement: str) -> list[str]:
    script = f"import json, sys\nimport pyterrier\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "transformers", "triton", "faiss", "sentence_transformers"}
    before = set(loaded_after(""))
    assert not heavy & (set(loaded_after("import pyterrier_hypencoder")) - before)


def test_the_public_names_load_no_transformers():
    """But for those of training, which is done by transformers."""
    training = ("HypencoderEstimator", "HypencoderTrainer")
    names = set(loaded_after(f"import pyterrier_hypencoder as h\n[getattr(h, n) for n in h.__all__ if n not in {training}]"))
    assert "torch" in names
    assert not {"transformers", "triton"} & names


def test_unknown_names_are_attribute_errors():
    import pyterrier_hypencoder

    with pytest.raises(AttributeError, match="Hypnocoder"):
        _ = pyterrier_hypencoder.Hypnocoder
    assert set(pyterrier_hypencoder.__all__) <= set(dir(pyterrier_hypencoder))
