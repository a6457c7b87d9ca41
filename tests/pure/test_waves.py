"""Thread blocks of decode attention: the published rule by hand, what is fitted, and that more work is not faster."""

from __future__ import annotations

from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.graphs import STEADY

from coterie.core.errors import UsageError
from coterie.spec.kernel import Kernel
from coterie.spec.load import load_machine, parse_machine
from coterie.spec.waves import MAX_WAVES, Blocks, parts


def decode(batch: int, context: int, kv_heads: int = 8) -> Kernel:
    return Kernel("attention-decode", (4 * kv_heads, kv_heads, 128, batch, context))


def test_a_context_is_cut_as_the_rule_says():
    assert [parts(1, 8, context, 132) for context in (1, 127, 512, 1024, 2048, 8192)] == [1, 1, 4, 8, 11, 23]
    assert [parts(16, 8, context, 132) for context in (512, 1024, 2048)] == [4, 8, 8], "11 would be 10.7 waves"
    assert parts(64, 8, 512, 108) == 1, "4 would be 19 waves"
    assert parts(10_000, 8, 10**6, 108) == 1


def test_a_wave_that_is_hardly_begun_takes_as_long_as_a_full_one():
    assert [Blocks.waves_of(decode(1, context), 132) for context in (512, 2048, 4096, 8192)] == [1, 1, 1, 2]
    assert Blocks.waves_of(decode(1, 4096), 108) == 2, "128 blocks"
    assert Blocks.waves_of(decode(64, 512), 132) == 8


@settings(STEADY, max_examples=200)
@given(st.integers(1, 512), st.integers(1, 16), st.integers(1, 100_000), st.integers(1, 200))
def test_parts_leave_no_multiprocessor_more_than_the_most_waves_that_cutting_can_avoid(batch, heads, context, count):
    cut = parts(batch, heads, context, count)
    assert 1 <= cut <= max(1, context // 128)
    assert cut == 1 or batch * heads * cut <= MAX_WAVES * count


@settings(STEADY, max_examples=50)
@given(st.floats(1e-6, 2e-5), st.floats(1e-6, 1e-5), st.floats(0.3, 1.0))
def test_the_constants_that_made_times_are_found_again(fixed_s, start_s, share):
    made = Blocks(108, fixed_s, start_s, share)
    kernels = [decode(batch, context) for batch in (1, 16, 64) for context in (512, 2048, 8192)]
    points = [(kernel, kernel.bytes / 2e12, made.seconds(kernel, kernel.bytes / 2e12)) for kernel in kernels]
    found = Blocks.fit(108, points)
    assert found.fixed_s == pytest.approx(fixed_s, rel=1e-4)
    assert found.start_s == pytest.approx(start_s, rel=1e-4)
    assert found.share == pytest.approx(share, rel=1e-4)


def test_nothing_is_fitted_below_zero_or_to_too_few_rows():
    kernels = [decode(batch, context) for batch in (1, 16, 64) for context in (512, 2048, 8192)]
    points = [(kernel, kernel.bytes / 2e12, 1.1 * kernel.bytes / 2e12) for kernel in kernels]
    found = Blocks.fit(108, points)
    assert min(found.fixed_s, found.start_s) >= 0
    assert found.share == pytest.approx(1 / 1.1)
    assert Blocks.fit(108, points[:3]) is None
    assert Blocks.fit(108, [(kernel, effort_s, 1e-5) for kernel, effort_s, _ in points]) is None


def test_a_gpu_has_multiprocessors_and_a_machine_that_says_nothing_has_none():
    assert [load_machine(name).multiprocessors for name in ("a100", "h100", "h200", "sn40l-socket")] == [
        108,
        132,
        132,
        0,
    ]


def test_half_a_multiprocessor_is_refused():
    text = (files("coterie.spec") / "machines" / "a100.toml").read_text(encoding="utf-8")
    wrong = text.replace("multiprocessors = { value = 108,", "multiprocessors = { value = 107.5,")
    with pytest.raises(UsageError) as caught:
        parse_machine(wrong, "mine.toml")
    assert caught.value.where == "mine.toml: multiprocessors.value"
    assert "107.5" in caught.value.fact
