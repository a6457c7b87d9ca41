"""Dot products of tokens with packed rows of a weight: sums over a thread's own weights, scaled once for each group.

    bytes of a row    | 0 .. OWN-1 | OWN .. 2 OWN-1 | ...      a thread has OWN that lie side by side, and their scale

Of Q6 these are bytes with upper bits (six_bits.py), and it has as many with lower bits twice, and two scales.
A thread has a part of a group, so a scale multiplies a sum of OWN or 2 OWN products. What floats of 4 bits are too
large by (bytes_to_floats.py) is taken off such sums as well: it needs the sum of what the weights meet, which all rows
share. OWN is 8, not 16: of the 16 or 32 values that 16 bytes meet, threads would read 4 at once that lie 64 or 128
bytes apart, and so as many lines of the cache as there are threads or half of that.
Knows nothing about what becomes of the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.norms import moments as moments_of
from coterie.kernels.triton.norms import scaled_and_shifted
from coterie.kernels.triton.product.bytes_to_floats import ABOVE, halves_above, unit_of, whole_numbers
from coterie.kernels.triton.product.few_tokens import ONCE
from coterie.kernels.triton.product.packed import BLOCK, GROUP_Q4, GROUP_Q8, OF_GROUP, SIX_BITS, of_block
from coterie.kernels.triton.product.six_bits import own_bytes, parts_above, weights_at, whole_scale
from coterie.kernels.triton.product.sums import all_added_up, and_one, no_sums

MAX_OWN = tl.constexpr(8)
CODES = tl.constexpr(16.0)  # of 4 bits
MAX_AHEAD = tl.constexpr(32)  # steps x rows whose bytes wait in registers for the tokens
SIX_AHEAD = tl.constexpr(12)  # of Q6, which has three times as many bytes a step


@triton.constexpr_function
def own_of(STRIDE, TYPE, NORM):
    """How many bytes that lie side by side are a thread's: 4 where rows begin at odd places, which load in pieces.

    Of Q6 8 even so where a norm of 16 bits is loaded, eight at once: others would change threads, and wait for that.
    """
    whole = STRIDE * TYPE.primitive_bitwidth // 8 % MAX_OWN.value == 0
    beside = TYPE == tl.uint16 and NORM is not None and NORM.primitive_bitwidth == 16
    return MAX_OWN.value if whole or beside else MAX_OWN.value // 2


@triton.constexpr_function
def _group_of(TYPE, K, COLUMNS):
    return GROUP_Q8.value if of_block(TYPE, K, COLUMNS) == 32 else GROUP_Q4.value


@triton.jit
def bytes_ahead(
    rows, there, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, M: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """Of packed rows, step by step, what registers hold beside M tokens, with their scales: loaded before those."""
    N: tl.constexpr = len(rows)
    MOST: tl.constexpr = SIX_AHEAD if of_block(rows[0].dtype.element_ty, K, COLUMNS) == SIX_BITS else MAX_AHEAD
    ahead = ()
    for i in tl.static_range(min((COLUMNS + STEP - 1) // STEP, max(MOST // (N * M), 1))):
        for r in tl.static_range(N):
            ahead = and_one(ahead, _bytes(rows[r], there[r], i * STEP, K, STRIDE, COLUMNS, STEP, NORM))
    return ahead


@triton.jit
def _bytes(
    row, there, first, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """Of a row: bytes [STEP], the scales of each OWN of them, and of Q4Z their zeros; of Q6 what own_bytes gives."""
    OWN: tl.constexpr = own_of(STRIDE, row.dtype.element_ty, NORM)
    if of_block(row.dtype.element_ty, K, COLUMNS) == SIX_BITS:
        found = own_bytes(row, there, first, STRIDE, COLUMNS, STEP, OWN, ONCE)
    else:
        GROUP: tl.constexpr = _group_of(row.dtype.element_ty, K, COLUMNS)
        c = first + tl.arange(0, STEP)
        both = tl.load(row + c, mask=there & (c < COLUMNS), other=0, eviction_policy=ONCE)
        c = first + tl.arange(0, STEP // OWN) * OWN
        at = (row + COLUMNS).to(tl.pointer_type(tl.bfloat16), bitcast=True) + c // GROUP
        scale = tl.load(at, mask=there & (c < COLUMNS), other=0.0)
        scales: tl.constexpr = COLUMNS // GROUP * OF_GROUP
        if GROUP == GROUP_Q4 and STRIDE > COLUMNS + scales:
            found = both, scale, tl.load(at + COLUMNS // GROUP, mask=there & (c < COLUMNS), other=0.0)
        else:
            found = both, scale
    return found


@triton.jit
def _own_sums(x, OWN: tl.constexpr):
    """[STEP // OWN]: the sums of each OWN neighbours, which one thread has."""
    return tl.sum(tl.reshape(x, [x.shape[0] // OWN, OWN]), axis=1)


@triton.jit
def _met(
    x, k, norm, moments, times, squares, K: tl.constexpr, NORM: tl.constexpr, SHIFT: tl.constexpr, OWN: tl.constexpr
):  # fmt: skip
    """What weights k of a row meet of a token x; and its squares, added up."""
    values = tl.load(x + k, mask=k < K, other=0.0)
    if times is not None:
        values *= times
    if SHIFT is not None:
        values = scaled_and_shifted((values - moments[0]) * moments[1], norm, k, K, SHIFT)
    elif NORM is not None:
        squares += _own_sums(values * values, OWN)
        values = scaled_and_shifted(values, norm, k, K, SHIFT)
    return values, squares


@triton.jit
def _met_of_six(
    x, c, norm, moments, times, squares, K: tl.constexpr, NORM: tl.constexpr, SHIFT: tl.constexpr, OWN: tl.constexpr
):  # fmt: skip
    """What the four parts of columns c meet, with the sums of the first two and of the last; and the squares."""
    one, squares = _met(x, weights_at(c, 0), norm, moments, times, squares, K, NORM, SHIFT, OWN)
    two, squares = _met(x, weights_at(c, 1), norm, moments, times, squares, K, NORM, SHIFT, OWN)
    three, squares = _met(x, weights_at(c, 2), norm, moments, times, squares, K, NORM, SHIFT, OWN)
    four, squares = _met(x, weights_at(c, 3), norm, moments, times, squares, K, NORM, SHIFT, OWN)
    return (one, two, three, four, _own_sums(one + two, OWN), _own_sums(three + four, OWN)), squares


@triton.jit
def _products(found, met, TYPE: tl.constexpr, HALVES: tl.constexpr, OWN: tl.constexpr):
    """A sum of products for each scale of a step of a row that `_bytes` gave, with what it meets of one token or more.

    `met` is for each token what the bytes meet, or what their lower and upper halves do, and the sums of both.
    """
    products = ()
    scale = found[1].to(tl.float32)
    if HALVES:
        low, high = halves_above(found[0], TYPE)
        above = ABOVE
        if len(found) == 3:
            above = 1.0 + found[2].to(tl.float32) / CODES
        for t in tl.static_range(len(met)):
            dots = _own_sums(low * met[t][0], OWN) + _own_sums(high * met[t][1], OWN)
            products = and_one(products, (dots - above * met[t][2]) * scale)
    else:
        w = whole_numbers(found[0])
        for t in tl.static_range(len(met)):
            products = and_one(products, _own_sums(w * met[t][0], OWN) * scale)
    return products


@triton.jit
def _products_of_six(found, met, OWN: tl.constexpr):
    """The same of Q6, with what `_met_of_six` gave of each token."""
    products, w = (), parts_above(found[0], found[1], found[2])
    first, second, block = whole_scale(found[3]), whole_scale(found[4]), found[5].to(tl.float32)
    for t in tl.static_range(len(met)):
        x = met[t]
        low = _own_sums(w[0] * x[0], OWN) + _own_sums(w[1] * x[1], OWN) - ABOVE * x[4]
        high = _own_sums(w[2] * x[2], OWN) + _own_sums(w[3] * x[3], OWN) - ABOVE * x[5]
        products = and_one(products, (low * first + high * second) * block)
    return products


@triton.jit
def add_packed(
    sums, squares, ahead, xs, rows, there, norm, moments, times, K: tl.constexpr, STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr, NORM: tl.constexpr, SHIFT: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Sums [STEP // OWN] of a token and a row each, in units of `unit_of`, and `times` the products of both.

    Tokens xs are pointers; a token's squares [STEP // OWN] are added up for an RMS norm, a layer norm takes its
    `moments`. `ahead` is what bytes_ahead gave, and `times` a number or None.
    """
    M: tl.constexpr = len(xs)
    N: tl.constexpr = len(rows)
    TYPE: tl.constexpr = rows[0].dtype.element_ty
    OWN: tl.constexpr = own_of(STRIDE, TYPE, NORM)
    SIX: tl.constexpr = of_block(TYPE, K, COLUMNS) == SIX_BITS
    HALVES: tl.constexpr = of_block(TYPE, K, COLUMNS) != BLOCK
    STEPS: tl.constexpr = (COLUMNS + STEP - 1) // STEP
    AHEAD: tl.constexpr = len(ahead) // N
    for i in tl.static_range(STEPS):
        if i + AHEAD < STEPS:
            for r in tl.static_range(N):
                ahead = and_one(ahead, _bytes(rows[r], there[r], (i + AHEAD) * STEP, K, STRIDE, COLUMNS, STEP, NORM))
        met, more_squares = (), ()
        c = i * STEP + tl.arange(0, STEP)
        for t in tl.static_range(M):
            moment = norm  # stands for none: Triton 3.6 has no tuples of empty ones
            if SHIFT is not None:
                moment = moments[t]
            if SIX:
                own, squares_t = _met_of_six(xs[t], c, norm, moment, times, squares[t], K, NORM, SHIFT, OWN)
                met = and_one(met, own)
            elif HALVES:
                k = c // GROUP_Q4 * BLOCK + c % GROUP_Q4
                low, squares_t = _met(xs[t], k, norm, moment, times, squares[t], K, NORM, SHIFT, OWN)
                high, squares_t = _met(xs[t], k + GROUP_Q4, norm, moment, times, squares_t, K, NORM, SHIFT, OWN)
                met = and_one(met, (low, high, _own_sums(low + high, OWN)))
            else:
                values, squares_t = _met(xs[t], c, norm, moment, times, squares[t], K, NORM, SHIFT, OWN)
                met = and_one(met, (values,))
            more_squares = and_one(more_squares, squares_t)
        squares = more_squares
        more = ()
        for r in tl.static_range(N):
            if SIX:
                products = _products_of_six(ahead[i * N + r], met, OWN)
            else:
                products = _products(ahead[i * N + r], met, TYPE, HALVES, OWN)
            for t in tl.static_range(M):
                more = and_one(more, sums[r * M + t] + products[t])
        sums = more
    return sums, squares


@triton.jit
def packed_dots(
    ahead, xs, rows, there, norm, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, NORM: tl.constexpr,
    SHIFT: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """[M, N] products of M tokens (pointers) with N packed rows (pointers); norm as few_dots."""
    M: tl.constexpr = len(xs)
    N: tl.constexpr = len(rows)
    OWN: tl.constexpr = own_of(STRIDE, rows[0].dtype.element_ty, NORM)
    moments = ()
    if SHIFT is not None:
        for t in tl.static_range(M):
            moments = and_one(moments, moments_of(xs[t], norm[2], K, STEP))
    sums, squares = add_packed(
        no_sums(M * N, STEP // OWN), no_sums(M, STEP // OWN), ahead, xs, rows, there, norm, moments, None,
        K, STRIDE, COLUMNS, NORM, SHIFT, STEP,
    )  # fmt: skip
    y = tl.reshape(worth(all_added_up(sums), rows[0].dtype.element_ty, K, COLUMNS), [N, M])
    if NORM is not None and SHIFT is None:
        y = y / tl.sqrt(all_added_up(squares) / K + norm[2])[None, :]
    return tl.permute(y, [1, 0])


@triton.jit
def worth(y, TYPE: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr):
    """What sums of products are, in units of one."""
    return y * unit_of(TYPE, of_block(TYPE, K, COLUMNS))
