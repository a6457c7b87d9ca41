"""Published values from this package's data files, each with its unit, source and printed precision.

    [P ...]  read in the text, tables or figure labels of arXiv 2405.07518 v2
    [D ...]  digitised from the drawing of a figure
    [NEMO]   NVIDIA NeMo documentation, performance page for Llama 2 (reference 57 of the paper)

Knows nothing about models.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from coterie.plan.paper.row import Kind, Method, Row


@dataclass(frozen=True, slots=True)
class Published:
    """A value as printed; the true value is within +- `within` (rounding, or digitisation error)."""

    row: str
    value: float
    unit: str
    source: str
    within: float
    note: str = ""


@cache
def data(name: str) -> dict[str, Any]:
    """The contents of one data file."""
    loaded: dict[str, Any] = tomllib.loads((files("coterie.plan.paper") / "data" / f"{name}.toml").read_text("utf-8"))
    return loaded


@cache
def published(exhibit: str) -> dict[str, Published]:
    """Row name -> value, in file order. Fields that a [[value]] omits default to the file's top-level ones."""
    raw = data(exhibit)
    found: dict[str, Published] = {}
    for item in raw["value"]:
        head = {key: item.get(key, raw.get(key)) for key in ("unit", "source")}
        value = float(item["value"])
        within = max(float(item.get("within", raw.get("within", 0.0))), float(raw.get("within_share", 0.0)) * value)
        found[item["row"]] = Published(item["row"], value, head["unit"], head["source"], within, item.get("note", ""))
    return found


def compare(title: str, value: Published, ours: float | None, kind: Kind, method: Method, note: str = "") -> Row:
    """A row that compares our value with a published one; the published value's note is appended."""
    notes = "; ".join(text for text in (note, value.note) if text)
    return Row(title, value.row, value.value, ours, kind, method, value.unit, value.source, notes)
