"""Values that one launch rounds for the next: the bits of launches that each stage for themselves.

Knows nothing about streams.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.device.interpreted import WIDE, Bucket, bound_rows, gpu, inspect, run
from tests.device.native import empty, random, whole
from tests.device.random_expert import making, step_of
from tests.device.triton_cases import table_of, weight

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels
from coterie.kernels.triton.launch import launches

F32, F16, BF16, Q8, Q4, Q4Z = DType.F32, DType.F16, DType.BF16, DType.Q8, DType.Q4, DType.Q4Z
APART = replace(WIDE, stages_ahead=False)
LONG = [(7 * i + 3) % 50 for i in range(100)]  # as many tokens as have large tiles
LINEAR_ADD = kernels.OPCODES["linear_add"].number


@pytest.fixture
def make():
    with making() as make_expert:
        yield make_expert


def words_of(row):
    return next(opcode.words for opcode in kernels.OPCODES.values() if opcode.number == row[kernels.OPCODE_WORD])


def stages(rows, bucket, tiles, kind=LINEAR_ADD):
    """How many rows of linear_add, or of another kind, read their activations again to round them."""
    scratch = torch.zeros(gpu.scratch_bytes(rows, bucket, tiles), dtype=torch.uint8)
    on_gpu = torch.from_numpy(rows.copy())
    of = [i for i, row in enumerate(rows) if row[kernels.OPCODE_WORD] == kind]
    return sum(len(launches(rows, on_gpu, i, bucket, scratch, tiles)) - 1 for i in of)


@pytest.mark.parametrize("dtypes", [(BF16,), (F16,), (F32,), (Q4Z, F32, Q8, F16, Q4)], ids=str)
@pytest.mark.parametrize("sequences", [1, 2])
def test_what_is_staged_ahead_has_the_bits_of_what_is_staged(make, dtypes, sequences):
    """One sequence stages ahead from attention too; of several, only what gate and up make."""
    step = step_of(([3, 1, 4, 1, 5, 9], 0), ([2, 6], 0)) if sequences > 1 else step_of(([3, 1, 4, 1, 5, 9, 2], 0))
    one, other = make("odd", dtypes), make("odd", dtypes)
    ahead, staged = inspect(one, step), inspect(other, step, APART)
    for name, values in staged.items():
        np.testing.assert_array_equal(ahead[name], values, err_msg=name)
    np.testing.assert_array_equal(one.kv_bytes(), other.kv_bytes())


@pytest.mark.parametrize("name", ["norm_gate_up_silu_mul", "attention"])
def test_what_the_next_row_alone_reads_is_not_stored_too(make, name):
    """Where rows that follow use the same memory for something else; who reads it, or inspects it, finds it."""
    rows = bound_rows(make("wide", (BF16,)), step_of((LONG, 0))).rows
    bucket, opcode, linear_add = Bucket(len(LONG), 1, 1, 120), kernels.OPCODES[name], kernels.OPCODES["linear_add"]
    first = next(i for i, row in enumerate(rows) if row[kernels.OPCODE_WORD] == opcode.number)
    again = next(i for i in range(first + 1, len(rows)) if rows[i][kernels.OPCODE_WORD] == opcode.number)

    def stored():
        scratch = torch.zeros(gpu.scratch_bytes(rows, bucket, WIDE), dtype=torch.uint8)
        found = [launches(rows, torch.from_numpy(rows.copy()), i, bucket, scratch, WIDE)[-1] for i in (first, again)]
        return [launch.constants["STORED"] for launch in found]

    assert stored() == [True, True]
    rows[again][opcode.words["y"]] = rows[first][opcode.words["y"]]  # as values that share memory do
    rows[again + 1][linear_add.words["x"]] = rows[first][opcode.words["y"]]
    assert stored() == [False, True]
    added = rows[first + 1][linear_add.words["residual"]]
    rows[first + 1][linear_add.words["residual"]] = rows[first][opcode.words["y"]]  # the next row reads it twice
    assert stored() == [True, True]
    rows[first + 1][linear_add.words["residual"]] = added
    between = next(i for i in range(first + 2, again) if "x" in words_of(rows[i]))
    rows[between][words_of(rows[between])["x"]] = rows[first][opcode.words["y"]] + 16
    assert stored() == [True, True]


@pytest.mark.parametrize(("shape", "tokens"), [("odd", 7), pytest.param("wide", 100, marks=pytest.mark.long)])
def test_values_that_share_memory_give_the_same_tokens(make, shape, tokens):
    """And the same keys and values, though float32 values that are staged ahead are stored by the last layer alone."""
    step = step_of((LONG[:tokens], 0))
    one, other = make(shape, (BF16,), share_buffers=True), make(shape, (BF16,), share_buffers=True)
    tokens, those = (inspect(who, step, tiles)["next_tokens"] for who, tiles in ((one, WIDE), (other, APART)))
    np.testing.assert_array_equal(tokens, those)
    np.testing.assert_array_equal(one.kv_bytes(), other.kv_bytes())


@pytest.mark.parametrize("shape", ["odd", "gemma"])
def test_only_rows_that_meet_are_staged_ahead(make, shape):
    step = step_of(([3, 1, 4, 1, 5, 9, 2], 0))
    rows = bound_rows(make(shape, (BF16,)), step).rows
    chunk, batch = Bucket(7, 1, 1, 120), Bucket(7, 2, 1, 120)
    count = sum(row[kernels.OPCODE_WORD] == LINEAR_ADD for row in rows)
    assert stages(rows, chunk, APART) == count
    assert stages(rows, batch, WIDE) == count // 2  # attention may have tokens that are alone
    assert stages(rows, chunk, WIDE) == 0
    moved = rows.copy()
    moved[:, kernels.OPCODES["linear_add"].words["x"]] += 16 * (moved[:, kernels.OPCODE_WORD] == LINEAR_ADD)
    assert stages(moved, chunk, WIDE) == count


def branch_rows(rng, T, dtype, E=5, taken=2, D=20, F=24):
    """Rows of choose_branches, branch_gate_up and branch_down_add, what they store, and memory to keep."""
    logits, x, residual = random(rng, T, E), random(rng, T, D), random(rng, T, D)
    weights, inner, y = empty(T, E), empty(T, taken, F), empty(T, D)
    both, downs = ([weight(rng, shape, dtype) for _ in range(n)] for shape, n in (((F, D), 2 * E), ((D, F), E)))
    tables = table_of(both), table_of(downs)
    sizes = {"T": T, "E": E, "taken": taken, "D": D, "F": F, "dtype": kernels.dtype_number(dtype), "weights": weights}
    chosen = {"T": T, "E": E, "top_k": taken, "normalise": 1, "scale": 1.0}
    rows = [
        ("choose_branches", {"logits": logits, "y": weights, **chosen}),
        ("branch_gate_up", {"x": x, "branches": tables[0], "y": inner, **sizes}),
        ("branch_down_add", {"x": inner, "branches": tables[1], "y": y, "residual": residual, **sizes}),
    ]
    encoded = []
    for name, operands in rows:
        at = {key: kernels.address(v) if isinstance(v, np.ndarray) else v for key, v in operands.items()}
        encoded.append(kernels.encode(name, whole(name, at)))
    return np.stack(encoded), {"weights": weights, "inner": inner, "y": y}, (logits, x, residual, both, downs, tables)


@pytest.mark.parametrize("dtype", [BF16, F32, Q4])
@pytest.mark.parametrize("T", [1, 3, 7])
def test_lists_and_values_of_branches_have_the_bits_that_each_row_makes_for_itself(dtype, T):
    """Rows launched one after another leave lists of branches, and rounded values, for those behind them."""
    rows, found, held = branch_rows(np.random.default_rng(0), T, dtype)
    bucket = Bucket(T, 1, 1, 1)
    run(rows, bucket)
    together = {name: values.copy() for name, values in found.items()}
    for values in found.values():
        values[:] = np.nan
    for row in rows:
        run(row[None], bucket)
    for name, values in found.items():
        np.testing.assert_array_equal(together[name], values, err_msg=name)
    assert np.isfinite(found["y"]).all()
    assert held


@pytest.mark.parametrize(("T", "launched"), [(1, (1, 1, 1)), (3, (1, 1, 1)), (7, (1, 3, 2))])
def test_no_row_of_a_layer_with_branches_makes_what_the_row_before_has_left(T, launched):
    """Of more than few tokens: group, stage and multiply; multiply and sum up. Other weights are listed again."""
    rows, _, held = branch_rows(np.random.default_rng(0), T, BF16)
    bucket = Bucket(T, 1, 1, 1)
    scratch = torch.zeros(gpu.scratch_bytes(rows, bucket, WIDE), dtype=torch.uint8)

    def names():
        copied = torch.from_numpy(rows.copy())
        return [[one.kernel.__name__ for one in launches(rows, copied, i, bucket, scratch, WIDE)] for i in range(3)]

    assert tuple(map(len, names())) == launched
    rows[2][kernels.OPCODES["branch_down_add"].words["weights"]] += 16
    assert "_list" in names()[2]
    assert held


def test_products_whose_norm_comes_behind_take_what_is_staged_ahead(make):
    """Of five products of a layer the output projection and down; q, k and v, staged once, read norm_add's values."""
    rows, chunk = bound_rows(make("norms-behind", (BF16,)), step_of((LONG[:7], 0))).rows, Bucket(7, 1, 1, 120)
    linear = kernels.OPCODES["linear"].number
    assert [stages(rows, chunk, tiles, linear) for tiles in (APART, WIDE)] == [2 * 3, 2 * 1]
