"""Kernels of selective state spaces for GPUs beside float64: steps of several sequences, whose states go on.

Cases as those of triton_cases.py. Knows nothing about programs.
"""

from __future__ import annotations

import numpy as np
from tests.device import native
from tests.device.delta_net import Kept, rows_of
from tests.device.interpreted import WIDE, Bucket, aligned, call
from tests.device.native import empty, random
from tests.device.scan import Space, inputs
from tests.device.triton_cases import BF16, EXACT, F16, F32, Case, weight
from tests.device.triton_delta_cases import LONGER, NARROW, PROMPTS, SEQUENCES

CONV, GATED = "causal_conv", "selective_scan_gate"
NAMES = (CONV, "selective_scan", GATED)


class Played:
    """Steps by one of the kernels, on a slab of their own."""

    def __init__(self, rng, space, tiles=WIDE):
        self.space, self.tiles, self.lengths = space, tiles, [0] * SEQUENCES
        self.kept = Kept.make(rng, space.shape, apart=12, place=aligned)

    def step(self, kernel, step, x, dt, z):
        """Positions of the step's tokens, and what the kernel makes of them."""
        (groups, heads, K, C, taps), space = self.space.shape, self.space
        positions, sequence = rows_of(step, self.lengths)
        T, N = x.shape
        decodes = T == SEQUENCES and all(count == 1 for _, count in step)
        bucket = Bucket(T if decodes else max(T, SEQUENCES + 1), SEQUENCES, T, 1)
        if kernel == CONV:
            y, first = empty(T, N), heads
            own = {"N": N, "taps": taps} | space.taps.operand("weight") | space.conv_bias.operand("bias")
        else:
            y, first = empty(T, heads, C), 0
            own = space.a_log.operand("a_log") | space.dt_bias.operand("dt_bias") | space.skip.operand("skip")
            own |= {"dt": dt, "groups": groups, "H": heads, "K": K, "C": C}
            own |= dict(zip(("least", "most"), space.bounds, strict=True)) | ({"z": z} if kernel == GATED else {})
        sizes = {"T": T, "B": SEQUENCES}
        call(kernel, bucket, self.tiles, x=x, y=y, **own, **self.kept.operands(positions, sequence, first), **sizes)
        return positions, y


def scan(kernel, dtype, shape, steps, tiles=WIDE, words="", bounds=(0.0, np.inf)):
    """One of the kernels, beside what float64 makes of the same tokens, one after another."""

    def run(rng):
        space = Space.make(rng, shape, dtype, weight, bounds)
        played, kept, pairs = Played(rng, space, tiles), [None] * SEQUENCES, []
        for step in steps:
            x, dt, z = inputs(rng, shape, sum(count for _, count in step))
            positions, y = played.step(kernel, step, x, dt, z)
            wanted = np.zeros(y.shape)
            for t, name in enumerate(name for name, count in step for _ in range(count)):
                if kernel == CONV:
                    wanted[t], kept[name] = space.convolve(x[t], kept[name], positions[t])
                else:
                    wanted[t], kept[name] = space.step(x[t], dt[t], kept[name], positions[t])
            pairs.append((y, wanted * native.silu(z) if kernel == GATED else wanted))
        return pairs

    groups, heads, K, C, taps = shape
    tokens = "; ".join(" ".join(f"{count}" for _, count in step) for step in steps)
    sizes = f"with a bias, {groups} groups of {heads} heads, K {K}, C {C}, {taps} taps, steps of {tokens}{words}"
    return Case(kernel, dtype.value, sizes if kernel == CONV else sizes.removeprefix("with a bias, "), EXACT, run)


def normed(dtype, T, groups, C):
    """A norm in groups."""

    def run(rng):
        x, y, w = random(rng, T, groups * C), empty(T, groups * C), weight(rng, (groups * C,), dtype, 1.0, 0.1)
        call(
            "group_norm", Bucket(max(T, 1), 1, 1, 1), x=x, y=y, **w.operand("weight"), T=T, groups=groups, C=C, eps=1e-5
        )
        rows = x.astype(np.float64).reshape(T, groups, C)
        wanted = rows / np.sqrt(np.square(rows).mean(axis=-1, keepdims=True) + 1e-5)
        return [(y, wanted.reshape(T, groups * C) * w.values)]

    return Case("group_norm", dtype.value, f"T {T}, {groups} groups of {C}", EXACT, run)


def rows(T, N):
    """A factor for each channel."""

    def run(rng):
        x, row, y = random(rng, T, N), aligned(random(rng, N)), empty(T, N)
        call("mul_row", Bucket(max(T, 1), 1, 1, 1), x=x, row=row, y=y, T=T, N=N)
        return [(y, x * row)]

    return Case("mul_row", "F32", f"T {T}, N {N}", 0.0, run)


QUICK = [
    *(scan(kernel, F32, (1, 1, 1, 2, 2), PROMPTS) for kernel in NAMES),
    *(scan(kernel, BF16, (2, 4, 5, 12, 4), PROMPTS) for kernel in NAMES),
    *(scan(kernel, F16, (1, 3, 9, 7, 3), PROMPTS) for kernel in NAMES),
    scan(GATED, BF16, (1, 1, 9, 21, 4), PROMPTS, NARROW, ", columns 8 by 8"),
    scan("selective_scan", F32, (1, 3, 9, 7, 3), PROMPTS, words=", steps from 0.5 to 0.9", bounds=(0.5, 0.9)),
    *(normed(*sizes) for sizes in ((F32, 0, 2, 4), (BF16, 1, 1, 1), (F16, 3, 2, 20), (BF16, 2, 3, 300))),
    *(rows(*sizes) for sizes in ((0, 4), (1, 1), (3, 37))),
]
LONG = [
    *(scan(kernel, dtype, (2, 4, 33, 64, 4), LONGER) for dtype in (F32, F16, BF16) for kernel in NAMES),
    *(scan(kernel, BF16, (1, 2, 20, 70, 4), LONGER, NARROW, ", columns 8 by 8") for kernel in NAMES),
    *(scan(kernel, BF16, (1, 2, 256, 64, 4), PROMPTS) for kernel in NAMES[1:]),
]
