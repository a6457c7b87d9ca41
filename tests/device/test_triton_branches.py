"""Layers with branches on the GPU's kernels: who takes which branch, whoever else there is, and grids that suffice.

Values on odd shapes and every type are among triton_branch_cases.py. Knows nothing about programs.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.interpreted import Bucket, call, inspect
from tests.device.native import chosen, empty, random
from tests.device.random_expert import making, step_of
from tests.device.triton_branch_cases import alike
from tests.device.triton_cases import BF16, F32, Q4, table_of, weight

from coterie.kernels import cpu as kernels
from coterie.kernels.triton.branch.branches import Sizes

E, TAKEN, D, F = 5, 2, 40, 24


def choose(logits, top_k, normalise):
    logits, y = np.array(logits, np.float32), empty(*np.shape(logits))
    T, E = logits.shape
    sizes = {"T": T, "E": E, "top_k": top_k, "normalise": normalise, "scale": 1.0}
    call("choose_branches", Bucket(T, 1, 1, 1), logits=logits, y=y, **sizes)
    return y


def test_of_equal_branches_the_first_are_taken_and_none_that_is_taken_has_a_weight_of_0():
    y = choose([[0, 0, 0, 0, 0], [-300, 0, -400, -500, -300], [0.0, -0.0, -1, 0.0, 1]], 3, 1)
    taken = [[True, True, True, False, False], [True, True, False, False, True], [True, True, False, False, True]]
    np.testing.assert_array_equal(y != 0, taken)
    np.testing.assert_allclose(y[0, :3], 1 / 3, rtol=1e-6)


def test_what_is_no_number_stays_none_and_as_many_branches_are_taken():
    y = choose([[1.0, np.nan, 2.0], [np.nan] * 3, [-np.inf, np.nan, 0.0]], 2, 0)
    assert np.isnan(y).sum(axis=1).tolist() == [2, 2, 2]
    assert (y != 0).sum(axis=1).tolist() == [2, 2, 2]


class Block:
    """A block's matrices, and what its kernels make of tokens in a bucket."""

    def __init__(self, dtype):
        rng = np.random.default_rng(0)
        self.both, self.downs = ([weight(rng, s, dtype) for _ in range(n)] for s, n in (((F, D), 2 * E), ((D, F), E)))
        self.dtype = kernels.dtype_number(dtype)

    def __call__(self, x, weights, bucket):
        T, most = len(x), Bucket(bucket, 1, 1, 1)
        inner, y = empty(T, TAKEN, F), empty(T, D)
        sizes = {"T": T, "E": E, "taken": TAKEN, "D": D, "F": F, "dtype": self.dtype, "weights": weights}
        call("branch_gate_up", most, x=x, branches=table_of(self.both), y=inner, **sizes)
        call("branch_down", most, x=inner, branches=table_of(self.downs), y=y, **sizes)
        return y


@pytest.mark.parametrize(
    ("dtype", "bucket", "within"),
    [
        (BF16, 4, 0),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((Q4, 4, 0), (BF16, 32, 1e-7), (Q4, 32, 1e-7))),
    ],
)
def test_a_token_has_the_same_values_whoever_else_takes_its_branches(dtype, bucket, within):
    """To the bit where few tokens are; else it lies elsewhere in a tile, and the interpreter's product is NumPy's."""
    rng, block, T = np.random.default_rng(1), Block(dtype), bucket - 1
    x, weights = random(rng, T, D), chosen(rng, T, E, TAKEN)
    together = block(x, weights, bucket)
    others = np.concatenate([alike(rng, T - 1, E, TAKEN), weights[-1:]])
    found = [block(x[-1:].copy(), weights[-1:].copy(), bucket), block(x, others, bucket)[-1:]]
    for y in found:
        np.testing.assert_allclose(y, together[-1:], rtol=0, atol=within)


@pytest.mark.parametrize("bucket", [2, 8])
def test_a_branch_of_nans_is_its_own_tokens_matter(bucket):
    """Others share tiles, loops and scratch with them."""
    rng, block = np.random.default_rng(1), Block(F32)
    for matrix in (block.both[1], block.both[E + 1], block.downs[1]):
        matrix.memory[:] = np.nan
    weights = np.zeros((2, E), np.float32)
    weights[0, [0, 1]], weights[1, [0, 3]] = 0.5, 0.25
    y = block(random(rng, 2, D), weights, bucket)
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()


@pytest.mark.parametrize(("E", "taken", "tokens"), [(3, 2, 5), (7, 1, 30), (4, 4, 9), (6, 2, 64)])
@pytest.mark.parametrize("tile", [4, 16])
def test_grids_have_a_place_for_every_tile_and_slot_that_there_may_be(E, taken, tokens, tile):
    sizes, rng = Sizes(E, taken, tokens), np.random.default_rng(0)
    assert sizes.tiles(tile) <= sizes.pairs // tile + E
    for T in range(tokens + 1):
        for weights in (chosen(rng, T, E, taken), alike(rng, T, E, taken)):
            counts = (weights != 0).sum(axis=0)
            assert (-(-counts // tile)).sum() <= sizes.tiles(tile)
            assert (counts > 0).sum() <= sizes.slots


def test_a_program_whose_layers_have_branches_gives_the_references_values():
    """A prompt of five tokens and a token behind it; test_triton_programs.py has every type and rule set."""
    with making() as make:
        expert = make("branches", (F32,))
        for step in (step_of(([3, 1, 4, 1, 5], 0)), step_of(([2], 5))):
            expected = expert.expect(step)
            found = inspect(expert, step)
            assert {"layers.1/chosen", "layers.1/branch_gate_up"} <= set(found)
            for name, values in found.items():
                assert np.abs(values - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max(), name
