"""The correctness table of docs/triton.md; written by python -m tests.device.triton_cases.

Knows nothing about what a case computes.
"""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "triton.md"
BEGIN, END = "<!-- cases -->\n", "<!-- /cases -->\n"
HEAD = "| kernel | type | shape | largest error | bound |\n|---|---|---|---|---|\n"


def table(cases):
    """The table, with each case run."""
    lines = [f"| {c.kernel} | {c.dtype} | {c.shape} | {c.error():.1e} | {c.bound:.1e} |\n" for c in cases]
    return HEAD + "".join(lines)


def stored_cases(text):
    """Name -> largest error, as the docs show them."""
    rows = text.split(BEGIN)[1].split(END)[0].removeprefix(HEAD).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {" ".join(row[:3]): float(row[3]) for row in cells}


def write(cases):
    """Run the cases and put their table in its place."""
    text = DOCS.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCS.write_text(before + BEGIN + table(cases) + END + after)
