"""Pictures as lists of shapes, written as SVG (our own writer) or PNG (matplotlib, extra `plan`).

Coordinates are pixels from the top left. Knows nothing about what is drawn.
"""

from __future__ import annotations

import colorsys
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeAlias

from coterie.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    fill: str


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line, or a quadratic curve with control point `bend`; optionally with an arrowhead."""

    start: tuple[float, float]
    end: tuple[float, float]
    color: str
    width: float
    bend: tuple[float, float] | None = None
    arrow: bool = False
    dashed: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A white disk with a coloured rim."""

    center: tuple[float, float]
    radius: float
    color: str


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; `anchor` is start, middle or end."""

    at: tuple[float, float]
    text: str
    size: float = 11
    color: str = "#111111"
    anchor: str = "start"
    bold: bool = False


Shape: TypeAlias = Box | Line | Dot | Text


@dataclass(frozen=True, slots=True)
class Picture:
    """Shapes from back to front on a white background."""

    width: float
    height: float
    shapes: tuple[Shape, ...]


def hue(turn: float, light: float, saturation: float = 0.6) -> str:
    """A colour as #rrggbb, given its hue as a fraction of a turn."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(turn % 1.0, light, saturation))


def to_svg(picture: Picture) -> str:
    """Render as SVG; consecutive boxes of the same colour share a path."""
    w, h = picture.width, picture.height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:g} {h:g}" width="{w:g}" height="{h:g}" '
        'font-family="sans-serif">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#222"/></marker></defs>',
        f'<rect width="{w:g}" height="{h:g}" fill="#fff"/>',
    ]
    run: list[Box] = []
    for shape in [*picture.shapes, None]:
        if run and (not isinstance(shape, Box) or shape.fill != run[0].fill):
            path = "".join(f"M{b.x:g} {b.y:g}h{b.width:g}v{b.height:g}h-{b.width:g}z" for b in run)
            parts.append(f'<path fill="{run[0].fill}" d="{path}"/>')
            run = []
        if isinstance(shape, Box):
            run.append(shape)
        elif shape is not None:
            parts.append(_svg(shape))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _svg(shape: Line | Dot | Text) -> str:
    if isinstance(shape, Text):
        bold = ' font-weight="bold"' if shape.bold else ""
        anchor = f' text-anchor="{shape.anchor}"' if shape.anchor != "start" else ""
        at = f'x="{shape.at[0]:g}" y="{shape.at[1]:g}" font-size="{shape.size:g}" fill="{shape.color}"'
        return f"<text {at}{anchor}{bold}>{escape(shape.text)}</text>"
    if isinstance(shape, Dot):
        x, y = shape.center
        ring = f'r="{shape.radius:g}" fill="#fff" stroke="{shape.color}" stroke-width="2"'
        return f'<circle cx="{x:.0f}" cy="{y:.0f}" {ring}/>'
    (x, y), (to_x, to_y) = shape.start, shape.end
    way = f"Q{shape.bend[0]:.0f} {shape.bend[1]:.0f} {to_x:.0f} {to_y:.0f}" if shape.bend else f"L{to_x:g} {to_y:g}"
    more = (' marker-end="url(#a)"' if shape.arrow else "") + (' stroke-dasharray="5 3"' if shape.dashed else "")
    ink = f'stroke="{shape.color}" stroke-width="{shape.width:.1f}"'
    title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
    return f'<path d="M{x:.0f} {y:.0f}{way}" fill="none" {ink}{more}>{title}</path>'


def to_png(picture: Picture, path: Path, scale: float = 1.5) -> None:
    """Write the picture as a PNG. Raises UsageError without matplotlib, or when the file cannot be written."""
    try:
        figure = importlib.import_module("matplotlib.figure").Figure(
            figsize=(picture.width / 100, picture.height / 100)
        )
        patches = importlib.import_module("matplotlib.patches")
        paths = importlib.import_module("matplotlib.path")
    except ModuleNotFoundError as error:
        raise UsageError("--png", "needs matplotlib", "install coterie[plan], or write an SVG") from error
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, picture.width), ylim=(picture.height, 0))
    axes.axis("off")
    points = 72 / 100
    for shape in picture.shapes:
        if isinstance(shape, Box):
            at = (shape.x, shape.y)
            axes.add_patch(patches.Rectangle(at, shape.width, shape.height, facecolor=shape.fill, linewidth=0))
        elif isinstance(shape, Dot):
            axes.add_patch(patches.Circle(shape.center, shape.radius, facecolor="white", edgecolor=shape.color))
        elif isinstance(shape, Text):
            side = {"start": "left", "middle": "center", "end": "right"}[shape.anchor]
            weight = "bold" if shape.bold else "normal"
            style = {"fontsize": shape.size * points, "color": shape.color, "ha": side, "weight": weight}
            axes.text(*shape.at, shape.text.replace("$", r"\$"), va="baseline", **style)
        else:
            way = [shape.start, shape.bend, shape.end] if shape.bend else [shape.start, shape.end]
            line = paths.Path(way, [1, 3, 3] if shape.bend else [1, 2])
            head = "-|>,head_length=4,head_width=2" if shape.arrow else "-"
            style = {"color": shape.color, "linewidth": shape.width * points, "arrowstyle": head}
            axes.add_patch(patches.FancyArrowPatch(path=line, linestyle="--" if shape.dashed else "-", **style))
    try:
        figure.savefig(path, dpi=100 * scale, format="png")
    except OSError as error:
        raise UsageError("--png", f"{path} cannot be written: {error.strerror}", "choose another file") from error


def write_picture(picture: Picture, path: Path) -> None:
    """Write .svg or .png, by the file's suffix. Raises UsageError."""
    if path.suffix == ".png":
        to_png(picture, path)
        return
    if path.suffix != ".svg":
        raise UsageError(str(path), "a picture is .svg or .png", "give the file one of these endings")
    try:
        path.write_text(to_svg(picture), encoding="utf-8")
    except OSError as error:
        raise UsageError(str(path), f"cannot be written: {error.strerror}", "choose another file") from error


def grid_lines(at: tuple[float, float], cells: tuple[int, int], size: float, every: tuple[int, int]) -> Sequence[Line]:
    """Thin lines between cells, thick ones around blocks of `every` cells."""
    (x, y), (columns, rows) = at, cells
    found = []
    for n in range(columns + 1):
        thick = n % every[0] == 0
        ends = (x + n * size, y), (x + n * size, y + rows * size)
        found.append(Line(*ends, "#111111" if thick else "#ffffff", 2.0 if thick else 1.0))
    for n in range(rows + 1):
        thick = n % every[1] == 0
        ends = (x, y + n * size), (x + columns * size, y + n * size)
        found.append(Line(*ends, "#111111" if thick else "#ffffff", 2.0 if thick else 1.0))
    return sorted(found, key=lambda line: line.width)
