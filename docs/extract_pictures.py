"""Copy pictures from the outputs of the notebooks into the documentation.

    python docs/extract_pictures.py

Run it after ``python examples/run_notebooks.py --write``.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "pyterrier_hypencoder" / "pt_docs"
PICTURES = {
    "picture-surface.png": ("03_what_a_qnet_does", 0),
    "picture-linearity.png": ("03_what_a_qnet_does", 1),
    "picture-narrowing.png": ("03_what_a_qnet_does", 3),
    "picture-exactly-one.png": ("03_what_a_qnet_does", 4),
    "picture-line.png": ("03_what_a_qnet_does", 5),
    "picture-gains.png": ("02_against_dense_baselines", 0),
    "picture-costs.png": ("02_against_dense_baselines", 3),
    "picture-training.png": ("04_train_your_own", 0),
}
"""The notebook of each file, and the position among its pictures."""


def read_pictures(notebook: str) -> list[bytes]:
    """Return the pictures in the outputs of a notebook, in order."""
    cells = json.loads((ROOT / "examples" / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [base64.b64decode(output["data"]["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


if __name__ == "__main__":
    for name, (notebook, position) in PICTURES.items():
        (PAGES / name).write_bytes(read_pictures(notebook)[position])
