"""Attention whose queries and weights are rounded to bfloat16, on odd shapes; by AVX-512 alone, the bits never change.

Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.native import random, softcap, weight
from tests.device.test_kernels_attention import EDGES, attend, filled, last_tokens
from tests.device.test_kernels_halves import rounded

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels

WIDEST = 512  # csrc/attend_bf16.h
SPAN = 256  # csrc/attend_span.h: weights are rounded beside the largest score of a span


@pytest.fixture(params=kernels.ISAS, scope="module")
def isa(request):
    return request.param


def rounding(rng, lengths, *, K, C, Z=16):
    pages = filled(rng, lengths, K=K, C=C, Z=Z)
    pages.rounded = True
    return pages


def plain(q_THC, pages, positions, sequence, window=0, cap=0.0, growth=0.0, every=1, sinks=None):
    """One head of one token at a time, in float64 but for what is rounded; and each one's largest weight, [T, H, 1]."""
    y, most = np.zeros(q_THC.shape), np.zeros((*q_THC.shape[:2], 1))
    q_THC = rounded(
        (q_THC * (1 + growth * np.log(1 + np.asarray(positions) // every))[:, None, None]).astype(np.float32)
    )
    group, scale = q_THC.shape[1] // pages.K, q_THC.shape[2] ** -0.5
    for t, (position, s) in enumerate(zip(positions, sequence, strict=True)):
        k, v = pages.read(0, s, position + 1)
        first = max(0, position - window + 1) if window else 0
        for head in range(q_THC.shape[1]):
            scores = scale * (k[:, head // group].astype(np.float64) @ q_THC[t, head])
            scores = softcap(scores, cap) if cap else scores
            weights, begin = np.zeros(position + 1), first
            for end in [*range((first // SPAN + 1) * SPAN, position + 1, SPAN), position + 1]:
                highest = scores[begin:end].max()
                weights[begin:end] = np.exp(highest) * rounded(np.exp(scores[begin:end] - highest).astype(np.float32))
                begin = end
            total = weights.sum() + (0 if sinks is None else np.exp(sinks[head]))
            y[t, head] = weights @ v[:, head // group] / total
            most[t, head] = weights.max() / total
    return y, most


def check(isa, pages, q, positions, sequence, window=0, sinks=None, **how):
    """What the kernel gives is what is said above, but where a weight is rounded the other way.

    Other instruction sets than AVX-512 round nothing, nor are wider heads rounded.
    """
    team, operands = kernels.Team(2, isa), {**how, **(sinks.operand("sinks") if sinks else {})}
    found = attend(team, pages, q, positions, sequence, window, **operands)
    if isa != "avx512" or q.shape[2] > WIDEST:
        pages.rounded = False
        np.testing.assert_array_equal(found, attend(team, pages, q, positions, sequence, window, **operands))
        return
    expected, most = plain(q, pages, positions, sequence, window, sinks=sinks.values if sinks else None, **how)
    error = np.abs(found - expected)
    assert (error <= 1e-5 + 2.0**-8 * most * 8).all()  # values are within 8 of what comes out
    assert np.quantile(error, 0.9) <= 1e-5
    if q.shape[2] > 7 and window != 1:  # one value is what comes out, however it is weighed
        pages.rounded = False
        assert np.abs(found - attend(team, pages, q, positions, sequence, window, **operands)).max() > 1e-4


@pytest.mark.parametrize(("Z", "window"), [(1, 0), (7, 0), (16, 0), (33, 0), (16, 1), (7, 250), (16, 256), (33, 301)])
def test_decode_at_the_edges_of_spans_and_pages(isa, rng, Z, window):
    pages = rounding(rng, EDGES, K=2, C=32, Z=Z)
    positions, sequence = last_tokens(EDGES)
    check(isa, pages, random(rng, len(EDGES), 6, 32), positions, sequence, window)


@pytest.mark.parametrize("C", [1, 7, 32, 48, 64, 80, 96, 100, 128, 256, 514])
@pytest.mark.parametrize(("H", "K"), [(1, 1), (2, 1), (9, 3), (5, 1), (12, 2)])
def test_heads_and_channels(isa, rng, H, K, C):
    """Alone, a few together and many together."""
    pages = rounding(rng, (300, 40, 270), K=K, C=C)
    positions, sequence = [299, *range(33, 40), *range(231, 270)], [0] + [1] * 7 + [2] * 39
    q = random(rng, len(positions), H, C)
    check(isa, pages, q, positions, sequence)


@pytest.mark.parametrize("window", [0, 3, 131])
@pytest.mark.parametrize("how", [{"cap": 2.0}, {"growth": 0.4, "every": 6}, {"sinks": True}])
def test_caps_growth_sinks_and_windows(isa, rng, window, how):
    pages = rounding(rng, (600, 12, 290, 1), K=2, C=20, Z=7)
    positions, sequence = [599, *range(5, 12), *range(249, 290), 0], [0] + [1] * 7 + [2] * 41 + [3]
    if "sinks" in how:
        how = {"sinks": weight(rng, (6,), DType.BF16, center=1.0, scale=3.0)}
    check(isa, pages, random(rng, len(positions), 6, 20), positions, sequence, window, **how)


@pytest.mark.parametrize("window", [0, 3, 290])
@pytest.mark.parametrize(("H", "K", "C"), [(3, 1, 64), (8, 2, 20), (1, 1, 128)])
def test_bits_do_not_depend_on_threads_batch_or_chunks(isa, rng, H, K, C, window):
    pages = rounding(rng, (1500, 600, 10, 257), K=K, C=C)
    positions = [1499, *range(420, 600), 9, *range(250, 257)]
    sequence = [0] + [1] * 180 + [2] + [3] * 7
    q = random(rng, len(positions), H, C)
    whole = attend(kernels.Team(1, isa), pages, q, positions, sequence, window)
    assert np.isfinite(whole).all()
    for threads in range(2, 5):
        again = attend(kernels.Team(threads, isa), pages, q, positions, sequence, window)
        np.testing.assert_array_equal(again, whole)
    team = kernels.Team(2, isa)
    for size in (1, 2, 5, 64):
        for first in range(0, len(positions), size):
            part = slice(first, first + size)
            alone = attend(team, pages, q[part].copy(), positions[part], sequence[part], window)
            np.testing.assert_array_equal(alone, whole[part])


@pytest.mark.parametrize("at", [350, 351])
def test_a_value_that_is_no_number_reaches_the_tokens_that_see_it_and_no_other(isa, rng, at):
    """Of a pair of positions either may be the last or the first one that is seen."""
    pages = rounding(rng, (400,), K=1, C=64)
    pages.write(0, 0, at, np.full((1, 64), np.nan, np.float32), np.full((1, 64), np.nan, np.float32))
    positions, q = list(range(300, 400)), random(rng, 100, 3, 64)
    y = attend(kernels.Team(2, isa), pages, q, positions, [0] * 100)
    assert np.isfinite(y[: at - 300]).all()
    assert np.isnan(y[at - 300 :]).all()
    y = attend(kernels.Team(2, isa), pages, q, positions, [0] * 100, window=20)
    seen = slice(at - 300, at - 300 + 20)
    assert np.isnan(y[seen]).all()
    assert np.isfinite(np.delete(y, np.arange(100)[seen], axis=0)).all()


def test_no_tokens(isa, rng):
    pages = rounding(rng, (5,), K=1, C=32)
    assert attend(kernels.Team(2, isa), pages, random(rng, 0, 2, 32), [], []).shape == (0, 2, 32)
