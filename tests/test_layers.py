"""The structure of the package: its folders, the imports between them, sizes of modules, and what an import loads."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "pyterrier_hypencoder"
# A wing imports only from itself and from wings before it in this list.
WINGS = [
    "options",
    "identity",
    "qnet",
    "scoring",
    "search",
    "index",
    "encoders",
    "transformers",
    "artifact",
    "training",
    "plots",
]
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CONSTRUCTOR_LINES = 90  # a constructor may have many options


def list_modules(root: Path) -> dict[str, Path]:
    """Return the dotted name of every module below a package, without the package's own name."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def find_imports(name: str, path: Path, modules: dict[str, Path]) -> set[str]:
    """Return the modules of the package that a module imports, at the top or inside functions."""
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


def find_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of lines of every function in a file, docstrings and decorators included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield node.name, (node.end_lineno or node.lineno) - first + 1


# Folders and modules


def test_package_has_the_folders_of_the_design():
    names = {path.name for path in (ROOT / PACKAGE).iterdir() if path.name != "__pycache__"}
    assert names == {
        "__init__.py",
        "py.typed",
        "models",
        "pt_docs",
        *(name if (ROOT / PACKAGE / name).is_dir() else f"{name}.py" for name in WINGS),
    }


def test_module_names_are_unique():
    names = Counter(name.split(".")[-1] for name, path in MODULES.items() if path.name not in ("__init__.py", "__main__.py"))
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_modules_import_only_from_wings_below(name):
    wing = name.split(".")[0]
    assert wing in WINGS, f"{wing} is missing in WINGS"
    for imported in find_imports(name, MODULES[name], MODULES):
        assert imported, f"{name} imports the package itself, which is above all wings"
        assert WINGS.index(imported.split(".")[0]) <= WINGS.index(wing), f"{name} imports {imported}, which is above it"


def test_imports_have_no_cycle():
    graph = {name: find_imports(name, path, MODULES) - {name} for name, path in MODULES.items() if name}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)  # static_order raises CycleError


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


# Sizes


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_are_short(name):
    lines = len(MODULES[name].read_text().splitlines())
    assert lines <= MAX_MODULE_LINES, f"{name} has {lines} lines"
    for function, length in find_functions(MODULES[name]):
        limit = MAX_CONSTRUCTOR_LINES if function == "__init__" else MAX_FUNCTION_LINES
        assert length <= limit, f"{name}.{function} has {length} lines"


def test_find_functions_counts_decorators_and_nested_functions(tmp_path):
    lines = ["class A:", "    @property", "    def f(self):", "        def g():", "            pass", "        return g"]
    (tmp_path / "a.py").write_text("\n".join(lines))
    assert dict(find_functions(tmp_path / "a.py")) == {"f": 5, "g": 2}


# What an import or a search loads

HEAVY = ("torch", "transformers", "triton", "faiss", "sentence_transformers")
# Each step runs after the one before it in one process, which then reports what has been loaded. Starting a process takes
# seconds, so all steps share one.
STEPS = {
    "package": "import pyterrier_hypencoder as h",
    "names": """
[getattr(h, name) for name in h.__all__ if name not in ("HypencoderEstimator", "HypencoderTrainer")]
""",
    "opening": "index = h.HypencoderIndex.example()",
    "exhaustive search": """
import pandas as pd
topics = pd.DataFrame({"qid": ["q"], "query_vec": [[1.0, 0.0, 0.0, 0.0]]})
run = index.retriever()(topics)
assert list(run["docno"]) == ["d1", "d3", "d2"]
""",
    "automatic choice": """
assert len(index.retriever(algorithm="auto", allowed_docnos=["d1", "d2"])(topics)) == 2
""",
    "scoring": """
assert len(index.scorer()(run)) == 3 and len(index.vec_loader()(run)) == 3
assert index.scorer().score([[1.0, 0.0, 0.0, 0.0]], [0, 2]).shape == (1, 2)
""",
    "indexing": """
assert len(h.HypencoderIndexer.example().index([{"docno": "a", "doc_vec": [1.0]}])) == 1
""",
}


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """Return the heavy modules that are loaded after each step; ``start`` is before the first one."""
    report = f"seen[%r] = sorted(set({HEAVY}) & set(sys.modules))"
    lines = ["import json, sys", "import pyterrier", "seen = {}", report % "start"]
    for name, step in STEPS.items():
        lines += [step, report % name]
    script = "\n".join([*lines, "print(json.dumps(seen))"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_loads_no_heavy_library(loaded):
    assert loaded["package"] == loaded["start"]


def test_public_names_load_torch_but_not_transformers(loaded):
    """The names of training are left out, because training uses the Trainer of transformers."""
    assert "torch" in loaded["names"]
    assert not {"transformers", "triton", "faiss"} & set(loaded["names"])


@pytest.mark.parametrize("step", ["opening", "exhaustive search", "automatic choice", "scoring", "indexing"])
def test_opening_searching_and_scoring_load_neither_faiss_nor_transformers(loaded, step):
    assert not {"transformers", "triton", "faiss"} & set(loaded[step])


def test_unknown_names_are_attribute_errors():
    import pyterrier_hypencoder

    with pytest.raises(AttributeError, match="Hypnocoder"):
        _ = pyterrier_hypencoder.Hypnocoder
    assert set(pyterrier_hypencoder.__all__) <= set(dir(pyterrier_hypencoder))
    assert set(pyterrier_hypencoder.__all__) == set(pyterrier_hypencoder._MODULES)
    assert pyterrier_hypencoder.__version__
