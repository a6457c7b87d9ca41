"""The generated tables of docs/triton_tables.md: where they stand, how they are put there and read back.

Knows nothing about what their rows say.
"""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "triton_tables.md"
CASES = "| kernel | type | shape | largest error | bound |\n|---|---|---|---|---|\n"


def put(path, name, head, rows):
    """Put a table between the marks with this name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    text = path.read_text()
    path.write_text(text.split(begin)[0] + begin + head + "".join(rows) + end + text.split(end)[1])


def rows_of(text, name, head):
    """The cells of each row of the table with this name."""
    rows = text.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->\n")[0].removeprefix(head).splitlines()
    return [[cell.strip() for cell in row.removeprefix("|").removesuffix("|").split("|")] for row in rows]


def put_cases(cases):
    """Run the cases and put their table in its place."""
    rows = (f"| {c.kernel} | {c.dtype} | {c.shape} | {c.error():.1e} | {c.bound:.1e} |\n" for c in cases)
    put(DOCS, "cases", CASES, rows)


def stored_cases(text):
    """Name -> largest error, as the docs show them."""
    return {" ".join(row[:3]): float(row[3]) for row in rows_of(text, "cases", CASES)}
