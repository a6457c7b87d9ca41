"""Kernels of gated delta nets against NumPy: each instruction set, odd shapes, prompts in pieces, state in blocks.

Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device import native
from tests.device.delta_net import Kept, Net, inputs, rows_of
from tests.device.native import WEIGHT_DTYPES, call, empty, random, weight

from coterie.core.dtypes import DType

# Key heads, value heads, K and C of a head, taps. Of the last one what a unit of work keeps lies in two units of state.
SHAPES = [(1, 1, 1, 1, 2), (2, 2, 8, 32, 4), (1, 3, 5, 37, 3), (2, 4, 33, 64, 4), (3, 3, 20, 7, 5), (1, 11, 5, 33, 3)]
STEPS = [[(0, 9), (2, 1)], [(2, 1), (0, 2), (1, 20)], [(0, 1), (1, 1), (2, 1)]]  # sequence and how many of its tokens


class Played:
    """Steps by the kernels, on a slab of their own."""

    def __init__(self, team, rng, net):
        self.team, self.net = team, net
        self.kept, self.lengths = Kept.make(rng, net.shape), [0, 0, 0]

    def step(self, step, x, a, b, z, offset=0.0):
        """What the convolution and the recurrence put out, and the latter behind its norm and gate."""
        (key_heads, heads, K, C, taps), net = self.net.shape, self.net
        positions, sequence = rows_of(step, self.lengths)
        T, N = x.shape
        mixed, y, normed = empty(T, N), empty(T, heads, C), empty(T, heads, C)
        sizes = {"T": T, "B": 3}
        kept = self.kept.operands(positions, sequence, heads)
        call(self.team, "causal_conv", x=x, **net.taps.operand("weight"), y=mixed, N=N, taps=taps, **kept, **sizes)
        own = net.a_log.operand("a_log") | net.dt_bias.operand("dt_bias") | sizes
        own |= {"x": mixed, "a": a, "b": b, "key_heads": key_heads, "H": heads, "K": K, "C": C}
        own |= self.kept.operands(positions, sequence, 0)
        before = self.kept.memory.copy()
        call(self.team, "gated_delta", y=y, **own)
        after = self.kept.memory.copy()
        self.kept.memory[:] = before
        norm = {"z": z, "eps": 1e-6, "offset": offset} | net.norm.operand("norm")
        call(self.team, "gated_delta_norm", y=normed, **norm, **own)
        np.testing.assert_array_equal(self.kept.memory, after)
        return positions, mixed, y, normed


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_numpy(team, rng, shape, dtype):
    net = Net.make(rng, shape, dtype)
    played, pasts, matrices = Played(team, rng, net), [None] * 3, [None] * 3
    for step in STEPS:
        T = sum(count for _, count in step)
        x, a, b = inputs(rng, shape, T)
        z = random(rng, T, shape[1], shape[3])
        positions, mixed, y, normed = played.step(step, x, a, b, z)
        owners = [name for name, count in step for _ in range(count)]
        for t, name in enumerate(owners):
            wanted, pasts[name] = net.convolve(x[t], pasts[name], positions[t])
            np.testing.assert_allclose(mixed[t], wanted, rtol=2e-5, atol=2e-6)
            wanted, matrices[name] = net.step(mixed[t], a[t], b[t], matrices[name], positions[t])
            np.testing.assert_allclose(y[t], wanted, rtol=2e-4, atol=2e-5)
        gated = native.rms_norm(y, net.norm.values, 1e-6) * native.silu(z)
        np.testing.assert_allclose(normed, gated, rtol=1e-4, atol=1e-5)


def test_each_weight_has_its_own_type_and_the_norm_an_offset(team, rng):
    """Inputs so small that what is added to their squares counts, and gates beyond where an exponential is finite."""
    shape = (1, 3, 5, 37, 3)
    taps = weight(rng, (Kept.channels_of(shape), 3), DType.F16, scale=0.5)
    a_log = native.stored(np.array([-6, -2, -6], np.float32), DType.F32)
    dt_bias, norm = weight(rng, (3,), DType.BF16, scale=0.5), weight(rng, (37,), DType.F16, scale=0.5)
    net = Net(shape, taps, a_log, dt_bias, norm)
    (x, a, b), z = inputs(rng, shape, 9), random(rng, 9, 3, 37)
    x *= 1e-3
    a[:, 0] += 40 * (np.arange(9) % 4)
    a[:, 1] += 4
    positions, mixed, y, normed = Played(team, rng, net).step([(0, 9)], x, a, b, z, offset=1.0)
    matrix = None
    for t, position in enumerate(positions):
        wanted, matrix = net.step(mixed[t], a[t], b[t], matrix, position)
        np.testing.assert_allclose(y[t], wanted, rtol=2e-4, atol=2e-4 * np.abs(wanted).max())
    gated = native.rms_norm(y, net.norm.values + 1, 1e-6) * native.silu(z)
    np.testing.assert_allclose(normed, gated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 33, 64, 4), (1, 3, 5, 37, 3)])
def test_bits_do_not_depend_on_pieces_or_on_who_is_beside(team, rng, shape):
    net = Net.make(rng, shape, DType.BF16)
    (x, a, b), z = inputs(rng, shape, 40), random(rng, 40, shape[1], shape[3])
    whole = Played(team, rng, net).step([(0, 40)], x, a, b, z)[1:]
    played, found, at = Played(team, rng, net), [], 0
    for count in (1, 2, 17, 1, 19):
        (ox, oa, ob), oz = inputs(rng, shape, 3), random(rng, 3, shape[1], shape[3])
        part = slice(at, at + count)
        mixed = [np.concatenate(pair) for pair in ((ox, x[part]), (oa, a[part]), (ob, b[part]), (oz, z[part]))]
        found.append([values[3:] for values in played.step([(1, 3), (0, count)], *mixed)[1:]])
        at += count
    for pieces, wanted in zip(zip(*found, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(pieces), wanted)


def test_no_byte_of_others_is_touched(team, rng):
    shape = SHAPES[2]
    played = Played(team, rng, Net.make(rng, shape, DType.F32))
    (x, a, b), z = inputs(rng, shape, 2), random(rng, 2, shape[1], shape[3])
    before = played.kept.memory.copy()
    played.step([(1, 2)], x, a, b, z)
    size, own = played.kept.block_bytes, set(played.kept.tables[1].tolist())
    for block in range(len(before) // size):
        part = slice(block * size, (block + 1) * size)
        assert (played.kept.memory[part] == before[part]).all() or block in own
    units = played.kept.operands(None, None, 0)["first_unit"]  # of layer 0
    starts = [size * played.kept.tables[1][at // 3] + at % 3 * played.kept.unit_bytes for at in range(2 * units)]
    touched = [(played.kept.memory[at : at + played.kept.unit_bytes] != 0xFF).any() for at in starts]
    assert touched == [False] * units + [True] * units


def test_an_empty_step(team, rng):
    shape = SHAPES[1]
    played = Played(team, rng, Net.make(rng, shape, DType.BF16))
    played.step([], *inputs(rng, shape, 0), random(rng, 0, shape[1], shape[3]))


@pytest.mark.parametrize("taps", [2, 3, 4])
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_a_plain_convolution_whose_inputs_are_the_unit(team, rng, dtype, taps):
    """Of more channels than a unit of work has, and no matrix beside them; prompts in pieces and alone alike."""
    shape = (1, 1, taps - 1, 301, taps)  # a unit of taps - 1 rows of 301
    net, N = Net(shape, weight(rng, (301, taps), dtype, scale=0.5), None, None, None), 301
    whole, pieces = (Kept.make(rng, shape) for _ in range(2))
    x, past, lengths = random(rng, 23, N), None, [0] * 3
    wanted = np.empty((23, N))
    for t in range(23):
        wanted[t], past = net.convolve(x[t], past, t, plain=True)

    def convolve(kept, rows, positions, sequence):
        y = empty(len(rows), N)
        at = kept.operands(positions, sequence, 1)
        sizes = {"T": len(rows), "B": 3, "N": N, "taps": taps, "plain": 1}
        call(team, "causal_conv", x=np.ascontiguousarray(rows), **net.taps.operand("weight"), y=y, **at, **sizes)
        return y

    together = convolve(whole, x, *rows_of([(2, 23)], [0] * 3))
    np.testing.assert_allclose(together, wanted, rtol=2e-5, atol=2e-6)
    at = 0
    for count in (1, 2, 17, 3):
        found = convolve(pieces, x[at : at + count], *rows_of([(1, count)], lengths))
        np.testing.assert_array_equal(found, together[at : at + count])
        at += count


@pytest.mark.parametrize("T", [0, 1, 3, 40, 48])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_of_projections_by_key_heads(team, rng, shape, T):
    key_heads, heads, K, C, _ = shape
    qkvz, ba = random(rng, T, 2 * (key_heads * K + heads * C)), random(rng, T, 2 * heads)
    wanted = native.net_parts(qkvz, ba, key_heads, K, C) if T else ()
    found = [empty(T, 2 * key_heads * K + heads * C), empty(T, heads, C), empty(T, heads), empty(T, heads)]
    ends = dict(zip(("x", "z", "a", "b"), found, strict=True))
    call(team, "net_parts", qkvz=qkvz, ba=ba, **ends, T=T, key_heads=key_heads, H=heads, K=K, C=C)
    for mine, right in zip(found, wanted, strict=T > 0):
        np.testing.assert_array_equal(mine, right)


@pytest.mark.parametrize(("T", "H", "C"), [(0, 2, 4), (1, 1, 1), (3, 2, 20), (40, 8, 256)])
def test_gates_of_every_other_head(team, rng, T, H, C):
    both, a = random(rng, T, H, 2, C), random(rng, T, H, C)
    sizes = {"T": T, "N": H * C, "C": C, "x_first": C, "x_step": 2 * C}
    opened, gated, normed = (empty(T, H, C) for _ in range(3))
    call(team, "sigmoid", x=both, y=opened, **sizes)
    call(team, "sigmoid_mul", x=both, a=a, y=gated, **sizes)
    wanted = 1 / (1 + np.exp(-both[:, :, 1].astype(np.float64)))
    np.testing.assert_allclose(opened, wanted, rtol=1e-6)
    np.testing.assert_array_equal(gated, a * opened)
    w = weight(rng, (C,), DType.BF16)
    for first, which in ((0, 0), (C, 1)):
        apart = {"x_first": first, "x_step": 2 * C}
        call(team, "rms_norm", x=both, y=normed, **w.operand("weight"), T=T, per_token=H, C=C, eps=1e-5, **apart)
        np.testing.assert_allclose(normed, native.rms_norm(both[:, :, which], w.values, 1e-5), rtol=1e-5, atol=1e-6)
