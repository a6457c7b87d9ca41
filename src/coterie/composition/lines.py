"""Reads JSON lines: one object a line, blank lines left out, each with the place it stands at.

Knows nothing about what the objects mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coterie.core.errors import CompositionError, NotFoundError


def json_lines(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line. `what` the file is of, in one word.

    Raises NotFoundError (no such file), or CompositionError: unreadable, no line at all, or a line that is no object.
    """
    if not path.is_file():
        raise NotFoundError(str(path), f"there is no such file of {what}", f"give a file of {what}: JSON lines")
    try:
        # -sig: some editors write a byte order mark; not splitlines: it cuts at separators that JSON allows in a text
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CompositionError(str(path), f"it cannot be read: {error}", "save the file as UTF-8 text") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise CompositionError(str(path), f"there are no {what} in it", "write one JSON object a line")
    for number, line in numbered:
        yield f"{path}:{number}", _object(line, f"{path}:{number}")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise CompositionError(where, f"this line is not JSON: {error}", "mend the line") from error
    if not isinstance(values, dict):
        raise CompositionError(where, "this line is JSON, but no object", 'write {"prompt": "...", ...}')
    return values
