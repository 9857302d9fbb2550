"""Run the code of a schematic."""

from __future__ import annotations

import ast
from typing import Any

import pyterrier as pt


def run_code(code: str, source: str) -> Any:
    """Run Python code and return the value of its last line, which must be an expression.

    Args:
        code: The code.
        source: Name of the page, for error messages.

    Raises:
        ValueError: If the code does not end with an expression.
    """
    *body, last = ast.parse(code, source).body
    if not isinstance(last, ast.Expr):
        raise ValueError(f"{source}: a schematic must end with an expression, got {code!r}.")
    namespace: dict[str, Any] = {"pt": pt}
    exec(compile(ast.Module(body, []), source, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), source, "eval"), namespace)
