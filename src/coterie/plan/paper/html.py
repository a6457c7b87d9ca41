"""Renders exhibits as a self-contained HTML page: tables, charts, fitted constants.

Knows nothing about how values were obtained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from coterie.core.grouped import grouped
from coterie.plan.paper.plots import svg
from coterie.plan.paper.row import Exhibit, Row, Summary, summaries
from coterie.plan.paper.text import fitted_cells, row_cells, summary_cells

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
    """Render the page. Raises nothing if `check_plots` has passed."""
    parts = [
        "<p>SN40L and Samba-CoE, arXiv 2405.07518 v2: published values beside ours.</p>",
        f"<p>{escape(KINDS)}</p>",
        "<h2>How far off</h2>",
        _summary(summaries(exhibits)),
    ]
    for exhibit in exhibits:
        parts.append(f"<h2>{escape(exhibit.title)}</h2><p>{escape(exhibit.about)}.</p>")
        parts += map(svg, exhibit.charts)
        parts.append(_rows(exhibit.rows))
        parts += [f"<p>{escape(note)}.</p>" for note in exhibit.notes]
    return document(TITLE, [*parts, "<h2>Fitted constants</h2>", _fitted(exhibits)])


def document(title: str, parts: Iterable[str]) -> str:
    """A self-contained HTML document."""
    shown = escape(title, quote=False)
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{shown}</title>'
    head += f"<style>{STYLE}</style></head>"
    return "\n".join([head, f"<body><h1>{shown}</h1>", *parts, "</body></html>"]) + "\n"


def _rows(rows: Iterable[Row]) -> str:
    heads = (("row", ""), ("published", "n"), ("ours", "n"), ("unit", ""), ("error", "n"))
    more = (("kind", ""), ("method", ""), ("source", ""), ("note", "note"))
    return _table((*heads, *more), [((*row_cells(row), row.source, row.note), row.kind.value) for row in rows])


def _summary(found: Iterable[Summary]) -> str:
    heads = (("exhibit", ""), ("method", ""), ("kind", ""), ("rows", "n"), ("not modelled", "n"))
    more = (("median error", "n"), ("worst", "n"), ("which", ""))
    return _table((*heads, *more), [(summary_cells(line), line.kind.value) for line in found])


def _fitted(exhibits: Iterable[Exhibit]) -> str:
    found = grouped((constant, exhibit.title) for exhibit in exhibits for constant in exhibit.fitted)
    heads = (("constant", ""), ("value", "n"), ("unit", ""), ("left-one-out error", "n"))
    more = (("fitted to, or why it was chosen", "note"), ("used by", ""))
    lines = [((*fitted_cells(constant), ", ".join(titles)), "") for constant, titles in found.items()]
    return _table((*heads, *more), lines)


def _table(heads: Sequence[tuple[str, str]], lines: Iterable[tuple[Sequence[str], str]]) -> str:
    """A table from (heading, column class) pairs and (cells, row class) pairs."""
    head = "".join(f'<th class="{style}">{escape(text)}</th>' for text, style in heads)
    rows = []
    for cells, kind in lines:
        columns = zip(cells, heads, strict=True)
        line = "".join(f'<td class="{style}">{escape(text)}</td>' for text, (_, style) in columns)
        rows.append(f'<tr class="{kind}">{line}</tr>')
    return f'<div class="wide"><table><tr>{head}</tr>\n{chr(10).join(rows)}</table></div>'
