"""Kernels of selective state spaces against NumPy: all instruction sets, odd shapes, prompts in pieces.

Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device import native
from tests.device.delta_net import Kept, rows_of
from tests.device.native import WEIGHT_DTYPES, call, empty, random, weight
from tests.device.scan import Space, inputs

from coterie.core.dtypes import DType

# Groups, heads, K and C of a head, taps. Of the last one what a unit of work keeps lies in two units of state.
SHAPES = [(1, 1, 1, 2, 2), (2, 2, 8, 32, 4), (1, 3, 5, 37, 3), (2, 4, 33, 64, 4), (3, 3, 20, 7, 5), (1, 11, 5, 33, 3)]
STEPS = [[(0, 9), (2, 1)], [(2, 1), (0, 2), (1, 20)], [(0, 1), (1, 1), (2, 1)]]  # sequence and how many of its tokens


class Played:
    """Steps by the kernels, on a slab of their own."""

    def __init__(self, team, rng, space):
        self.team, self.space = team, space
        self.kept, self.lengths = Kept.make(rng, space.shape), [0, 0, 0]

    def step(self, step, x, dt, z):
        """What the convolution, the recurrence, and the latter behind its gate put out."""
        (groups, heads, K, C, taps), space = self.space.shape, self.space
        positions, sequence = rows_of(step, self.lengths)
        T, N = x.shape
        mixed, y, gated = empty(T, N), empty(T, heads, C), empty(T, heads, C)
        sizes, kept = {"T": T, "B": 3}, self.kept.operands(positions, sequence, heads)
        own = space.taps.operand("weight") | space.conv_bias.operand("bias")
        call(self.team, "causal_conv", x=x, **own, y=mixed, N=N, taps=taps, **kept, **sizes)
        own = space.a_log.operand("a_log") | space.dt_bias.operand("dt_bias") | space.skip.operand("skip") | sizes
        own |= {"x": mixed, "dt": dt, "groups": groups, "H": heads, "K": K, "C": C}
        own |= dict(zip(("least", "most"), space.bounds, strict=True)) | self.kept.operands(positions, sequence, 0)
        before = self.kept.memory.copy()
        call(self.team, "selective_scan", y=y, **own)
        after = self.kept.memory.copy()
        self.kept.memory[:] = before
        call(self.team, "selective_scan_gate", y=gated, z=z, **own)
        np.testing.assert_array_equal(self.kept.memory, after)
        return positions, mixed, y, gated


def check(space, played, steps, rng):
    pasts, matrices = [None] * 3, [None] * 3
    for step in steps:
        x, dt, z = inputs(rng, space.shape, sum(count for _, count in step))
        positions, mixed, y, gated = played.step(step, x, dt, z)
        for t, name in enumerate(name for name, count in step for _ in range(count)):
            wanted, pasts[name] = space.convolve(x[t], pasts[name], positions[t])
            np.testing.assert_allclose(mixed[t], wanted, rtol=2e-5, atol=2e-6)
            wanted, matrices[name] = space.step(mixed[t], dt[t], matrices[name], positions[t])
            np.testing.assert_allclose(y[t], wanted, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(gated, y * native.silu(z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_numpy(team, rng, shape, dtype):
    space = Space.make(rng, shape, dtype)
    check(space, Played(team, rng, space), STEPS, rng)


def test_steps_have_bounds(team, rng):
    """Of random steps about a third are below the one bound, and a third above the other."""
    space = Space.make(rng, (1, 3, 5, 37, 3), DType.F32, bounds=(0.5, 0.9))
    check(space, Played(team, rng, space), STEPS, rng)


def test_each_weight_has_its_own_type(team, rng):
    """And steps from beyond where an exponential is finite."""
    shape = (1, 3, 5, 37, 3)
    made = Space.make(rng, shape, DType.F16)
    made.a_log = native.stored(np.array([-6, -2, 1], np.float32), DType.F32)
    made.dt_bias = native.stored(np.array([95, -2, -95], np.float32), DType.BF16)
    check(made, Played(team, rng, made), STEPS, rng)


@pytest.mark.parametrize("shape", [(2, 4, 33, 64, 4), (1, 3, 5, 37, 3)])
def test_bits_do_not_depend_on_pieces_or_on_who_is_beside(team, rng, shape):
    space, made = Space.make(rng, shape, DType.BF16), inputs(rng, shape, 40)
    whole = Played(team, rng, space).step([(0, 40)], *made)[1:]
    played, found, at = Played(team, rng, space), [], 0
    for count in (1, 2, 17, 1, 19):
        others, part = inputs(rng, shape, 3), slice(at, at + count)
        mixed = [np.concatenate([other, own[part]]) for other, own in zip(others, made, strict=True)]
        found.append([values[3:] for values in played.step([(1, 3), (0, count)], *mixed)[1:]])
        at += count
    for pieces, wanted in zip(zip(*found, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(pieces), wanted)


def test_an_empty_step(team, rng):
    space = Space.make(rng, SHAPES[1], DType.BF16)
    Played(team, rng, space).step([], *inputs(rng, SHAPES[1], 0))


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(("T", "groups", "C"), [(0, 2, 4), (1, 1, 1), (3, 2, 20), (40, 3, 37), (7, 8, 64)])
def test_norm_in_groups(team, rng, dtype, T, groups, C):
    x, y, w = random(rng, T, groups * C), empty(T, groups * C), weight(rng, (groups * C,), dtype)
    call(team, "group_norm", x=x, y=y, **w.operand("weight"), T=T, groups=groups, C=C, eps=1e-5)
    rows = x.astype(np.float64).reshape(T, groups, C)
    wanted = rows / np.sqrt(np.square(rows).mean(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, wanted.reshape(T, groups * C) * w.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("T", "N"), [(0, 4), (1, 1), (3, 20), (40, 37)])
def test_a_factor_for_each_channel(team, rng, T, N):
    x, row, y = random(rng, T, N), random(rng, N), empty(T, N)
    call(team, "mul_row", x=x, row=row, y=y, T=T, N=N)
    np.testing.assert_array_equal(y, x * row)
