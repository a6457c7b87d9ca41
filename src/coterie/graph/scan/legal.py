"""The legality rules of the ops of selective state spaces, a row each.

Knows nothing about which families have such layers. The meaning of each op is in scan/ops.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from coterie.core.shapes import trailing
from coterie.graph.checks import Row, T
from coterie.graph.delta_net.legal import kept_state
from coterie.graph.ir import Kind
from coterie.graph.legal import pages
from coterie.graph.scan.ops import GROUP_NORM, GROUPS, MAX_STEP, MIN_STEP, MUL_ROW, SCAN


def _scan(row: Row) -> None:
    x, dt = row.input(0), row.input(1)
    row.rows(x, row.output, first=(T,))
    row.activations(x, dt, row.output)
    heads, state, channels = kept_state(row, 8, 4)
    groups = row.op.integer(GROUPS)
    if groups < 1 or heads % groups:
        raise row.error(f"{heads} heads are in {groups} groups", "make one a multiple of the other")
    wanted = heads * channels + 2 * groups * state
    if trailing(x.shape) != wanted:
        raise row.error(f"{x.name} has shape {x.shape}", f"give {wanted} numbers: those of x, and two of each state")
    row.same(dt.shape, (T, heads), dt.name)
    row.same(row.output.shape, (T, heads, channels), row.output.name)
    for position in (2, 3, 4):
        row.weight(position, (heads,))
    least, most = float(row.op.attrs.get(MIN_STEP, 0.0)), float(row.op.attrs.get(MAX_STEP, math.inf))
    if not 0.0 <= least < most:
        raise row.error(f"steps are from {least} to {most}", "give bounds from 0 on, the smaller one first")
    pages(row, 5)


def _group_norm(row: Row) -> None:
    x = row.input(0)
    row.like(x)
    width, groups = trailing(x.shape), row.op.integer(GROUPS)
    if groups < 1 or width % groups:
        raise row.error(f"{width} channels are in {groups} groups", "make one a multiple of the other")
    row.weight(1, (width,))
    row.eps()


def _mul_row(row: Row) -> None:
    x, factors = row.input(0), row.input(1)
    row.like(x, first=(T,))
    if factors.kind is not Kind.CONSTANT or factors.shape != x.shape[1:]:
        raise row.error(f"{factors.name} is {factors.kind.value} {factors.shape}", "give a constant for each channel")


SCAN_LEGAL: Mapping[str, Callable[[Row], None]] = {SCAN: _scan, GROUP_NORM: _group_norm, MUL_ROW: _mul_row}
