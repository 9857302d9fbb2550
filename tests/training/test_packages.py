"""Missing optional packages: the error names the pip command."""

from __future__ import annotations

import sys

import pytest
from tiny_training import make_trainer

import pyterrier_hypencoder
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


@pytest.mark.parametrize("name", ["HypencoderEstimator", "HypencoderTrainer"])
def test_public_names_without_accelerate_name_the_pip_command(hide, monkeypatch, name):
    hide("accelerate")
    for module in ("estimator", "trainer", "training_loop"):
        monkeypatch.delitem(sys.modules, f"pyterrier_hypencoder.training.{module}", raising=False)
    with pytest.raises(ImportError, match=r"accelerate. Run: pip install 'pyterrier-hypencoder\[train\]'"):
        getattr(pyterrier_hypencoder, name)


def test_training_rows_without_datasets_name_the_pip_command(hide, rows_file):
    hide("datasets")
    with pytest.raises(ImportError, match=r"datasets. Run: pip install 'pyterrier-hypencoder\[train\]'"):
        TrainingRows(rows_file, RowSampler())


def test_lora_without_peft_names_the_pip_command(hide, tmp_path):
    hide("peft")
    with pytest.raises(ImportError, match=r"peft. Run: pip install 'pyterrier-hypencoder\[lora\]'"):
        make_trainer(tmp_path, lora={"r": 2, "target_modules": ["query"]})
