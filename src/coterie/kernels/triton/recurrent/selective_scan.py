"""selective_scan, with or without the gate that follows: the recurrence of a selective state space, token by token.

    decode           a program has a head's state matrix, read while the previous launch still runs
    other steps      a program has some columns of it, in registers from token to token

x [T, ..] has the inputs of all heads, then B and C (what is written and read) of all groups; dt is [T, H], y [T, H, C].
Columns are independent, and each kernel adds a token's products in one order, wherever a prompt is cut into chunks.
A head's matrix [K][channels], float32, is a unit of the sequence's state; it is 0 before position 0.
Source: Dao, Gu 2024, Transformers are SSMs (arXiv 2405.21060), section 7.
Knows nothing about where its inputs come from.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import (
    integer,
    launch_dependents,
    pointer,
    real,
    silu_of,
    softplus_of,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.recurrent.recurrent_state import StateLayout, matrix_of, tokens_of
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

NAME = "selective_scan_gate"
X, DT, RATE, BIAS, SKIP, STATE, Y, T = operand_words(NAME, "x", "dt", "a_log", "dt_bias", "skip", "positions", "y", "T")
LEAST, MOST, Z = operand_words(NAME, "least", "most", "z")


@triton.jit
def _of_head(row, h, RATE_TYPE: tl.constexpr, BIAS_TYPE: tl.constexpr, SKIP_TYPE: tl.constexpr):
    """A head's decay rate, the bias and the bounds of its time steps, and its skip factor."""
    rate = tl.exp(tl.load(pointer(row, RATE, RATE_TYPE) + h).to(tl.float32))
    bias = tl.load(pointer(row, BIAS, BIAS_TYPE) + h).to(tl.float32)
    skip = tl.load(pointer(row, SKIP, SKIP_TYPE) + h).to(tl.float32)
    return rate, bias, real(row, LEAST).to(tl.float32), real(row, MOST).to(tl.float32), skip


@triton.jit
def _token(row, matrix, head, t, h, c, k, H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr):
    """Token t's update of columns c of head h's matrix [len(k), len(c)], and its output there."""
    x = pointer(row, X, tl.float32) + t.to(tl.int64) * (H * C + 2 * GROUPS * K)
    own = tl.load(x + h * C + c, mask=c < C, other=0.0)
    write = x + H * C + h // (H // GROUPS) * K + k
    writes = tl.load(write, mask=k < K, other=0.0)
    reads = tl.load(write + GROUPS * K, mask=k < K, other=0.0)
    opened = softplus_of(tl.load(pointer(row, DT, tl.float32) + t.to(tl.int64) * H + h) + head[1])
    step = tl.minimum(tl.maximum(opened, head[2]), head[3])
    matrix = tl.exp(-head[0] * step) * matrix + writes[:, None] * (own * step)[None, :]
    return matrix, tl.sum(matrix * reads[:, None], axis=0) + own * head[4]


@triton.jit
def _scan(
    row,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    RATE_TYPE: tl.constexpr,
    BIAS_TYPE: tl.constexpr,
    SKIP_TYPE: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    UNIT_BYTES: tl.constexpr,
    TOKENS: tl.constexpr,
    SINGLE: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
    GATED: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """Program (tile, head, sequence): COLUMNS columns of the head's matrix, over all tokens of the sequence."""
    launch_dependents(WHEN)
    h, sequence = unit_index(unit, 1), unit_index(unit, 2)
    first, count = tokens_of(row, STATE, sequence, integer(row, T), TOKENS, SINGLE)
    k, c = tl.arange(0, KEYS), unit_index(unit, 0) * COLUMNS + tl.arange(0, COLUMNS)
    matrix, state, mask = matrix_of(row, STATE, sequence, h, first, count, k, c, K, C, BLOCK_BYTES, UNIT_BYTES)
    head = _of_head(row, h, RATE_TYPE, BIAS_TYPE, SKIP_TYPE)
    out, gate = pointer(row, Y, tl.float32) + h * C + c, pointer(row, Z, tl.float32) + h * C + c
    wait_for_previous(WHEN)
    if count > 0:
        for i in tl.range(0, count, num_stages=STAGES):
            t = first + i
            at = t.to(tl.int64) * (H * C)
            matrix, y = _token(row, matrix, head, t, h, c, k, H, K, C, GROUPS)
            if GATED:
                y *= silu_of(tl.load(gate + at, mask=c < C, other=0.0))
            tl.store(out + at, y, mask=c < C)
        tl.store(state, matrix, mask=mask)


def launch(call: Call) -> None:
    """Whole heads in decode, if they fit a program; else columns."""
    H, K, C = call.integer("H"), call.integer("K"), call.integer("C")
    tiles, bucket, keys, width = call.tiles, call.bucket, power_of_two(K), power_of_two(C)
    whole = bucket.decodes and keys * width <= tiles.delta_whole
    columns = width if whole else min(tiles.delta_columns(H * C), width)
    how: dict[str, object] = {"H": H, "K": K, "C": C, "GROUPS": call.integer("groups"), "KEYS": keys}
    types = {"RATE_TYPE": "a_log", "BIAS_TYPE": "dt_bias", "SKIP_TYPE": "skip"}
    how |= {name: call.type(operand) for name, operand in types.items()} | StateLayout.of(call).constants()
    how |= {"COLUMNS": columns, "STAGES": 1 if whole else tiles.delta_stages, "GATED": call.name == NAME}
    warps = min(max(keys * columns // tiles.delta_numbers // 32, 1), 16)
    call.launch(_scan, (triton.cdiv(C, columns), H, bucket.sequences), call.row, **how, num_warps=warps)
