"""Whole programs on the CPU device: against the reference, fused and unfused, alone and together, bytes counted.

Knows nothing about files or lanes.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.random_expert import SHAPES, SPEC, RandomExpert, step_of

from coterie.api.compare import KV_TOLERANCE
from coterie.core.dtypes import DType
from coterie.core.packed import SHARED
from coterie.device import Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.graph.cost import intermediate_bytes, program_cost
from coterie.graph.ir import Kind
from coterie.kernels import cpu as kernels

ALL_DTYPES = (DType.BF16, DType.F32, DType.F16)
PACKED = (DType.Q8, DType.Q4, DType.Q4Z)
# Of the largest value: what a few layers make of activations that are near the middle of two numbers and go either way,
# where these have 16 bits, and 12 (core.packed.rounded).
SIXTEEN_BITS, TWELVE_BITS = 5e-4, 4e-3
KEPT = (*ALL_DTYPES, DType.KV8)  # weights of all of these, keys and values in 8 bits
MIXED = (DType.Q4, DType.F32, DType.Q8, DType.F16, DType.Q4Z)
# Neighbouring halves are up to 2^-10 of the number apart.
NEAR = {DType.BF16: 3e-3, DType.F16: 2**-10, DType.F32: 1e-5, DType.KV8: 2**-6}  # by the type of the pages
WARM = Sampling(temperature=0.8, top_k=15, top_p=0.9, seed=3)


@pytest.fixture
def make():
    """Make experts on devices that are closed at the end."""
    devices = []

    def make_expert(shape, dtypes=(DType.BF16,), rule_set="cache", **options):
        devices.append(CpuDevice(SPEC, **({"threads": 2} | options)))
        return RandomExpert(devices[-1], shape, dtypes, rule_set)

    yield make_expert
    for device in devices:
        device.close()


def steps(expert):
    """A ragged prefill of three sequences, a mixed step (one prefills on), a decode, and a step of one token."""
    a, b, c = expert.prompt(19), expert.prompt(1, 2), expert.prompt(40, 3)
    yield step_of((a, 0), (b, 0), (c[:23], 0))
    yield step_of(([0], 19), ([0], 1), (c[23:], 23), sampling=[WARM, Sampling(), WARM])
    yield step_of(([0], 20), ([0], 2), ([0], 40))
    yield step_of(([0], 21))


def largest_error(got, expected):
    """Over all stored values, relative to the largest number of each."""
    errors = {name: np.abs(got[name] - expected[name]).max() / max(np.abs(expected[name]).max(), 1e-6) for name in got}
    worst = max(errors, key=errors.get)
    return errors[worst], worst


@pytest.mark.parametrize("dtypes", [ALL_DTYPES, KEPT], ids=str)
@pytest.mark.parametrize("rule_set", ["none", "cache"])
@pytest.mark.parametrize("isa", kernels.ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_stored_value_is_that_of_the_reference(make, shape, isa, rule_set, dtypes):
    expert = make(shape, dtypes, rule_set, isa=isa)
    for step in steps(expert):
        got, expected = expert.inspect(step), expert.expect(step)
        states = {value.name for value in expert.graph.values.values() if value.kind is Kind.STATE}
        assert set(got) == {name for region in expert.program.regions for name in region.outputs} - states
        error, name = largest_error(got, expected)
        # one rounding of K or V to the pages' type may fall the other way: of bfloat16, 2^-9 of one number of a context
        assert error < NEAR[expert.program.kv.dtype], name


@pytest.mark.parametrize("dtypes", [(dtype,) for dtype in (*PACKED, DType.Q2)] + [MIXED], ids=str)
@pytest.mark.parametrize("isa", kernels.ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_weights_agree_with_the_reference(make, shape, isa, dtypes):
    """Which rounds activations as kernels do: some are near the middle of two numbers and go either way, not many.

    How kernels round is held closely in test_kernels_whole.py.
    """
    expert = make(shape, dtypes, isa=isa).rounding_as_a_cpu()
    logits = next(op for op in expert.graph.ops if op.kind == "sample").inputs[0]
    usual = KV_TOLERANCE.get(expert.program.kv.dtype, SIXTEEN_BITS)
    tolerance = max(usual, TWELVE_BITS) if set(dtypes).intersection(SHARED) else usual
    for step in steps(expert):
        got, expected = expert.inspect(step), expert.expect(step)
        tokens, wanted = (values.pop("next_tokens").astype(int) for values in (got, expected))
        error, name = largest_error(got, expected)
        assert error < tolerance, name
        assert all(np.median(np.abs(got[name] - expected[name])) < usual * np.abs(expected[name]).max() for name in got)
        for row in np.flatnonzero(tokens != wanted):  # of two that are as likely, either
            chosen, best = expected[logits][row, [tokens[row], wanted[row]]]
            assert abs(best - chosen) < 2 * error * np.abs(expected[logits]).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_agrees_closely(make, shape):
    expert = make(shape, (DType.F32,))
    for step in steps(expert):
        got, expected = expert.inspect(step), expert.expect(step)
        assert largest_error(got, expected)[0] < 1e-5
        np.testing.assert_array_equal(got["next_tokens"], expected["next_tokens"])


@pytest.mark.parametrize("dtypes", [(dtype,) for dtype in ALL_DTYPES + PACKED[:2]] + [ALL_DTYPES, MIXED, KEPT], ids=str)
@pytest.mark.parametrize("isa", kernels.ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_is_unfused_to_the_bit(make, shape, isa, dtypes):
    fused, unfused = make(shape, dtypes, "cache", isa=isa), make(shape, dtypes, "none", isa=isa)
    for step in steps(fused):
        one, other = fused.inspect(step), unfused.inspect(step)
        assert len(one) < len(other)
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)
    np.testing.assert_array_equal(fused.kv_bytes(), unfused.kv_bytes())


@pytest.mark.parametrize("dtypes", [ALL_DTYPES, MIXED, KEPT], ids=str)
@pytest.mark.parametrize("isa", kernels.ISAS)
@pytest.mark.parametrize("shape", ["wide", "window"])
def test_results_do_not_depend_on_threads_or_orchestration(make, shape, isa, dtypes):
    first = make(shape, dtypes, threads=1, isa=isa)
    others = [
        make(shape, dtypes, threads=threads, orchestration=how, isa=isa)
        for threads, how in ((1, "device"), (2, "host"), (2, "device"), (3, "device"))
    ]
    for step in steps(first):
        expected = first.inspect(step)
        for other in others:
            for name, values in other.inspect(step).items():
                np.testing.assert_array_equal(values, expected[name], err_msg=name)
    for other in others:
        np.testing.assert_array_equal(other.kv_bytes(), first.kv_bytes())


@pytest.mark.parametrize("isa", kernels.ISAS)
@pytest.mark.parametrize("dtypes", [ALL_DTYPES, PACKED, MIXED, KEPT], ids=str)
@pytest.mark.parametrize("shape", ["odd", "mqa", "qk-norm", "window", "wide"])
def test_a_token_has_the_same_bits_alone_in_a_chunk_and_in_a_batch(make, shape, isa, dtypes):
    expert = make(shape, dtypes, isa=isa)
    prompt = expert.prompt(45)
    logits = next(op for op in expert.graph.ops if op.kind == "sample").inputs[0]
    whole = expert.inspect(step_of((prompt, 0)))[logits]
    pages = expert.kv_bytes()
    for cuts in (range(46), [0, 1, 8, 24, 45], [0, 16, 45]):
        expert.device.memory(expert.kv)[:] = 0
        for begin, end in zip(cuts, list(cuts)[1:], strict=False):
            last = expert.inspect(step_of((prompt[begin:end], begin)))[logits]
        np.testing.assert_array_equal(last, whole)
        np.testing.assert_array_equal(expert.kv_bytes(), pages)
    others = [(expert.prompt(n, n), 0) for n in (3, 17)]
    batched = expert.inspect(step_of((prompt, 0), *others))[logits]
    np.testing.assert_array_equal(batched[:1], whole)


@pytest.mark.parametrize("dtypes", [ALL_DTYPES, PACKED, KEPT], ids=str)
@pytest.mark.parametrize("rule_set", ["none", "cache"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_byte_counter_agrees_with_the_cost(make, shape, rule_set, dtypes):
    expert = make(shape, dtypes, rule_set)
    for step in steps(expert):
        expert.device.reset_counters()
        expert.run(step)
        counted = expert.device.counters()
        outputs = intermediate_bytes(expert.program, step.sizes) + 4 * step.sizes.R
        assert counted.stored_bytes == outputs + program_cost(expert.program, step.sizes).kv_write_bytes
        assert counted.instructions == len(expert.program.regions)


def test_a_tile_does_not_grow_with_the_tokens(make):
    expert = make("wide", ALL_DTYPES)
    used = []
    for sequences, length in ((3, 88), (4, 99)):  # 264 and 396 tokens are tiles of 132
        expert.device.reset_counters()
        expert.run(step_of(*[(expert.prompt(length), 0)] * sequences))
        used.append(expert.device.counters().scratch_bytes)
    assert 0 < used[0] == used[1]


def test_orchestration_decides_the_launches(make):
    step = step_of(([1, 2, 3], 0))
    calls = {}
    for how in ("host", "device"):
        expert = make("odd", orchestration=how)
        expert.run(step)
        calls[how] = expert.device.counters().calls
    assert calls == {"host": len(expert.program.regions), "device": 1}


def test_two_experts_interleaved_are_each_alone(make):
    one = make("odd")
    two = RandomExpert(one.device, "odd", seed=9)
    assert one.exe is two.exe
    alone = [expert.run(step_of(([1, 2, 3], 0))).tolist() for expert in (one, two)]
    ahead = [
        (expert, expert.device.run(expert.exe, expert.binding(step_of(([1, 2, 3], 0))))) for expert in (one, two) * 3
    ]
    for i, (expert, event) in enumerate(ahead):
        while not expert.device.done(event):
            expert.device.wait_any([event])
        assert expert.device.tokens(event).tolist() == alone[i % 2]


@pytest.mark.parametrize("orchestration", ["host", "device"])
def test_the_callers_rows_may_change_after_run(make, orchestration):
    expert = make("wide", orchestration=orchestration)
    step = step_of((expert.prompt(30), 0))
    expected = expert.run(step)
    event = expert.device.run(expert.exe, expert.binding(step))
    step.tokens_T[:] = 0
    while not expert.device.done(event):
        expert.device.wait_any([event])
    np.testing.assert_array_equal(expert.device.tokens(event), expected)
