"""One kernel, one type, one odd shape: what the GPU's kernel gives, interpreted, and what it should give in float64.

A table of cases that the tests check and docs/triton_tables.md shows; python -m tests.device.triton_cases writes it.
Knows nothing about programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tests.device import native
from tests.device.interpreted import Bucket, aligned, call
from tests.device.native import Pages, empty, ints, optional, random
from tests.device.triton_table import put_cases

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.packed import pack, unpack
from coterie.kernels import cpu as kernels

F32, F16, BF16, Q8, Q4, Q4Z = DType.F32, DType.F16, DType.BF16, DType.Q8, DType.Q4, DType.Q4Z
Q2, MX4, Q6 = DType.Q2, DType.MX4, DType.Q6
FLOATS, TYPES = (F32, F16, BF16), (F32, F16, BF16, Q8, Q4, Q4Z, Q2, MX4, Q6)
LAYER, BARE = "layer norm", "layer norm without bias"
FEW = 4  # tokens that are multiplied in float32

# Largest error over largest value. Exact but for the order of sums; or with activations, and packed weights, rounded to
# the type that tensor cores take; or with what is stored rounded to the pages' type.
EXACT = 3e-6
ROUNDED = {F32: EXACT, F16: 2.0**-10, **dict.fromkeys((BF16, Q8, Q4, Q4Z, Q2, MX4, Q6), 2.0**-7)}


@dataclass(frozen=True)
class Case:
    """`run` gives pairs of what was computed and what is right."""

    kernel: str
    dtype: str
    shape: str
    bound: float
    run: Callable[[np.random.Generator], list[tuple[np.ndarray, np.ndarray]]]

    @property
    def name(self):
        return f"{self.kernel} {self.dtype} {self.shape}"

    def error(self):
        """The largest error over the largest value; NaN counts as infinite."""
        errors = [0.0]
        for got, expected in self.run(np.random.default_rng(0)):
            assert got.shape == expected.shape
            if got.size:
                error = np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-6)
                errors.append(float("inf") if np.isnan(error) else float(error))
        return max(errors)


def weight(rng, shape, dtype, center=0.0, scale=None):
    """A random weight where a GPU would have it."""
    values = (center + (scale or shape[-1] ** -0.5) * rng.standard_normal(shape)).astype(np.float32)
    if dtype.is_packed:
        bits = aligned(pack(values, dtype))
        return native.Weight(unpack(bits, dtype, shape[1]), dtype, bits)
    bits = aligned(from_f32(values, dtype))
    return native.Weight(to_f32(bits, dtype), dtype, bits)


def tokens(T, sampled=1):
    """The bucket of one sequence that has T tokens."""
    return Bucket(T, min(T, 1), sampled, 1)


def bound(dtype, count):
    return EXACT if count <= FEW else ROUNDED[dtype]


def begun(rng, D, layer, offset=0.0):
    """The norm that begins a fused region, RMS or `layer`, there with or without a bias: its operands and what it does.

    `layer`: "" for an RMS norm, "layer norm" or "layer norm without bias".
    """
    norm = weight(rng, (D,), BF16, 1.0, 0.1)
    if not layer:
        how = norm.operand("norm") | {"offset": offset}
        return how, lambda x: native.rms_norm(x.astype(np.float64), norm.values, 1e-5, offset)
    shift = weight(rng, (D,), F16, scale=0.5) if layer == LAYER else None
    how = norm.operand("norm") | optional("norm_bias", shift) | {"centred": 1}
    return how, lambda x: native.layer_norm(x.astype(np.float64), norm.values, shift.values if shift else 0, 1e-5)


def frequencies(rotated):
    """As of a rope of so many channels; none of none."""
    return (10000.0 ** (-np.arange(0, rotated, 2) / max(rotated, 1))).astype(np.float32)


def turned(rotated, C, interleaved=0):
    """How a case says that not all channels of a head are rotated, and that pairs are neighbours."""
    return ("" if rotated == C else f", {rotated} rotated") + ", interleaved" * interleaved


def linear(kernel, dtype, T, N, K, biased, scale=1.0):
    def run(rng):
        w, x, y, residual = weight(rng, (N, K), dtype), random(rng, T, K), empty(T, N), random(rng, T, N)
        b = weight(rng, (N,), F16, scale=1.0) if biased else None
        last = {"residual": residual} if kernel == "linear_add" else {}
        ends = {"x": x, **w.operand("weight"), **optional("bias", b), "y": y}
        call(kernel, tokens(T), **ends, T=T, N=N, K=K, **last, scale=scale)
        expected = scale * (x.astype(np.float64) @ w.values.T + (b.values if b else 0)) + (residual if last else 0)
        return [(y, expected)]

    extra = ", bias" * biased + f", scale {scale:g}" * (scale != 1.0)
    return Case(kernel, dtype.value, f"T {T}, N {N}, K {K}{extra}", bound(dtype, T), run)


def each(kernel, dtype, lengths, N, K, biased=False, scale=1.0):
    """Rows in shares of these lengths, each with a weight of its own, in a bucket for as many as there are."""

    def run(rng):
        weights, T = [weight(rng, (N, K), dtype) for _ in lengths], sum(lengths)
        x, y, residual, first = random(rng, T, K), empty(T, N), random(rng, T, N), shares_of(lengths)
        b = weight(rng, (N,), F16, scale=1.0) if biased else None
        last = {"residual": residual} if kernel == "linear_add_each" else {}
        ends = {"x": x, **weights[0].operand("weight"), **optional("bias", b), "y": y, **last}
        shares = {"each": table_of(weights), "first": first, "shares": len(lengths)}
        call(kernel, Bucket(T, len(lengths), 1, 1), **ends, **shares, T=T, N=N, K=K, scale=scale)
        parts = zip(np.split(x.astype(np.float64), first[1:-1]), weights, strict=True)
        found = np.concatenate([part @ one.values.T for part, one in parts])
        return [(y, scale * (found + (b.values if b else 0)) + (residual if last else 0))]

    extra = ", bias" * biased + f", scale {scale:g}" * (scale != 1.0)
    shape = f"shares {' '.join(map(str, lengths))}, N {N}, K {K}{extra}"
    return Case(kernel, dtype.value, shape, bound(dtype, sum(lengths)), run)


def shares_of(lengths):
    """Where shares begin."""
    return aligned(np.array([0, *np.cumsum(lengths)], np.int32))


def norm_linear_gelu(dtype, T, N, D, form, layer="", normed=True):
    def run(rng):
        x, y, w, b = random(rng, T, D), empty(T, N), weight(rng, (N, D), dtype), weight(rng, (N,), F16, scale=1.0)
        how, does = begun(rng, D, layer, 0.5) if normed else (optional("norm", None), lambda x: x.astype(np.float64))
        weights = w.operand("weight") | optional("bias", b if T != 2 else None)
        number = kernels.GELU_FORMS.index(form)
        call("norm_linear_gelu", tokens(T), x=x, **how, **weights, form=number, eps=1e-5, y=y, T=T, D=D, N=N)
        return [(y, native.gelu(does(x) @ w.values.T + (b.values if T != 2 else 0), form))]

    extra = f", {form}" + ", bias" * (T != 2) + f", {layer}" * bool(layer) + ", no norm" * (not normed)
    return Case("norm_linear_gelu", dtype.value, f"T {T}, N {N}, D {D}{extra}", bound(dtype, T), run)


def gate_up(gate, up, T, F, D, biased, normed=True, form="", layer=""):
    def run(rng):
        x, y, norm = random(rng, T, D), empty(T, F), weight(rng, (D,), BF16, 1.0, 0.1) if normed else None
        g, u = weight(rng, (F, D), gate), weight(rng, (F, D), up)
        gb, ub = (weight(rng, (F,), t, scale=1.0) if biased else None for t in (F32, BF16))
        weights = optional("norm", norm) | g.operand("gate") | optional("gate_bias", gb)
        weights |= u.operand("up") | optional("up_bias", ub)
        how = {"form": kernels.GELU_FORMS.index(form), "offset": 1.0} if form else {"offset": 0.0}
        own, does = begun(rng, D, layer) if layer else ({}, None)
        weights |= own
        call(kernel, tokens(T), x=x, **weights, **how, eps=1e-5, y=y, T=T, D=D, F=F)
        n = x.astype(np.float64)
        n = does(x) if layer else native.rms_norm(n, norm.values, 1e-5, how["offset"]) if normed else n
        gated = n @ g.values.T + (gb.values if gb else 0)
        act = native.gelu(gated, form) if form else native.silu(gated)
        return [(y, act * (n @ u.values.T + (ub.values if ub else 0)))]

    types = gate.value if gate is up else f"{gate.value}, {up.value}"
    worst = max(bound(gate, T), bound(up, T))
    extra = ", biases" * biased + ", no norm" * (not normed) + f", {form}" * bool(form)
    extra += f", {layer}" * bool(layer)
    kernel = "norm_gate_up_gelu_mul" if form else "norm_gate_up_silu_mul"
    return Case(kernel, types, f"T {T}, F {F}, D {D}{extra}", worst, run)


def take_norm_linear(dtype, T, R, N, D, scale=1.0, offset=0.0, layer=""):
    def run(rng):
        x, rows, y, norm = random(rng, T, D), ints(rng.integers(0, T, R)), empty(R, N), weight(rng, (D,), F32, 1.0, 0.1)
        w = weight(rng, (N, D), dtype)
        if layer:
            how, does = begun(rng, D, layer)
            weights = how | w.operand("weight") | optional("bias", None) | {"R": R, "D": D, "N": N}
            call("take_norm_linear", tokens(T, R), x=x, **weights, eps=1e-5, rows=rows, y=y)
            return [(y, does(x[rows]) @ w.values.T)]
        weights = norm.operand("norm") | w.operand("weight") | optional("bias", None)
        sizes = {"R": R, "D": D, "N": N, "scale": scale, "offset": offset}
        call("take_norm_linear", tokens(T, R), x=x, **weights, eps=1e-5, rows=rows, y=y, **sizes)
        return [(y, scale * (native.rms_norm(x[rows].astype(np.float64), norm.values, 1e-5, offset) @ w.values.T))]

    extra = f", scale {scale:g}" * (scale != 1.0) + f", offset {offset:g}" * bool(offset) + f", {layer}" * bool(layer)
    return Case("take_norm_linear", dtype.value, f"R {R}, N {N}, D {D}{extra}", bound(dtype, R), run)


def qkv(types, T, D, H, K, C, biased=False, normed=False, kv=F32, rotated=None, offset=0.0, interleaved=0, layer=""):
    """`layer` as in `begun`, or "no norm"."""
    rotated = C if rotated is None else rotated

    def run(rng):
        x, q, norm = random(rng, T, D), empty(T, H, C), weight(rng, (D,), BF16, 1.0, 0.1)
        pages = Pages.make(rng, 2, T, K=K, C=C, Z=3, dtype=kv)
        heads = {"q": H, "k": K, "v": K}
        w = {p: weight(rng, (n * C, D), t) for (p, n), t in zip(heads.items(), types, strict=True)}
        b = {p: weight(rng, (n * C,), F16, scale=1.0) if biased else None for p, n in heads.items()}
        own = {p: weight(rng, (C,), F32, 1.0, 0.1) if normed else None for p in "qk"}
        positions, sequence = ints(np.arange(T)), ints(np.arange(T) // max(T - 1, 1))
        inv_freq = frequencies(rotated)
        weights, does = norm.operand("norm"), None
        if layer == "no norm":
            weights, does = optional("norm", None), lambda x: x.astype(np.float64)
        elif layer:
            weights, does = begun(rng, D, layer)
        for p in heads:
            weights |= w[p].operand(f"w{p}") | optional(f"b{p}", b[p])
        for p, head_norm in own.items():
            weights |= optional(f"{p}_norm", head_norm)
        eps = {"q": 0.02, "k": 0.05}
        rest = pages.operands(positions, sequence, 1) | {"q": q, "q_eps": eps["q"], "k_eps": eps["k"]}
        rest |= {"inv_freq": inv_freq if rotated else 0, "scale": 1.5 if rotated < C else 1.0, "rotated": rotated}
        rest |= {"offset": offset, "interleaved": interleaved}
        sizes = {"T": T, "D": D, "H": H, "K": K, "C": C}
        call("norm_qkv_rope_append", tokens(T), x=x, **weights, eps=1e-5, **rest, **sizes)
        n = does(x) if does else native.rms_norm(x.astype(np.float64), norm.values, 1e-5, offset)
        made = {p: (n @ w[p].values.T + (b[p].values if biased else 0)).reshape(T, heads[p], C) for p in heads}
        for p in "qk":
            made[p] = native.rms_norm(made[p], own[p].values, eps[p], offset) if normed else made[p]
            made[p] = native.rope(made[p], positions, inv_freq, rest["scale"], interleaved)
        read = [pages.read(1, s, T) for s in (0, 1)]
        stored = [np.stack([read[sequence[t]][part][t] for t in range(T)]) if T else empty(0, K, C) for part in (0, 1)]
        return [(q, made["q"]), (stored[0], made["k"]), (stored[1], made["v"])]

    extra = (
        ", biases" * biased
        + ", head norms" * normed
        + turned(rotated, C, interleaved)
        + f", offset {offset:g}" * bool(offset)
    )
    extra += f", {layer}" * bool(layer)
    worst = max(*(bound(t, T) for t in types), {F32: 0.0, F16: 2.0**-11, BF16: 2.0**-8}[kv])
    name = types[0].value if len(set(types)) == 1 else ", ".join(t.value for t in types)
    shape = f"T {T}, D {D}, H {H}, K {K}, C {C}, pages {kv.value}{extra}"
    return Case("norm_qkv_rope_append", name, shape, worst, run)


def table_of(matrices):
    """Where a kernel finds where matrices are."""
    return aligned(np.array([matrix.address for matrix in matrices], np.int64))


QUICK = [
    *(norm_linear_gelu(t, T, 21, 70, "tanh", LAYER) for t in TYPES for T in (1, 2, 6)),
    *(norm_linear_gelu(BF16, T, 45, 33, "erf", layer) for T, layer in ((1, BARE), (9, BARE), (3, ""), (6, ""))),
    *(norm_linear_gelu(t, T, 45, 33, "erf", normed=False) for t, T in ((F16, 1), (Q8, 6))),
    norm_linear_gelu(BF16, 131, 70, 40, "tanh", LAYER),
    *(gate_up(t, t, T, 21, 70, False, layer=LAYER) for t, T in ((BF16, 1), (Q4, 2), (F16, 6), (BF16, 131))),
    *(gate_up(Q8, F32, T, 21, 70, False, layer=BARE) for T in (1, 6)),
    *(qkv((BF16,) * 3, T, 40, 3, 1, 20, True, rotated=6, layer=LAYER) for T in (1, 3, 6)),
    *(qkv((BF16,) * 3, T, 40, 2, 1, 16, layer="no norm") for T in (1, 6)),
    *(qkv((Q4, F32, Q8), T, 33, 2, 2, 12, True, True, layer=BARE) for T in (2, 6)),
    *(take_norm_linear(t, 7, R, 19, 33, layer=LAYER) for t, R in ((BF16, 1), (Q4, 3), (BF16, 6))),
    *(linear("linear", t, T, N, K, T == 3) for t in TYPES for T, N, K in ((1, 1, 1), (3, 37, 129), (19, 37, 200))),
    *(linear("linear_add", t, T, N, K, T == 5) for t in TYPES for T, N, K in ((4, 5, 300), (5, 33, 31))),
    *(linear("linear_add", BF16, T, 21, 40, True, 0.22) for T in (1, 3, 9, 131)),
    *(linear("linear", Q8, T, 21, 40, False, 0.22) for T in (2, 9)),
    linear("linear", BF16, 0, 7, 9, False),
    linear("linear", BF16, 70, 40, 36, True),
    linear("linear", BF16, 131, 150, 70, False),
    *(
        each("linear_each", t, lengths, N, K, True)
        for t in TYPES
        for lengths, N, K in (((1, 2), 21, 70), ((4, 19), 9, 40))
    ),
    *(each("linear_add_each", t, lengths, 37, 8, scale=0.5) for t in TYPES for lengths in ((2, 1, 1), (5, 1))),
    *(gate_up(t, t, T, F, D, T == 2) for t in TYPES for T, F, D in ((2, 21, 70), (6, 45, 33))),
    *(gate_up(gate, F32, T, 21, 70, True) for gate, T in ((Q4, 1), (Q4, 6), (Q8, 6))),
    *(gate_up(gate, up, T, 21, 70, False) for gate, up, T in ((Q4, Q4Z, 2), (Q4Z, Q4, 6), (BF16, Q4Z, 6))),
    *(gate_up(gate, up, T, 21, 70, False) for gate, up in ((MX4, Q8), (Q4, Q2)) for T in (2, 6)),
    *(gate_up(t, t, T, 21, 70, False, normed=False) for t, T in ((BF16, 1), (Q4, 2), (F16, 6))),
    *(gate_up(t, t, T, 21, 70, False, form=f) for t, T, f in ((BF16, 1, "tanh"), (F32, 6, "erf"), (Q8, 6, "tanh"))),
    *(
        gate_up(t, t, T, 21, 70, True, form=f)
        for t, T, f in ((F16, 6, "sigmoid"), (Q4, 2, "tanh"), (Q4, 6, "erf"), (Q4Z, 2, "erf"))
    ),
    *(gate_up(t, t, T, 21, 70, True, form="tanh") for t, T in ((Q2, 2), (Q2, 6), (MX4, 2), (MX4, 6), (Q6, 2), (Q6, 6))),
    *(qkv((BF16,) * 3, T, 33, 2, 1, 12, normed=True, offset=1.0) for T in (2, 6)),
    *(take_norm_linear(t, 7, R, N, D) for t in TYPES for R, N, D in ((1, 67, 33), (6, 19, 129))),
    *(take_norm_linear(BF16, 7, R, 19, 33, 0.125) for R in (1, 6)),
    *(take_norm_linear(BF16, 7, R, 19, 33, offset=1.0) for R in (1, 3, 6)),
    *(qkv((t, t, t), T, 33, 4, 2, 8, T == 2) for t in TYPES for T in (2, 6)),
    *(qkv((BF16,) * 3, T, 40, 3, 1, 20, True, True, rotated=r) for T in (1, 3, 6) for r in (0, 6, 14)),
    *(qkv((F16, Q4, Q4), T, 40, 2, 1, 32, rotated=24) for T in (2, 7)),
    *(qkv((Q4Z, Q4Z, Q8), T, 40, 3, 1, 20, True, True) for T in (1, 7)),
    *(qkv((Q4, Q4Z, BF16), T, 40, 2, 1, 8) for T in (3, 6)),
    *(qkv((MX4, Q8, Q2), T, 70, 2, 1, 8) for T in (1, 6)),
    *(qkv((BF16,) * 3, 6, 64, 2, 1, 64, rotated=r) for r in (0, 48)),
    *(qkv((BF16,) * 3, T, 40, 3, 1, 20, True, True, rotated=r, interleaved=1) for T in (1, 3, 6) for r in (6, 20)),
    *(qkv((BF16,) * 3, T, 64, 2, 1, C, kv=BF16, rotated=r, interleaved=1) for T, C, r in ((7, 64, 64), (19, 32, 16))),
    *(qkv((BF16,) * 3, T, 40, H, K, C, kv=F16) for T, H, K, C in ((1, 1, 1, 2), (7, 3, 1, 80), (2, 2, 1, 256))),
    *(qkv((Q4, F32, Q8), T, 33, 2, 2, 12, True, True) for T in (2, 6)),
    *(qkv((F16,) * 3, T, 33, 2, 1, C, False, True, BF16) for T, C in ((3, 12), (6, 64))),
]
LONG = [
    *(linear("linear", t, T, 130, 257, True) for t in TYPES for T in (1, 2, 17, 33, 65, 140)),
    *(linear("linear", t, T, 3, 1100, True) for t in TYPES for T in (1, 33)),
    *(each("linear_add_each", t, c, 130, 257, True) for t in TYPES for c in ((1, 1, 1, 1), (0, 33, 1, 17), (70, 64))),
    *(gate_up(t, t, T, 130, 257, False) for t in TYPES for T in (4, 40, 130)),
    *(qkv((t,) * 3, T, 96, 8, 2, 32, kv=BF16) for t in TYPES for T in (4, 70)),
    *(qkv((BF16,) * 3, T, 96, H, K, C, kv=F16) for T in (4, 70) for H, K, C in ((4, 4, 96), (2, 1, 128))),
]

if __name__ == "__main__":
    from tests.device import every_case

    put_cases(every_case.QUICK)
