"""Reads line-oriented files: plain text, CSV and JSON Lines, with the position of each record for error messages.

Knows nothing about what the objects mean.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from coterie.core.errors import NotFoundError, UsageError


def read_text(path: Path, what: str, error: type[UsageError] = UsageError, must_end: bool = False) -> str:
    """A file's text.

    `what`: its contents in one word, for messages. `must_end`: the last line must be terminated, else the file may be
    truncated. Raises NotFoundError (no such file), or `error`: unreadable, or an unterminated last line.
    """
    if not path.is_file():
        raise NotFoundError(str(path), f"there is no such file of {what}", f"give a file of {what}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # -sig: some editors write a byte order mark
    except (OSError, UnicodeDecodeError) as cause:
        raise error(str(path), f"it cannot be read: {cause}", "save the file as UTF-8 text") from cause
    if must_end and text and not text.endswith(("\n", "\r")):
        fact = f"line {len(text.splitlines())} has no end, so that the file may be cut off in the middle of it"
        raise error(str(path), fact, "get the whole file, or end its last line if it is whole")
    return text


def csv_rows(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of each row.

    Raises UsageError for a cell that is unterminated or longer than csv.field_size_limit() (128 Ki characters).
    """
    reader = csv.reader(lines)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as cause:
        raise UsageError(f"{path}:{reader.line_num}", f"this line is not CSV: {cause}", "mend the line") from cause


def json_lines(
    path: Path, what: str, error: type[UsageError] = UsageError, must_end: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line that is not blank.

    Raises as `read_text` does, and `error` if there is no such line or a line is not a JSON object.
    """
    # Not splitlines, which also splits at separators that JSON strings may contain.
    lines = read_text(path, what, error, must_end).split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise error(str(path), f"there are no {what} in it", "write one JSON object a line")
    for number, line in numbered:
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as cause:  # ValueError also for integers of thousands of digits
            cut = "; it is the last one, so that the file may be cut off" if number == numbered[-1][0] else ""
            raise error(where, f"this line is not JSON: {cause}{cut}", "mend the line") from cause
        if not isinstance(values, dict):
            raise error(where, "this line is JSON, but no object", 'write {"...": ..., ...}')
        yield where, values
