"""Check that an optional package is installed before work begins."""

from __future__ import annotations

from importlib.util import find_spec


def require_package(name: str, extra: str = "train") -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        name: Name of the package.
        extra: Extra of this package that installs it.

    Raises:
        ImportError: If it is not installed. The message contains the pip command.

    Example:
        >>> require_package("no_such_package")
        Traceback (most recent call last):
        ImportError: Training needs the package no_such_package. Run: pip install 'pyterrier-hypencoder[train]'
    """
    if find_spec(name) is None:
        raise ImportError(f"Training needs the package {name}. Run: pip install 'pyterrier-hypencoder[{extra}]'", name=name)
