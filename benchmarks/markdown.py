"""Tables and lists as Markdown.

Knows nothing about what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: str, rows: Sequence[Sequence[str]]) -> str:
    """A table with this head and these rows of cells; empty without rows."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in rows]
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *lines]) if lines else ""


def bullets(lines: Iterable[str]) -> str:
    """A bullet for each distinct line, with line breaks inside it replaced by spaces."""
    return "\n".join(f"- {' '.join(line.split())}" for line in dict.fromkeys(lines))
