"""causal_conv: y = silu(bias + sum over taps of weight * x), over a token and those before it in its sequence.

x and y are [T, N], weight is [N, taps]. With `plain` without the silu; the bias is optional.

    program of a sequence   its first tokens, whose past is partly in the state, and the update of this state
    program of tokens       tokens whose whole past is in the step

The state is the last inputs, in units of [taps - 1][channels of a unit]; it is 0 before position 0.
Knows nothing about what the channels are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import (
    integer,
    launch_dependents,
    pointer,
    silu_of,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.recurrent.recurrent_state import SEQUENCE, StateLayout, tokens_of, unit_at
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

X, WEIGHT, BIAS, STATE, Y, T = operand_words("causal_conv", "x", "weight", "bias", "positions", "y", "T")


@triton.jit
def _tap(row, n, tap, N: tl.constexpr, TAPS: tl.constexpr, TYPE: tl.constexpr):
    """Weights of one tap; in the file, the taps of a channel are adjacent."""
    return tl.load(pointer(row, WEIGHT, TYPE) + n * TAPS + tap, mask=n < N, other=0.0).to(tl.float32)


@triton.jit
def _initial_sum(row, n, N: tl.constexpr, BIAS_TYPE: tl.constexpr):
    """Initial sums of channels n: the bias, or 0."""
    if BIAS_TYPE is None:
        acc = tl.zeros_like(n).to(tl.float32)
    else:
        acc = tl.load(pointer(row, BIAS, BIAS_TYPE) + n, mask=n < N, other=0.0).to(tl.float32)
    return acc


@triton.jit
def _state_of(units, n, tap, there, EACH: tl.constexpr):
    """State of channels n for one tap, 0 where `there` is false."""
    return tl.load(units + tap * EACH + n % EACH, mask=there, other=0.0)


@triton.jit
def _activated(acc, IS_PLAIN: tl.constexpr):
    """The output for a sum of taps."""
    return acc if IS_PLAIN else silu_of(acc)


@triton.jit
def _state_sum(
    row, units, n, there, N: tl.constexpr, TAPS: tl.constexpr, TYPE: tl.constexpr, BIAS_TYPE: tl.constexpr,
    EACH: tl.constexpr,
):  # fmt: skip
    """For a sequence's first token, the sum of all taps but the last: these inputs are in the state."""
    acc = _initial_sum(row, n, N, BIAS_TYPE)
    for tap in tl.static_range(TAPS - 1):
        acc += _tap(row, n, tap, N, TAPS, TYPE) * _state_of(units, n, tap, there, EACH)
    return acc


@triton.jit
def _first_tokens(
    row, units, n, first, count, there, acc, N: tl.constexpr, TAPS: tl.constexpr, TYPE: tl.constexpr,
    BIAS_TYPE: tl.constexpr, EACH: tl.constexpr, DECODES: tl.constexpr, IS_PLAIN: tl.constexpr,
):  # fmt: skip
    """The outputs of a sequence's tokens that need the state; `acc` is the first one's sum over the state."""
    PAST: tl.constexpr = TAPS - 1
    x = pointer(row, X, tl.float32) + first.to(tl.int64) * N + n
    y = pointer(row, Y, tl.float32) + first.to(tl.int64) * N + n
    for token in tl.static_range(1 if DECODES else PAST):
        mask = (n < N) & (token < count)
        if token > 0:
            acc = _initial_sum(row, n, N, BIAS_TYPE)
            for tap in tl.static_range(PAST - token):
                acc += _tap(row, n, tap, N, TAPS, TYPE) * _state_of(units, n, tap + token, there & mask, EACH)
        for tap in tl.static_range(PAST - token, TAPS):
            value = tl.load(x + (token + tap - PAST) * N, mask=mask, other=0.0)
            acc += _tap(row, n, tap, N, TAPS, TYPE) * value
        tl.store(y + token * N, _activated(acc, IS_PLAIN), mask=mask)


@triton.jit
def _update_state(row, units, n, first, count, there, N: tl.constexpr, TAPS: tl.constexpr, EACH: tl.constexpr):
    """Update the state to the last inputs.

    A barrier before each store: it may overwrite what other threads still have to read.
    """
    PAST: tl.constexpr = TAPS - 1
    x = pointer(row, X, tl.float32) + first.to(tl.int64) * N + n
    for tap in tl.static_range(PAST):
        old = _state_of(units, n, tap + count, there & (tap + count < PAST), EACH)
        new = tl.load(x + (tap + count - PAST) * N, mask=(n < N) & (tap + count >= PAST), other=0.0)
        tl.debug_barrier()
        tl.store(units + tap * EACH + n % EACH, tl.where(tap + count < PAST, old, new), mask=n < N)


@triton.jit
def _later_tokens(
    row, t, n, count, N: tl.constexpr, TAPS: tl.constexpr, TYPE: tl.constexpr, BIAS_TYPE: tl.constexpr,
    IS_PLAIN: tl.constexpr,
):  # fmt: skip
    """The outputs of tokens t whose whole past is in the step, where a sequence's tokens are adjacent."""
    PAST: tl.constexpr = TAPS - 1
    owners = pointer(row, STATE + SEQUENCE, tl.int32) + t
    inside = (t >= PAST) & (t < count)
    mine = tl.load(owners, mask=inside, other=0) == tl.load(owners - PAST, mask=inside, other=-1)
    mask = (inside & mine)[:, None] & (n < N)[None, :]
    at = t.to(tl.int64)[:, None] * N + n[None, :]
    x = pointer(row, X, tl.float32) + at
    acc = tl.zeros_like(at).to(tl.float32) + _initial_sum(row, n, N, BIAS_TYPE)[None, :]
    for tap in tl.static_range(TAPS):
        acc += _tap(row, n, tap, N, TAPS, TYPE)[None, :] * tl.load(x + (tap - PAST) * N, mask=mask, other=0.0)
    tl.store(pointer(row, Y, tl.float32) + at, _activated(acc, IS_PLAIN), mask=mask)


@triton.jit
def _conv(
    row,
    N: tl.constexpr,
    TAPS: tl.constexpr,
    TYPE: tl.constexpr,
    BIAS_TYPE: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    UNIT_BYTES: tl.constexpr,
    TOKENS: tl.constexpr,
    SINGLE: tl.constexpr,
    SEQUENCES: tl.constexpr,
    DECODES: tl.constexpr,
    STEP: tl.constexpr,
    TILE: tl.constexpr,
    IS_PLAIN: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """Program (block of STEP channels, i): sequence i or, from SEQUENCES on, a tile of TILE tokens.

    Sums are float32.
    """
    launch_dependents(WHEN)
    EACH: tl.constexpr = UNIT_BYTES // 4 // (TAPS - 1)
    sequence = unit_index(unit, 1)
    n = unit_index(unit, 0) * STEP + tl.arange(0, STEP)
    tokens = integer(row, T)
    first, count = tokens_of(row, STATE, sequence, tl.where(sequence < SEQUENCES, tokens, 0), TOKENS, SINGLE)
    mine = (n < N) & (count > 0)
    units = unit_at(row, STATE, sequence, n // EACH, mine, BLOCK_BYTES, UNIT_BYTES)
    begins = tl.load(pointer(row, STATE, tl.int32) + first, mask=count > 0, other=0) == 0
    there = mine & (begins == 0)
    acc = _state_sum(row, units, n, there, N, TAPS, TYPE, BIAS_TYPE, EACH)
    wait_for_previous(WHEN)
    if count > 0:
        _first_tokens(row, units, n, first, count, there, acc, N, TAPS, TYPE, BIAS_TYPE, EACH, DECODES, IS_PLAIN)
        _update_state(row, units, n, first, count, there, N, TAPS, EACH)
    elif sequence >= SEQUENCES:
        if not DECODES:
            t = (sequence - SEQUENCES) * TILE + tl.arange(0, TILE)
            _later_tokens(row, t, n, tokens, N, TAPS, TYPE, BIAS_TYPE, IS_PLAIN)


def launch(call: Call) -> None:
    """A program per block of channels and sequence and, if sequences may have several tokens, per tile of tokens."""
    N, bucket, tiles = call.integer("N"), call.bucket, call.tiles
    step = min(power_of_two(N), tiles.conv_channels)
    tile = min(power_of_two(bucket.tokens), tiles.conv_tokens)
    later = 0 if bucket.decodes else triton.cdiv(bucket.tokens, tile)
    how = {"N": N, "TAPS": call.integer("taps"), "TYPE": call.type("weight"), **StateLayout.of(call).constants()}
    how |= {"SEQUENCES": bucket.sequences, "DECODES": bucket.decodes, "STEP": step, "TILE": tile}
    how["BIAS_TYPE"] = call.type("bias")
    how["IS_PLAIN"] = bool(call.integer("plain"))
    call.launch(_conv, (triton.cdiv(N, step), bucket.sequences + later), call.row, **how)
