"""Kernels of recurrences against NumPy: each instruction set, odd shapes, prompts in pieces, state in blocks.

Knows nothing about devices.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from tests.device import native
from tests.device.native import WEIGHT_DTYPES, call, empty, random, weight
from tests.device.recurrences import CONV, SEQUENCES, Kept, Net, Space, convolved, rows_of, stepped

from coterie.core.dtypes import DType

# Key heads or groups, heads, K and C of a head, taps. Of the last one what a unit of work keeps lies in two units of
# state.
SHAPES = [(2, 2, 8, 32, 4), (1, 3, 5, 37, 3), (2, 4, 33, 64, 4), (3, 3, 20, 7, 5), (1, 11, 5, 33, 3)]
STEPS = [[(0, 9), (2, 1)], [(2, 1), (0, 2), (1, 20)], [(0, 1), (1, 1), (2, 1)]]  # sequence and how many of its tokens
GATED = {Net: {"rtol": 1e-4, "atol": 1e-5}, Space: {"rtol": 1e-5, "atol": 1e-6}}

each_layer = pytest.mark.parametrize("of", [Net, Space])


class Played:
    """Steps by the kernels, on a slab of their own."""

    def __init__(self, team, rng, layer):
        self.layer, self.call = layer, partial(call, team)
        self.kept, self.lengths = Kept.make(rng, layer.shape), [0] * SEQUENCES

    def step(self, step, given):
        """What the convolution, the recurrence, and the latter behind its gate put out; whose tokens, and where."""
        positions, sequence = rows_of(step, self.lengths)
        conv, plain, gated = self.layer.KERNELS

        def run(kernel, given):
            return stepped(self.layer, self.kept, kernel, given, positions, sequence, self.call)

        mixed = run(conv, given)
        before = self.kept.memory.copy()
        y = run(plain, given | {"x": mixed})
        after = self.kept.memory.copy()
        self.kept.memory[:] = before
        found = mixed, y, run(gated, given | {"x": mixed})
        np.testing.assert_array_equal(self.kept.memory, after)
        return found, zip(sequence, positions, strict=True)


def check(layer, played, steps, rng):
    pasts, matrices = [None] * SEQUENCES, [None] * SEQUENCES
    for step in steps:
        given = layer.inputs(rng, layer.shape, sum(count for _, count in step))
        (mixed, y, gated), rows = played.step(step, given)
        for t, (name, position) in enumerate(rows):
            wanted, pasts[name] = layer.convolve(given["x"][t], pasts[name], position)
            np.testing.assert_allclose(mixed[t], wanted, rtol=2e-5, atol=2e-6)
            token = {of: values[t] for of, values in given.items()} | {"x": mixed[t]}
            wanted, matrices[name] = layer.step(token, matrices[name], position)
            np.testing.assert_allclose(y[t], wanted, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(gated, layer.gate(y, given["z"]), **GATED[type(layer)])


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(
    ("of", "shape"),
    [(Net, (1, 1, 1, 1, 2)), (Space, (1, 1, 1, 2, 2)), *((of, shape) for of in (Net, Space) for shape in SHAPES)],
)
def test_against_numpy(team, rng, of, shape, dtype):
    layer = of.make(rng, shape, dtype)
    check(layer, Played(team, rng, layer), STEPS, rng)


def test_steps_have_bounds(team, rng):
    """Of random steps about a third are below the one bound, and a third above the other."""
    space = Space.make(rng, (1, 3, 5, 37, 3), DType.F32, bounds=(0.5, 0.9))
    check(space, Played(team, rng, space), STEPS, rng)


def test_each_weight_of_a_space_has_its_own_type(team, rng):
    """And steps from beyond where an exponential is finite."""
    made = Space.make(rng, (1, 3, 5, 37, 3), DType.F16)
    made.a_log = native.stored(np.array([-6, -2, 1], np.float32), DType.F32)
    made.dt_bias = native.stored(np.array([95, -2, -95], np.float32), DType.BF16)
    check(made, Played(team, rng, made), STEPS, rng)


def test_each_weight_of_a_net_has_its_own_type_and_the_norm_an_offset(team, rng):
    """Inputs so small that what is added to their squares counts, and gates beyond where an exponential is finite."""
    shape = (1, 3, 5, 37, 3)
    taps = weight(rng, (Kept.channels_of(shape), 3), DType.F16, scale=0.5)
    a_log = native.stored(np.array([-6, -2, -6], np.float32), DType.F32)
    dt_bias, norm = weight(rng, (3,), DType.BF16, scale=0.5), weight(rng, (37,), DType.F16, scale=0.5)
    net, given, matrix = Net(shape, taps, a_log, dt_bias, norm, offset=1.0), Net.inputs(rng, shape, 9), None
    given["x"] *= 1e-3
    given["a"][:, 0] += 40 * (np.arange(9) % 4)
    given["a"][:, 1] += 4
    (mixed, y, normed), _ = Played(team, rng, net).step([(0, 9)], given)
    for t in range(9):
        token = {of: values[t] for of, values in given.items()} | {"x": mixed[t]}
        wanted, matrix = net.step(token, matrix, t)
        np.testing.assert_allclose(y[t], wanted, rtol=2e-4, atol=2e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(normed, net.gate(y, given["z"]), **GATED[Net])


@each_layer
@pytest.mark.parametrize("shape", [(2, 4, 33, 64, 4), (1, 3, 5, 37, 3)])
def test_bits_do_not_depend_on_pieces_or_on_who_is_beside(team, rng, of, shape):
    layer, given = of.make(rng, shape, DType.BF16), of.inputs(rng, shape, 40)
    whole, _ = Played(team, rng, layer).step([(0, 40)], given)
    played, found, at = Played(team, rng, layer), [], 0
    for count in (1, 2, 17, 1, 19):
        others, part = of.inputs(rng, shape, 3), slice(at, at + count)
        mixed = {name: np.concatenate([others[name], own[part]]) for name, own in given.items()}
        found.append([values[3:] for values in played.step([(1, 3), (0, count)], mixed)[0]])
        at += count
    for pieces, wanted in zip(zip(*found, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(pieces), wanted)


@each_layer
def test_no_byte_of_others_is_touched(team, rng, of):
    shape = SHAPES[1]
    played = Played(team, rng, of.make(rng, shape, DType.F32))
    before = played.kept.memory.copy()
    played.step([(1, 2)], of.inputs(rng, shape, 2))
    size, own = played.kept.block_bytes, set(played.kept.tables[1].tolist())
    for block in range(len(before) // size):
        part = slice(block * size, (block + 1) * size)
        assert (played.kept.memory[part] == before[part]).all() or block in own
    units = played.kept.operands(None, None, 0)["first_unit"]  # of layer 0
    starts = [size * played.kept.tables[1][at // 3] + at % 3 * played.kept.unit_bytes for at in range(2 * units)]
    touched = [(played.kept.memory[at : at + played.kept.unit_bytes] != 0xFF).any() for at in starts]
    assert touched == [False] * units + [True] * units


@each_layer
def test_an_empty_step(team, rng, of):
    Played(team, rng, of.make(rng, SHAPES[0], DType.BF16)).step([], of.inputs(rng, SHAPES[0], 0))


@pytest.mark.parametrize("taps", [2, 3, 4])
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_a_plain_convolution_whose_inputs_are_the_unit(team, rng, dtype, taps):
    """Of more channels than a unit of work has, and no matrix beside them; prompts in pieces and alone alike."""
    shape = (1, 1, taps - 1, 301, taps)  # a unit of taps - 1 rows of 301
    w, N = weight(rng, (301, taps), dtype, scale=0.5), 301
    whole, pieces = (Kept.make(rng, shape) for _ in range(2))
    x, past, lengths = random(rng, 23, N), None, [0] * SEQUENCES
    wanted = np.empty((23, N))
    for t in range(23):
        wanted[t], past = convolved(x[t], w, past, t)

    def convolve(kept, rows, positions, sequence):
        y = empty(len(rows), N)
        at = kept.operands(positions, sequence, 1)
        sizes = {"T": len(rows), "B": SEQUENCES, "N": N, "taps": taps, "plain": 1}
        call(team, CONV, x=np.ascontiguousarray(rows), **w.operand("weight"), y=y, **at, **sizes)
        return y

    together = convolve(whole, x, *rows_of([(2, 23)], [0] * SEQUENCES))
    np.testing.assert_allclose(together, wanted, rtol=2e-5, atol=2e-6)
    at = 0
    for count in (1, 2, 17, 3):
        found = convolve(pieces, x[at : at + count], *rows_of([(1, count)], lengths))
        np.testing.assert_array_equal(found, together[at : at + count])
        at += count


@pytest.mark.parametrize("T", [0, 1, 3, 40, 48])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 2), *SHAPES])
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
