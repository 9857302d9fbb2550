"""Run the notebooks from the first to the last cell, and report their times.

Copies with their outputs are written to ``build/notebooks``. With ``--write``, the outputs of the notebooks themselves are
replaced, without warnings and progress bars. Install the packages first: ``pip install -e '.[notebooks]'``.

Example::

    python examples/run_notebooks.py                  # all
    python examples/run_notebooks.py --write 03       # the notebooks whose names start with 03
"""

import argparse
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent / "notebooks"
COPIES = Path(__file__).parents[1] / "build" / "notebooks"
#: Seconds that one cell may take.
CELL_TIMEOUT = 600


def run_notebook(path: Path, target: Path) -> float:
    """Run a notebook in its folder, write it with outputs, and return the seconds that it took.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell raises an error.
    """
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": str(path.parent)}}, record_timing=False
    )
    client.execute()
    clean_outputs(notebook)
    nbformat.write(notebook, target)
    return time.perf_counter() - start


def clean_outputs(notebook: nbformat.NotebookNode) -> None:
    """Remove warnings, progress bars, the version of Python, and the texts beside drawings, which hold paths."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "ts-transformer" in output.get("data", {}).get("text/html", ""):
                output["data"].pop("text/plain", None)
    notebook.metadata["language_info"] = {"name": "python"}


def main() -> None:
    """Run the notebooks that the command line names."""
    parser = argparse.ArgumentParser(description="Run the notebooks.")
    parser.add_argument("names", nargs="*", help="beginnings of names; all notebooks by default")
    parser.add_argument("--write", action="store_true", help="replace the outputs of the notebooks themselves")
    options = parser.parse_args()
    COPIES.mkdir(parents=True, exist_ok=True)
    paths = [
        path for path in sorted(NOTEBOOKS.glob("*.ipynb")) if not options.names or path.name.startswith(tuple(options.names))
    ]
    if not paths:
        raise SystemExit(f"No notebook in {NOTEBOOKS} starts with {' or '.join(options.names)}.")
    for path in paths:
        seconds = run_notebook(path, path if options.write else COPIES / path.name)
        print(f"{path.name}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
