"""Reads workloads from files of requests: CSV with a header, or JSON Lines, one request per line.

    TIMESTAMP,ContextTokens,GeneratedTokens[,Expert][,Priority]    the columns of the public Azure LLM inference traces

The column names of other public traces are accepted too. If the file names no experts, the mix assigns them.
Failed requests of BurstGPT, whose lengths are meaningless, are skipped and counted.
Knows nothing about engines or machines.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from coterie.composition.validate import name_hint
from coterie.core.errors import NotFoundError, UsageError, shown
from coterie.core.lines import csv_rows, json_lines, read_text
from coterie.plan.mix import Mix
from coterie.plan.workload import MAX_TOKENS, Workload

# Column names in lower case: Azure's traces, BurstGPT, the simulator Vidur, and ours.
_NAMES = {
    "at": ("timestamp", "arrived_at", "arrival_s"),
    "prompt": ("contexttokens", "request tokens", "num_prefill_tokens", "prompt_tokens"),
    "new": ("generatedtokens", "response tokens", "num_decode_tokens", "new_tokens"),
}
_EXPERT, _PRIORITY = "expert", "priority"
_WHAT = "requests"
_FAILED = ("response tokens", "0")  # BurstGPT's README: "some failure that Response tokens are 0s"
_FRACTION = re.compile(r"(\.\d{6})\d+")  # Azure's timestamps have 100 ns resolution, datetime parses microseconds


def read_workload(path: Path, names: Sequence[str], mix: Mix, seed: int, limit: int | None = None) -> Workload:
    """The first `limit` requests of a file, with times relative to the first; `facts` has the number of skipped ones.

    Raises UsageError naming the line, for a missing column, an invalid value, times that are not sorted or a truncated
    file; NotFoundError for a file or an expert that does not exist.
    """
    rows: list[tuple[float, int, int, str | None, int]] = []
    failed, known = 0, frozenset(names)
    for where, row in _rows(path):
        if limit is not None and len(rows) == limit:
            break
        if str(row.get(_FAILED[0])).strip() == _FAILED[1]:
            failed += 1
            continue
        rows.append(_request(row, where, names, known))
        if len(rows) > 1 and rows[-1][0] < rows[-2][0]:
            fact = f"it arrives {rows[-2][0] - rows[-1][0]:g} s before the request above it"
            raise UsageError(where, fact, "sort the file by time")
        if (rows[-1][3] is None) != (rows[0][3] is None):
            fact = "only one of this request and the first names its expert"
            raise UsageError(where, fact, "name the expert of every request, or of none")
    if not rows:
        but = f" but {failed} that failed" if failed else ""
        raise UsageError(str(path), f"there is no request in it{but}", "give a file with one request a line")
    at, prompt, new, experts, priorities = zip(*rows, strict=True)
    places = {name: number for number, name in enumerate(names)}
    named = experts[0] is not None
    asked = [places[name] for name in experts] if named else mix.draw(len(names), len(rows), seed)
    facts = {"requests": len(rows), "file": str(path), "mix": "of the file" if named else mix.text, "seed": seed}
    facts |= {"failed_requests_left_out": failed} if failed else {}
    return Workload(
        names=tuple(names),
        expert_index=np.asarray(asked, dtype=np.int64),
        at_s=np.asarray(at) - at[0],
        prompt_tokens=np.asarray(prompt, dtype=np.int64),
        new_tokens=np.asarray(new, dtype=np.int64),
        facts=facts,
        priorities=np.asarray(priorities, dtype=np.int64) if any(priorities) else None,
    )


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(position in the file, values by lower-case column name) of each row."""
    if path.suffix == ".jsonl":
        for where, values in json_lines(path, _WHAT, must_end=True):
            yield where, {key.lower(): item for key, item in values.items()}
    else:
        yield from _csv_rows(path, read_text(path, _WHAT, must_end=True).splitlines())


def _csv_rows(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = csv_rows(path, lines)
    header = [name.strip().lower() for name in next(rows, (0, []))[1]]
    for name, count in Counter(header).items():
        if count > 1:
            raise UsageError(f"{path}:1", f"it has {count} columns {name}", "leave one, with a name of its own")
    for number, row in rows:
        if not row:
            continue
        if len(row) != len(header):
            last = number == len(lines) and len(row) < len(header)
            cut = ": the file is cut off in the middle of it" if last else ""
            fact = f"it has {len(row)} of {len(header)} columns{cut}"
            raise UsageError(f"{path}:{number}", fact, "get the whole file, or take the line out")
        yield f"{path}:{number}", dict(zip(header, row, strict=True))


def _request(
    row: Mapping[str, Any], where: str, names: Sequence[str], known: frozenset[str]
) -> tuple[float, int, int, str | None, int]:
    at, prompt, new = (_column(row, what, where) for what in ("at", "prompt", "new"))
    expert = row.get(_EXPERT)
    if expert is not None and not (isinstance(expert, str) and expert in known):
        fact = f"there is no expert {shown(expert)} among {len(names)}"
        raise NotFoundError(where, fact, name_hint(str(expert), names))
    return _seconds(at, where), _count(prompt, where), _count(new, where), expert, _priority(row, where)


def _priority(row: Mapping[str, Any], where: str) -> int:
    said = row.get(_PRIORITY)
    try:
        found = int(said or 0)
    except (TypeError, ValueError, OverflowError):
        found = MAX_TOKENS + 1
    if isinstance(said, bool | float) or abs(found) > MAX_TOKENS:
        raise UsageError(where, f"{said!r} is no priority", "write a whole number: the lower, the sooner")
    return found


def _column(row: Mapping[str, Any], what: str, where: str) -> Any:
    found = next((name for name in _NAMES[what] if name in row), None)
    if found is None:
        raise UsageError(where, f"it has no column {_NAMES[what][0]}", f"columns are {', '.join(row)}")
    return row[found]


def _seconds(value: Any, where: str) -> float:
    """Parse seconds, or a date and time."""
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        try:
            moment = datetime.fromisoformat(_FRACTION.sub(r"\1", str(value)))
        except ValueError as error:
            raise UsageError(where, f"{value!r} is no time", "write seconds, or 2023-11-16 18:17:03.97") from error
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise UsageError(where, f"{value!r} is no time", "write seconds")
    return seconds


def _count(value: Any, where: str) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(where, f"{value!r} is no number of tokens", "write a whole number") from error
    if isinstance(value, bool) or (isinstance(value, float) and value != count):
        raise UsageError(where, f"{value!r} is no number of tokens", "write a whole number")
    if not 1 <= count <= MAX_TOKENS:
        raise UsageError(where, f"it has {count} tokens", f"give 1 or more, up to {MAX_TOKENS}")
    return count
