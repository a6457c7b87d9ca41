"""group_norm: y = x / rms(x of a group of channels) * weight; the weight has a value for each channel of all groups.

Knows nothing about what the groups are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, real, unit_index, wait_for_previous
from coterie.kernels.triton.norms import norm_factor
from coterie.kernels.triton.rows import Call, operand_words

X, WEIGHT, Y, T, EPS = operand_words("group_norm", "x", "weight", "y", "T", "eps")


@triton.jit
def _norm_group(
    row,
    GROUPS: tl.constexpr,
    C: tl.constexpr,
    TYPE: tl.constexpr,
    STEP: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """A program norms one group of one token."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    i = unit_index(unit, 0)
    if i < integer(row, T) * GROUPS:
        at = i.to(tl.int64) * C
        x, y = pointer(row, X, tl.float32) + at, pointer(row, Y, tl.float32) + at
        weight = pointer(row, WEIGHT, TYPE) + i % GROUPS * C
        factor = norm_factor(x, real(row, EPS).to(tl.float32), C, STEP)
        for first in tl.range(0, C, STEP):
            c = first + tl.arange(0, STEP)
            scale = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
            tl.store(y + c, tl.load(x + c, mask=c < C, other=0.0) * factor * scale, mask=c < C)


def launch(call: Call) -> None:
    """A program per group and token."""
    groups, C = call.integer("groups"), call.integer("C")
    how = {"GROUPS": groups, "C": C, "TYPE": call.type("weight"), "STEP": call.tiles.step(C)}
    call.launch(_norm_group, (call.bucket.tokens * groups,), call.row, **how)
