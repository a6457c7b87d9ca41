"""Attention on odd shapes: spans and pages cut anywhere, one query head or many, mixed batches; the bits never change.

Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device import native
from tests.device.native import KEPT_DTYPES, Pages, call, empty, ints, kept_bits, random, weight

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels

EDGES = (1, 31, 32, 33, 255, 256, 257, 513, 1500)  # contexts around the ends of chunks, spans and pages
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=kernels.ISAS, scope="module")
def isa(request):
    return request.param


def filled(rng, lengths, *, K, C, Z, dtype=DType.BF16):
    """Pages of sequences of these lengths; what lies beyond them is NaN, so that reading it shows."""
    pages = Pages.make(rng, len(lengths), max(lengths), K=K, C=C, Z=Z, dtype=dtype, num_layers=1)
    nan = kept_bits(np.full(C, np.nan, np.float32), dtype)
    for s, length in enumerate(lengths):
        for i, block in enumerate(pages.block_tables[s]):
            part = kept_bits(random(rng, 2, K, Z, C), dtype)
            part[:, :, max(0, length - i * Z) :] = nan
            pages.view(block)[0] = part
    return pages


def attend(team, pages, q_THC, positions, sequence, window=0, kind="attention", **how):
    T, H, C = q_THC.shape
    y = empty(T, H, C)
    sizes = {"T": T, "B": len(pages.block_tables), "H": H, "K": pages.K, "C": C}
    operands = pages.operands(ints(positions), ints(sequence), 0)
    call(team, kind, q=q_THC, **operands, y=y, **sizes, scale=C**-0.5, window=window, **how)
    return y


def check(team, pages, q, positions, sequence, window=0, close=CLOSE, **how):
    """What the kernel gives is what float64 does."""
    expected = native.attention(q, pages, positions, sequence, 0, q.shape[2] ** -0.5, window, **how)
    np.testing.assert_allclose(attend(team, pages, q, positions, sequence, window, **how), expected, **close)


def last_tokens(lengths):
    return [n - 1 for n in lengths], list(range(len(lengths)))


@pytest.mark.parametrize(("Z", "window"), [(1, 0), (7, 0), (16, 0), (33, 0), (16, 1), (7, 250), (16, 256), (33, 300)])
def test_decode_at_the_edges_of_spans_and_pages(isa, rng, Z, window):
    pages = filled(rng, EDGES, K=2, C=32, Z=Z)
    positions, sequence = last_tokens(EDGES)
    q = random(rng, len(EDGES), 6, 32)
    check(kernels.Team(2, isa), pages, q, positions, sequence, window)


@pytest.mark.parametrize(("H", "K", "C"), [(1, 1, 2), (6, 2, 20), (5, 1, 80)])
def test_queries_that_grow(isa, rng, H, K, C):
    """Alone, a few together and many together, before and behind the first step."""
    pages = filled(rng, (600, 12, 90), K=K, C=C, Z=7)
    positions, sequence = [599, *range(5, 12), *range(90)], [0] + [1] * 7 + [2] * 90
    q, how = random(rng, len(positions), H, C), {"growth": 0.4, "every": 6}
    check(kernels.Team(2, isa), pages, q, positions, sequence, **how)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.KV8])
@pytest.mark.parametrize(("H", "K", "C", "window"), [(6, 2, 20, 0), (16, 2, 64, 0), (3, 1, 32, 130)])
def test_sinks(isa, rng, H, K, C, window, dtype):
    """Alone in spans, a few together and many together: a head's sink counts once, whatever the spans."""
    pages = filled(rng, (600, 12, 290, 1), K=K, C=C, Z=7, dtype=dtype)
    positions, sequence = [599, *range(5, 12), *range(250, 290), 0], [0] + [1] * 7 + [2] * 40 + [3]
    q, sinks = random(rng, len(positions), H, C), weight(rng, (H,), DType.BF16, center=1.0, scale=3.0)
    expected = native.attention(q, pages, positions, sequence, 0, C**-0.5, window, sinks=sinks.values)
    team = kernels.Team(2, isa)
    found = attend(team, pages, q, positions, sequence, window, **sinks.operand("sinks"))
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert np.abs(found - attend(team, pages, q, positions, sequence, window)).max() > 0.1
    alone = attend(kernels.Team(1, isa), pages, q[:1].copy(), positions[:1], [0], window, **sinks.operand("sinks"))
    np.testing.assert_array_equal(alone[0], found[0])


@pytest.mark.parametrize(("reach", "dtype"), [(0, DType.F32), (5, DType.KV8), (200, DType.F32)])
@pytest.mark.parametrize(("H", "K", "C"), [(1, 1, 2), (6, 2, 20), (40, 40, 8)])
@pytest.mark.parametrize("is_whole", [True, False])
def test_biases_by_distance(isa, rng, is_whole, H, K, C, reach, dtype):
    """Whole texts that see all, over several spans; a few tokens that see those before them. Reach 0: slopes."""
    lengths = (300, 1, 90, 3)
    pages = filled(rng, lengths, K=K, C=C, Z=7, dtype=dtype)
    own = [range(n) if is_whole else range(n - min(n, 9), n) for n in lengths]
    sequence = [s for s, places in enumerate(own) for _ in places]
    places = [place for seen in own for place in seen]
    last = [lengths[s] - 1 if is_whole else place for s, place in zip(sequence, places, strict=True)]
    table = weight(rng, (7 if reach else 1, H), DType.BF16, scale=2.0 if reach else 0.1)
    buckets = rng.integers(0, 7, 2 * reach + 1).astype(np.float32)
    biases = []
    for place in places:
        behind = np.arange(300) - place
        if reach:
            biases.append(table.values[buckets[np.clip(behind, -reach, reach) + reach].astype(int)].T)
        else:
            biases.append(-table.values.T * np.abs(behind))
    how = {**table.operand("bias"), "buckets": buckets if reach else 0, "reach": reach}
    how["window"] = -1 if is_whole else 0
    q = random(rng, len(places), H, C)
    found = attend(kernels.Team(2, isa), pages, q, last, sequence, kind="relative_attention", **how)
    expected = native.attention(q, pages, last, sequence, 0, C**-0.5, 0, biases=biases)
    np.testing.assert_allclose(found, expected, **CLOSE)
    alone = [at for at, s in enumerate(sequence) if s == 2]
    pages.block_tables = pages.block_tables[2:3]
    team = kernels.Team(1, isa)
    again = attend(
        team, pages, q[alone], [last[at] for at in alone], [0] * len(alone), kind="relative_attention", **how
    )
    np.testing.assert_array_equal(again, found[alone])


def test_a_sink_may_take_all_or_nothing(team, rng):
    pages = filled(rng, (300,), K=1, C=8, Z=16)
    q, sinks = random(rng, 1, 2, 8), np.array([300.0, -300.0], np.float32)
    found = attend(team, pages, q, [299], [0], sinks=kernels.address(sinks), sinks_dtype=0)
    np.testing.assert_allclose(found[0, 0], np.zeros(8), atol=1e-36)
    np.testing.assert_array_equal(found[0, 1], attend(team, pages, q, [299], [0])[0, 1])


@pytest.mark.parametrize("dtype", [DType.BF16, DType.KV8])
@pytest.mark.parametrize("C", [1, 7, 32, 48, 64, 80, 96, 100, 128, 256])
@pytest.mark.parametrize(("H", "K"), [(1, 1), (2, 1), (9, 3), (4, 1), (5, 1), (12, 2), (7, 1), (8, 1), (11, 1)])
def test_heads_and_channels(isa, rng, H, K, C, dtype):
    pages = filled(rng, (300, 40, 270), K=K, C=C, Z=16, dtype=dtype)
    positions, sequence = [299, *range(30, 40), *range(240, 270)], [0] + [1] * 10 + [2] * 30
    q = random(rng, len(positions), H, C)
    check(kernels.Team(2, isa), pages, q, positions, sequence)


def test_sequences_that_share_a_tile_see_different_spans(isa, rng):
    """Four decoded tokens a tile: the last one sees the last two spans of a long sequence, the others the first."""
    lengths = (30, 300, 8, 900) * 16
    pages = filled(rng, lengths, K=2, C=16, Z=16)
    positions, sequence = last_tokens(lengths)
    q = random(rng, len(lengths), 2, 16)
    check(kernels.Team(2, isa), pages, q, positions, sequence, 300)


def test_one_token_shares_a_tile_with_many_of_another_sequence(isa, rng):
    """Four tokens a tile. The last has three of a prompt, too many to read keys as they lie, and one decoded."""
    pages = filled(rng, (600, 280), K=2, C=16, Z=16)
    positions, sequence = [*range(537, 600), 279], [0] * 63 + [1]
    q = random(rng, 64, 8, 16)
    check(kernels.Team(2, isa), pages, q, positions, sequence)


@pytest.mark.parametrize("dtype", KEPT_DTYPES)
@pytest.mark.parametrize("window", [0, 100])
def test_types_of_pages(isa, rng, dtype, window):
    pages = filled(rng, (700, 50), K=1, C=64, Z=20, dtype=dtype)
    positions, sequence = [*range(560, 700), 49], [0] * 140 + [1]
    q = random(rng, len(positions), 3, 64)
    check(kernels.Team(3, isa), pages, q, positions, sequence, window)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.KV8])
@pytest.mark.parametrize("window", [0, 3, 290])
@pytest.mark.parametrize(("H", "K", "C"), [(3, 1, 64), (8, 2, 20), (1, 1, 128)])
def test_bits_do_not_depend_on_threads_batch_or_chunks(isa, rng, H, K, C, window, dtype):
    lengths = (1500, 600, 10, 257)
    pages = filled(rng, lengths, K=K, C=C, Z=16, dtype=dtype)
    positions = [1499, *range(420, 600), 9, *range(250, 257)]
    sequence = [0] + [1] * 180 + [2] + [3] * 7
    q = random(rng, len(positions), H, C)
    whole = attend(kernels.Team(1, isa), pages, q, positions, sequence, window)
    assert np.isfinite(whole).all()
    for threads in range(2, 9):
        again = attend(kernels.Team(threads, isa), pages, q, positions, sequence, window)
        np.testing.assert_array_equal(again, whole)
    team = kernels.Team(2, isa)
    for size in (1, 2, 5, 64):
        for first in range(0, len(positions), size):
            part = slice(first, first + size)
            alone = attend(team, pages, q[part].copy(), positions[part], sequence[part], window)
            np.testing.assert_array_equal(alone, whole[part])


def test_no_tokens(isa, rng):
    pages = filled(rng, (5,), K=1, C=32, Z=16)
    assert attend(kernels.Team(2, isa), pages, empty(0, 2, 32), [], []).shape == (0, 2, 32)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.KV8])
def test_a_value_that_is_no_number_reaches_the_tokens_that_see_it_and_no_other(isa, rng, dtype):
    pages = filled(rng, (400,), K=1, C=64, Z=16, dtype=dtype)
    pages.write(0, 0, 350, np.full((1, 64), np.nan, np.float32), np.full((1, 64), np.nan, np.float32))
    positions = list(range(300, 400))
    y = attend(kernels.Team(2, isa), pages, random(rng, 100, 3, 64), positions, [0] * 100)
    assert np.isfinite(y[:50]).all()
    assert np.isnan(y[50:]).all()


def test_large_scores_do_not_overflow(isa, rng):
    pages = filled(rng, (600,), K=1, C=32, Z=16)
    q = 1000 * random(rng, 1, 2, 32)
    check(kernels.Team(2, isa), pages, q, [599], [0], close={"rtol": 1e-3, "atol": 1e-3})
