"""Elementwise ops: add, mul, silu, gelu, softcap, relu_squared, mul_one.

    y = a + b, y = a * b, y = x * sigmoid(x), y = x * Phi(x), y = cap * tanh(x / cap), y = x * x where x > 0, else 0,
    y = x * one number

Knows nothing about shapes: values are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import gelu_of, integer, pointer, real, silu_of, softcap_of, unit_index
from coterie.kernels.triton.rows import Call

ADD, MUL, SILU, GELU, SOFTCAP, RELU_SQUARED, MUL_ONE = (
    tl.constexpr(OPCODES[name].number) for name in ("add", "mul", "silu", "gelu", "softcap", "relu_squared", "mul_one")
)
CAP = tl.constexpr(OPCODES["softcap"].words["cap"])
WEIGHT = tl.constexpr(OPCODES["mul_one"].words["weight"])
UNARY = ("silu", "gelu", "softcap", "relu_squared", "mul_one")


@triton.jit
def _map(
    row,
    OP: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    Y: tl.constexpr,
    T: tl.constexpr,
    N: tl.constexpr,
    FORM: tl.constexpr,
    TYPE: tl.constexpr,
    STEP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    unit=None,
):
    count = integer(row, T).to(tl.int64) * N
    for first in tl.range(unit_index(unit, 0).to(tl.int64) * STEP, count, PROGRAMS * STEP):
        i = first + tl.arange(0, STEP)
        _map_some(row, i, i < count, OP, A, B, Y, FORM, TYPE)


@triton.jit
def _map_some(
    row,
    i,
    mask,
    OP: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    Y: tl.constexpr,
    FORM: tl.constexpr,
    TYPE: tl.constexpr,
):
    y = tl.load(pointer(row, A, tl.float32) + i, mask=mask, other=0.0)
    if OP == SILU:
        y = silu_of(y)
    elif OP == GELU:
        y = gelu_of(y, FORM)
    elif OP == SOFTCAP:
        y = softcap_of(y, real(row, CAP).to(tl.float32))
    elif OP == RELU_SQUARED:
        y = tl.where(y > 0, y * y, tl.where(y < 0, 0.0, y))
    elif OP == MUL_ONE:
        y *= tl.load(pointer(row, WEIGHT, TYPE)).to(tl.float32)
    else:
        b = tl.load(pointer(row, B, tl.float32) + i, mask=mask, other=0.0)
        if OP == ADD:
            y += b
        else:
            y *= b
    tl.store(pointer(row, Y, tl.float32) + i, y, mask=mask)


def launch(call: Call) -> None:
    """Programs in a loop over all values.

    The row's T may count sampled rows only, far fewer than the bucket's tokens.
    """
    opcode, N, step = OPCODES[call.name], call.integer("N"), call.tiles.elements
    ends = ("x", "x") if call.name in UNARY else ("a", "b")
    A, B, Y, T = (opcode.words[name] for name in (*ends, "y", "T"))
    programs = min(triton.cdiv(call.bucket.tokens * N, step), call.tiles.mapping * call.tiles.multiprocessors)
    how = {"OP": opcode.number, "A": A, "B": B, "Y": Y, "T": T, "N": N, "STEP": step, "PROGRAMS": programs}
    how["FORM"] = call.integer("form") if call.name == "gelu" else 0
    call.launch(_map, (programs,), call.row, **how, TYPE=call.type("weight") if call.name == "mul_one" else None)
