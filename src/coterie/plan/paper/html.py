"""The exhibits as one HTML page that needs nothing else: tables, pictures, the fitted constants.

Knows nothing about how values were found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from coterie.plan.paper.plots import draw
from coterie.plan.paper.row import Exhibit, Fitted, Row, Summary, summaries
from coterie.plan.paper.text import error_text, number

TITLE = "The paper's tables and figures, again"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.85rem; width: 100%; }
th, td { text-align: left; padding: 0.2rem 0.6rem; border-bottom: 1px solid #eee; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.note { color: #666; } .predicted td { background: #f6f9fd; } svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
"""
KINDS = (
    "Given: from published inputs alone. Fitted: an input or a rule was chosen so that published results agree. "
    "Predicted: from a machine's specification and a mapped graph; only these rows count as the model. "
    "Tags: [P] printed in the paper, [D] read from a drawing, [NEMO] NVIDIA's page."
)


def page(exhibits: Sequence[Exhibit]) -> str:
    """The whole page. Raises nothing that `check_plots` would not have raised."""
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>',
        f"<style>{STYLE}</style></head><body><h1>{TITLE}</h1>",
        "<p>SN40L and Samba-CoE, arXiv 2405.07518 v2: published values beside ours.</p>",
        f"<p>{escape(KINDS)}</p>",
        "<h2>How far off</h2>",
        _summary(summaries(exhibits)),
    ]
    for exhibit in exhibits:
        parts.append(f"<h2>{escape(exhibit.title)}</h2><p>{escape(exhibit.about)}.</p>")
        parts += [_svg(draw(chart)) for chart in exhibit.charts]
        parts.append(_rows(exhibit.rows))
        parts += [f"<p>{escape(note)}.</p>" for note in exhibit.notes]
    parts += ["<h2>Fitted constants</h2>", _fitted(exhibits), "</body></html>"]
    return "\n".join(parts) + "\n"


def _svg(document: bytes) -> str:
    """The picture without the head that only a file of its own needs."""
    text = document.decode()
    return text[text.index("<svg") :]


def _rows(rows: Iterable[Row]) -> str:
    lines = []
    for row in rows:
        cells = [
            _cell(row.row),
            _cell(number(row.published), "n"),
            _cell(number(row.ours), "n"),
            _cell(row.unit),
            _cell(error_text(row.error), "n"),
            _cell(row.kind.value),
            _cell(row.method.value),
            _cell(row.source),
            _cell(row.note, "note"),
        ]
        lines.append(f'<tr class="{row.kind.value}">{"".join(cells)}</tr>')
    heads = (("row", ""), ("published", "n"), ("ours", "n"), ("unit", ""), ("error", "n"))
    return _table((*heads, ("kind", ""), ("method", ""), ("source", ""), ("note", "")), lines)


def _summary(found: Iterable[Summary]) -> str:
    lines = []
    for line in found:
        worst = line.worst
        cells = [
            _cell(line.exhibit),
            _cell(line.method.value),
            _cell(line.kind.value),
            _cell(str(line.num_rows), "n"),
            _cell(str(line.num_not_modelled or ""), "n"),
            _cell(error_text(line.median_error, signed=False), "n"),
            _cell(error_text(worst.error) if worst else "-", "n"),
            _cell(worst.row if worst else ""),
        ]
        lines.append(f'<tr class="{line.kind.value}">{"".join(cells)}</tr>')
    heads = (("exhibit", ""), ("method", ""), ("kind", ""), ("rows", "n"), ("not modelled", "n"))
    return _table((*heads, ("median error", "n"), ("worst", "n"), ("which", "")), lines)


def _fitted(exhibits: Iterable[Exhibit]) -> str:
    found: dict[Fitted, list[str]] = {}
    for exhibit in exhibits:
        for constant in exhibit.fitted:
            found.setdefault(constant, []).append(exhibit.title)
    lines = []
    for constant, titles in found.items():
        cells = [
            _cell(constant.name),
            _cell(number(constant.value), "n"),
            _cell(constant.unit),
            _cell(", ".join(titles)),
            _cell(error_text(constant.left_out_error, signed=False), "n"),
            _cell(constant.fitted_to, "note"),
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = (("constant", ""), ("value", "n"), ("unit", ""), ("used by", ""))
    return _table((*heads, ("left-one-out error", "n"), ("fitted to, or why it was chosen", "")), lines)


def _table(heads: Iterable[tuple[str, str]], lines: Iterable[str]) -> str:
    head = "".join(f'<th class="{style}">{escape(text)}</th>' for text, style in heads)
    return f'<div class="wide"><table><tr>{head}</tr>\n{chr(10).join(lines)}</table></div>'


def _cell(text: str, style: str = "") -> str:
    return f'<td class="{style}">{escape(text)}</td>'
