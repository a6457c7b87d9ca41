"""Draws charts as SVG or PNG with matplotlib, which the extra `plan` installs.

Knows nothing about exhibits.
"""

from __future__ import annotations

import importlib
import io
from typing import Any

from coterie.core.errors import UnsupportedError, install_extra
from coterie.plan.paper.row import Chart, Series

COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#9c755f", "#76b7b2", "#edc948")
PUBLISHED = "#555555"
STYLE = {"svg.hashsalt": "coterie", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
STROKES = (":", "-", "--", "-.")
WIDTH_IN, HEIGHT_IN, NAME_IN = 7.6, 3.6, 0.42


def check_plots(where: str) -> None:
    """Raise UnsupportedError, naming `where`, if matplotlib is not installed."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        remedy = install_extra("plan")
        raise UnsupportedError(where, "plots need matplotlib, which is not installed", remedy) from None


def draw(chart: Chart, form: str = "svg") -> bytes:
    """Draw a chart as an `svg` or `png` document."""
    matplotlib: Any = importlib.import_module("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    wide = max(WIDTH_IN, NAME_IN * len(chart.names))
    with matplotlib.rc_context(STYLE):
        figure = figures.Figure(figsize=(wide, HEIGHT_IN + (1.1 if chart.names else 0.0)), layout="constrained")
        axes = figure.add_subplot()
        _bars(axes, chart) if chart.shape == "bars" else _lines(axes, chart)
        axes.set_title(chart.title, loc="left", fontsize=10)
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        if chart.log_y:
            tickers: Any = importlib.import_module("matplotlib.ticker")
            axes.set_yscale("log")
            for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                which(tickers.FuncFormatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "125" else ""))
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False, fontsize=8, ncols=1 + len(chart.series) // 4)
        out = io.BytesIO()
        figure.savefig(out, format=form, metadata={"Date": None} if form == "svg" else None, dpi=110)
    return out.getvalue()


def svg(chart: Chart) -> str:
    """The chart as an SVG element to embed in a page, without XML prolog."""
    text = draw(chart).decode()
    return text[text.index("<svg") :]


def _bars(axes: Any, chart: Chart) -> None:
    width = 0.8 / len(chart.series)
    for i, series in enumerate(chart.series):
        points = [(x + (i - (len(chart.series) - 1) / 2) * width, y) for x, y in _known(series)]
        axes.bar([x for x, _ in points], [y for _, y in points], width, label=series.label, color=_color(chart, i))
    axes.set_xticks(range(len(chart.names)), chart.names, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)


def _lines(axes: Any, chart: Chart) -> None:
    """A colour per machine, a stroke per method; published curves are pale and wide."""
    machines = list(dict.fromkeys(_machine(series) for series in chart.series))
    methods = list(dict.fromkeys(series.label for series in chart.series if not series.is_published))
    methods = list(dict.fromkeys(label.partition(", ")[2] for label in methods))
    strokes = STROKES if len(methods) > 1 else ("-",)
    for series in chart.series:
        points = _known(series)
        stroke = "-" if series.is_published else strokes[methods.index(series.label.partition(", ")[2]) % len(strokes)]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            stroke,
            color=COLORS[machines.index(_machine(series)) % len(COLORS)],
            label=series.label,
            linewidth=5.0 if series.is_published else 1.4,
            alpha=0.3 if series.is_published else 1.0,
            drawstyle="steps-post" if chart.shape == "steps" else "default",
        )


def _machine(series: Series) -> str:
    return series.label.partition(",")[0]


def _known(series: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(series.x, series.y, strict=True) if y is not None]


def _color(chart: Chart, index: int) -> str:
    drawn = [i for i, series in enumerate(chart.series) if not series.is_published]
    return PUBLISHED if index not in drawn else COLORS[drawn.index(index) % len(COLORS)]
