"""gated_delta, with or without the norm and gate that follow: the recurrence of a gated delta net, token by token.

    decode           a program has a head's state matrix, read while the previous launch runs; norm and gate follow
    other steps      a program has some columns of it in registers from token to token; a second launch does norm and
                     gate, which need all columns

x [T, ..] has q and k of all key heads, then v of all heads; a and b are [T, H], y is [T, H, C].
Columns are independent, and each kernel adds a token's products in one order, wherever a prompt is cut into chunks.
A head's matrix [key channels][value channels], float32, is a unit of the sequence's state; it is 0 before position 0.
Source: Yang, Kautz, Hatamizadeh 2024, Gated Delta Networks (arXiv 2412.06464), equation 10.
Knows nothing about where q, k, v and the gates come from.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import (
    integer,
    launch_dependents,
    narrow,
    pointer,
    real,
    silu_of,
    softplus_of,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.product.staged_ahead import is_stored, stage_for_next, staged_ahead_bytes
from coterie.kernels.triton.recurrent.recurrent_state import StateLayout, matrix_of, tokens_of
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.sigmoid import sigmoid_of
from coterie.kernels.triton.tiles import power_of_two

X, A, B, RATE, BIAS, STATE, Y, T = operand_words(
    "gated_delta_norm", "x", "a", "b", "a_log", "dt_bias", "positions", "y", "T"
)
NORM, EPS, OFFSET, Z = operand_words("gated_delta_norm", "norm", "eps", "offset", "z")
NORM_EPS = tl.constexpr(1e-6)  # added to the squared norm of q and of k


@triton.jit
def _rates(row, h, RATE_TYPE: tl.constexpr, BIAS_TYPE: tl.constexpr):
    """A head's decay rate, and the bias of its decay gate."""
    rate = tl.exp(tl.load(pointer(row, RATE, RATE_TYPE) + h).to(tl.float32))
    return rate, tl.load(pointer(row, BIAS, BIAS_TYPE) + h).to(tl.float32)


@triton.jit
def _inputs(row, h, H: tl.constexpr, K: tl.constexpr, KEY_HEADS: tl.constexpr):
    """Pointers for the first token: a head's q, k and v, and its gates a and b."""
    x = pointer(row, X, tl.float32)
    q = x + h // (H // KEY_HEADS) * K
    a, b = pointer(row, A, tl.float32) + h, pointer(row, B, tl.float32) + h
    return q, q + KEY_HEADS * K, x + 2 * KEY_HEADS * K, a, b


@triton.jit
def _token(matrix, inputs, t, c, k, rates, H: tl.constexpr, K: tl.constexpr, N: tl.constexpr, there):
    """Token t's update of columns of a head's matrix [len(k), len(c)], and its output there; c counts over all heads.

    Both sums over the matrix use its old value, so neither waits for the other: the update adds (q k) times the change
    to q S.
    """
    at = t.to(tl.int64) * N
    q = tl.load(inputs[0] + at + k, mask=k < K, other=0.0)
    key = tl.load(inputs[1] + at + k, mask=k < K, other=0.0)
    v = tl.load(inputs[2] + at + c, mask=there, other=0.0)
    gate = t.to(tl.int64) * H
    decay = tl.exp(-rates[0] * softplus_of(tl.load(inputs[3] + gate) + rates[1]))
    beta = sigmoid_of(tl.load(inputs[4] + gate))
    q *= 1.0 / (tl.sqrt(tl.sum(q * q, axis=0) + NORM_EPS) * (K**0.5))
    key *= 1.0 / tl.sqrt(tl.sum(key * key, axis=0) + NORM_EPS)
    known = tl.sum(matrix * key[:, None], axis=0)
    seen = tl.sum(matrix * q[:, None], axis=0)
    change = (v - decay * known) * beta
    return decay * matrix + key[:, None] * change[None, :], decay * seen + tl.sum(q * key, axis=0) * change


@triton.jit
def _gated(row, y, at, c, axis: tl.constexpr, mask, C: tl.constexpr, TYPE: tl.constexpr):
    """Outputs of heads, normed and gated."""
    factor = 1.0 / tl.sqrt(tl.sum(y * y, axis=axis, keep_dims=True) / C + real(row, EPS).to(tl.float32))
    scale = tl.load(pointer(row, NORM, TYPE) + c, mask=c < C, other=0.0).to(tl.float32) + real(row, OFFSET).to(
        tl.float32
    )
    return y * factor * scale * silu_of(tl.load(pointer(row, Z, tl.float32) + at, mask=mask, other=0.0))


@triton.jit
def _delta_whole(
    row,
    ahead,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    RATE_TYPE: tl.constexpr,
    BIAS_TYPE: tl.constexpr,
    NORM_TYPE: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    UNIT_BYTES: tl.constexpr,
    TOKENS: tl.constexpr,
    SINGLE: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
    STORED: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """Program (head, sequence): one token, with all of the head's matrix."""
    launch_dependents(WHEN)
    h, sequence = unit_index(unit, 0), unit_index(unit, 1)
    t, count = tokens_of(row, STATE, sequence, integer(row, T), TOKENS, SINGLE)
    k, c = tl.arange(0, KEYS), tl.arange(0, COLUMNS)
    matrix, state, mask = matrix_of(row, STATE, sequence, h, t, count, k, c, K, C, BLOCK_BYTES, UNIT_BYTES)
    rates, inputs = _rates(row, h, RATE_TYPE, BIAS_TYPE), _inputs(row, h, H, K, KEY_HEADS)
    wait_for_previous(WHEN)
    if count > 0:
        N: tl.constexpr = 2 * KEY_HEADS * K + H * C
        matrix, y = _token(matrix, inputs, t, h * C + c, k, rates, H, K, N, c < C)
        tl.store(state, matrix, mask=mask)
        at = (t.to(tl.int64) * H + h) * C + c
        if NORM_TYPE is not None:
            y = _gated(row, y, at, c, 0, c < C, C, NORM_TYPE)
        if STORED:
            tl.store(pointer(row, Y, tl.float32) + at, y, mask=c < C)
        if AHEAD is not None:
            tl.store(ahead + at, narrow(y, AHEAD), mask=c < C)


@triton.jit
def _delta_columns(
    row,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    RATE_TYPE: tl.constexpr,
    BIAS_TYPE: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    UNIT_BYTES: tl.constexpr,
    TOKENS: tl.constexpr,
    SINGLE: tl.constexpr,
    KEYS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """Program (tile, head, sequence): COLUMNS columns of the head's matrix, over all tokens of the sequence."""
    launch_dependents(WHEN)
    h, sequence = unit_index(unit, 1), unit_index(unit, 2)
    first, count = tokens_of(row, STATE, sequence, integer(row, T), TOKENS, SINGLE)
    k, c = tl.arange(0, KEYS), unit_index(unit, 0) * COLUMNS + tl.arange(0, COLUMNS)
    matrix, state, mask = matrix_of(row, STATE, sequence, h, first, count, k, c, K, C, BLOCK_BYTES, UNIT_BYTES)
    rates, inputs = _rates(row, h, RATE_TYPE, BIAS_TYPE), _inputs(row, h, H, K, KEY_HEADS)
    out = pointer(row, Y, tl.float32) + h * C + c
    wait_for_previous(WHEN)
    if count > 0:
        N: tl.constexpr = 2 * KEY_HEADS * K + H * C
        for i in tl.range(0, count, num_stages=STAGES):
            t = first + i
            matrix, y = _token(matrix, inputs, t, h * C + c, k, rates, H, K, N, c < C)
            tl.store(out + t.to(tl.int64) * (H * C), y, mask=c < C)
        tl.store(state, matrix, mask=mask)


@triton.jit
def _gate(
    row,
    ahead,
    H: tl.constexpr,
    C: tl.constexpr,
    NORM_TYPE: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
    STORED: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """Norm and gate of HEADS heads, in place."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    heads = unit_index(unit, 0).to(tl.int64) * HEADS + tl.arange(0, HEADS)
    c = tl.arange(0, COLUMNS)
    mask = (heads < integer(row, T) * H)[:, None] & (c < C)[None, :]
    at = heads[:, None] * C + c[None, :]
    place = pointer(row, Y, tl.float32) + at
    y = _gated(row, tl.load(place, mask=mask, other=0.0), at, c[None, :], 1, mask, C, NORM_TYPE)
    if STORED:
        tl.store(place, y, mask=mask)
    if AHEAD is not None:
        tl.store(ahead + at, narrow(y, AHEAD), mask=mask)


def launch(call: Call) -> None:
    """Whole heads in decode, if they fit a program; else columns, then norm and gate."""
    H, K, C = call.integer("H"), call.integer("K"), call.integer("C")
    tiles, bucket, keys, width = call.tiles, call.bucket, power_of_two(K), power_of_two(C)
    how: dict[str, object] = {"H": H, "K": K, "C": C, "KEY_HEADS": call.integer("key_heads"), "KEYS": keys}
    how |= {"RATE_TYPE": call.type("a_log"), "BIAS_TYPE": call.type("dt_bias"), **StateLayout.of(call).constants()}
    norm = call.type("norm") if call.name == "gated_delta_norm" else None
    ahead, kind = stage_for_next(call, H * C)
    epilogue = {"NORM_TYPE": norm, "AHEAD": kind, "STORED": is_stored(call, H * C)}
    if bucket.decodes and keys * width <= tiles.delta_whole:
        warps = min(max(keys * width // tiles.delta_numbers // 32, 1), 16)
        whole = (H, bucket.sequences)
        call.launch(_delta_whole, whole, call.row, ahead, **how, **epilogue, COLUMNS=width, num_warps=warps)
        return
    columns = tiles.delta_columns(H * C)
    warps = max(keys * columns // tiles.delta_numbers // 32, 1)
    how |= {"COLUMNS": columns, "STAGES": tiles.delta_stages, "num_warps": warps}
    call.launch(_delta_columns, (triton.cdiv(C, columns), H, bucket.sequences), call.row, **how)
    if norm is not None:
        heads = max(tiles.elements // width, 1)
        grid = (triton.cdiv(bucket.tokens * H, heads),)
        call.launch(_gate, grid, call.row, ahead, H=H, C=C, HEADS=heads, COLUMNS=width, **epilogue)


def scratch_bytes(call: Call) -> int:
    """Bytes of what is staged for the next launch."""
    return staged_ahead_bytes(call, call.integer("H") * call.integer("C"))
