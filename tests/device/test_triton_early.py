"""Launches that begin before those in front of them are over touch nothing that these still store.

Knows nothing about what the launches compute.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.device.begun_early import begun_early
from tests.device.interpreted import WIDE, inspect
from tests.device.random_expert import making, step_of
from triton import jit
from triton import language as tl

from coterie.core.dtypes import DType
from coterie.kernels.triton.arithmetic import EARLY, NOW, wait_for_previous
from coterie.kernels.triton.tiles import TensorCoreTile

F32, F16, BF16, Q8, Q4, Q4Z = DType.F32, DType.F16, DType.BF16, DType.Q8, DType.Q4, DType.Q4Z
LONG = [(7 * i + 3) % 50 for i in range(66)]  # as many tokens as have large tiles
STEPS = {
    "one token": step_of(([3], 40)),
    "tokens of several sequences": step_of(([3], 40), ([5], 7), ([8], 0)),
    "a prompt behind a prompt": step_of(([3, 1, 4, 1, 5, 9, 2], 11), ([2, 6], 0)),
    "a long prompt": step_of((LONG, 0)),
}
SHORT = [name for name in STEPS if name != "a long prompt"]
DESCRIBED = replace(
    WIDE, described=((1.0, 1.0, TensorCoreTile(32, 16, 16, 4, 2, pieces=2, described=True)),), multiprocessors=4
)


@pytest.fixture
def make():
    with making() as make_expert:
        yield make_expert


@jit
def _stores(y, WHEN: tl.constexpr):
    wait_for_previous(WHEN)
    tl.store(y + tl.arange(0, 8), 1.0)


@jit
def _reads_before(x, y, FROM: tl.constexpr, WHEN: tl.constexpr):
    early = tl.load(x + FROM + tl.arange(0, 8))
    wait_for_previous(WHEN)
    tl.store(y + tl.arange(0, 8), early)


@jit
def _stores_before(x, WHEN: tl.constexpr):
    tl.store(x, 2.0)
    wait_for_previous(WHEN)


@jit
def _waits_for_nothing(x, WHEN: tl.constexpr):
    wait_for_previous(0)
    tl.load(x)


@jit
def _counts_before(x, WHEN: tl.constexpr):
    tl.atomic_cas(x, 0, 1)
    wait_for_previous(WHEN)


@jit
def _waits_in_one(WHEN: tl.constexpr):
    if tl.program_id(0) == 0:
        wait_for_previous(WHEN)


@pytest.mark.parametrize("dtypes", [(BF16,), (F32,), (Q8,), (Q4, F16, Q8, BF16, Q4Z)], ids=str)
@pytest.mark.parametrize("step", SHORT)
def test_what_others_still_store_is_read_after_the_wait(make, dtypes, step):
    with begun_early() as launches:
        inspect(make("odd", dtypes), STEPS[step])
    assert launches.faults == []
    assert launches.early


@pytest.mark.parametrize("shape", ["biases", "qk-norm", "window", "mqa"])
def test_other_shapes_wait_too(make, shape):
    with begun_early() as launches:
        inspect(make(shape, (BF16,)), STEPS["tokens of several sequences"])
    assert launches.faults == []
    assert launches.early


@pytest.mark.long
@pytest.mark.parametrize("dtypes", [(BF16,), (Q4,)], ids=str)
@pytest.mark.parametrize("step", SHORT)
def test_layers_with_branches_wait_too(make, step, dtypes):
    with begun_early() as launches:
        inspect(make("branches", dtypes), STEPS[step])
    assert launches.faults == []
    assert {"_choose", "_few" if len(STEPS[step].tokens_T) < 5 else "_group"} <= set(launches.early)


@pytest.mark.parametrize("dtypes", [(BF16,), pytest.param((Q4, F16, Q8, BF16, Q4Z), marks=pytest.mark.long)], ids=str)
def test_long_prompts_wait_too(make, dtypes):
    with begun_early() as launches:
        inspect(make("odd", dtypes), STEPS["a long prompt"])
    assert launches.faults == []
    assert launches.early


@pytest.mark.parametrize("step", [*SHORT[1:], pytest.param(SHORT[0], marks=pytest.mark.long)])
def test_wide_matrices_wait_too(make, step):
    with begun_early() as launches:
        inspect(make("wide", (BF16,)), STEPS[step])
    assert launches.faults == []
    assert launches.early


def test_launches_by_descriptors_wait_too(make):
    with begun_early() as launches:
        inspect(make("wide", (BF16,)), STEPS["a long prompt"], DESCRIBED)
    assert launches.faults == []
    assert "_described" in launches.early


@pytest.mark.parametrize("step", SHORT[:2])
def test_all_that_begin_early_need_their_wait(make, step):
    """Without it each of them is found twice: it does not wait, and it reads or writes too soon."""
    with begun_early() as launches:
        launches.wait = lambda: None
        inspect(make("odd", (BF16,)), STEPS[step])
    without = {fault.split()[0] for fault in launches.faults if fault.endswith("does not wait")}
    too_soon = {fault.split()[0] for fault in launches.faults if not fault.endswith("does not wait")}
    assert without == too_soon == set(launches.early)


def test_launches_that_read_too_early_are_found():
    x, y = torch.zeros(16), torch.zeros(16)
    with begun_early() as launches:
        _stores[(1,)](x, WHEN=EARLY.value)
        _reads_before[(1,)](x, y, FROM=8, WHEN=EARLY.value)  # what no launch stores
        assert launches.faults == []
        _reads_before[(1,)](x, y, FROM=0, WHEN=NOW.value)  # behind a launch that is over
        assert launches.faults == []
        _reads_before[(1,)](y, x, FROM=4, WHEN=EARLY.value)  # half of it
        assert launches.faults == ["_reads_before loads what a launch before it stores, and has not waited"]


def test_what_a_launch_before_the_last_one_stores_may_not_be_there_either():
    x, y = torch.zeros(16), torch.zeros(16)
    with begun_early() as launches:
        _stores[(1,)](x, WHEN=EARLY.value)
        _stores[(1,)](y, WHEN=EARLY.value)
        _reads_before[(1,)](x, y, FROM=0, WHEN=EARLY.value)
    assert len(launches.faults) == 1


def test_launches_that_store_before_they_wait_or_do_not_wait_are_found():
    with begun_early() as launches:
        _stores_before[(1,)](torch.zeros(8), WHEN=EARLY.value)
        _waits_in_one[(2,)](WHEN=EARLY.value)
        _counts_before[(1,)](torch.zeros(8, dtype=torch.int32), WHEN=EARLY.value)
    before = "stores, and has not waited"
    assert launches.faults == [f"_stores_before {before}", "_waits_in_one does not wait", f"_counts_before {before}"]


def test_a_wait_that_is_compiled_out_is_none():
    x = torch.zeros(8)
    with begun_early() as launches:
        _stores[(1,)](x, WHEN=EARLY.value)
        _waits_for_nothing[(1,)](x, WHEN=EARLY.value)
    assert len(launches.faults) == 2
