"""Prints a bench's report: tables for people, then one JSON line.

Knows nothing about what was measured.
"""

from __future__ import annotations

import sys

from coterie.bench.report import Report, json_line, show_frame
from coterie.cli.options import out


def print_report(report: Report, json_: bool) -> None:
    """Print machine, tables and notes, unless only JSON is wanted; then the JSON line."""
    if not json_:
        show_frame(out)
        report.show(out)
    print_line(report.to_dict())


def print_line(value: dict[str, object]) -> None:
    """Print one line of JSON, with machine and commit."""
    sys.stdout.write(json_line(value) + "\n")
    sys.stdout.flush()
