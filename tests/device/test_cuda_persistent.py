"""The CUDA device with runs walked in one launch: the CPU's tokens, fewer launches, and what cannot be walked.

Kernels are the CPU's or Triton's, interpreted in turns. Knows nothing about what a GPU would take for it.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.cuda_devices import making
from tests.device.in_turns import in_turns
from tests.device.interpreted import WIDE
from tests.device.lazy_gpu import LazyDriver
from tests.device.native_kernels import NativeKernels
from tests.device.programs import Desk, loaded, rows, tiny_graph, write_weights

from coterie.core.errors import CapacityError
from coterie.device import Sampling
from coterie.devices.cuda.kernels import TritonKernels

WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)
STEPS = 6


@pytest.fixture
def make():
    with making(orchestration="persistent") as make_device:
        yield make_device


def decode(*tokens, at=5):
    return rows([([token], at) for token in tokens], [WARM] * len(tokens))


@pytest.mark.parametrize("seed", range(4))
def test_runs_of_several_steps_are_one_launch_and_give_the_cpus_tokens(make, on_cpu, layout, seed):
    desk = loaded(Desk(make(seed=seed), layout))
    runs = [decode(7), decode(7, 8), decode(1, 2, 3, 4), decode(9), decode(5, 6, 7)]
    before = desk.device.driver.launched
    events = [desk.run(step, steps=STEPS) for step in runs]
    found = [desk.tokens(event) for event in events]
    assert desk.device.driver.launched - before == len(runs)
    assert desk.device.driver.captured == 0
    assert found == [on_cpu.tokens(on_cpu.run(step, steps=STEPS)) for step in runs]
    assert desk.device.remarks == ()


def test_another_expert_is_walked_by_the_same_plan(make, on_cpu, layout, tmp_path):
    desk = loaded(Desk(make(), layout))
    whole = desk.tokens(desk.run(decode(7), steps=STEPS))
    found = desk.device._shared.kernels.rows_found
    other = write_weights(tmp_path / "other.weights", tiny_graph(), seed=9)
    answers = []
    for one in (desk, on_cpu):
        twin = one.device.reserve(one.weights.tier, other.size_bytes)
        one.layout = other
        gates = one.fetch(weights=twin)
        answers.append(one.tokens(one.device.run(one.exe, one.binding(decode(7), twin), gates=gates, steps=STEPS)))
    assert answers[0] == answers[1] != whole
    assert desk.device._shared.kernels.rows_found == found


def test_more_sequences_than_are_walked_are_captured_and_a_remark_says_so(make, on_cpu, layout):
    desk = loaded(Desk(make(), layout))
    step = decode(*range(5))
    for _ in range(2):
        assert desk.tokens(desk.run(step, steps=3)) == on_cpu.tokens(on_cpu.run(step, steps=3))
    assert desk.device.driver.replayed > 0
    (remark,) = desk.device.remarks
    assert remark.startswith("decode steps are launched one by one for up to 8 sequences: ")
    assert desk.device.remarks[0] in desk.device.spec.notes


class Unwilling(NativeKernels):
    """A GPU that refuses the launch, as one does that has no room for all programs at once."""

    def plan(self, *args):
        plan = super().plan(*args)
        plan.walk = self._refuse
        return plan

    def _refuse(self, *args):
        raise RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch")


def test_a_gpu_that_refuses_the_launch_runs_captured_steps(make, on_cpu, layout):
    desk = loaded(Desk(make(kernels=Unwilling()), layout))
    for _ in range(2):
        assert desk.tokens(desk.run(decode(7), steps=3)) == on_cpu.tokens(on_cpu.run(decode(7), steps=3))
    assert desk.device.driver.replayed > 0
    (remark,) = desk.device.remarks
    assert remark.endswith("for up to 1 sequences: Triton Error [CUDA]: too many blocks in cooperative launch")


class Crowded(NativeKernels):
    """A GPU whose memory is full when a walk is found for the first time."""

    refusals = 1

    def plan(self, *args):
        if self.refusals:
            self.refusals -= 1
            raise CapacityError("hbm", "phases of a program", 1024, 0, ["lower --near"])
        return super().plan(*args)


def test_memory_that_is_full_at_one_run_does_not_keep_the_next_from_being_walked(make, on_cpu, layout):
    desk = loaded(Desk(make(kernels=Crowded()), layout))
    expected, launches = [on_cpu.tokens(on_cpu.run(decode(7), steps=STEPS)) for _ in range(3)], []
    for tokens in expected:
        before = desk.device.driver.launched
        assert desk.tokens(desk.run(decode(7), steps=STEPS)) == tokens
        launches.append(desk.device.driver.launched - before)
    assert launches[0] > STEPS
    assert launches[1:] == [1, 1]
    (remark,) = desk.device.remarks
    assert remark.startswith("decode steps are launched one by one for some runs of up to 1 sequences: [hbm] phases")


def test_a_word_that_ends_a_run_ends_a_walk(make, layout):
    desk = loaded(Desk(make(driver=LazyDriver(newest_first=True)), layout))
    whole, driver = desk.tokens(desk.run(decode(7), steps=STEPS)), desk.device.driver
    desk.device.interrupt()
    desk.tokens(desk.run(decode(7), steps=STEPS))
    driver.hold()
    run = desk.run(decode(7), steps=STEPS)
    driver.until_queued(1)
    desk.device.interrupt()
    driver.release()
    assert desk.tokens(run) == whole[:1]
    assert desk.tokens(desk.run(decode(7), steps=STEPS)) == whole


def test_an_experts_answer_by_the_kernels_in_one_launch_is_the_cpus(on_cpu, layout):
    """A cold prompt, then three steps in one launch, whose programs meet after every row."""
    driver = LazyDriver(settle_s=1e-3)
    driver.facts = replace(driver.facts, multiprocessors=3)
    with in_turns() as turns, making(kernels=TritonKernels(WIDE), driver=driver) as make_device:
        desk = Desk(make_device("persistent"), layout)
        first = desk.tokens(desk.run(rows([([3, 14, 15], 0)], [WARM]), gates=desk.fetch()))
        met = turns.atomics
        launched = driver.launched
        answer = desk.tokens(desk.run(decode(first[0][0], at=3), steps=3))
        assert driver.launched == launched + 1
        assert turns.atomics > met
        assert desk.device.remarks == ()
    on_cpu.tokens(on_cpu.run(rows([([3, 14, 15], 0)], [WARM])))
    assert answer == on_cpu.tokens(on_cpu.run(decode(first[0][0], at=3), steps=3))
