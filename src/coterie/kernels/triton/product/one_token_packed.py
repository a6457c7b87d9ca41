"""Products of tokens with packed weight rows: a thread sums over its own weights, then applies their scale once.

    bytes of a row    | 0 .. OWN-1 | OWN .. 2 OWN-1 | ...      a thread has OWN adjacent bytes, and their scale

In Q6 these bytes hold upper bits (six_bits.py); a thread also has two runs of OWN bytes of lower bits, and two scales.
A thread's bytes lie within a group, so a scale multiplies a sum of OWN or 2 OWN products. The offset of 4-bit floats
(bytes_to_floats.py) is subtracted from such sums as well: it needs the sum of the activations, which all rows share.
OWN is 8, not 16: 16 bytes are multiplied by 16 or 32 activations, which threads would load 4 at a time from places 64
or 128 bytes apart, touching as many cache lines as there are threads, or half of that.
Knows nothing about what becomes of the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.norms import moments as moments_of
from coterie.kernels.triton.norms import scaled_and_shifted
from coterie.kernels.triton.product.bytes_to_floats import FLOAT_BIAS, biased_halves, int8_to_float, unit_of
from coterie.kernels.triton.product.few_tokens import ONCE
from coterie.kernels.triton.product.packed import BLOCK, BYTES_PER_SCALE, GROUP_Q4, GROUP_Q8, SIX_BITS, bytes_per_block
from coterie.kernels.triton.product.six_bits import biased_parts, own_bytes, weights_at, whole_scale
from coterie.kernels.triton.product.sums import all_totals, appended, no_sums

MAX_OWN = tl.constexpr(8)
CODES = tl.constexpr(16.0)  # number of 4-bit codes
MAX_AHEAD = tl.constexpr(32)  # steps x rows x tokens whose bytes are loaded before the tokens are ready
SIX_AHEAD = tl.constexpr(12)  # the same for Q6, which has three times as many bytes per step


@triton.constexpr_function
def bytes_per_thread(STRIDE, TYPE, NORM):
    """Adjacent bytes per thread: 4 where rows begin unaligned, since their loads are split, else 8.

    Q6 keeps 8 where a 16-bit norm is loaded, eight at once: else values would move between threads, and wait for that.
    """
    whole = STRIDE * TYPE.primitive_bitwidth // 8 % MAX_OWN.value == 0
    beside = TYPE == tl.uint16 and NORM is not None and NORM.primitive_bitwidth == 16
    return MAX_OWN.value if whole or beside else MAX_OWN.value // 2


@triton.constexpr_function
def _group_of(TYPE, K, COLUMNS):
    return GROUP_Q8.value if bytes_per_block(TYPE, K, COLUMNS) == 32 else GROUP_Q4.value


@triton.jit
def bytes_ahead(
    rows, there, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, M: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """The first bytes and scales of packed rows, loaded before the tokens are ready.

    As many as registers hold next to M tokens.
    """
    N: tl.constexpr = len(rows)
    MOST: tl.constexpr = SIX_AHEAD if bytes_per_block(rows[0].dtype.element_ty, K, COLUMNS) == SIX_BITS else MAX_AHEAD
    ahead = ()
    for i in tl.static_range(min((COLUMNS + STEP - 1) // STEP, max(MOST // (N * M), 1))):
        for r in tl.static_range(N):
            ahead = appended(ahead, _bytes(rows[r], there[r], i * STEP, K, STRIDE, COLUMNS, STEP, NORM))
    return ahead


@triton.jit
def _bytes(
    row, there, first, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """One step of a row: bytes [STEP], a scale for each OWN of them, and Q4Z's zero points.

    For Q6, what own_bytes returns.
    """
    OWN: tl.constexpr = bytes_per_thread(STRIDE, row.dtype.element_ty, NORM)
    if bytes_per_block(row.dtype.element_ty, K, COLUMNS) == SIX_BITS:
        found = own_bytes(row, there, first, STRIDE, COLUMNS, STEP, OWN, ONCE)
    else:
        GROUP: tl.constexpr = _group_of(row.dtype.element_ty, K, COLUMNS)
        c = first + tl.arange(0, STEP)
        both = tl.load(row + c, mask=there & (c < COLUMNS), other=0, eviction_policy=ONCE)
        c = first + tl.arange(0, STEP // OWN) * OWN
        at = (row + COLUMNS).to(tl.pointer_type(tl.bfloat16), bitcast=True) + c // GROUP
        scale = tl.load(at, mask=there & (c < COLUMNS), other=0.0)
        scales: tl.constexpr = COLUMNS // GROUP * BYTES_PER_SCALE
        if GROUP == GROUP_Q4 and STRIDE > COLUMNS + scales:
            found = both, scale, tl.load(at + COLUMNS // GROUP, mask=there & (c < COLUMNS), other=0.0)
        else:
            found = both, scale
    return found


@triton.jit
def _own_sums(x, OWN: tl.constexpr):
    """[STEP // OWN]: sums of OWN adjacent values, which one thread has."""
    return tl.sum(tl.reshape(x, [x.shape[0] // OWN, OWN]), axis=1)


@triton.jit
def _activations(
    x, k, norm, moments, times, squares, K: tl.constexpr, NORM: tl.constexpr, SHIFT: tl.constexpr, OWN: tl.constexpr
):  # fmt: skip
    """The activations of token x that weights k multiply, scaled and normed; and `squares` plus their squares."""
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
def _activations_of_six(
    x, c, norm, moments, times, squares, K: tl.constexpr, NORM: tl.constexpr, SHIFT: tl.constexpr, OWN: tl.constexpr
):  # fmt: skip
    """Activations for the four parts of columns c, the sums of parts 0 and 1 and of parts 2 and 3; and the squares."""
    one, squares = _activations(x, weights_at(c, 0), norm, moments, times, squares, K, NORM, SHIFT, OWN)
    two, squares = _activations(x, weights_at(c, 1), norm, moments, times, squares, K, NORM, SHIFT, OWN)
    three, squares = _activations(x, weights_at(c, 2), norm, moments, times, squares, K, NORM, SHIFT, OWN)
    four, squares = _activations(x, weights_at(c, 3), norm, moments, times, squares, K, NORM, SHIFT, OWN)
    return (one, two, three, four, _own_sums(one + two, OWN), _own_sums(three + four, OWN)), squares


@triton.jit
def _products(found, activations, TYPE: tl.constexpr, HALVES: tl.constexpr, OWN: tl.constexpr):
    """For each token, sums of products for each scale in one step of a row, scaled. `found` comes from `_bytes`.

    `activations` has, for each token, those for the bytes, or for their lower and upper halves, and the sums of both.
    """
    products = ()
    scale = found[1].to(tl.float32)
    if HALVES:
        low, high = biased_halves(found[0], TYPE)
        bias = FLOAT_BIAS
        if len(found) == 3:
            bias = 1.0 + found[2].to(tl.float32) / CODES
        for t in tl.static_range(len(activations)):
            dots = _own_sums(low * activations[t][0], OWN) + _own_sums(high * activations[t][1], OWN)
            products = appended(products, (dots - bias * activations[t][2]) * scale)
    else:
        w = int8_to_float(found[0])
        for t in tl.static_range(len(activations)):
            products = appended(products, _own_sums(w * activations[t][0], OWN) * scale)
    return products


@triton.jit
def _products_of_six(found, activations, OWN: tl.constexpr):
    """The same for Q6; `activations` comes from `_activations_of_six`."""
    products, w = (), biased_parts(found[0], found[1], found[2])
    first, second, block = whole_scale(found[3]), whole_scale(found[4]), found[5].to(tl.float32)
    for t in tl.static_range(len(activations)):
        x = activations[t]
        low = _own_sums(w[0] * x[0], OWN) + _own_sums(w[1] * x[1], OWN) - FLOAT_BIAS * x[4]
        high = _own_sums(w[2] * x[2], OWN) + _own_sums(w[3] * x[3], OWN) - FLOAT_BIAS * x[5]
        products = appended(products, (low * first + high * second) * block)
    return products


@triton.jit
def add_packed(
    sums, squares, ahead, xs, rows, there, norm, moments, times, K: tl.constexpr, STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr, NORM: tl.constexpr, SHIFT: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Partial sums [STEP // OWN] for each row and token, in units of `unit_of`, plus `times` their products.

    xs are pointers to tokens. For an RMS norm their squares [STEP // OWN] are added up, a layer norm uses `moments`.
    `ahead` comes from bytes_ahead; `times` is a number or None.
    """
    M: tl.constexpr = len(xs)
    N: tl.constexpr = len(rows)
    TYPE: tl.constexpr = rows[0].dtype.element_ty
    OWN: tl.constexpr = bytes_per_thread(STRIDE, TYPE, NORM)
    SIX: tl.constexpr = bytes_per_block(TYPE, K, COLUMNS) == SIX_BITS
    HALVES: tl.constexpr = bytes_per_block(TYPE, K, COLUMNS) != BLOCK
    STEPS: tl.constexpr = (COLUMNS + STEP - 1) // STEP
    AHEAD: tl.constexpr = len(ahead) // N
    for i in tl.static_range(STEPS):
        if i + AHEAD < STEPS:
            for r in tl.static_range(N):
                ahead = appended(ahead, _bytes(rows[r], there[r], (i + AHEAD) * STEP, K, STRIDE, COLUMNS, STEP, NORM))
        activations, more_squares = (), ()
        c = i * STEP + tl.arange(0, STEP)
        for t in tl.static_range(M):
            moment = norm  # a placeholder: Triton 3.6 has no tuples of empty tuples
            if SHIFT is not None:
                moment = moments[t]
            if SIX:
                own, squares_t = _activations_of_six(xs[t], c, norm, moment, times, squares[t], K, NORM, SHIFT, OWN)
                activations = appended(activations, own)
            elif HALVES:
                k = c // GROUP_Q4 * BLOCK + c % GROUP_Q4
                low, squares_t = _activations(xs[t], k, norm, moment, times, squares[t], K, NORM, SHIFT, OWN)
                high, squares_t = _activations(xs[t], k + GROUP_Q4, norm, moment, times, squares_t, K, NORM, SHIFT, OWN)
                activations = appended(activations, (low, high, _own_sums(low + high, OWN)))
            else:
                values, squares_t = _activations(xs[t], c, norm, moment, times, squares[t], K, NORM, SHIFT, OWN)
                activations = appended(activations, (values,))
            more_squares = appended(more_squares, squares_t)
        squares = more_squares
        more = ()
        for r in tl.static_range(N):
            if SIX:
                products = _products_of_six(ahead[i * N + r], activations, OWN)
            else:
                products = _products(ahead[i * N + r], activations, TYPE, HALVES, OWN)
            for t in tl.static_range(M):
                more = appended(more, sums[r * M + t] + products[t])
        sums = more
    return sums, squares


@triton.jit
def packed_dots(
    ahead, xs, rows, there, norm, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, NORM: tl.constexpr,
    SHIFT: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """[M, N] products of M tokens with N packed rows (both pointers); norm as in few_dots."""
    M: tl.constexpr = len(xs)
    N: tl.constexpr = len(rows)
    OWN: tl.constexpr = bytes_per_thread(STRIDE, rows[0].dtype.element_ty, NORM)
    moments = ()
    if SHIFT is not None:
        for t in tl.static_range(M):
            moments = appended(moments, moments_of(xs[t], norm[2], K, STEP))
    sums, squares = add_packed(
        no_sums(M * N, STEP // OWN), no_sums(M, STEP // OWN), ahead, xs, rows, there, norm, moments, None,
        K, STRIDE, COLUMNS, NORM, SHIFT, STEP,
    )  # fmt: skip
    y = tl.reshape(from_units(all_totals(sums), rows[0].dtype.element_ty, K, COLUMNS), [N, M])
    if NORM is not None and SHIFT is None:
        y = y / tl.sqrt(all_totals(squares) / K + norm[2])[None, :]
    return tl.permute(y, [1, 0])


@triton.jit
def from_units(y, TYPE: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums of products, converted from units of `unit_of`."""
    return y * unit_of(TYPE, bytes_per_block(TYPE, K, COLUMNS))
