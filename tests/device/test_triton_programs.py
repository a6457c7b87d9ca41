"""Whole tiny programs on the GPU's kernels, interpreted: stored values are the reference's, tokens the CPU's.

The rows are those of the shared lowering. Knows nothing about streams or where a GPU keeps things.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.device.interpreted import Bucket, bound_rows, gpu, inspect, run
from tests.device.random_expert import SHAPES, making, step_of
from triton.runtime.interpreter import InterpretedFunction

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.device import Sampling
from coterie.graph.reference import OPS
from coterie.graph.sampling import draw
from coterie.graph.vectors import row_values
from coterie.kernels import cpu as kernels

F32, F16, BF16, Q8, Q4, Q4Z = DType.F32, DType.F16, DType.BF16, DType.Q8, DType.Q4, DType.Q4Z
ALL = (BF16, F32, F16)
MIXED = (Q4, F32, Q8, F16, Q4Z)
EXACT_LINEAR = OPS["linear"]
WARM = Sampling(temperature=0.8, top_k=15, top_p=0.9, seed=3)

# Relative to the largest number of a stored value. Float32 is multiplied in float32 throughout. With others, steps
# of more than four tokens round activations to bfloat16 (2^-9 of each number) or float16 (2^-12), once a product, and
# errors of two layers add up; in decode a key or value may round the other way when it is stored, 2^-9 of it.
# Where that alone moves a value of the reference further, twice as far: a norm behind a block makes small sums large.
BOUNDS = {F32: 3e-6, F16: 4e-3, BF16: 0.03}
MANY = 4  # products of more tokens round what they meet

QUICK = [
    ("odd", (BF16,), "cache"),
    ("odd", (F32,), "none"),
    ("biases", MIXED, "cache"),
    ("norms-behind", (BF16,), "cache"),
    ("rotated-in-part", (BF16,), "cache"),
    ("not-all-rotated", MIXED, "cache"),
    ("scaled", (F32,), "cache"),
    ("gemma2", (BF16,), "cache"),
    ("norms-behind-and-not-all-rotated", (F16,), "cache"),
    ("layers-that-differ", (F32,), "cache"),
    ("layers-that-differ", (BF16,), "none"),
    ("branches-beside-the-block", (F32,), "cache"),
]
LONG = [("qk-norm", ALL, "cache"), ("mqa", (F16,), "cache"), ("one-head", (Q4,), "none")]
LONG += [
    (shape, dtypes, rules)
    for shape in SHAPES
    if shape != "delta-nets"  # no GPU runs it
    for dtypes in ((F32,), (BF16,), ALL, MIXED)
    for rules in ("none", "cache")
]


@pytest.fixture
def make():
    with making() as make_expert:
        yield make_expert


def steps(expert):
    """A ragged prefill of three sequences, a mixed step where one prefills on, a decode, and a step of one token."""
    a, b, c = expert.prompt(4), expert.prompt(1, 2), expert.prompt(12, 3)
    yield step_of((a, 0), (b, 0), (c[:7], 0))
    yield step_of(([0], 4), ([0], 1), (c[7:], 7))
    yield step_of(([0], 5), ([0], 2), ([0], 12))
    yield step_of(([0], 6), sampling=[WARM])


def bound_of(dtypes):
    """The widest of the weights' types decides."""
    return max(BOUNDS.get(dtype, BOUNDS[BF16]) for dtype in dtypes)


def rounding_linear(step, op, operands):
    """The reference's product, but many tokens are rounded as on a GPU: to the type of weights, or bfloat16."""
    x_TK, dtype = operands[0], step.graph.values[op.inputs[1]].dtype
    if x_TK.shape[0] > MANY and dtype is not F32:
        rounded = torch.from_numpy(np.ascontiguousarray(x_TK)).to(torch.float16 if dtype is F16 else torch.bfloat16)
        operands = [rounded.float().numpy(), *operands[1:]]
    return EXACT_LINEAR(step, op, operands)


def expect_rounded(expert, step):
    """Every value of a step by a reference whose products round as a GPU's do, from steps that were computed so too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPS, "linear", rounding_linear)
        return expert.expect(step)


def distance(values, expected):
    """How far the farthest is, relative to the largest expected one."""
    return np.abs(values - expected).max() / max(np.abs(expected).max(), 1e-6)


def compare(make, shape, dtypes, rule_set):
    """Every stored value against the reference, and the tokens drawn against the CPU's, step after step."""
    expert, on_cpu, rounding = (make(shape, dtypes, rule_set) for _ in range(3))
    bound = bound_of((*dtypes, expert.program.kv.dtype))
    logits = next(op for op in expert.graph.ops if op.kind == "sample").inputs[0]
    for step in steps(expert):
        got, expected, cpu = inspect(expert, step), expert.expect(step), on_cpu.inspect(step)
        moved = expect_rounded(rounding, step)
        assert set(got) == set(cpu)
        tokens, cpu_tokens = (found.pop("next_tokens").astype(int) for found in (got, cpu))
        for name, values in got.items():
            allowed = max(bound, 2 * distance(moved[name], expected[name]))
            assert distance(values, expected[name]) < allowed, name
        at = step.positions_T[step.rows_R]
        drawn = [draw(row, s, int(p)) for row, s, p in zip(got[logits], step.sampling, at, strict=True)]
        assert tokens.tolist() == drawn
        # The CPU's token too, unless its lead over ours is less than both logits may be wrong by.
        for row, mine, its in zip(cpu[logits], tokens, cpu_tokens, strict=True):
            assert mine == its or (bound > BOUNDS[F32] and row[its] - row[mine] < 2 * bound * np.abs(row).max())


@pytest.mark.parametrize(("shape", "dtypes", "rule_set"), QUICK, ids=str)
def test_values_are_the_references_and_tokens_the_cpus(make, shape, dtypes, rule_set):
    compare(make, shape, dtypes, rule_set)


@pytest.mark.long
@pytest.mark.parametrize(("shape", "dtypes", "rule_set"), LONG, ids=str)
def test_all_shapes(make, shape, dtypes, rule_set):
    compare(make, shape, dtypes, rule_set)


@pytest.mark.parametrize("rule_set", ["none", "cache"])
@pytest.mark.parametrize(("shape", "dtypes"), [("odd", (F32,)), ("biases", (BF16,)), ("gemma2", (F32,))], ids=str)
def test_rows_of_a_program_without_a_head_are_the_references(make, shape, dtypes, rule_set):
    """Of the last norm, whichever it is; nothing is drawn."""
    expert, rounding = make(shape, dtypes, rule_set).without_head(), make(shape, dtypes, rule_set)
    name, bound = row_values(expert.program.graph), bound_of((*dtypes, expert.program.kv.dtype))
    assert not expert.exe.drawn
    for step in steps(expert):
        got, expected, moved = inspect(expert, step)[name], expert.expect(step)[name], expect_rounded(rounding, step)
        assert got.shape == (len(step.rows_R), expert.program.result_width)
        assert distance(got, expected) < max(bound, 2 * distance(moved[name], expected))


@pytest.mark.parametrize("tokens", [4, 8])
def test_a_larger_bucket_whose_tiles_have_as_many_tokens_changes_nothing(make, tokens):
    """Grids for more tokens, sequences, rows and positions than there are, as a captured step has them. Tiles of 8 and
    of 16 tokens may add up otherwise (docs/triton.md).
    """
    step = step_of(([3, 1], 0), ([4], 0)) if tokens == 4 else step_of(([3, 1, 5, 2], 0), ([4], 0))
    fits, padded = make("odd", (BF16,)), make("odd", (BF16,))
    one = inspect(fits, step, most=Bucket(max(step.sizes.T, tokens // 4 + 1), 2, 2, 24 * 5))
    other = inspect(padded, step, most=Bucket(tokens, 3, 4, 500))
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)
    np.testing.assert_array_equal(fits.kv_bytes(), padded.kv_bytes())


def test_a_decoded_token_has_the_same_bits_alone_and_in_a_batch(make):
    """Two to four tokens: float32 dot products over one row, spans at absolute positions. One has its own kernels."""
    expert = make("qk-norm", (Q8,))
    alone = inspect(expert, step_of(([7], 0)), most=Bucket(3, 3, 3, 24 * 5))
    among = inspect(expert, step_of(([7], 0), ([9], 0), ([2], 0)))
    for name, values in alone.items():
        np.testing.assert_array_equal(values[:1], among[name][:1], err_msg=name)


def test_a_token_is_attended_to_in_the_same_spans_whoever_is_beside_it(make):
    """The bucket's context is that of the longest sequence: other spans would add up in another order."""
    rows = bound_rows(make("odd", (BF16,)), step_of(([7], 0))).rows
    index = [row[kernels.OPCODE_WORD] for row in rows].index(kernels.OPCODES["attention"].number)
    found = set()
    for context in (256, 1024, 2048, 8192):
        scratch = torch.zeros(1 << 20, dtype=torch.uint8)
        first = gpu.launches(rows, torch.from_numpy(rows), index, Bucket(1, 1, 1, context), scratch)[0]
        found.add((first.kernel.__name__, first.constants["SPAN"], first.constants["STEP"]))
    assert len(found) == 1


def test_a_switch_rewrites_rows_and_needs_no_other_launch(make):
    """The launches of one expert's rows, made for its host rows, compute with what the rows on the GPU point to."""
    one, two = make("odd", (BF16,), seed=1), make("odd", (BF16,), seed=2)
    step = step_of(([3, 1, 4], 0))
    expected = inspect(two, step)
    bound = bound_rows(two, step)
    run(bound_rows(one, step).rows, Bucket(3, 1, 1, 24 * 5), on_gpu=bound.rows)
    for name, found in bound.stored_values().items():
        np.testing.assert_array_equal(found, expected[name], err_msg=name)


def test_an_address_that_a_gpu_would_fault_on_is_named(make):
    rows = bound_rows(make("odd", (BF16,)), step_of(([3], 0))).rows
    gpu.check_aligned(rows)
    linear_add = next(row for row in rows if row[kernels.OPCODE_WORD] == kernels.OPCODES["linear_add"].number)
    linear_add[kernels.OPCODES["linear_add"].words["weight"]] += 2
    with pytest.raises(ValueError, match=r"weight of linear_add is at \d+, no multiple of 16"):
        gpu.check_aligned(rows)


@pytest.mark.parametrize("dtype", [Q8, Q4Z, DType.Q2, DType.MX4, BF16])
def test_rounded_activations_are_refused_by_name(dtype):
    words, number = kernels.OPCODES["linear"].words, kernels.dtype_number(dtype, rounded=True)
    row = kernels.encode("linear", dict.fromkeys(words, 0) | {"weight_dtype": number})
    with pytest.raises(UnsupportedError, match=f"weight of linear is {dtype.value} with (int8|bf16) activations"):
        run(row.reshape(1, -1), Bucket(1, 1, 1, 1))


def test_to_find_launches_launches_nothing(make, monkeypatch):
    """A device finds them once, before the rows' inputs are there, and launches them again and again.

    Each row has some, but for a product that the one before launches too, as both read one x.
    """
    rows = bound_rows(make("one-head", (BF16,), "none"), step_of(([3], 0))).rows
    monkeypatch.setattr(InterpretedFunction, "run", None)
    bucket = Bucket(1, 1, 1, 256)
    scratch = torch.zeros(gpu.scratch_bytes(rows, bucket), dtype=torch.uint8)
    x, opcode = kernels.OPCODES["linear"].words["x"], kernels.OPCODES["linear"].number
    beside = 0
    for index, row in enumerate(rows):
        if not gpu.launches(rows, torch.from_numpy(rows), index, bucket, scratch):
            before = rows[index - 1]
            assert (row[0], before[0], row[x]) == (opcode, opcode, before[x])
            beside += 1
    assert 0 < beside < len(rows) / 3
