"""Renders a trace as SVG: a row per lane, time to the right, slices as boxes.

Knows nothing about what is traced.
"""

from __future__ import annotations

from html import escape
from zlib import crc32

from coterie.core.trace import Slice, Trace
from coterie.core.units import format_seconds

WIDTH, LEFT, RIGHT = 1100, 110, 20  # pixels: total width, left and right margins
ROW, GAP, TOP, AXIS = 34, 10, 28, 26
LETTER = 6.2  # average label character width; a box too narrow for its label gets none
TICKS = 8
COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#9c755f", "#edc948")


def render(trace: Trace, start_s: float = 0.0, end_s: float | None = None, title: str = "") -> str:
    """Render the slices between two times. An expert (a name's first word) has the same colour on every lane."""
    last = max((piece.end_s for piece in trace.slices), default=start_s)
    until = last if end_s is None else min(end_s, last)
    scale = (WIDTH - LEFT - RIGHT) / max(until - start_s, 1e-9)
    lanes = trace.lanes
    height = TOP + len(lanes) * (ROW + GAP) + AXIS
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="17" font-size="13" fill="#222">{escape(title)}</text>',
    ]
    for row, lane in enumerate(lanes):
        top = TOP + row * (ROW + GAP)
        parts.append(
            f'<text x="{LEFT - 8}" y="{top + ROW / 2 + 4}" text-anchor="end" fill="#222">{escape(lane)}</text>'
        )
        parts.append(f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{ROW}" fill="#f2f2f2"/>')
        inside = (p for p in trace.slices if p.lane == lane and p.end_s > start_s and p.start_s < until)
        parts += [_box(piece, start_s, until, scale, top) for piece in inside]
    parts += _axis(start_s, until, scale, height)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _box(piece: Slice, start_s: float, until: float, scale: float, top: int) -> str:
    left = LEFT + (max(piece.start_s, start_s) - start_s) * scale
    width = max((min(piece.end_s, until) - max(piece.start_s, start_s)) * scale, 0.3)
    color = COLORS[crc32(piece.name.split(" ")[0].encode()) % len(COLORS)]
    took = format_seconds(piece.end_s - piece.start_s)
    box = (
        f"<g><title>{escape(piece.name)}: {took}</title>"
        f'<rect x="{left:.2f}" y="{top}" width="{width:.2f}" height="{ROW}" fill="{color}" stroke="#fff" '
        'stroke-width="0.4"/>'
    )
    if len(piece.name) * LETTER < width:
        box += f'<text x="{left + 4:.2f}" y="{top + ROW / 2 + 4}" fill="#fff">{escape(piece.name)}</text>'
    return box + "</g>"


def _axis(start_s: float, until: float, scale: float, height: int) -> list[str]:
    ticks = []
    for tick in range(TICKS + 1):
        moment = (until - start_s) * tick / TICKS
        x = LEFT + moment * scale
        ticks.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - AXIS + 4}" stroke="#00000022"/>')
        label = format_seconds(moment) if tick else "0"
        ticks.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle" fill="#444">{label}</text>')
    return ticks
