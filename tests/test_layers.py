"""The layers of the package: which wing may import which, and what an import may load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "pyterrier_hypencoder"
# A wing imports only from wings above it in this list, and from itself.
WINGS = ["options", "identity", "qnet", "scoring", "search", "index", "encoders", "transformers", "artifact", "training"]


def list_modules(root: Path) -> dict[str, Path]:
    """Return the dotted name of every module below a package, without the package's own name."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def find_imports(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Return the modules of the package that one of them imports, at the top or inside functions."""
    home = name.split(".") if path.name == "__init__.py" and name else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == PACKAGE}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                target = home[: len(home) - node.level + 1]
            elif (node.module or "").split(".")[0] == PACKAGE:
                target = []
            else:
                continue
            module = (node.module or "").split(".")[0 if node.level else 1 :]
            base = ".".join([*target, *filter(None, module)])
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found.add(inner if inner in modules else base)
    return found


MODULES = list_modules(ROOT / PACKAGE)


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_modules_import_only_from_wings_below(name):
    own = name.split(".")[0]
    assert own in WINGS, f"{own} has no place in WINGS"
    for other in find_imports(name, MODULES[name], MODULES):
        assert other, f"{name} imports the package itself, which stands above all wings"
        wing = other.split(".")[0]
        assert WINGS.index(wing) <= WINGS.index(own), f"{name} imports {other}, which stands above it"


def test_no_imports_in_a_circle():
    graph = {name: find_imports(name, path, MODULES) - {name} for name, path in MODULES.items() if name}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)  # raises CycleError


def test_find_imports_sees_every_form(tmp_path):
    (tmp_path / "sub").mkdir()
    top, sub = tmp_path / "a.py", tmp_path / "sub" / "b.py"
    top.write_text("from . import x\nfrom .y import z\ndef f():\n    from pyterrier_hypencoder.late import q\n")
    sub.write_text("from ..up import x\nfrom .own import y\nimport pyterrier_hypencoder.whole\nimport json\n")
    for name in ("x", "y", "late", "up", "sub/own"):
        (tmp_path / f"{name}.py").touch()
    modules = list_modules(tmp_path)
    assert find_imports("a", top, modules) == {"x", "y", "late"}
    assert find_imports("sub.b", sub, modules) == {"up", "sub.own", "whole"}


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
