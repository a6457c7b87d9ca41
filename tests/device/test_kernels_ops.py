"""Every op's kernel against NumPy: each instruction set, each type, odd shapes, odd addresses.

Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device import native
from tests.device.native import KEPT_DTYPES, WEIGHT_DTYPES, Pages, call, empty, ints, optional, random, weight

from coterie.core.dtypes import DType, from_f32, rounded_to, to_f32
from coterie.kernels import cpu as kernels

CLOSE = {"rtol": 2e-6, "atol": 2e-6}


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(("T", "V", "D"), [(0, 3, 5), (1, 1, 1), (5, 7, 33), (40, 300, 64)])
def test_embed(team, rng, dtype, T, V, D):
    table = weight(rng, (V, D), dtype)
    tokens, y = ints(rng.integers(0, V, T)), empty(T, D)
    call(team, "embed", tokens=tokens, **table.operand("table"), y=y, T=T, D=D)
    np.testing.assert_array_equal(y, table.values[tokens])
    call(team, "embed", tokens=tokens, **table.operand("table"), y=y, T=T, D=D, scale=12.75)
    np.testing.assert_array_equal(y, table.values[tokens] * np.float32(12.75))


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_every_half_is_widened_exactly(team, dtype):
    if dtype is DType.F32:
        pytest.skip("float32 is not widened")
    bits = np.arange(2**16, dtype=np.uint16)
    table, y = bits.view(dtype.numpy).reshape(1024, 64), empty(1024, 64)
    operands = {"table": table, "table_dtype": kernels.dtype_number(dtype), "y": y, "T": 1024, "D": 64}
    call(team, "embed", tokens=ints(np.arange(1024)), **operands)
    expected = to_f32(table, dtype)
    np.testing.assert_array_equal(y, expected)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(y.view(np.uint32)[finite], expected.view(np.uint32)[finite])


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(("T", "H", "C"), [(0, 1, 8), (1, 1, 1), (3, 1, 33), (17, 4, 20), (2, 3, 64)])
def test_rms_norm(team, rng, dtype, T, H, C):
    x, w, y = random(rng, T, H, C), weight(rng, (C,), dtype, center=1.0, scale=0.2), empty(T, H, C)
    for offset in (0.0, 1.0):
        call(team, "rms_norm", x=x, **w.operand("weight"), y=y, T=T, per_token=H, C=C, eps=1e-5, offset=offset)
        np.testing.assert_allclose(y, native.rms_norm(x, w.values, 1e-5, offset), **CLOSE)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("bias", [None, DType.F32, DType.BF16])
@pytest.mark.parametrize(("T", "H", "C"), [(0, 1, 8), (1, 1, 1), (3, 1, 33), (17, 4, 20), (2, 3, 64)])
def test_layer_norm(team, rng, dtype, bias, T, H, C):
    x, w, y = random(rng, T, H, C), weight(rng, (C,), dtype, center=1.0, scale=0.2), empty(T, H, C)
    b = weight(rng, (C,), bias, scale=0.5) if bias else None
    call(team, "layer_norm", x=x, **w.operand("weight"), **optional("bias", b), y=y, T=T, per_token=H, C=C, eps=1e-5)
    np.testing.assert_allclose(y, native.layer_norm(x, w.values, b.values if b else 0, 1e-5), **CLOSE)


@pytest.mark.parametrize("C", [7, 33, 1200])
def test_a_layer_norm_takes_off_a_mean_far_larger_than_what_is_left(team, rng, C):
    """Mean and variance take two passes: the squares of values of 1000 would leave nothing of a variance of 1."""
    x, w, b, y = 1000 + random(rng, 3, C), weight(rng, (C,), DType.F32), weight(rng, (C,), DType.F32), empty(3, C)
    operands = w.operand("weight") | b.operand("bias") | {"T": 3, "per_token": 1, "C": C, "eps": 1e-5}
    call(team, "layer_norm", x=x, y=y, **operands)
    np.testing.assert_allclose(y, native.layer_norm(x, w.values, b.values, 1e-5), rtol=0, atol=2e-4)
    call(team, "layer_norm", x=x, y=x, **operands)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("bias", [None, DType.F32, DType.F16, DType.BF16])
@pytest.mark.parametrize(
    ("T", "N", "K"),
    [(0, 3, 5), (1, 1, 1), (1, 50, 33), (2, 33, 7), (3, 31, 64), (5, 70, 33), (19, 37, 129), (33, 5, 16)],
)
def test_linear(team, rng, dtype, bias, T, N, K):
    x, w, y = random(rng, T, K), weight(rng, (N, K), dtype), empty(T, N)
    b = weight(rng, (N,), bias, scale=1.0) if bias else None
    call(team, "linear", x=x, **w.operand("weight"), **optional("bias", b), y=y, T=T, N=N, K=K)
    expected = x.astype(np.float64) @ w.values.T + (b.values if b else 0)
    np.testing.assert_allclose(y, expected, **CLOSE)
    call(team, "linear", x=x, **w.operand("weight"), **optional("bias", b), y=y, T=T, N=N, K=K, scale=0.22)
    np.testing.assert_allclose(y, np.float64(0.22) * expected, **CLOSE)


@pytest.mark.parametrize(("H", "C"), [(1, 2), (3, 20), (2, 80), (4, 64)])
@pytest.mark.parametrize(("scale", "interleaved"), [(1.0, 0), (1.3, 0), (1.3, 1)])
def test_rope(team, rng, H, C, scale, interleaved):
    positions = ints([0, 1, 2, 31, 1000, 4095, 131071, 7])
    x, y = random(rng, len(positions), H, C), empty(len(positions), H, C)
    inv_freq = (10000.0 ** (-np.arange(0, C, 2) / C)).astype(np.float32)
    for some in (C, C // 2 // 2 * 2):
        ends = {"x": x, "positions": positions, "inv_freq": inv_freq[: some // 2], "y": y}
        how = {"scale": scale, "rotated": some, "interleaved": interleaved}
        call(team, "rope", **ends, T=len(positions), H=H, C=C, **how)
        np.testing.assert_allclose(y, native.rope(x, positions, inv_freq[: some // 2], scale, interleaved), **CLOSE)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(("T", "D"), [(0, 3), (1, 1), (3, 33), (35, 129)])
def test_norm_add(team, rng, dtype, T, D):
    x, residual, w, y = (
        random(rng, T, D),
        random(rng, T, D),
        weight(rng, (D,), dtype, center=1.0, scale=0.3),
        empty(T, D),
    )
    given = {"x": x, "residual": residual, **w.operand("norm"), "eps": 1e-5, "T": T, "D": D, "offset": 0.5}
    call(team, "norm_add", **given, y=y)
    np.testing.assert_allclose(y, wanted := residual + native.rms_norm(x, w.values, 1e-5, 0.5), **CLOSE)
    factor = weight(rng, (1,), dtype, center=-0.7)
    call(team, "norm_add", **given, y=y, **factor.operand("factor"))
    np.testing.assert_allclose(y, wanted * factor.values, **CLOSE)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(("T", "parts", "N"), [(0, 2, 3), (1, 1, 1), (3, 4, 33), (19, 3, 20), (2, 35, 256)])
def test_what_layers_have_of_their_own(team, rng, dtype, T, parts, N):
    a, b, y, factor = random(rng, T, N), random(rng, T, parts, N), empty(T, N), weight(rng, (1,), dtype, center=-0.7)
    for part in {0, parts // 2, parts - 1}:
        call(team, "mul_part", a=a, b=b, y=y, T=T, N=N, b_first=part * N, b_step=parts * N)
        np.testing.assert_array_equal(y, a * b[:, part])
    call(team, "mul_one", x=a, y=y, **factor.operand("weight"), T=T, N=N)
    np.testing.assert_array_equal(y, a * factor.values)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("together", ["", "q", "qk"])
@pytest.mark.parametrize(
    ("T", "H", "K", "C", "rotated", "interleaved", "offset"),
    [
        (1, 1, 1, 2, 2, 0, 0.0),
        (19, 6, 2, 20, 20, 0, 0.5),
        (3, 4, 4, 80, 80, 1, 0.0),
        (5, 3, 1, 20, 6, 0, 1.0),
        (5, 3, 1, 20, 6, 1, 1.0),
        (2, 2, 1, 20, 0, 0, 0.5),
    ],
)
def test_norm_rope_append(team, rng, dtype, together, T, H, K, C, rotated, interleaved, offset):
    q_in, k_in, v, q = random(rng, T, H, C), random(rng, T, K, C), random(rng, T, K, C), empty(T, H, C)
    width = {p: n * C if p in together else C for p, n in (("q", H), ("k", K))}
    norms = {p: weight(rng, (n,), dtype, center=1.0, scale=0.3) for p, n in width.items()}
    pages = Pages.make(rng, 1, T + 5, K=K, C=C, Z=3, dtype=DType.F32)
    positions, scale = ints(np.arange(5, T + 5)), 1.25 if rotated else 1.0
    inv_freq = (10000.0 ** (-np.arange(0, rotated, 2) / C)).astype(np.float32)
    given = norms["q"].operand("q_norm") | norms["k"].operand("k_norm") | pages.operands(positions, ints([0] * T), 1)
    given |= {"q_width": width["q"], "k_width": width["k"], "q_eps": 1e-5, "k_eps": 1e-6, "offset": offset}
    given |= {"inv_freq": inv_freq if rotated else 0, "rotated": rotated, "scale": scale}
    given["interleaved"] = interleaved
    call(team, "norm_rope_append", q_in=q_in, k_in=k_in, v=v, q=q, **given, T=T, H=H, K=K, C=C)

    def turned(x, p, eps):
        normed = native.rms_norm(x.reshape(-1, width[p]), norms[p].values, eps, offset).reshape(x.shape)
        return native.rope(normed, positions, inv_freq, scale, interleaved)

    keys, values = pages.read(1, 0, T + 5)
    np.testing.assert_allclose(q, turned(q_in, "q", 1e-5), **CLOSE)
    np.testing.assert_allclose(keys[5:], turned(k_in, "k", 1e-6), **CLOSE)
    np.testing.assert_array_equal(values[5:], v)
    if "q" not in together:  # then heads may be behind others'
        apart, again = np.stack([random(rng, T, H, C), q_in], axis=2), empty(T, H, C)
        given |= {"q_first": C, "q_step": 2 * C}
        call(team, "norm_rope_append", q_in=apart, k_in=k_in, v=v, q=again, **given, T=T, H=H, K=K, C=C)
        np.testing.assert_array_equal(again, q)


@pytest.mark.parametrize("dtype", KEPT_DTYPES)
@pytest.mark.parametrize(("K", "C", "Z"), [(1, 1, 1), (2, 7, 3), (3, 64, 16), (1, 100, 5)])
def test_kv_append(team, rng, dtype, K, C, Z):
    pages = Pages.make(rng, 2, 40, K=K, C=C, Z=Z, dtype=dtype)
    positions, sequence = ints([*range(40), *range(5, 25)]), ints([0] * 40 + [1] * 20)
    k, v = random(rng, 60, K, C), random(rng, 60, K, C)
    call(team, "kv_append", k=k, v=v, **pages.operands(positions, sequence, 1), T=60, K=K, C=C)
    for s, tokens in ((0, slice(0, 40)), (1, slice(40, 60))):
        stored_k, stored_v = pages.read(1, s, 40 if s == 0 else 25)
        first = 0 if s == 0 else 5
        np.testing.assert_array_equal(stored_k[first:], rounded_to(k[tokens].reshape(-1, C), dtype).reshape(-1, K, C))
        np.testing.assert_array_equal(stored_v[first:], rounded_to(v[tokens].reshape(-1, C), dtype).reshape(-1, K, C))
        assert not pages.read(0, s, 25)[0].any()


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_kv_append_rounds_to_nearest_even(team, dtype):
    edges = [0.0, -0.0, 1e-8, 6e-8, 3e-5, 6.1e-5, 0.1, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-9]
    edges += [65504.0, 65519.9, 65520.0, 1e30, 3.4e38, np.inf, -np.inf, np.nan]
    values = np.array([*edges, *(-np.array(edges))], dtype=np.float32).reshape(-1, 1, 1)
    T = len(values)
    rng = np.random.default_rng(0)
    pages = Pages.make(rng, 1, T, K=1, C=1, Z=5, dtype=dtype)
    operands = pages.operands(ints(range(T)), ints([0] * T), 0)
    call(team, "kv_append", k=values, v=values, **operands, T=T, K=1, C=1)
    with np.errstate(over="ignore"):
        expected = to_f32(from_f32(values[:, 0, 0], dtype), dtype)
    np.testing.assert_array_equal(pages.read(0, 0, T)[0][:, 0, 0], expected)


def test_kv_append_of_numbers_that_8_bits_hardly_hold(team, rng):
    """Rows of one block and of two: zeros, tiny and huge ones, ties, and what is not finite, which spoils its block."""
    ones = np.ones((1, 50), np.float32)
    rows = [0 * ones, -0.0 * ones, 1e-45 * ones, 3e-39 * ones, 3e38 * ones, np.arange(50) * ones / 2, -127 * ones]
    rows += [random(rng, 1, 50) * 10.0**e for e in (-30, -3, 5)]
    for wrong in (np.inf, -np.inf, np.nan):
        rows.append(ones.copy())
        rows[-1][0, 40] = wrong
    values = np.concatenate(rows).astype(np.float32)[:, None]
    pages = Pages.make(rng, 1, len(values), K=1, C=50, Z=3, dtype=DType.KV8)
    operands = pages.operands(ints(range(len(values))), ints([0] * len(values)), 0)
    call(team, "kv_append", k=values, v=-values, **operands, T=len(values), K=1, C=50)
    for found, given in zip(pages.read(0, 0, len(values)), (values, -values), strict=True):
        np.testing.assert_array_equal(found[:, 0], rounded_to(given[:, 0], DType.KV8))
        np.testing.assert_array_equal(np.isnan(found[:, 0]), [[False] * 32 + [i > 9] * 18 for i in range(len(values))])
        for row in (4, 5, 6, 7, 8, 9):
            assert np.abs(found[row] - given[row]).max() <= np.abs(given[row]).max() / 200


def written(pages, rng, chunks, K, C):
    """Fill layer 1 of each (sequence, first, end) up to its end; the positions and sequences of tokens [first, end)."""
    for s, _, end in chunks:
        for p in range(end):
            pages.write(1, s, p, random(rng, K, C), random(rng, K, C))
    positions = ints([p for _, first, end in chunks for p in range(first, end)])
    return positions, ints([s for s, first, end in chunks for _ in range(first, end)])


@pytest.mark.parametrize("dtype", KEPT_DTYPES)
@pytest.mark.parametrize(
    ("H", "K", "C", "Z"), [(1, 1, 1, 1), (4, 1, 7, 3), (6, 3, 20, 16), (2, 2, 80, 5), (8, 2, 64, 4)]
)
@pytest.mark.parametrize("window", [0, 1, 9, 40])
def test_attention(team, rng, dtype, H, K, C, Z, window):
    pages = Pages.make(rng, 3, 100, K=K, C=C, Z=Z, dtype=dtype)
    chunks = [(0, 0, 37), (1, 70, 100), (2, 50, 51)]
    positions, sequence = written(pages, rng, chunks, K, C)
    T = len(positions)
    q, y = random(rng, T, H, C), empty(T, H, C)
    operands = pages.operands(positions, sequence, 1)
    call(team, "attention", q=q, **operands, y=y, T=T, B=3, H=H, K=K, C=C, scale=C**-0.5, window=window)
    expected = native.attention(q, pages, positions, sequence, 1, C**-0.5, window)
    np.testing.assert_allclose(y, expected, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("window", [0, 9])
@pytest.mark.parametrize("cap", [0.7, 50.0])
@pytest.mark.parametrize(("H", "K", "C"), [(4, 1, 7), (6, 3, 20), (8, 2, 64)])
def test_attention_with_a_cap(team, rng, H, K, C, cap, window):
    pages = Pages.make(rng, 3, 300, K=K, C=C, Z=5, dtype=DType.F32)
    chunks = [(0, 0, 37), (1, 290, 300), (2, 50, 51)]
    positions, sequence = written(pages, rng, chunks, K, C)
    T = len(positions)
    q, y = 3 * random(rng, T, H, C), empty(T, H, C)
    operands = pages.operands(positions, sequence, 1) | {"scale": C**-0.5, "window": window, "cap": cap}
    call(team, "attention", q=q, **operands, y=y, T=T, B=3, H=H, K=K, C=C)
    expected = native.attention(q, pages, positions, sequence, 1, C**-0.5, window, cap)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", kernels.GELU_FORMS)
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 33), (20, 1000)])
def test_gelu(team, rng, shape, form):
    x, y = 4 * random(rng, *shape), empty(*shape)
    call(team, "gelu", x=x, y=y, form=kernels.GELU_FORMS.index(form), T=shape[0], N=shape[1])
    np.testing.assert_allclose(y, native.gelu(x, form), rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("form", kernels.GELU_FORMS)
def test_gelu_of_extremes(team, form):
    x = np.array([[-3e38, -1e30, -200.0, -15.0, -1e-30, 0.0, 1e-30, 88.0, 200.0, 1e30, 3e38, np.nan]], dtype=np.float32)
    y = empty(*x.shape)
    call(team, "gelu", x=x, y=y, form=kernels.GELU_FORMS.index(form), T=1, N=x.size)
    np.testing.assert_allclose(y[0, 4:11], np.where(x[0, 4:11] > 1, x[0, 4:11], x[0, 4:11] / 2), rtol=5e-7)
    assert np.all(np.abs(y[0, :4]) <= 1e-7 * np.abs(x[0, :4]))
    assert np.isnan(y[0, 11])


@pytest.mark.parametrize("dtype", native.WEIGHT_DTYPES)
@pytest.mark.parametrize("alphas", [(0.7, -0.4), (100.0, 95.0), (-100.0, -95.0)])
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 33), (2, 9000)])
def test_xielu(team, rng, shape, alphas, dtype):
    """Also near 0 from below, where the exponential is nearly 1, beside `eps` there; numbers whose own has no float."""
    x, y = 4 * random(rng, *shape), empty(*shape)
    x[:, ::3] *= 1e-3
    values = {"alpha_p": alphas[0], "alpha_n": alphas[1], "beta": 0.5, "eps": -0.125}
    weights = {name: weight(rng, (1,), dtype, center=value, scale=0.0) for name, value in values.items()}
    operands = {k: v for name, one in weights.items() for k, v in one.operand(name).items()}
    call(team, "xielu", x=x, y=y, **operands, T=shape[0], N=shape[1])
    wanted = native.xielu(x, *(one.values[0] for one in weights.values()))
    np.testing.assert_allclose(y, wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 33)])
def test_relu_squared(team, rng, shape):
    x, y = 4 * random(rng, *shape), empty(*shape)
    call(team, "relu_squared", x=x, y=y, T=shape[0], N=shape[1])
    np.testing.assert_array_equal(y, np.square(np.maximum(x, 0)))
    extremes = np.array([[-np.inf, -3e38, -0.0, 1e-30, 3e38, np.nan]], dtype=np.float32)
    call(team, "relu_squared", x=extremes, y=(found := empty(1, 6)), T=1, N=6)
    np.testing.assert_array_equal(found, np.array([[0, 0, 0, 0, np.inf, np.nan]], dtype=np.float32))


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_softcap_is_accurate(team, cap):
    x = np.concatenate([np.linspace(-90, 90, 100_001), np.logspace(-30, 0, 1000)]).astype(np.float32)[None]
    y = empty(*x.shape)
    call(team, "softcap", x=x, y=y, T=1, N=x.size, cap=cap)
    np.testing.assert_allclose(y, native.softcap(x, cap), rtol=4e-7, atol=0)
    extremes = np.array([[-np.inf, -3e38, 3e38, np.inf, np.nan]], dtype=np.float32)
    call(team, "softcap", x=extremes, y=(found := empty(1, 5)), T=1, N=5, cap=cap)
    np.testing.assert_array_equal(found, np.array([[-cap, -cap, cap, cap, np.nan]], dtype=np.float32))


@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 33), (20, 1000)])
def test_elementwise(team, rng, shape):
    a, b = 4 * random(rng, *shape), random(rng, *shape)
    sizes = {"T": shape[0], "N": shape[1]}
    total, product, gated = empty(*shape), empty(*shape), empty(*shape)
    call(team, "add", a=a, b=b, y=total, **sizes)
    call(team, "mul", a=a, b=b, y=product, **sizes)
    call(team, "silu", x=a, y=gated, **sizes)
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_array_equal(product, a * b)
    np.testing.assert_allclose(gated, native.silu(a), rtol=5e-7, atol=1e-30)


def test_silu_of_extremes(team):
    x = np.array([[-1e30, -200.0, -88.0, -1e-30, 0.0, 1e-30, 88.0, 200.0, 1e30]], dtype=np.float32)
    y = empty(*x.shape)
    call(team, "silu", x=x, y=y, T=1, N=x.size)
    np.testing.assert_allclose(y[:, 3:], native.silu(x)[:, 3:], rtol=5e-7)
    assert np.all(np.abs(y[:, :3]) < 1e-7 * np.abs(x[:, :3]))


def test_exp_is_accurate(team):
    x = np.linspace(-30, 30, 200_001, dtype=np.float32).reshape(1, -1)
    y = empty(*x.shape)
    call(team, "silu", x=x, y=y, T=1, N=x.size)
    expected = native.silu(x)
    nonzero = x != 0
    assert np.max(np.abs(y[nonzero] / expected[nonzero] - 1)) < 4e-7


def test_take_rows(team, rng):
    x, rows, y = random(rng, 9, 33), ints([8, 0, 3, 3]), empty(4, 33)
    call(team, "take_rows", x=x, rows=rows, y=y, R=4, D=33)
    np.testing.assert_array_equal(y, x[rows])
