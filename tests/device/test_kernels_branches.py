"""Kernels of layers with branches against NumPy: each instruction set, each type, odd shapes, branches nobody takes.

Knows nothing about devices.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from tests.device import native
from tests.device.native import WEIGHT_DTYPES, call, chosen, empty, random, weight
from tests.device.test_kernels_packed import PACKED, both

from coterie.core.dtypes import DType
from coterie.core.packed import MAX_INT8, MAX_INT16, rounded
from coterie.kernels import cpu as kernels

# T tokens, E branches, how many of them a token takes, D and F
SHAPES = [
    *((0, 3, 2, 5, 7), (1, 1, 1, 1, 1), (1, 8, 2, 33, 50), (1, 9, 9, 64, 70), (2, 5, 1, 40, 33)),
    *((3, 4, 2, 16, 9), (5, 7, 3, 129, 31), (20, 3, 2, 35, 40), (45, 6, 6, 33, 37)),
]
ALPHA, LIMIT = 1.702, 0.4  # low enough that much is clipped
LONG = (150, 4, 3, 24, 600)  # tokens of a branch in several tiles, columns in several blocks


def matrices(rng, shape, dtype, count):
    return [both(rng, shape, dtype)[0] if dtype in PACKED else weight(rng, shape, dtype) for _ in range(count)]


def table(weights):
    return np.array([w.address for w in weights], np.int64)


def dtype_of(dtype, most):
    return kernels.dtype_number(dtype, rounded=dtype in PACKED and most == MAX_INT8)


def as_met(x, dtype, most):
    """Rows of activations as packed weights meet them."""
    return rounded(x, dtype, most) if dtype in PACKED else x


def gate_up_wanted(x, weights, gates, ups, dtype, most, act=native.silu, clipped=None):
    """Gates go through `act`, or, with biases [E, F] of gate and up, both are `clipped`."""
    y = np.zeros((len(x), int((weights[:1] != 0).sum()), gates[0].values.shape[0]))
    met = as_met(x, dtype, most).astype(np.float64)
    for t, row in enumerate(weights):
        for place, e in enumerate(np.flatnonzero(row)):
            gate, up = (met[t] @ m[e].values.T for m in (gates, ups))
            if clipped:
                gate, up = (one + bias.values[e] for one, bias in zip((gate, up), clipped, strict=True))
            y[t, place] = native.clipped(gate, up, ALPHA, LIMIT) if clipped else act(gate) * up
    return y


def down_wanted(x, weights, downs, dtype, most):
    y = np.zeros((len(x), downs[0].values.shape[0]))
    for t, row in enumerate(weights):
        for place, e in enumerate(np.flatnonzero(row)):
            y[t] += row[e] * (as_met(x[t, place][None], dtype, most)[0].astype(np.float64) @ downs[e].values.T)
    return y


def block(team, rng, shape, dtype, most=MAX_INT16):
    """A whole block by the kernels: its operands, and what came out of each kernel."""
    T, E, taken, D, F = shape
    x, weights, residual = random(rng, T, D), chosen(rng, T, E, taken), random(rng, T, D)
    gates, ups, downs = (matrices(rng, s, dtype, E) for s in ((F, D), (F, D), (D, F)))
    inner, y, added = empty(T, taken, F), empty(T, D), empty(T, D)
    sizes = {"T": T, "E": E, "taken": taken, "D": D, "F": F, "dtype": dtype_of(dtype, most), "weights": weights}
    up, down = table(gates + ups), table(downs)
    call(team, "branch_gate_up", x=x, branches=up, y=inner, **sizes)
    call(team, "branch_down", x=inner, branches=down, y=y, **sizes)
    call(team, "branch_down_add", x=inner, branches=down, y=added, residual=residual, **sizes)

    def alone(t):
        """One token's, by itself."""
        one = sizes | {"T": 1, "weights": weights[t : t + 1].copy()}
        mine, out = empty(1, taken, F), empty(1, D)
        call(team, "branch_gate_up", x=x[t : t + 1].copy(), branches=up, y=mine, **one)
        call(team, "branch_down", x=mine, branches=down, y=out, **one)
        return mine, out

    return (x, weights, residual, gates, ups, downs), (inner, y, added), alone


def check(operands, found, dtype, most, tolerance):
    (x, weights, residual, gates, ups, downs), (inner, y, added) = operands, found
    close = {"rtol": tolerance, "atol": tolerance}
    if len(x):
        np.testing.assert_allclose(inner, gate_up_wanted(x, weights, gates, ups, dtype, most), **close)
        np.testing.assert_allclose(y, down_wanted(inner, weights, downs, dtype, most), **close)
    np.testing.assert_array_equal(added, residual + y)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, LONG])
def test_branches(team, rng, shape, dtype):
    operands, found, _ = block(team, rng, shape, dtype)
    check(operands, found, dtype, MAX_INT16, 4e-6)


@pytest.mark.parametrize("form", kernels.GELU_FORMS)
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32, DType.Q8])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], *SHAPES[5:]])
def test_branches_with_gelu(team, rng, shape, dtype, form):
    T, E, taken, D, F = shape
    x, weights, y = random(rng, T, D), chosen(rng, T, E, taken), empty(T, taken, F)
    gates, ups = (matrices(rng, (F, D), dtype, E) for _ in range(2))
    sizes = {"T": T, "E": E, "taken": taken, "D": D, "F": F, "dtype": dtype_of(dtype, MAX_INT16), "weights": weights}
    how = {"form": kernels.GELU_FORMS.index(form), "branches": table(gates + ups)}
    call(team, "branch_gate_up_gelu", x=x, y=y, **sizes, **how)
    if T:
        wanted = gate_up_wanted(x, weights, gates, ups, dtype, MAX_INT16, partial(native.gelu, form=form))
        np.testing.assert_allclose(y, wanted, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(("T", "E", "taken"), [(0, 3, 2), (1, 1, 1), (5, 12, 3), (9, 61, 8)])
def test_what_a_branch_weighs_is_times_its_own_factor(team, rng, dtype, T, E, taken):
    """Some factors are below 0, and one is 0: what is taken never weighs 0."""
    logits, y, plain = 2 * random(rng, T, E), empty(T, E), empty(T, E)
    factors = weight(rng, (E,), dtype, center=0.5)
    how = {"logits": logits, "T": T, "E": E, "top_k": taken, "normalise": 1, "scale": 1.0}
    call(team, "choose_branches", **how, y=plain)
    call(team, "choose_branches", **how, y=y, **factors.operand("factors"))
    np.testing.assert_allclose(y, plain * factors.values, rtol=2e-6)
    none = weight(rng, (E,), dtype, center=0.0, scale=0.0)
    call(team, "choose_branches", **how, y=y, **none.operand("factors"))
    np.testing.assert_array_equal(y, np.where(plain != 0, np.float32(1e-30), 0))


@pytest.mark.parametrize("most", [MAX_INT16, MAX_INT8])
@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_branches(team, rng, shape, dtype, most):
    operands, found, _ = block(team, rng, shape, dtype, most)
    check(operands, found, dtype, most, 4e-6)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32, DType.MX4, DType.Q8])
@pytest.mark.parametrize("shape", [(1, 9, 4, 64, 70), (3, 4, 2, 16, 9), (45, 6, 6, 33, 37)])
def test_clipped_branches_with_biases(team, rng, shape, dtype):
    T, E, taken, D, F = shape
    x, weights, y = random(rng, T, D), chosen(rng, T, E, taken), empty(T, taken, F)
    gates, ups = (matrices(rng, (F, D), dtype, E) for _ in range(2))
    gate_bias, up_bias = (weight(rng, (E, F), kind, scale=0.5) for kind in (DType.BF16, DType.F32))
    sizes = {"T": T, "E": E, "taken": taken, "D": D, "F": F, "dtype": dtype_of(dtype, MAX_INT16), "weights": weights}
    sizes |= gate_bias.operand("gate_bias") | up_bias.operand("up_bias") | {"alpha": ALPHA, "limit": LIMIT}
    call(team, "branch_gate_up_clipped", x=x, branches=table(gates + ups), y=y, **sizes)
    wanted = gate_up_wanted(x, weights, gates, ups, dtype, MAX_INT16, clipped=(gate_bias, up_bias))
    np.testing.assert_allclose(y, wanted, rtol=4e-6, atol=4e-6)


def test_what_is_no_number_is_not_clipped(team, rng):
    """Neither of gate nor of up."""
    x, weights, y = random(rng, 1, 3), np.ones((1, 1), np.float32), empty(1, 1, 3)
    both, none = matrices(rng, (3, 3), DType.F32, 2), np.float32(np.nan)
    biases = {"gate_bias": np.array([none, 0, 0], np.float32), "up_bias": np.array([0, none, 0], np.float32)}
    sizes = {"T": 1, "E": 1, "taken": 1, "D": 3, "F": 3, "dtype": 0, "weights": weights, "alpha": ALPHA, "limit": LIMIT}
    sizes |= biases | {"gate_bias_dtype": 0, "up_bias_dtype": 0}
    call(team, "branch_gate_up_clipped", x=x, branches=table(both), y=y, **sizes)
    assert np.isnan(y[0, 0]).tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(("T", "E", "taken", "D"), [(0, 3, 2, 5), (1, 1, 1, 1), (3, 8, 2, 33), (40, 6, 6, 64)])
def test_add_branch_bias(team, rng, dtype, T, E, taken, D):
    x, weights, bias, y = random(rng, T, D), chosen(rng, T, E, taken), weight(rng, (E, D), dtype), empty(T, D)
    call(team, "add_branch_bias", x=x, weights=weights, **bias.operand("bias"), y=y, T=T, E=E, D=D)
    np.testing.assert_allclose(y, x + weights.astype(np.float64) @ bias.values, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32, *PACKED])
@pytest.mark.parametrize("shape", [(5, 7, 3, 129, 31), LONG])
def test_a_token_has_the_same_bits_alone(team, rng, shape, dtype):
    _held, (inner, y, _), alone = block(team, rng, shape, dtype)
    for t in (0, 1, shape[0] // 2, shape[0] - 1):
        for mine, together in zip(alone(t), (inner[t], y[t]), strict=True):
            np.testing.assert_array_equal(mine[0], together)


@pytest.mark.parametrize("isa", kernels.ISAS)
@pytest.mark.parametrize("shape", [(2, 16, 2, 33, 50), (132, 3, 2, 16, 600)])
def test_no_more_scratch_is_taken_than_asked_for(rng, isa, shape):
    """Of a team that nothing larger was asked of before; once with as many tokens of a branch as a tile has."""
    team = kernels.Team(1, isa)
    operands, found, _ = block(team, rng, shape, DType.BF16)
    check(operands, found, DType.BF16, MAX_INT16, 4e-6)
    assert 0 < team.counters().scratch_bytes <= team.memory_bytes


@pytest.mark.parametrize(("T", "E", "top_k"), [(0, 3, 2), (1, 1, 1), (3, 8, 8), (17, 5, 1), (40, 61, 8), (2, 128, 8)])
@pytest.mark.parametrize("normalise", [0, 1])
def test_choose_branches(team, rng, T, E, top_k, normalise):
    logits, y = 2 * random(rng, T, E), empty(T, E)
    call(team, "choose_branches", logits=logits, y=y, T=T, E=E, top_k=top_k, normalise=normalise, scale=0.7)
    np.testing.assert_allclose(y, native.choice(logits, top_k, normalise, 0.7), rtol=2e-6)


SIGMOID = {"sigmoid": 1, "least_sum": 1e-20}
CHOICES = {
    "scores": SIGMOID,
    "two groups of four by two": SIGMOID | {"groups": 4, "taken_groups": 2, "group_best": 2},
    "a sum with something added": {"sigmoid": 1, "added_sum": 0.25},
    "three groups by one": {"groups": 6, "taken_groups": 3, "group_best": 1},
}


@pytest.mark.parametrize("normalise", [0, 1])
@pytest.mark.parametrize("dtype", [None, DType.F32, DType.BF16])
@pytest.mark.parametrize("how", CHOICES)
def test_every_kind_of_choice(team, rng, how, dtype, normalise):
    """The bias ranks branches and weighs none, so that one of them may weigh little."""
    T, E = 19, 36
    logits, y = 2 * random(rng, T, E), empty(T, E)
    bias = weight(rng, (E,), dtype) if dtype else None
    given = bias.operand("bias") if bias else {}
    sizes = {"T": T, "E": E, "top_k": 7, "normalise": normalise, "scale": 2.5}
    call(team, "choose_branches", logits=logits, y=y, **sizes, **CHOICES[how], **given)
    wanted = native.choice(logits, 7, normalise, 2.5, bias.values if bias else None, **CHOICES[how])
    np.testing.assert_allclose(y, wanted, rtol=2e-6)
    if bias:
        assert ((y != 0) != (native.choice(logits, 7, normalise, **CHOICES[how]) != 0)).any()


def test_of_equal_groups_the_first_are_taken_and_a_sum_has_a_least(team):
    """Scores of nearly 0, so that the bias alone ranks: groups by 3, 3, 4 and 3, and of the branches four alike."""
    logits, bias, y = np.full((1, 12), -60, np.float32), np.zeros(12, np.float32), empty(1, 12)
    bias[[1, 3, 4, 6, 7, 11]] = [3, 1.5, 1.5, 2, 2, 3]
    how = {"sigmoid": 1, "least_sum": 1e-12, "groups": 4, "taken_groups": 2, "group_best": 2, "bias": bias}
    call(team, "choose_branches", logits=logits, y=y, T=1, E=12, top_k=4, normalise=1, scale=1.0, bias_dtype=0, **how)
    assert np.flatnonzero(y).tolist() == [0, 1, 6, 7]
    np.testing.assert_allclose(y[y != 0], np.exp(-60.0) / 1e-12, rtol=1e-5)


def test_of_equal_branches_the_first_are_taken_and_none_that_is_taken_has_a_weight_of_0(team):
    logits, y = np.zeros((3, 5), np.float32), empty(3, 5)
    logits[1] = [-300, 0, -400, -500, -300]
    logits[2] = [-300, 0, -1, -300, -300]  # so far apart that it matters which one is the largest
    call(team, "choose_branches", logits=logits, y=y, T=3, E=5, top_k=3, normalise=1, scale=1.0)
    taken = [[True, True, True, False, False], [True, True, False, False, True], [True, True, True, False, False]]
    np.testing.assert_array_equal(y != 0, taken)
    np.testing.assert_allclose(y[0, :3], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(y[1], [1e-30, 1, 0, 0, 1e-30], rtol=1e-6)
    np.testing.assert_allclose(y[2, :3], [1e-30, 1 / (1 + np.exp(-1)), 1 / (1 + np.e)], rtol=1e-6)


def test_what_is_no_number_stays_none(team):
    logits, y = np.array([[1.0, np.nan, 2.0]], np.float32), empty(1, 3)
    call(team, "choose_branches", logits=logits, y=y, T=1, E=3, top_k=2, normalise=0, scale=1.0)
    assert np.isnan(y).sum() == 2
