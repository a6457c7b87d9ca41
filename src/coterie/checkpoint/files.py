"""Reads the small JSON files of a checkpoint folder, with errors that name the file.

Knows nothing about what is in them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coterie.core.errors import CheckpointError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises CheckpointError when it is missing, unreadable or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(str(path), "the file does not exist", "add it or point to another folder") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(str(path), f"not UTF-8 text at byte {error.start}", "download the file again") from None
    except OSError as error:
        raise CheckpointError(str(path), f"cannot be read: {error.strerror}", "check the file") from None


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object in which no key appears twice. Raises CheckpointError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(where, f"{twice!r} appears twice", "save the checkpoint again")
        return found

    try:
        parsed = json.loads(text, object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise CheckpointError(where, f"not UTF-8 text at byte {error.start}", "download the file again") from None
    except json.JSONDecodeError as error:
        fact = f"not valid JSON at line {error.lineno}, column {error.colno} ({error.msg})"
        raise CheckpointError(where, fact, "download the file again") from None
    except RecursionError:
        raise CheckpointError(where, "JSON nested too deeply", "download the file again") from None
    except ValueError:
        raise CheckpointError(where, "holds a number of thousands of digits", "download the file again") from None
    if not isinstance(parsed, dict):
        fact = f"holds a JSON {type(parsed).__name__} where an object is wanted"
        raise CheckpointError(where, fact, "download the file again")
    return parsed


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError."""
    return parse_object(read_text(path), str(path))


def read_object_if_present(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one when there is no such file. Raises CheckpointError."""
    return read_object(path) if path.exists() else {}
