"""Kernels of recurrences for GPUs beside float64: steps of several sequences, whose states go from step to step.

Of gated delta nets and of selective state spaces, and what stands beside them. Cases as those of triton_cases.py.
Knows nothing about programs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tests.device import native
from tests.device.interpreted import WIDE, Bucket, aligned, call
from tests.device.native import empty, random
from tests.device.recurrences import CONV, SEQUENCES, Kept, Net, Space, convolved, rows_of, stepped
from tests.device.triton_cases import BF16, EXACT, F16, F32, Case, tokens, weight

PLAIN = "plain"
NARROW = replace(WIDE, delta_width=16, delta_whole=0)  # as walked: no head is whole
PROMPTS = ((0, 5), (2, 1)), ((2, 1), (0, 2), (1, 4)), ((0, 1), (1, 1), (2, 1))  # a sequence, and how many of its tokens
LONGER = ((1, 70),), ((0, 33), (2, 2), (1, 1)), ((2, 1), (1, 1), (0, 1))


def on_gpu(tiles=WIDE):
    """A call of a kernel in the bucket of its rows."""

    def run(kernel, **operands):
        T = operands["T"]
        decodes = T == SEQUENCES == len(set(operands["sequence"].tolist()))
        call(kernel, Bucket(T if decodes else max(T, SEQUENCES + 1), SEQUENCES, T, 1), tiles, **operands)

    return run


def words_of(steps):
    """How a case says how many tokens of sequences its steps have."""
    return "steps of " + "; ".join(" ".join(f"{count}" for _, count in step) for step in steps)


def recurrence(of, kernel, dtype, shape, steps, tiles=WIDE, words="", **how):
    """One of the kernels, beside what float64 makes of the same tokens, one after another."""

    def run(rng):
        layer = of.make(rng, shape, dtype, weight, **how)
        kept, lengths = Kept.make(rng, shape, apart=12, place=aligned), [0] * SEQUENCES
        states, pairs = [None] * SEQUENCES, []
        for step in steps:
            given = of.inputs(rng, shape, sum(count for _, count in step))
            positions, sequence = rows_of(step, lengths)
            y = stepped(layer, kept, kernel, given, positions, sequence, on_gpu(tiles))
            wanted = np.zeros(y.shape)
            for t, (name, position) in enumerate(zip(sequence, positions, strict=True)):
                token = {name: values[t] for name, values in given.items()}
                if kernel == CONV:
                    wanted[t], states[name] = layer.convolve(token["x"], states[name], position)
                else:
                    wanted[t], states[name] = layer.step(token, states[name], position)
            pairs.append((y, layer.gate(wanted, given["z"]) if kernel == of.KERNELS[-1] else wanted))
        return pairs

    first, heads, K, C, taps = shape
    who = f"H {heads} of {first}" if of is Net else f"{first} groups of {heads} heads"
    who = "with a bias, " * (of is Space and kernel == CONV) + who
    return Case(kernel, dtype.value, f"{who}, K {K}, C {C}, {taps} taps, {words_of(steps)}{words}", EXACT, run)


def delta(kernel, *sizes):
    return recurrence(Net, kernel, *sizes, offset=0.5)


def scan(kernel, *sizes, bounds=(0.0, np.inf)):
    return recurrence(Space, kernel, *sizes, bounds=bounds)


def plain_conv(dtype, taps, N, steps):
    """A convolution without silu, whose last inputs are a unit by themselves."""

    def run(rng):
        shape, w = (1, 1, taps - 1, N, taps), weight(rng, (N, taps), dtype, scale=0.5)
        at, lengths, kept, pairs = Kept.make(rng, shape, apart=12, place=aligned), [0] * 3, [None] * SEQUENCES, []
        for step in steps:
            positions, sequence = rows_of(step, lengths)
            T = len(positions)
            x, y, wanted = random(rng, T, N), empty(T, N), np.zeros((T, N))
            own = {"N": N, "taps": taps, PLAIN: 1, **w.operand("weight"), "T": T, "B": SEQUENCES}
            on_gpu()(CONV, x=x, y=y, **own, **at.operands(positions, sequence, 1))
            for t, name in enumerate(sequence):
                wanted[t], kept[name] = convolved(x[t], w, kept[name], positions[t])
            pairs.append((y, wanted))
        return pairs

    return Case(CONV, dtype.value, f"{PLAIN}, N {N}, {taps} taps, {words_of(steps)}", EXACT, run)


def parts(T, key_heads, H, K, C):
    """Projections by key heads, taken apart."""

    def run(rng):
        qkvz, ba = random(rng, T, 2 * (key_heads * K + H * C)), random(rng, T, 2 * H)
        found = empty(T, 2 * key_heads * K + H * C), empty(T, H, C), empty(T, H), empty(T, H)
        ends = dict(zip(("x", "z", "a", "b"), found, strict=True))
        sizes = {"T": T, "key_heads": key_heads, "H": H, "K": K, "C": C}
        call("net_parts", tokens(T), qkvz=qkvz, ba=ba, **ends, **sizes)
        return list(zip(found, native.net_parts(qkvz, ba, key_heads, K, C), strict=True)) if T else []

    return Case("net_parts", "F32", f"T {T}, H {H} of {key_heads}, K {K}, C {C}", 0.0, run)


def gates(kernel, T, H, C):
    """Of every other head of a projection."""

    def run(rng):
        both, a, y = random(rng, T, H, 2, C), random(rng, T, H, C), empty(T, H, C)
        last = {"a": a} if kernel == "sigmoid_mul" else {}
        call(kernel, tokens(T), x=both, y=y, T=T, N=H * C, C=C, x_first=C, x_step=2 * C, **last)
        opened = 1 / (1 + np.exp(-both[:, :, 1].astype(np.float64)))
        return [(y, a * opened if last else opened)]

    return Case(kernel, "F32", f"T {T}, H {H}, C {C}, gates behind heads", EXACT, run)


def norm_of_heads(T, H, C):
    """rms_norm of every other head."""

    def run(rng):
        both, y, w = random(rng, T, H, 2, C), empty(T, H, C), weight(rng, (C,), BF16, 1.0, 0.1)
        sizes = {"T": T, "per_token": H, "C": C, "x_first": 0, "x_step": 2 * C}
        call("rms_norm", tokens(T), x=both, y=y, **w.operand("weight"), **sizes, eps=1e-5)
        return [(y, native.rms_norm(both[:, :, 0], w.values, 1e-5))]

    return Case("rms_norm", "BF16", f"T {T}, H {H}, C {C}, gates behind heads", EXACT, run)


def norm_in_groups(dtype, T, groups, C):
    """A norm in groups."""

    def run(rng):
        x, y, w = random(rng, T, groups * C), empty(T, groups * C), weight(rng, (groups * C,), dtype, 1.0, 0.1)
        call("group_norm", tokens(T), x=x, y=y, **w.operand("weight"), T=T, groups=groups, C=C, eps=1e-5)
        rows = x.astype(np.float64).reshape(T, groups, C)
        wanted = rows / np.sqrt(np.square(rows).mean(axis=-1, keepdims=True) + 1e-5)
        return [(y, wanted.reshape(T, groups * C) * w.values)]

    return Case("group_norm", dtype.value, f"T {T}, {groups} groups of {C}", EXACT, run)


def mul_row(T, N):
    """A factor for each channel."""

    def run(rng):
        x, row, y = random(rng, T, N), aligned(random(rng, N)), empty(T, N)
        call("mul_row", tokens(T), x=x, row=row, y=y, T=T, N=N)
        return [(y, x * row)]

    return Case("mul_row", "F32", f"T {T}, N {N}", 0.0, run)


QUICK = [
    *(delta(kernel, F32, (1, 1, 1, 1, 2), PROMPTS) for kernel in Net.KERNELS),
    *(delta(kernel, BF16, (2, 4, 5, 12, 4), PROMPTS) for kernel in Net.KERNELS),
    *(delta(kernel, F16, (1, 3, 9, 7, 3), PROMPTS) for kernel in Net.KERNELS),
    delta("gated_delta_norm", BF16, (1, 1, 9, 21, 4), PROMPTS, NARROW, ", columns 8 by 8"),
    *(gates(kernel, T, H, C) for kernel, T, H, C in (("sigmoid", 0, 2, 4), ("sigmoid", 1, 1, 1))),
    *(gates("sigmoid_mul", T, H, C) for T, H, C in ((3, 2, 20), (2, 3, 256))),
    norm_of_heads(3, 2, 20),
    *(plain_conv(t, taps, N, PROMPTS) for t, taps, N in ((F32, 2, 5), (BF16, 3, 70), (F16, 4, 33))),
    *(parts(*sizes) for sizes in ((1, 1, 1, 1, 1), (3, 2, 6, 5, 12), (2, 3, 3, 9, 7))),
    *(scan(kernel, F32, (1, 1, 1, 2, 2), PROMPTS) for kernel in Space.KERNELS),
    *(scan(kernel, BF16, (2, 4, 5, 12, 4), PROMPTS) for kernel in Space.KERNELS),
    *(scan(kernel, F16, (1, 3, 9, 7, 3), PROMPTS) for kernel in Space.KERNELS),
    scan(Space.KERNELS[-1], BF16, (1, 1, 9, 21, 4), PROMPTS, NARROW, ", columns 8 by 8"),
    scan("selective_scan", F32, (1, 3, 9, 7, 3), PROMPTS, WIDE, ", steps from 0.5 to 0.9", bounds=(0.5, 0.9)),
    *(norm_in_groups(*sizes) for sizes in ((F32, 0, 2, 4), (BF16, 1, 1, 1), (F16, 3, 2, 20), (BF16, 2, 3, 300))),
    *(mul_row(*sizes) for sizes in ((0, 4), (1, 1), (3, 37))),
]
LONG = [
    *(delta(kernel, dtype, (2, 4, 33, 64, 4), LONGER) for dtype in (F32, F16, BF16) for kernel in Net.KERNELS),
    *(delta(kernel, BF16, (1, 2, 20, 70, 4), LONGER, NARROW, ", columns 8 by 8") for kernel in Net.KERNELS),
    *(delta(kernel, BF16, (2, 2, 128, 128, 4), PROMPTS) for kernel in Net.KERNELS),
    *(delta(kernel, BF16, (1, 1, 160, 256, 4), PROMPTS) for kernel in Net.KERNELS[1:]),
    *(scan(kernel, dtype, (2, 4, 33, 64, 4), LONGER) for dtype in (F32, F16, BF16) for kernel in Space.KERNELS),
    *(scan(kernel, BF16, (1, 2, 20, 70, 4), LONGER, NARROW, ", columns 8 by 8") for kernel in Space.KERNELS),
    *(scan(kernel, BF16, (1, 2, 256, 64, 4), PROMPTS) for kernel in Space.KERNELS[1:]),
]
