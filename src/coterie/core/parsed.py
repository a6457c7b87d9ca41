"""Parses JSON and TOML, mapping every failure to one kind of error with a one-sentence message.

Besides their own errors, Python's parsers raise RecursionError for deep nesting and a plain ValueError for integers of
thousands of digits. Knows nothing about what the values mean.
"""

from __future__ import annotations

import json
import tomllib
from typing import Any

from coterie.core.errors import UsageError, one_line

_DEEP, _LONG = "it is nested too deeply", "it holds a number of thousands of digits"


def parse_json(text: str | bytes, where: str, remedy: str, error: type[UsageError] = UsageError) -> Any:
    """Parse JSON; NaN and Infinity are accepted, as Python writes them. Raises `error` naming `where`."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as cause:
        raise error(where, f"is not JSON: {one_line(str(cause))}", remedy) from None
    except RecursionError:
        raise error(where, f"is not JSON that is read here: {_DEEP}", remedy) from None
    except ValueError:
        raise error(where, f"is not JSON that is read here: {_LONG}", remedy) from None


def parse_toml(text: str, where: str, error: type[UsageError] = UsageError) -> dict[str, Any]:
    """Parse TOML. Raises `error` naming `where`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise error(where, f"is not TOML: {one_line(str(cause))}", "mend the file at that place") from None
    except RecursionError:
        raise error(where, f"is not TOML that is read here: {_DEEP}", "mend the file") from None
    except ValueError:
        raise error(where, f"is not TOML that is read here: {_LONG}", "mend the file") from None
