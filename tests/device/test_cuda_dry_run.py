"""Buckets whose steps launch every kernel, and the processes that compile; kernels are found, never compiled here.

What Triton is asked for on its way to a GPU: tests/system/test_ahead.py.
"""

from __future__ import annotations

import pickle
import sys
import threading
from concurrent.futures import Future

import pytest
import tests.device.interpreted  # noqa: F401  before anything that imports triton
from tests.device.random_expert import BASE, SHAPES

from coterie.core.shapes import Sizes
from coterie.device import Limits
from coterie.devices.cuda import compilers as cuda_compilers
from coterie.devices.cuda.compilers import ENDED, Compilers
from coterie.devices.cuda.dry_run import DryRun, buckets_within, likely_buckets
from coterie.devices.cuda.inputs import bucket_of
from coterie.engine.assembly import page_bytes
from coterie.engine.vectors import without_head
from coterie.graph.compile import compile_graph
from coterie.kernels.triton.compile_ahead import Wanted
from coterie.kernels.triton.tiles import power_of_two
from coterie.models.model import synthetic_model

LIMITS = Limits(sequences=6, tokens=70, context=1100)
OTHERS = "odd", "wide", "branches", "delta-nets"


@pytest.mark.parametrize(
    "shape", ["sinks-and-clipped-gates", *(pytest.param(one, marks=pytest.mark.long) for one in OTHERS)]
)
def test_no_step_within_the_limits_launches_another_kernel(shape):
    """All sizes of steps in all contexts, against the buckets that stand for them."""
    model = synthetic_model(BASE | SHAPES[shape])
    ahead = DryRun((9, 0), 132)
    exe, block = ahead.load(compile_graph(model.graph, "cache")), page_bytes(model.kv)
    few = ahead.everything(exe, LIMITS, block)
    vectors = {  # of those that draw, none has more rows than sequences
        bucket_of(Sizes(T, B, R, 0, 0), context)
        for T in (*range(1, 10), 16, 17, 33, 64, 70)
        for B in range(1, min(T, LIMITS.sequences) + 1)
        for R in (*range(7), 16, 40, 70)
        if R <= T
        for context in (1, 300, 513, 1100)
    }
    every = {bucket for bucket in vectors if bucket.sampled <= power_of_two(LIMITS.sequences)}
    assert len(every) > len(buckets_within(LIMITS)) > len(likely_buckets(LIMITS))
    assert set(ahead.wanted(exe, every, block)) == set(few)
    assert set(ahead.wanted(exe, likely_buckets(LIMITS), block)) < set(few)
    assert set(ahead.everything(exe, LIMITS, 2 * block)) != set(few)
    bare = ahead.load(without_head(exe.program))
    assert set(ahead.wanted(bare, vectors, block)) == set(ahead.everything(bare, LIMITS, block))
    assert not set(ahead.everything(bare, LIMITS, block)) <= set(few)  # a norm of its own


def test_a_context_has_no_kernels_of_its_own():
    """How many spans it has is a number that kernels are given."""
    model = synthetic_model(BASE | SHAPES["odd"])
    ahead = DryRun((9, 0), 132)
    exe, block = ahead.load(compile_graph(model.graph, "cache")), page_bytes(model.kv)
    short, long = (ahead.everything(exe, Limits(6, 70, most), block) for most in (256, 1 << 17))
    kernels = [{(one.name, one.constants) for one in some} for some in (short, long)]
    assert kernels[0] == kernels[1]


# What stands for the compiler's processes: it answers True for kernels of even numbers, and ends at one named "last".
STAND_IN = """
import os, pickle, sys
while True:
    number, wanted = pickle.load(sys.stdin.buffer)
    if wanted.name == "last":
        os._exit(3)
    pickle.dump((number, True if wanted.name != "odd" else "odd: no such type"), sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


@pytest.fixture
def compilers(monkeypatch):
    def popen(command, **how):
        assert command[1:3] == ["-m", "coterie.devices.cuda.compiler"]
        assert command[3:] == ["9.0", "2"]
        return started([sys.executable, "-c", STAND_IN], **how)

    started = cuda_compilers.subprocess.Popen
    monkeypatch.setattr(cuda_compilers.subprocess, "Popen", popen)
    made = Compilers((9, 0), 2)
    yield made
    made.close()
    listening = [thread for thread in threading.enumerate() if thread.name == "compilers"]
    for thread in listening:
        thread.join(60)
    assert not any(thread.is_alive() for thread in listening)


def named(name, number=0):
    return Wanted("m", name, (number,), ())


def test_each_kernel_is_asked_for_once_and_errors_are_words(compilers):
    found = compilers.ask([named("even"), named("odd"), named("even"), *(named("even", i) for i in range(20))])
    assert [future.result(60) for future in found] == [True, "odd: no such type", *[True] * 21]
    assert found[0] is found[2] is found[3]
    assert compilers.ask([named("odd")], urgent=True)[0] is found[1]


def test_who_waits_hears_that_the_processes_have_ended(compilers):
    found = compilers.ask([named("even"), named("last"), *(named("even", i) for i in range(1, 9))])
    assert found[1].result(60) == ENDED
    assert {future.result(60) for future in found} <= {True, ENDED}
    assert compilers.ask([named("even", 99)])[0].result(60) == ENDED
    compilers.close()
    assert pickle.loads(pickle.dumps(named("even"))) == named("even")


class Asked:
    """Compilers that compile at once, and remember what they were asked for."""

    capability = (9, 0)

    def __init__(self):
        self.asked = []

    def ask(self, wanted, urgent):
        assert urgent
        self.asked.append(tuple(wanted))
        done = Future()
        done.set_result(True)
        return [done]


def test_a_step_that_is_met_first_has_its_kernels_compiled_at_once(monkeypatch):
    """Those that are not there, once; few of them are left to whoever launches, and so are errors."""
    there = {"k3"}
    monkeypatch.setattr(cuda_compilers, "wanted_by", dict.fromkeys)
    monkeypatch.setattr(cuda_compilers, "is_cached", lambda key, wanted: key in there)
    monkeypatch.setattr(Wanted, "key", lambda self, capability: f"k{self.args[0]}")
    compilers = Asked()
    before = cuda_compilers.StepCompiler(compilers)
    kernels = [named("few", number) for number in range(6)]
    before(kernels[:2])
    assert compilers.asked == []
    before(kernels)
    assert compilers.asked == [(kernels[2], kernels[4], kernels[5])]
    before(kernels)
    before(3)  # nothing that has launches: it is only about time
    assert len(compilers.asked) == 1
