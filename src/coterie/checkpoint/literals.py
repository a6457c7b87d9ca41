"""Parses values that models write: JSON, and Python literals, which some templates print.

Knows nothing about calls.
"""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

_NAMES = {"true": True, "false": False, "null": None}  # JSON's, among Python's


def python_value(text: str) -> Any:
    """The value of a JSON or Python literal, in JSON's types. Raises ValueError if the text is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escape sequences
            return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"is no value: {type(error).__name__}") from None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            names = [key.value for key in keys if isinstance(key, ast.Constant)]
            return {str(name): _value(value) for name, value in zip(names, values, strict=True)}
    raise ValueError("is no value that JSON has")
