"""sample: draw a token per row: argmax at temperature 0, else from softmax after temperature, top-k, min-p and top-p.

The draw equals that of graph.sampling and of the CPU: same random number, same order (z down, index up), doubles. There
is no sort. Every filter keeps a prefix of that order, so each step searches for the logit at which a count or a mass
passes a bound, 4 bits at a time, by sums over all logits; ties are then resolved by index.

A row with a NaN has no order, and draws -1.
Knows nothing about requests.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import SETTING_WORDS
from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, unit_index, wait_for_previous
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

LOGITS, SETTINGS, POSITIONS, ROWS_AT, TOKENS, R = operand_words(
    "sample", "logits", "settings", "positions", "rows", "tokens", "R"
)
WORDS = tl.constexpr(SETTING_WORDS)
BITS, DIGITS = tl.constexpr(4), tl.constexpr(16)  # per round: 16 bounds are tried at once


@triton.jit
def uniform(seed, position):
    """A number in [0, 1) from (seed, position): splitmix64, as in graph.sampling."""
    x = seed.to(tl.uint64) + 0x9E3779B97F4A7C15 * (position.to(tl.uint64) + 1)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return ((x ^ (x >> 31)) >> 11).to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def key_of(z):
    """An integer key in the order of z, with -0 as 0."""
    bits = (z + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def value_of(key):
    """The z of a key."""
    bits = (key - 2147483648).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def weight_of(z, highest):
    """exp(z - highest), in float64: a logit's weight relative to the highest."""
    return tl.exp(z.to(tl.float64) - highest.to(tl.float64))


@triton.jit
def scaled(logits, i, V: tl.constexpr, temperature):
    """Logits i over the temperature, in float32; minus infinity beyond the last."""
    x = tl.load(logits + i, mask=i < V, other=-float("inf"))
    return tl.math.div_rn(x, tl.zeros(x.shape, tl.float32) + temperature)


@triton.jit
def greatest_key(
    logits, temperature, highest, bound, COUNT: tl.constexpr, BEYOND: tl.constexpr, V: tl.constexpr, STEP: tl.constexpr
):
    """The greatest key such that logits at or above it count (COUNT) or weigh at least `bound`, or more if BEYOND."""
    key = tl.zeros([1], tl.int64)
    digits = tl.arange(0, DIGITS).to(tl.int64)
    for d in tl.range(1, 32 // BITS + 1):
        tried = key + (digits << (32 - BITS * d))
        sums = tl.zeros([DIGITS], tl.float64)
        for first in tl.range(0, V, STEP):
            i = first + tl.arange(0, STEP)
            z = scaled(logits, i, V, temperature)
            not_below = (key_of(z)[None, :] >= tried[:, None]) & (i < V)[None, :]
            if COUNT:
                sums += tl.sum(not_below.to(tl.float64), axis=1)
            else:
                sums += tl.sum(tl.where(not_below, weight_of(z, highest)[None, :], 0.0), axis=1)
        if BEYOND:
            enough = sums > bound
        else:
            enough = sums >= bound
        key = tl.max(tl.where(enough, tried, key), axis=0, keep_dims=True)
    return tl.max(key, axis=0)


@triton.jit
def above(logits, temperature, highest, key, V: tl.constexpr, STEP: tl.constexpr):
    """Count and weight of the logits above a key."""
    count = tl.zeros([STEP], tl.float64)
    mass = tl.zeros([STEP], tl.float64)
    for first in tl.range(0, V, STEP):
        i = first + tl.arange(0, STEP)
        z = scaled(logits, i, V, temperature)
        over = (key_of(z) > key) & (i < V)
        count += over.to(tl.float64)
        mass += tl.where(over, weight_of(z, highest), 0.0)
    return tl.sum(count, axis=0), tl.sum(mass, axis=0)


@triton.jit
def min_p_mass(logits, temperature, highest, total, min_p, V: tl.constexpr, STEP: tl.constexpr):
    """Weight of the logits that are at least min_p times as likely as the most likely one."""
    mass = tl.zeros([STEP], tl.float64)
    for first in tl.range(0, V, STEP):
        i = first + tl.arange(0, STEP)
        weight = weight_of(scaled(logits, i, V, temperature), highest)
        mass += tl.where((weight / total >= min_p * (1.0 / total)) & (i < V), weight, 0.0)
    return tl.sum(mass, axis=0)


@triton.jit
def nth_tie(logits, temperature, key, n, V: tl.constexpr, STEP: tl.constexpr):
    """Index of the n-th logit (from 1) with this key; of the last one if there are fewer."""
    before = tl.zeros([1], tl.int32)
    found = tl.zeros([1], tl.int32)
    for first in tl.range(0, V, STEP):
        i = first + tl.arange(0, STEP)
        tie = (key_of(scaled(logits, i, V, temperature)) == key) & (i < V)
        place = before + tl.cumsum(tie.to(tl.int32), axis=0)
        found = tl.maximum(found, tl.max(tl.where(tie & (place <= n), i, 0), axis=0, keep_dims=True))
        before += tl.sum(tie.to(tl.int32), axis=0, keep_dims=True)
    return tl.max(found, axis=0)


@triton.jit
def mass_to(logits, temperature, highest, bound, V: tl.constexpr, STEP: tl.constexpr, SEARCH: tl.constexpr):
    """Weight of the shortest prefix of the order that weighs at least `bound`."""
    key = greatest_key(logits, temperature, highest, bound, False, False, V, SEARCH)
    _, before = above(logits, temperature, highest, key, V, STEP)
    each = weight_of(value_of(key), highest)
    return before + tl.maximum(tl.ceil((bound - before) / each), 1.0) * each


@triton.jit
def draw(logits, temperature, highest, settings, position, V: tl.constexpr, STEP: tl.constexpr, SEARCH: tl.constexpr):
    """Draw a token by the row's settings; no logit is NaN."""
    reals = settings.to(tl.pointer_type(tl.float64), bitcast=True)
    top_k = tl.load(settings + 1)
    top_p = tl.load(reals + 2)
    min_p = tl.load(reals + 3)
    _, total = above(logits, temperature, highest, -1, V, STEP)
    if (top_k > 0) & (top_k < V):
        key = greatest_key(logits, temperature, highest, top_k.to(tl.float64), True, False, V, SEARCH)
        count, mass = above(logits, temperature, highest, key, V, STEP)
        total = mass + (top_k.to(tl.float64) - count) * weight_of(value_of(key), highest)
    mass = total
    if top_p < 1.0:
        mass = tl.minimum(mass, mass_to(logits, temperature, highest, top_p * total, V, STEP, SEARCH))
    if min_p > 0.0:
        mass = tl.minimum(mass, tl.maximum(min_p_mass(logits, temperature, highest, total, min_p, V, STEP), 1.0))
    wanted = uniform(tl.load(settings + 4), position) * mass
    key = greatest_key(logits, temperature, highest, wanted, False, True, V, SEARCH)
    _, before = above(logits, temperature, highest, key, V, STEP)
    n = tl.floor((wanted - before) / weight_of(value_of(key), highest)) + 1.0
    return nth_tie(logits, temperature, key, tl.maximum(n, 1.0).to(tl.int32), V, STEP)


@triton.jit
def _sample(
    row, V: tl.constexpr, STEP: tl.constexpr, SEARCH: tl.constexpr, UNROLL: tl.constexpr, WHEN: tl.constexpr, unit=None
):  # fmt: skip
    """A program has one row of logits [V]; one pass finds NaN and the maximum, and sampling needs more."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    r = unit_index(unit, 0)
    if r < integer(row, R):
        logits = pointer(row, LOGITS, tl.float32) + r.to(tl.int64) * V
        best = tl.full([STEP], -float("inf"), tl.float32)
        where = tl.full([STEP], V, tl.int32)
        nans = tl.zeros([STEP], tl.int32)
        for first in tl.range(0, V, STEP, loop_unroll_factor=UNROLL):
            i = first + tl.arange(0, STEP)
            x = tl.load(logits + i, mask=i < V, other=-float("inf"))
            nans += (x != x).to(tl.int32)
            better = (x > best) | ((where == V) & (i < V))
            best = tl.where(better, x, best)
            where = tl.where(better, i, where)
        tokens = pointer(row, TOKENS, tl.int32)
        if tl.sum(nans, axis=0) > 0:
            tl.store(tokens + r, -1)
        else:
            highest = tl.max(best, axis=0)
            settings = pointer(row, SETTINGS, tl.int64) + r * WORDS
            temperature = tl.load(settings.to(tl.pointer_type(tl.float64), bitcast=True)).to(tl.float32)
            if temperature == 0.0:
                tl.store(tokens + r, tl.min(tl.where(best == highest, where, V), axis=0))
            else:
                at = tl.load(pointer(row, ROWS_AT, tl.int32) + r)
                position = tl.load(pointer(row, POSITIONS, tl.int32) + at)
                highest = tl.math.div_rn(highest, temperature)
                tl.store(tokens + r, draw(logits, temperature, highest, settings, position, V, STEP, SEARCH))


def launch(call: Call) -> None:
    """A program per sampled row."""
    tiles, V = call.tiles, call.integer("V")
    how = {"STEP": min(tiles.vocabulary, power_of_two(V)), "SEARCH": min(tiles.vocabulary_search, power_of_two(V))}
    how["UNROLL"] = tiles.vocabulary_unroll
    call.launch(_sample, (call.bucket.sampled,), call.row, V=V, **how, num_warps=8)
