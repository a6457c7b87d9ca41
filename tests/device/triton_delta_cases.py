"""Kernels of gated delta nets for GPUs beside float64: steps of several sequences, whose states go from step to step.

Cases as those of triton_cases.py. Knows nothing about programs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tests.device import native
from tests.device.delta_net import Kept, Net, inputs, rows_of
from tests.device.interpreted import WIDE, Bucket, aligned, call
from tests.device.native import empty, random
from tests.device.triton_cases import BF16, EXACT, F16, F32, Case, weight

PLAIN = "plain"
NAMES = ("causal_conv", "gated_delta", "gated_delta_norm")
NARROW = replace(WIDE, delta_width=16, delta_whole=0)  # as walked: no head is whole
SEQUENCES = 3
PROMPTS = ((0, 5), (2, 1)), ((2, 1), (0, 2), (1, 4)), ((0, 1), (1, 1), (2, 1))  # a sequence, and how many of its tokens
LONGER = ((1, 70),), ((0, 33), (2, 2), (1, 1)), ((2, 1), (1, 1), (0, 1))


class Played:
    """Steps by one of the kernels, on a slab of their own."""

    def __init__(self, rng, net, tiles=WIDE):
        self.net, self.tiles, self.lengths = net, tiles, [0] * SEQUENCES
        self.kept = Kept.make(rng, net.shape, apart=12, place=aligned)

    def step(self, kernel, step, x, a, b, z):
        """Positions of the step's tokens, and what the kernel makes of them."""
        (key_heads, heads, K, C, taps), net = self.net.shape, self.net
        positions, sequence = rows_of(step, self.lengths)
        T, N = x.shape
        decodes = T == SEQUENCES and all(count == 1 for _, count in step)
        bucket = Bucket(T if decodes else max(T, SEQUENCES + 1), SEQUENCES, T, 1)
        sizes = {"T": T, "B": SEQUENCES}
        if kernel == "causal_conv":
            y, first = empty(T, N), heads
            own = {"N": N, "taps": taps, **net.taps.operand("weight")}
        else:
            y, first = empty(T, heads, C), 0
            own = net.a_log.operand("a_log") | net.dt_bias.operand("dt_bias")
            own |= {"a": a, "b": b, "key_heads": key_heads, "H": heads, "K": K, "C": C}
        if kernel == "gated_delta_norm":
            own |= {"z": z, "eps": 1e-6, "offset": 0.5, **net.norm.operand("norm")}
        call(kernel, bucket, self.tiles, x=x, y=y, **own, **self.kept.operands(positions, sequence, first), **sizes)
        return positions, y


def delta(kernel, dtype, shape, steps, tiles=WIDE, words=""):
    """One of the kernels, beside what float64 makes of the same tokens, one after another."""

    def run(rng):
        net = Net.make(rng, shape, dtype, weight)
        played, kept, pairs = Played(rng, net, tiles), [None] * SEQUENCES, []
        for step in steps:
            T = sum(count for _, count in step)
            (x, a, b), z = inputs(rng, shape, T), random(rng, T, shape[1], shape[3])
            positions, y = played.step(kernel, step, x, a, b, z)
            wanted = np.zeros(y.shape)
            for t, name in enumerate(name for name, count in step for _ in range(count)):
                if kernel == "causal_conv":
                    wanted[t], kept[name] = net.convolve(x[t], kept[name], positions[t])
                else:
                    wanted[t], kept[name] = net.step(x[t], a[t], b[t], kept[name], positions[t])
            if kernel == "gated_delta_norm":
                wanted = native.rms_norm(wanted, net.norm.values, 1e-6, 0.5) * native.silu(z)
            pairs.append((y, wanted))
        return pairs

    key_heads, heads, K, C, taps = shape
    tokens = "; ".join(" ".join(f"{count}" for _, count in step) for step in steps)
    sizes = f"H {heads} of {key_heads}, K {K}, C {C}, {taps} taps, steps of {tokens}{words}"
    return Case(kernel, dtype.value, sizes, EXACT, run)


def plain_conv(dtype, taps, N, steps):
    """A convolution without silu, whose last inputs are a unit by themselves."""

    def run(rng):
        shape = (1, 1, taps - 1, N, taps)
        net = Net(shape, weight(rng, (N, taps), dtype, scale=0.5), None, None, None)
        at, lengths, kept, pairs = Kept.make(rng, shape, apart=12, place=aligned), [0] * 3, [None] * SEQUENCES, []
        for step in steps:
            positions, sequence = rows_of(step, lengths)
            T = len(positions)
            x, y, wanted = random(rng, T, N), empty(T, N), np.zeros((T, N))
            decodes = T == SEQUENCES and all(count == 1 for _, count in step)
            bucket = Bucket(T if decodes else max(T, SEQUENCES + 1), SEQUENCES, T, 1)
            own = {"N": N, "taps": taps, PLAIN: 1, **net.taps.operand("weight"), "T": T, "B": SEQUENCES}
            call("causal_conv", bucket, x=x, y=y, **own, **at.operands(positions, sequence, 1))
            for t, name in enumerate(sequence):
                wanted[t], kept[name] = net.convolve(x[t], kept[name], positions[t], plain=True)
            pairs.append((y, wanted))
        return pairs

    tokens = "; ".join(" ".join(f"{count}" for _, count in step) for step in steps)
    return Case("causal_conv", dtype.value, f"{PLAIN}, N {N}, {taps} taps, steps of {tokens}", EXACT, run)


def parts(T, key_heads, H, K, C):
    """Projections by key heads, taken apart."""

    def run(rng):
        qkvz, ba = random(rng, T, 2 * (key_heads * K + H * C)), random(rng, T, 2 * H)
        found = empty(T, 2 * key_heads * K + H * C), empty(T, H, C), empty(T, H), empty(T, H)
        ends = dict(zip(("x", "z", "a", "b"), found, strict=True))
        sizes = {"T": T, "key_heads": key_heads, "H": H, "K": K, "C": C}
        call("net_parts", Bucket(max(T, 1), 1, 1, 1), qkvz=qkvz, ba=ba, **ends, **sizes)
        return list(zip(found, native.net_parts(qkvz, ba, key_heads, K, C), strict=True)) if T else []

    return Case("net_parts", "F32", f"T {T}, H {H} of {key_heads}, K {K}, C {C}", 0.0, run)


def gates(kernel, T, H, C):
    """Of every other head of a projection."""

    def run(rng):
        both, a, y = random(rng, T, H, 2, C), random(rng, T, H, C), empty(T, H, C)
        last = {"a": a} if kernel == "sigmoid_mul" else {}
        call(kernel, Bucket(T, 1, 1, 1), x=both, y=y, T=T, N=H * C, C=C, x_first=C, x_step=2 * C, **last)
        opened = 1 / (1 + np.exp(-both[:, :, 1].astype(np.float64)))
        return [(y, a * opened if last else opened)]

    return Case(kernel, "F32", f"T {T}, H {H}, C {C}, gates behind heads", EXACT, run)


def normed(T, H, C):
    """rms_norm of every other head."""

    def run(rng):
        both, y, w = random(rng, T, H, 2, C), empty(T, H, C), weight(rng, (C,), BF16, 1.0, 0.1)
        sizes = {"T": T, "per_token": H, "C": C, "x_first": 0, "x_step": 2 * C}
        call("rms_norm", Bucket(T, 1, 1, 1), x=both, y=y, **w.operand("weight"), **sizes, eps=1e-5)
        return [(y, native.rms_norm(both[:, :, 0], w.values, 1e-5))]

    return Case("rms_norm", "BF16", f"T {T}, H {H}, C {C}, gates behind heads", EXACT, run)


QUICK = [
    *(delta(kernel, F32, (1, 1, 1, 1, 2), PROMPTS) for kernel in NAMES),
    *(delta(kernel, BF16, (2, 4, 5, 12, 4), PROMPTS) for kernel in NAMES),
    *(delta(kernel, F16, (1, 3, 9, 7, 3), PROMPTS) for kernel in NAMES),
    delta("gated_delta_norm", BF16, (1, 1, 9, 21, 4), PROMPTS, NARROW, ", columns 8 by 8"),
    *(gates(kernel, T, H, C) for kernel, T, H, C in (("sigmoid", 0, 2, 4), ("sigmoid", 1, 1, 1))),
    *(gates("sigmoid_mul", T, H, C) for T, H, C in ((3, 2, 20), (2, 3, 256))),
    normed(3, 2, 20),
    *(plain_conv(t, taps, N, PROMPTS) for t, taps, N in ((F32, 2, 5), (BF16, 3, 70), (F16, 4, 33))),
    *(parts(*sizes) for sizes in ((1, 1, 1, 1, 1), (3, 2, 6, 5, 12), (2, 3, 3, 9, 7))),
]
LONG = [
    *(delta(kernel, dtype, (2, 4, 33, 64, 4), LONGER) for dtype in (F32, F16, BF16) for kernel in NAMES),
    *(delta(kernel, BF16, (1, 2, 20, 70, 4), LONGER, NARROW, ", columns 8 by 8") for kernel in NAMES),
    *(delta(kernel, BF16, (2, 2, 128, 128, 4), PROMPTS) for kernel in NAMES),
    *(delta(kernel, BF16, (1, 1, 160, 256, 4), PROMPTS) for kernel in NAMES[1:]),
]
