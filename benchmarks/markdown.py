"""Tables and lists as Markdown.

Knows nothing about what is in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: str, rows: Sequence[Sequence[str]]) -> str:
    """Of a head and the cells of each row; nothing without rows."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in rows]
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *lines]) if lines else ""


def bullets(lines: Iterable[str]) -> str:
    """One for each line, each line once; what a line breaks off with is a space."""
    return "\n".join(f"- {' '.join(line.split())}" for line in dict.fromkeys(lines))
