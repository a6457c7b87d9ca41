"""Clipped gates, biases of branches and sinks of attention on the GPU's kernels: odd values, and whole programs.

Values on odd shapes and every type are among triton_{branch,attention}_cases.py. Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.device.interpreted import WIDE, Bucket, aligned, call, gpu, inspect, run
from tests.device.native import attention, chosen, empty, random, whole
from tests.device.random_expert import making, step_of
from tests.device.triton_attention_cases import last_of, pages_of
from tests.device.triton_cases import BF16, EXACT, F32, table_of, weight

from coterie.kernels import cpu as kernels
from coterie.kernels.triton.launch import launches

APART = replace(WIDE, stages_ahead=False)
E, TAKEN, D, F = 5, 2, 40, 24


def test_what_is_no_number_is_not_clipped():
    """Gate and up of a token that is no number, too large, and too small."""
    x = np.array([[np.nan, 0], [90, 0], [-90, 0]], np.float32)
    weights, y, one = np.ones((3, 1), np.float32), empty(3, 1, 1), aligned(np.array([[1.0, 0.0]], np.float32))
    table, none = aligned(np.full(2, kernels.address(one), np.int64)), aligned(np.zeros((1, 1), np.float32))
    sizes = {"T": 3, "E": 1, "taken": 1, "D": 2, "F": 1, "dtype": 0, "gate_bias": none, "up_bias": none}
    sizes |= {"gate_bias_dtype": 0, "up_bias_dtype": 0, "alpha": 1.0, "limit": 2.0}
    call("branch_gate_up_clipped", Bucket(3, 1, 1, 1), x=x, weights=weights, branches=table, y=y, **sizes)
    np.testing.assert_allclose(y[:, 0, 0], [np.nan, 3 * 2 / (1 + np.exp(-2)), 0], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("chunks", [(1, 1), (2, 3)])
def test_a_sink_that_outweighs_everything_leaves_nothing_and_none_changes_nothing(chunks):
    rng, H = np.random.default_rng(0), 3
    pages = pages_of(rng, (9, 30), 1, 16, 4, F32)
    positions, sequence = last_of((9, 30), chunks)
    T, given = len(positions), aligned(np.array([1e4, -np.inf, -200], np.float32))
    q, y = random(rng, T, H, 16), empty(T, H, 16)
    at = pages.operands(positions, sequence, 1)
    sizes = {"T": T, "B": 2, "H": H, "K": 1, "C": 16, "scale": 0.25, "window": 0, "sinks": given, "sinks_dtype": 0}
    call("attention", Bucket(T, 2, T, 30), q=q, **at, y=y, **sizes)
    plain = attention(q, pages, positions, sequence, 1, 0.25, 0)
    np.testing.assert_array_equal(y[:, 0], 0)
    assert np.abs(y[:, 1:] - plain[:, 1:]).max() <= EXACT * np.abs(plain).max()


class Down:
    """Rows of branch_down_add and of the biases behind it; where they put their results is up to the caller."""

    def __init__(self, T, bias=BF16):
        rng = np.random.default_rng(0)
        self.memory = aligned(empty(6, T * max(D, TAKEN * F)))
        self.x, self.residual, self.sum, self.y, self.later = (part[: T * D] for part in self.memory[1:])
        self.inner = self.memory[0][: T * TAKEN * F]
        self.inner[:], self.residual[:] = random(rng, T * TAKEN * F), random(rng, T * D)
        self.weights, self.bias = chosen(rng, T, E, TAKEN), weight(rng, (E, D), bias, scale=1.0)
        self.downs = [weight(rng, (D, F), BF16) for _ in range(E)]
        self.table, self.T = table_of(self.downs), T

    def rows(self, *behind):
        shared = {"weights": self.weights, "T": self.T, "E": E, "D": D}
        first = {"x": self.inner, "branches": self.table, "y": self.sum, "residual": self.residual, "taken": TAKEN}
        first |= {"F": F, "dtype": kernels.dtype_number(BF16)}
        then = {"x": self.sum, **self.bias.operand("bias"), "y": self.y}
        rows = [("branch_down_add", shared | first), ("add_branch_bias", shared | then), *behind]
        return np.concatenate([_row(name, operands) for name, operands in rows])

    def launches(self, rows, tiles=WIDE):
        """How many launches each row is, and whether the first also stores its sum."""
        bucket = Bucket(self.T, 1, 1, 1)
        scratch = torch.zeros(gpu.scratch_bytes(rows, bucket, tiles), dtype=torch.uint8)
        on_gpu = torch.from_numpy(rows.copy())
        found = [launches(rows, on_gpu, i, bucket, scratch, tiles) for i in range(2)]
        return [len(each) for each in found], found[0][-1].constants["SUMMED"]


def _row(name, operands):
    operands = whole(name, operands)
    addresses = {n: kernels.address(v) if isinstance(v, np.ndarray) else v for n, v in operands.items()}
    return kernels.encode(name, addresses).reshape(1, -1)


@pytest.mark.parametrize("T", [1, 3, 7])
def test_biases_behind_branches_are_added_by_the_launches_before(T):
    """Of one token, of few, and by the last launch of many: values as of launches of their own, and the sum too."""
    together, apart = Down(T), Down(T)
    for down, tiles in ((together, WIDE), (apart, APART)):
        run(down.rows(), Bucket(T, 1, 1, 1), tiles)
    several = 5 if T > 4 else 2  # branches are listed; pairs too, and values staged, and products summed up
    assert together.launches(together.rows()) == ([several, 0], True)
    assert apart.launches(apart.rows(), APART) == ([several, 1], True)
    wanted = apart.sum.reshape(T, D) + together.weights.astype(np.float64) @ together.bias.values
    np.testing.assert_allclose(together.sum, apart.sum, rtol=2e-6, atol=2e-6)
    for down in (together, apart):
        np.testing.assert_allclose(down.y.reshape(T, D), wanted, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("T", [1, 7])
def test_a_sum_that_only_biases_are_added_to_is_not_stored(T):
    """Where a later row writes there before any reads it; and the result may take the residual's place."""
    down, expected = Down(T), Down(T)
    run(expected.rows(), Bucket(T, 1, 1, 1))
    down.y = down.residual
    rows = down.rows(("silu", {"x": down.y, "y": down.sum, "T": T, "N": D}))
    assert down.launches(rows)[1] is False
    run(rows[:3], Bucket(T, 1, 1, 1))
    np.testing.assert_array_equal(down.y, expected.y)
    read = down.rows(("add", {"a": down.y, "b": down.sum, "y": down.later, "T": T, "N": D}))
    assert down.launches(read)[1] is True


@pytest.mark.parametrize("overlap", ["inner", "residual"])
def test_a_result_that_lies_on_what_other_programs_read_is_a_launch_of_its_own(overlap):
    down, expected = Down(3), Down(3)
    run(expected.rows(), Bucket(3, 1, 1, 1))
    start = kernels.address(getattr(down, overlap)) - kernels.address(down.memory) + 16
    down.y = down.memory.reshape(-1)[start // 4 :][: 3 * D]
    assert down.launches(down.rows())[0] == [2, 1]
    run(down.rows(), Bucket(3, 1, 1, 1))
    np.testing.assert_allclose(down.y, expected.y, rtol=3e-6, atol=3e-6)


def test_biases_of_branches_that_none_takes_are_not_read():
    down, expected = Down(3), Down(3)
    down.weights[:] = expected.weights[:] = [0.5, 0, 0.25, 0, 0]
    down.bias.memory[[1, 3, 4]] = 0x7FC0  # no number, in bfloat16
    for one, tiles in ((down, APART), (expected, WIDE)):
        run(one.rows(), Bucket(3, 1, 1, 1), tiles)
    np.testing.assert_allclose(down.y, expected.y, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(("rule_set", "T"), [("cache", 5), pytest.param("none", 2, marks=pytest.mark.long)])
def test_a_program_of_such_layers_gives_the_references_values(rule_set, T):
    """A prompt and a token behind it."""
    with making() as make:
        expert = make("sinks-and-clipped-gates", (F32,), rule_set)
        for step in (step_of(([3, 1, 4, 1, 5][:T], 0)), step_of(([2], T))):
            expected, found = expert.expect(step), inspect(expert, step)
            assert {"layers.1/chosen", "layers.1/branch_gate_up", "layers.1/biased"} <= set(found)
            for name, values in found.items():
                assert np.abs(values - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max(), name
