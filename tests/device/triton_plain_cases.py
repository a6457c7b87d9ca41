"""Cases of what multiplies no matrix: embeddings, norms, rotation, what is done number by number. See triton_cases.py.

Knows nothing about programs.
"""

from __future__ import annotations

import numpy as np
from tests.device import native
from tests.device.interpreted import call
from tests.device.native import Pages, empty, ints, optional, random
from tests.device.triton_cases import (
    BARE,
    BF16,
    EXACT,
    F16,
    F32,
    LAYER,
    Q4,
    TYPES,
    Case,
    begun,
    frequencies,
    tokens,
    turned,
    weight,
)

from coterie.core.dtypes import from_f32, to_f32
from coterie.kernels import cpu as kernels


def embed(dtype, T, V, D, scale=1.0):
    def run(rng):
        w, ids, y = weight(rng, (V, D), dtype), ints(rng.integers(0, V, T)), empty(T, D)
        call("embed", tokens(T), tokens=ids, **w.operand("table"), y=y, T=T, D=D, scale=scale)
        return [(y, w.values[ids] * np.float32(scale))]

    scaled = f", scale {scale:g}" if scale != 1.0 else ""
    return Case("embed", dtype.value, f"T {T}, V {V}, D {D}{scaled}", 0.0, run)


def rms_norm(dtype, T, per_token, C):
    def run(rng):
        w, x, y = weight(rng, (C,), dtype, 1.0, 0.1), random(rng, T, per_token, C), empty(T, per_token, C)
        sizes = {"T": T, "per_token": per_token, "C": C}
        call("rms_norm", tokens(T), x=x, **w.operand("weight"), y=y, **sizes, eps=1e-5, offset=0.25)
        return [(y, native.rms_norm(x, w.values, 1e-5, 0.25))]

    return Case("rms_norm", dtype.value, f"T {T}, {per_token} x {C}", EXACT, run)


def layer_norm(dtype, bias, T, per_token, C):
    def run(rng):
        w, x, y = weight(rng, (C,), dtype, 1.0, 0.1), 3 + random(rng, T, per_token, C), empty(T, per_token, C)
        b = weight(rng, (C,), bias, scale=0.5) if bias else None
        sizes = {"T": T, "per_token": per_token, "C": C}
        weights = w.operand("weight") | optional("bias", b)
        call("layer_norm", tokens(T), x=x, **weights, y=y, **sizes, eps=1e-5)
        return [(y, native.layer_norm(x, w.values, b.values if b else 0, 1e-5))]

    return Case("layer_norm", dtype.value, f"T {T}, {per_token} x {C}{', bias' * bool(bias)}", EXACT, run)


def rope(T, H, C, rotated=None, interleaved=0):
    rotated = C if rotated is None else rotated

    def run(rng):
        x, y, positions = random(rng, T, H, C), empty(T, H, C), ints(rng.integers(0, 4000, T))
        inv_freq = frequencies(rotated)
        ends = {"x": x, "positions": positions, "inv_freq": inv_freq, "y": y}
        call("rope", tokens(T), **ends, T=T, H=H, C=C, scale=1.5, rotated=rotated, interleaved=interleaved)
        return [(y, native.rope(x, positions, inv_freq, 1.5, interleaved))]

    return Case("rope", "F32", f"T {T}, H {H}, C {C}{turned(rotated, C, interleaved)}", EXACT, run)


def kv_append(dtype, T, K, C):
    def run(rng):
        pages = Pages.make(rng, 2, 9, K=K, C=C, Z=4, dtype=dtype)
        k, v = random(rng, T, K, C), random(rng, T, K, C)
        positions, sequence = ints(np.arange(T)), ints(np.arange(T) % 2)
        call("kv_append", tokens(T), k=k, v=v, **pages.operands(positions, sequence, 1), T=T, K=K, C=C)
        stored = [pages.read(1, s, T) for s in (0, 1)]
        got = [np.stack([stored[t % 2][part][t] for t in range(T)]) for part in (0, 1)]
        return [(g, to_f32(from_f32(x, dtype), dtype)) for g, x in zip(got, (k, v), strict=True)]

    return Case("kv_append", dtype.value, f"T {T}, K {K}, C {C}", 0.0, run)


def elementwise(kernel, T, N):
    def run(rng):
        a, b, y = 3 * random(rng, T, N), random(rng, T, N), empty(T, N)
        ends = {"a": a, "b": b} if kernel in ("add", "mul") else {"x": a}
        call(kernel, tokens(T), **ends, y=y, T=T, N=N)
        return [
            (
                y,
                {"add": a + b, "mul": a * b, "silu": native.silu(a), "relu_squared": np.square(np.maximum(a, 0))}[
                    kernel
                ],
            )
        ]

    return Case(kernel, "F32", f"T {T}, N {N}", EXACT, run)


def xielu(dtype, T, N):
    def run(rng):
        x, y = 3 * random(rng, T, N), empty(T, N)
        values = {"alpha_p": 0.7, "alpha_n": -0.4, "beta": 0.5, "eps": -0.125}
        found = {name: weight(rng, (1,), dtype, value, 1e-9) for name, value in values.items()}
        operands = {k: v for name, one in found.items() for k, v in one.operand(name).items()}
        call("xielu", tokens(T), x=x, y=y, **operands, T=T, N=N)
        return [(y, native.xielu(x, *(one.values[0] for one in found.values())))]

    return Case("xielu", dtype.value, f"T {T}, N {N}", EXACT, run)


def gelu(form, T, N):
    def run(rng):
        x, y = 3 * random(rng, T, N), empty(T, N)
        call("gelu", tokens(T), x=x, y=y, form=kernels.GELU_FORMS.index(form), T=T, N=N)
        return [(y, native.gelu(x, form))]

    return Case("gelu", "F32", f"{form}, T {T}, N {N}", EXACT, run)


def softcap(cap, T, N):
    def run(rng):
        x, y = 3 * random(rng, T, N), empty(T, N)
        call("softcap", tokens(T), x=x, y=y, cap=cap, T=T, N=N)
        return [(y, native.softcap(x, cap))]

    return Case("softcap", "F32", f"cap {cap:g}, T {T}, N {N}", EXACT, run)


def take_rows(T, R, D):
    def run(rng):
        x, rows, y = random(rng, T, D), ints(rng.integers(0, T, R)), empty(R, D)
        call("take_rows", tokens(T, R), x=x, rows=rows, y=y, R=R, D=D)
        return [(y, x[rows])]

    return Case("take_rows", "F32", f"T {T}, R {R}, D {D}", 0.0, run)


def mul_part(T, parts, N, part):
    def run(rng):
        a, b, y = random(rng, T, N), random(rng, T, parts, N), empty(T, N)
        call("mul_part", tokens(T), a=a, b=b, y=y, T=T, N=N, b_first=part * N, b_step=parts * N)
        return [(y, a * b[:, part])]

    return Case("mul_part", "F32", f"T {T}, part {part} of {parts}, N {N}", EXACT, run)


def mul_one(dtype, T, N):
    def run(rng):
        x, factor, y = random(rng, T, N), weight(rng, (1,), dtype, 1.0, 0.3), empty(T, N)
        call("mul_one", tokens(T), x=x, **factor.operand("weight"), y=y, T=T, N=N)
        return [(y, x * factor.values)]

    return Case("mul_one", dtype.value, f"T {T}, N {N}", EXACT, run)


def norm_add(dtype, T, D, layer="", offset=1.0, times=False):
    """`times`: with a factor of the sum."""

    def run(rng):
        x, residual, y, norm = random(rng, T, D), random(rng, T, D), empty(T, D), weight(rng, (D,), dtype, 1.0, 0.3)
        factor = weight(rng, (1,), dtype, 1.0, 0.3) if times else None
        how, does = norm.operand("norm") | {"offset": offset}, lambda x: native.rms_norm(x, norm.values, 1e-5, offset)
        if layer:
            how, does = begun(rng, D, layer)
        ends = {"x": x, "residual": residual, **how, **optional("factor", factor), "y": y}
        call("norm_add", tokens(T), **ends, eps=1e-5, T=T, D=D)
        return [(y, (residual + does(x.astype(np.float64))) * (factor.values if factor else 1.0))]

    extra = f", {layer}" * bool(layer) + ", times a number" * times
    return Case("norm_add", dtype.value, f"T {T}, D {D}{extra}", EXACT, run)


def norm_rope_append(dtype, T, H, K, C, together, rotated=None, offset=0.0, interleaved=0, of_k=None):
    """`together`: whose heads are normed as one, of "q" and "k"; `of_k`: the type of k's norm where it differs."""
    rotated, of_k = C if rotated is None else rotated, of_k or dtype

    def run(rng):
        inputs = {"q_in": random(rng, T, H, C), "k_in": random(rng, T, K, C), "v": random(rng, T, K, C)}
        width = {p: n * C if p in together else C for p, n in (("q", H), ("k", K))}
        norms = {p: weight(rng, (n,), of_k if p == "k" else dtype, 1.0, 0.3) for p, n in width.items()}
        pages, q = Pages.make(rng, 2, T, K=K, C=C, Z=3, dtype=F32), empty(T, H, C)
        positions, sequence = ints(np.arange(T)), ints(np.arange(T) // max(T - 1, 1))
        inv_freq, scale = frequencies(rotated), 1.25 if rotated else 1.0
        given = inputs | norms["q"].operand("q_norm") | norms["k"].operand("k_norm")
        given |= {f"{p}_width": n for p, n in width.items()} | {"q_eps": 1e-5, "k_eps": 1e-6, "q": q, "offset": offset}
        given |= {"inv_freq": inv_freq if rotated else 0, "scale": scale, "rotated": rotated}
        given["interleaved"] = interleaved
        call("norm_rope_append", tokens(T), **given, **pages.operands(positions, sequence, 1), T=T, H=H, K=K, C=C)
        made = {}
        for p, eps in (("q", 1e-5), ("k", 1e-6)):
            x = inputs[f"{p}_in"].astype(np.float64)
            normed = native.rms_norm(x.reshape(-1, width[p]), norms[p].values, eps, offset).reshape(x.shape)
            made[p] = native.rope(normed, positions, inv_freq, scale, interleaved)
        read = [pages.read(1, s, T) for s in (0, 1)]
        stored = [np.stack([read[sequence[t]][part][t] for t in range(T)]) for part in (0, 1)]
        return [(q, made["q"]), (stored[0], made["k"]), (stored[1], inputs["v"])]

    over = {"": "each head", "qk": "all heads"}.get(together, f"all heads of {together}")
    extra = turned(rotated, C, interleaved) + f", offset {offset:g}" * bool(offset)
    types = dtype.value if of_k is dtype else f"{dtype.value}, {of_k.value}"
    return Case("norm_rope_append", types, f"T {T}, H {H}, K {K}, C {C}, {over}{extra}", EXACT, run)


QUICK = [
    *(embed(dtype, T, V, D) for dtype in TYPES for T, V, D in ((1, 1, 1), (5, 7, 133))),
    *(embed(dtype, 3, 5, 70, 12.3) for dtype in (BF16, Q4)),
    *(rms_norm(dtype, T, P, C) for dtype, T, P, C in ((F32, 1, 1, 1), (F16, 3, 2, 20), (BF16, 2, 1, 1100))),
    *(
        layer_norm(t, b, T, P, C)
        for t, b, T, P, C in ((F32, F32, 1, 1, 1), (F16, BF16, 3, 2, 20), (BF16, None, 2, 1, 1100))
    ),
    *(norm_add(t, 3, 133, layer) for t, layer in ((BF16, LAYER), (F32, BARE))),
    *(rope(T, H, C) for T, H, C in ((0, 1, 2), (1, 1, 2), (5, 3, 20), (2, 2, 256))),
    *(rope(3, 3, C, rotated) for C, rotated in ((20, 6), (128, 96))),
    *(rope(T, H, C, rotated, 1) for T, H, C, rotated in ((1, 1, 2, 2), (5, 3, 20, 20), (3, 3, 20, 6), (2, 2, 128, 64))),
    *(kv_append(dtype, 5, K, C) for dtype, K, C in ((F32, 1, 1), (F16, 3, 20), (BF16, 2, 128))),
    *(elementwise(kernel, T, N) for kernel in ("add", "mul", "silu") for T, N in ((0, 3), (1, 1), (3, 1100))),
    elementwise("relu_squared", 3, 133),
    *(xielu(t, T, N) for t, T, N in ((F32, 1, 1), (BF16, 3, 133), (F16, 2, 70))),
    *(take_rows(T, R, D) for T, R, D in ((3, 0, 5), (1, 1, 1), (5, 7, 1100))),
    *(norm_add(t, T, D) for t, T, D in ((F32, 1, 1), (F16, 3, 133), (BF16, 2, 1100))),
    norm_rope_append(BF16, 4, 3, 1, 20, "qk"),
    *(norm_rope_append(t, 2, H, K, 6, together) for t, H, K, together in ((F16, 4, 4, ""), (F32, 5, 5, "qk"))),
    norm_rope_append(F16, 1, 3, 2, 12, "q", offset=0.75),
    norm_rope_append(BF16, 2, 3, 2, 12, "", of_k=F32),
    *(norm_rope_append(BF16, 3, 3, 1, 20, together, r, 1.0) for together, r in (("", 0), ("qk", 6), ("k", 14))),
    *(norm_rope_append(F16, 3, 3, 1, 20, together, r, 1.0, 1) for together, r in (("", 20), ("qk", 6))),
    *(gelu(form, T, N) for form, T, N in (("erf", 3, 133), ("tanh", 2, 1100), ("sigmoid", 1, 7))),
    *(softcap(cap, T, N) for cap, T, N in ((0.7, 3, 133), (30.0, 2, 1100))),
    *(mul_part(T, parts, N, part) for T, parts, N, part in ((0, 2, 3, 1), (1, 1, 1, 0), (5, 3, 70, 2), (2, 4, 256, 1))),
    *(mul_one(t, T, N) for t, T, N in ((F32, 0, 3), (BF16, 1, 1), (F16, 3, 1100))),
    *(norm_add(t, T, D, offset=0.0, times=True) for t, T, D in ((BF16, 1, 133), (F32, 3, 70))),
]
LONG = [mul_part(3, 35, 256, 34)]
