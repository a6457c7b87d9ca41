"""Outputs that a launch stages for the next one: rounded into scratch, as the next launch would do itself.

    norm_gate_up_.._mul     or   attention of one sequence's chunk     or   branch_gate_up..
                            or   a gated output, or a head's values (GATED)
        y, float32  -> its place, unless another row overwrites it before any reads it
        y, rounded  -> scratch, after the launch's own ---> x of linear, linear_add or branch_down, on tensor cores

Both sides look at both instruction rows and derive the same place. Nothing is launched between two rows of a step, so
scratch is intact. In programs whose values share no memory, every y is stored, so that a step can be inspected.
Knows nothing about what is computed.
"""

from __future__ import annotations

from math import prod

import torch
import triton.language as tl

from coterie.kernels.cpu import I64, OPCODES
from coterie.kernels.triton.branch.branches import Sizes
from coterie.kernels.triton.product.dots import staged_bytes
from coterie.kernels.triton.rows import TORCH, Call, Matrix, aligned, name_of

GATES = ("norm_gate_up_silu_mul", "norm_gate_up_gelu_mul")
# Names, and the sizes whose product is the width of y.
GATED = {"sigmoid_mul": ("N",), "gated_delta_norm": ("H", "C"), "latent_values": ("H", "V")}
CONSUMERS = ("linear", "linear_add")
BRANCH_PRODUCERS = ("branch_gate_up", "branch_gate_up_gelu", "branch_gate_up_clipped")
BRANCH_CONSUMERS = ("branch_down", "branch_down_add")
# The operand that a row stores to, if it is not y.
_WRITTEN = {
    "norm_qkv_rope_append": "q",
    "norm_rope_append": "q",
    "sample": "tokens",
}


def stage_for_next(call: Call, width: int) -> tuple[torch.Tensor, tl.dtype | None]:
    """Where this call puts its y [T, width] rounded, and the type; any tensor, and None, if no next call takes it."""
    if call.next is None or not _stages(call, call.next, width):
        return call.scratch, None
    return _staged(call, call.next)


def staged_by_previous(call: Call) -> torch.Tensor | None:
    """The rounded x of this call, if the previous call staged it."""
    before = call.previous
    if before is None or not _stages(before, call, _matrix(call).K * _rows(call)):
        return None
    return _staged(before, call)[0]


def stages_x(row: I64, then: I64) -> bool:
    """Whether `row` stores the x of `then` and may stage it ahead, in another place than `then` itself would."""
    name = name_of(row)
    may = name == "attention" or name in (*GATES, *GATED, *BRANCH_PRODUCERS)
    return may and row[OPCODES[name].words["y"]] == then[OPCODES[name_of(then)].words["x"]]


def staged_ahead_end(call: Call) -> int:
    """End of that x in scratch, in bytes; 0 if the previous call staged nothing."""
    before, width = call.previous, _matrix(call).K * _rows(call)
    if before is None or not _stages(before, call, width):
        return 0
    return aligned(aligned(_own_bytes(before)) + call.bucket.tokens * width * TORCH[_type(call)].itemsize)


def is_stored(call: Call, width: int) -> bool:
    """Whether y [T, width] is needed in float32: not if the next row alone reads it, rounded."""
    return call.next is None or not _stages(call, call.next, width) or is_read_later(call, width)


def is_read_later(call: Call, width: int) -> bool:
    """Whether y [T, width] may be read in memory other than as x of the next row: by a later row, or an inspector."""
    if call.later_rows is None:
        return True
    start = call.integer("y")
    end = start + 4 * call.bucket.tokens * width
    taken = {"x"}  # the next row reads its x rounded, from scratch
    for row in call.later_rows:
        opcode = OPCODES[name_of(row)]
        there = {operand for operand in opcode.addresses if start <= int(row[opcode.words[operand]]) < end} - taken
        written = _WRITTEN.get(name_of(row), "y")
        if there - {written}:
            return True
        if there:
            return False
        taken = set()
    return True


def staged_ahead_bytes(call: Call, width: int) -> int:
    """Scratch that the call needs, with what it stages ahead."""
    own = _own_bytes(call)
    if call.next is None or not _stages(call, call.next, width):
        return own
    return aligned(own) + call.bucket.tokens * width * TORCH[_type(call.next)].itemsize


def _stages(first: Call, then: Call, width: int) -> bool:
    """Whether y of `first` is staged ahead as x of `then`, for tensor cores."""
    consumers = BRANCH_CONSUMERS if first.name in BRANCH_PRODUCERS else CONSUMERS
    if then.name not in consumers or first.bucket.tokens <= first.tiles.few_tokens or not first.tiles.stages_ahead:
        return False
    if first.name == "attention":
        if first.bucket.sequences > 1:
            return False
    elif first.name not in (*GATES, *GATED, *BRANCH_PRODUCERS):
        return False
    return first.integer("y") == then.integer("x") and _matrix(then).K * _rows(then) == width == _width(first)


def _width(first: Call) -> int:
    if first.name in GATED:
        return prod(map(first.integer, GATED[first.name]))
    return first.integer("H") * first.integer("C") if first.name == "attention" else first.integer("F") * _rows(first)


def _rows(call: Call) -> int:
    """Rows per token of what is staged ahead: one for each branch that the token takes."""
    return call.integer("taken") if call.name in (*BRANCH_PRODUCERS, *BRANCH_CONSUMERS) else 1


def _matrix(then: Call) -> Matrix:
    """The weight that multiplies what is staged ahead."""
    if then.name in BRANCH_CONSUMERS:
        return then.matrix("branches", then.integer("F"))
    return then.matrix("weight", then.integer("K"))


def _own_bytes(first: Call) -> int:
    """Scratch that a call needs apart from what it stages ahead: its own staged activations, or nothing."""
    if first.name not in (*GATES, *BRANCH_PRODUCERS):
        return 0
    K = first.integer("D")
    if first.name in BRANCH_PRODUCERS:
        return Sizes.of(first).list_bytes + staged_bytes(first, [first.matrix("branches", K)])
    return staged_bytes(first, [first.matrix("gate", K), first.matrix("up", K)])


def _type(then: Call) -> tl.dtype:
    return _matrix(then).dot_type


def _staged(first: Call, then: Call) -> tuple[torch.Tensor, tl.dtype]:
    element = _type(then)
    count = first.bucket.tokens * _matrix(then).K * _rows(then)
    return first.scratch_as(element, count, aligned(_own_bytes(first))), element
