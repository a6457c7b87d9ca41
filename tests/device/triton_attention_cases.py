"""Cases of attention over pages of keys and values: see triton_cases.py.

Knows nothing about programs.
"""

from __future__ import annotations

import numpy as np
from tests.device import native
from tests.device.interpreted import Bucket, call
from tests.device.native import Pages, empty, ints, optional, random
from tests.device.triton_cases import BF16, EXACT, F16, F32, FLOATS, ROUNDED, Case, weight


def pages_of(rng, lengths, K, C, Z, dtype):
    """Pages of random keys and values; what lies beyond each length is NaN."""
    pages = Pages.make(rng, len(lengths), max(lengths), K=K, C=C, Z=Z, dtype=dtype, num_layers=2)
    pages.memory[:] = 0xFF
    for s, length in enumerate(lengths):
        for position in range(length):
            pages.write(1, s, position, random(rng, K, C), random(rng, K, C))
    return pages


def last_of(lengths, chunks):
    """Positions and owners of the last `chunk` tokens of each sequence; none of a chunk of 0."""
    positions = [n - c + i for n, c in zip(lengths, chunks, strict=True) for i in range(c)]
    return ints(positions), ints([s for s, c in enumerate(chunks) for _ in range(c)])


def bound_of(dtype, chunks):
    """Scores of several tokens are products of a type that tensor cores take."""
    return {F32: EXACT, F16: EXACT, BF16: 2.0**-15}[dtype] if max(chunks) <= 1 else ROUNDED[dtype]


def words_of(lengths, chunks):
    """How a case says what is read by whom."""
    whose = "decode" if max(chunks) <= 1 else f"chunks {' '.join(map(str, chunks))}"
    return f"contexts {' '.join(map(str, lengths))}, {whose}"


def attention(
    dtype, H, K, C, Z, lengths, chunks, window=0, context=None, cap=0.0, growth=0.0, every=1, sinks=None
):  # fmt: skip
    """Of each sequence the last `chunk` tokens; none of a chunk of 0.

    `sinks`: their type. They are 3 in the mean: some outweigh all that a token sees.
    """

    def run(rng):
        pages = pages_of(rng, lengths, K, C, Z, dtype)
        positions, sequence = last_of(lengths, chunks)
        T = len(positions)
        q, y, sink = random(rng, T, H, C), empty(T, H, C), weight(rng, (H,), sinks, 1.0, 3.0) if sinks else None
        how = {"scale": C**-0.5, "window": window, "cap": cap, "growth": growth, "every": every}
        sizes = {"T": T, "B": len(lengths), "H": H, "K": K, "C": C} | how | optional("sinks", sink)
        most = Bucket(T, len(lengths), T, context or max(lengths))
        call("attention", most, q=q, **pages.operands(positions, sequence, 1), y=y, **sizes)
        return [(y, native.attention(q, pages, positions, sequence, 1, **how, sinks=sink and sink.values))]

    extra = f", sinks {sinks.value}" if sinks else ""
    extra += f", window {window}" * bool(window) + f", cap {cap:g}" * bool(cap)
    extra += f", growth {growth:g} every {every}" * bool(growth)
    shape = f"H {H}, K {K}, C {C}, Z {Z}, {words_of(lengths, chunks)}{extra}"
    return Case("attention", dtype.value, shape, bound_of(dtype, chunks), run)


def relative_attention(dtype, H, K, C, Z, lengths, reach, table):
    """Whole texts; `table`: the type of the biases, of 7 buckets, or of slopes where no distance has one (reach 0)."""

    def run(rng):
        pages = pages_of(rng, lengths, K, C, Z, dtype)
        own, sequence = last_of(lengths, lengths)
        last, T = ints([lengths[s] - 1 for s in sequence]), len(own)
        q, y = random(rng, T, H, C), empty(T, H, C)
        biases = weight(rng, (7 if reach else 1, H), table, 0.0, 2.0 if reach else 0.1)
        buckets = rng.integers(0, 7, 2 * reach + 1).astype("float32")
        behind = np.arange(max(lengths)) - own[:, None]
        if reach:
            seen = biases.values[buckets[np.clip(behind, -reach, reach) + reach].astype(int)].transpose(0, 2, 1)
        else:
            seen = -biases.values.T * np.abs(behind)[:, None]
        sizes = {"T": T, "B": len(lengths), "H": H, "K": K, "C": C, "scale": C**-0.5, "window": -1, "reach": reach}
        sizes |= biases.operand("bias") | {"buckets": buckets if reach else 0}
        most = Bucket(T, len(lengths), T, max(lengths))
        call("relative_attention", most, q=q, **pages.operands(last, sequence, 1), y=y, **sizes)
        return [(y, native.attention(q, pages, last, sequence, 1, C**-0.5, 0, biases=seen))]

    kind = f"{table.value} {'buckets' if reach else 'slopes'}"
    shape = f"H {H}, K {K}, C {C}, Z {Z}, texts {' '.join(map(str, lengths))}, {kind}, reach {reach}"
    return Case("relative_attention", dtype.value, shape, bound_of(dtype, lengths), run)


QUICK = [
    *(attention(t, 4, 2, 32, 5, (1, 7, 70), (1, 0, 1), cap=1.5) for t in (F32, BF16)),
    *(attention(F32, 4, 2, 32, 5, (12, 75), (12, 9), w, cap=1.5) for w in (0, 7)),
    *(attention(F32, 3, 1, 20, 5, (12, 75), c, growth=0.4, every=6) for c in ((12, 9), (1, 1))),
    *(attention(t, 4, 2, 32, 5, (1, 7, 70), (1, 0, 1)) for t in FLOATS),
    *(attention(BF16, H, K, C, 16, (90, 300), (1, 1)) for H, K, C in ((1, 1, 64), (8, 1, 80), (6, 2, 256))),
    attention(BF16, 2, 1, 32, 7, (600,), (1,), window=290, context=900),
    *(attention(t, 4, 2, 32, 5, (12, 3, 30, 1), (12, 1, 9, 0)) for t in FLOATS),
    *(
        attention(F32, H, K, C, 16, (20, 75), (3, 6), W)
        for H, K, C, W in ((1, 1, 128, 0), (9, 3, 20, 7), (5, 1, 256, 33))
    ),
    attention(F32, 3, 1, 16, 7, (150, 5), (150, 5)),
    *(attention(t, 4, 1, 64, 16, (150, 70), (9, 4), W) for t, W in ((BF16, 0), (F16, 66), (F32, 90))),
    *(attention(t, 4, 2, 32, 5, (1, 7, 70), (1, 0, 1), sinks=BF16) for t in FLOATS),
    attention(BF16, 8, 1, 64, 16, (90, 30), (1, 1), window=20, sinks=F32),
    *(attention(t, 4, 2, 32, 5, (12, 3, 30), (12, 1, 9), sinks=F32) for t in FLOATS),
    attention(BF16, 9, 3, 20, 16, (20, 75), (3, 6), window=7, sinks=F16),
    attention(BF16, 2, 1, 512, 16, (40, 150), (1, 1)),
    *(attention(t, 2, 1, 512, 16, (20, 40), (3, 6), W) for t, W in ((BF16, 0), (F32, 7))),
    *(attention(t, 6, 2, 300, 5, (1, 7, 150), c) for t in (F32, F16) for c in ((1, 0, 1), (1, 1, 9))),
    *(attention(F32, 3, 1, 300, 7, (33, 150), c, 40, 600, cap=1.5) for c in ((1, 1), (9, 33))),
    *(attention(F32, 3, 1, 300, 5, (12, 75), c, growth=0.4, every=6) for c in ((12, 9), (1, 1))),
    *(attention(BF16, 4, 2, 300, 5, (12, 70), c, sinks=F32) for c in ((1, 1), (12, 20))),
    *(relative_attention(t, 3, 1, 20, 5, (12, 1, 75), reach, BF16) for t in FLOATS for reach in (0, 9)),
    relative_attention(F32, 4, 4, 64, 16, (40, 150), 200, F32),
]
_CONTEXTS = (700, 257, 256)
LONG = [
    *(attention(t, 8, 2, 64, 16, _CONTEXTS, c) for t in FLOATS for c in ((1, 1, 1), (140, 1, 33))),
    *(attention(BF16, H, K, C, 16, _CONTEXTS, (140, 1, 33)) for H, K, C in ((4, 4, 96), (2, 1, 256))),
    *(attention(t, 8, 2, 64, 16, _CONTEXTS, c, sinks=BF16) for t in FLOATS for c in ((1, 1, 1), (140, 1, 33))),
    *(attention(BF16, 8, 1, 64, 16, (700, 257), c, window=128, sinks=BF16) for c in ((1, 1), (40, 1))),
]
