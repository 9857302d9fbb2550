"""Missing optional packages: the error names the pip command."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tiny_training import make_trainer

from pyterrier_hypencoder.training.row_sampler import RowSampler
from pyterrier_hypencoder.training.training_rows import TrainingRows


@pytest.fixture
def hide(monkeypatch):
    """Return a function that makes a package look as if it were not installed."""

    def hide(package: str) -> None:
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return hide


def test_trainer_without_accelerate_names_the_pip_command(hide, tmp_path):
    hide("accelerate")
    with pytest.raises(ImportError, match=r"accelerate. Run: pip install 'pyterrier-hypencoder\[train\]'"):
        make_trainer(tmp_path)


PLAIN_INSTALL = """
import importlib.util, sys
MISSING = ("accelerate", "datasets", "peft", "omegaconf", "matplotlib", "pyterrier_dr", "pyterrier_adaptive")
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] in MISSING else find(name, *a)
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
from pyterrier_hypencoder import *
from pyterrier_hypencoder import Hypencoder, HypencoderEstimator, HypencoderTrainer
try:
    HypencoderTrainer(Hypencoder("hypencoder-minilm"), "out")
except ImportError as err:
    print(err)
"""


@pytest.mark.slow
def test_plain_install_imports_all_public_names():
    done = subprocess.run([sys.executable, "-c", PLAIN_INSTALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Training needs the package accelerate. Run: pip install 'pyterrier-hypencoder[train]'\n"


def test_training_rows_without_datasets_name_the_pip_command(hide, rows_file):
    hide("datasets")
    with pytest.raises(ImportError, match=r"datasets. Run: pip install 'pyterrier-hypencoder\[train\]'"):
        TrainingRows(rows_file, RowSampler())


def test_lora_without_peft_names_the_pip_command(hide, tmp_path):
    hide("peft")
    with pytest.raises(ImportError, match=r"peft. Run: pip install 'pyterrier-hypencoder\[lora\]'"):
        make_trainer(tmp_path, lora={"r": 2, "target_modules": ["query"]})
