"""Writes tables of a composition file as TOML: strings, numbers, booleans, lists of strings, tables, lists of tables.

Knows nothing about which keys there are. Source: TOML 1.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_toml(values: Mapping[str, Any], at: str = "") -> str:
    """A table as TOML; `at` is its dotted name. Parsing the result gives back equal values."""
    plain = {key: value for key, value in values.items() if not _is_table(value) and not _is_tables(value)}
    lines = [f"{key} = {_value(value)}\n" for key, value in plain.items()]
    for key, value in values.items():
        name = f"{at}.{key}" if at else key
        if _is_table(value):
            lines.append(f"\n[{name}]\n{to_toml(value, name)}")
        elif _is_tables(value):
            lines += [f"\n[[{name}]]\n{to_toml(item, name)}" for item in value]
    return "".join(lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):  # JSON's escapes are valid in TOML, which also requires DEL to be escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
