"""Unpack the package of an index: a tar file compressed with lz4, as PyTerrier's ``build_package`` writes it."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import lz4.frame


def unpack(package: Path, path: Path) -> None:
    """Unpack a package into a new directory, which appears when it is complete.

    Args:
        package: The package.
        path: The directory to create.

    Raises:
        FileNotFoundError: If there is no package.
        FileExistsError: If the directory exists.
        ValueError: If the file is no package, is cut, or contains files that do not belong into the directory.
    """
    if not package.is_file():
        raise FileNotFoundError(f"There is no package at {package}. Check the path.")
    if path.exists():
        raise FileExistsError(f"{path} already exists. Choose a new directory for the unpacked index.")
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        try:
            with lz4.frame.open(package) as data, tarfile.open(fileobj=data, mode="r|") as files:
                files.extractall(folder, filter="data")
        except (tarfile.TarError, RuntimeError, EOFError) as err:
            raise ValueError(
                f"{package} must be a package of an index, but cannot be unpacked: {err}. Copy it again."
            ) from err
        folder.chmod(0o755)
        os.replace(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
