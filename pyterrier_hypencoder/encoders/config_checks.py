"""Checks of configurations before anything is made of them: code that comes with a model, and impossible sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .reading import ModelFileError

_COUNTS = re.compile("layer|label|block|depth|expert|head")
_MAX_COUNT = 100_000
_MAX_POSITIONS = 2**24
_MAX_SIZE = 2**40


def check_remote_code(options: Mapping[str, Any], source: str | Path, trust_remote_code: bool) -> bool:
    """Return True if a model comes with code that is to be run.

    Args:
        options: A parsed ``config.json`` or ``tokenizer_config.json``.
        source: Its path, for error messages.
        trust_remote_code: If True, the user allows the code.

    Raises:
        ModelFileError: If there is code and the user does not allow it. Without it, the vectors may be others.
    """
    names = options.get("auto_map")
    classes = list(names) if isinstance(names, dict) else ["AutoTokenizer"] * bool(names)
    classes = [name for name in classes if name in ("AutoConfig", "AutoModel", "AutoTokenizer")]
    if classes and not trust_remote_code:
        raise ModelFileError(
            f"{source} needs code that comes with the model ({', '.join(classes)}). It is not run unless you allow it: read "
            "the code, and pass trust_remote_code=True if you trust it."
        )
    return bool(classes)


def check_sizes(options: Any, source: str | Path) -> None:
    """Check the numbers in a configuration before a network of that size is built.

    Raises:
        ModelFileError: If a number cannot be a number of layers, positions or dimensions.
    """
    for key, value in options.items() if isinstance(options, dict) else enumerate(options):
        if isinstance(value, dict | list):
            check_sizes(value, source)
        elif isinstance(value, int):
            name = str(key)
            limit = _MAX_COUNT if _COUNTS.search(name) else _MAX_POSITIONS if "position" in name else _MAX_SIZE
            if abs(value) > limit:
                raise ModelFileError(f"{source} has {name} = {value:,}, but at most {limit:,} are supported.")
