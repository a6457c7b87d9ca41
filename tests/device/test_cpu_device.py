"""The CPU device's memory, disk and lanes, beyond what every device must keep (test_contract*.py).

Knows nothing about what programs compute.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
import time
import weakref

import numpy as np
import pytest
from tests.device.cpu_devices import data, finish, make, range_of
from tests.device.random_expert import SPEC, RandomExpert, step_of

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import DeviceError, UnsupportedError, UsageError
from coterie.device import Event, Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.real.lanes import COMPUTE
from coterie.kernels import cpu as kernels

__all__ = ["data", "make"]  # fixtures


@pytest.mark.parametrize("orchestration", ["host", "device"])
def test_a_run_waits_for_a_gate_and_fails_with_it(make, data, orchestration):
    path, _ = data
    opened = threading.Event()

    def read(file, buffers, offset):
        opened.wait(10)
        return os.preadv(file, buffers, offset)

    device = make(orchestration=orchestration, read=read)
    expert = RandomExpert(device, "odd")
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)
    step = step_of(([1, 2, 3], 0))
    free = expert.run(step)
    good = device.fetch(buffer, range_of(path))
    bad = device.fetch(buffer, dataclasses.replace(range_of(path), path="/nonexistent"))
    gated = device.run(expert.exe, expert.binding(step), gates={"layers.1": good})
    doomed = device.run(expert.exe, expert.binding(step), gates={"layers.0": good, "layers.1": bad})
    device.wait_any([gated], until=device.now() + 0.05)
    assert not device.done(gated)
    opened.set()
    assert finish(device, gated) is None
    np.testing.assert_array_equal(device.tokens(gated), free)
    assert finish(device, doomed) is device.failure(bad)
    np.testing.assert_array_equal(expert.run(step, gates={"layers.1": good}), free)


@pytest.mark.parametrize("orchestration", ["host", "device"])
def test_an_interrupt_while_a_gate_is_closed_leaves_one_step(make, data, orchestration):
    opened = threading.Event()

    def read(file, buffers, offset):
        opened.wait(10)
        return os.preadv(file, buffers, offset)

    device = make(orchestration=orchestration, read=read)
    expert = RandomExpert(device, "odd")
    expert.run(step_of(([1, 2, 3], 0)))
    free = expert.run(step_of(([4], 3)), steps=9)
    gate = device.fetch(device.reserve("dram", 6 * BLOCK_BYTES), range_of(data[0]))
    gated = device.run(expert.exe, expert.binding(step_of(([4], 3))), gates={"layers.1": gate}, steps=9)
    device.interrupt()
    opened.set()
    assert finish(device, gated) is None
    np.testing.assert_array_equal(device.tokens(gated), free[:1])
    np.testing.assert_array_equal(expert.run(step_of(([4], 3)), steps=9), free)


@pytest.mark.parametrize("orchestration", ["host", "device"])
def test_closing_fails_what_waits_and_frees_who_waits(data, orchestration):
    reading, opened = threading.Event(), threading.Event()

    def read(file, buffers, offset):
        reading.set()
        opened.wait(10)
        return os.preadv(file, buffers, offset)

    device = CpuDevice(SPEC, threads=2, orchestration=orchestration, read=read)
    expert = RandomExpert(device, "odd")
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)
    slow, queued = (device.fetch(buffer, range_of(data[0])) for _ in range(2))
    gated = device.run(expert.exe, expert.binding(step_of(([1], 0))), gates={"layers.1": queued})
    after = device.fetch(buffer, range_of(data[0]), after=[gated])
    assert reading.wait(10)
    threading.Timer(0.05, opened.set).start()
    device.close()
    assert device.failure(slow) is None
    for event in (queued, gated, after):
        assert isinstance(device.failure(event), DeviceError)
    with pytest.raises(DeviceError, match="closed"):
        device.fetch(buffer, range_of(data[0]))


def test_who_waits_for_brief_work_does_it_and_others_go_on(make, data):
    device = make()
    expert = RandomExpert(device, "odd")
    seen = []
    native = device._team.run_steps
    device._team.run_steps = lambda *args: (seen.append(threading.current_thread()), native(*args))[1]
    free = expert.run(step_of(([1, 2, 3], 0)))
    gate = device.fetch(device.reserve("dram", 6 * BLOCK_BYTES), range_of(data[0]))
    gated = device.run(expert.exe, expert.binding(step_of(([1, 2, 3], 0))), gates={"layers.1": gate})
    queued = device.run(expert.exe, expert.binding(step_of(([1, 2, 3], 0))))
    assert finish(device, queued) is None
    for event in (gated, queued):
        np.testing.assert_array_equal(device.tokens(event), free)
    assert seen[1] is not threading.main_thread()  # a run with gates is never done by who waits: it may last


def test_brief_work_wakes_its_lane_only_for_who_asks_without_waiting_for_it_alone(make, monkeypatch):
    device = make()
    expert = RandomExpert(device, "odd")
    step = step_of(([1, 2, 3], 0))
    free = expert.run(step)
    lane, woken = device._lanes._lanes[COMPUTE], []
    notify = lane.ready.notify
    monkeypatch.setattr(lane.ready, "notify", lambda: (woken.append(1), notify())[1])
    alone = device.run(expert.exe, expert.binding(step))
    device.wait_any([alone])
    np.testing.assert_array_equal(device.tokens(alone), free)
    assert not woken
    asked = device.run(expert.exe, expert.binding(step))
    while not device.done(asked):
        time.sleep(0.001)
    np.testing.assert_array_equal(device.tokens(asked), free)
    first, second = (device.run(expert.exe, expert.binding(step)) for _ in range(2))
    for event in (second, first):
        assert finish(device, event) is None
        np.testing.assert_array_equal(device.tokens(event), free)
    assert woken


def test_events_are_kept_by_their_owners_only(make, data):
    device = make()
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)
    event = device.fetch(buffer, dataclasses.replace(range_of(data[0]), path="/nonexistent"))
    failure = weakref.ref(finish(device, event))
    assert failure() is not None
    finish(device, device.fetch(buffer, range_of(data[0]), after=[event]))
    del event
    finish(device, device.fetch(buffer, range_of(data[0])))
    gc.collect()
    assert failure() is None


def test_a_lane_whose_thread_did_not_start_can_be_started_later(make, data, monkeypatch):
    device = make()
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(DeviceError, match="disk->dram"):
            device.fetch(buffer, range_of(data[0]))
    assert finish(device, device.fetch(buffer, range_of(data[0]))) is None


@pytest.mark.parametrize("threads", [-1, 0, 1025])
def test_a_number_of_threads_out_of_range_is_refused(threads):
    with pytest.raises(UsageError, match="1 to 1024"):
        CpuDevice(SPEC, threads=threads)


def test_threads_that_cannot_be_started_are_named(monkeypatch):
    def refuse(threads, isa):
        raise RuntimeError("only 3 of 8 threads could be started")

    monkeypatch.setattr(kernels, "Team", refuse)
    with pytest.raises(DeviceError, match=r"--threads.*only 3 of 8"):
        CpuDevice(SPEC, threads=8)


@pytest.mark.parametrize("isa", kernels.ISAS)
@pytest.mark.parametrize("layer", [0, 1])
def test_weights_that_are_not_numbers_fail_the_run(make, isa, layer):
    """One element of a key projection: only the exponential of attention sees it first."""
    expert = RandomExpert(make(isa=isa), "odd")
    good = step_of(([1, 2, 3], 0), ([4], 0))
    assert (expert.run(good) >= 0).all()
    (name,) = [n for n in expert.program.weights if f"layers.{layer}." in n and "k_proj" in n and "weight" in n]
    at = expert.offsets[expert.program.weights.index(name)]
    expert.device.memory(expert.extent)[at : at + 2] = [0xC0, 0x7F]  # a NaN of bfloat16
    for step in (good, step_of(([1, 2, 3], 0), sampling=[Sampling(temperature=1.0, seed=1)])):
        with pytest.raises(DeviceError, match="row 0 hold values that are not numbers"):
            expert.run(step)
    values = expert.inspect(good)
    assert np.isnan(values[next(n for n in values if "logits" in n or n.startswith("head"))]).any()


def test_events_of_another_device_are_refused(make):
    device = make()
    stranger = Event(0, "compute", "elsewhere")
    with pytest.raises(ValueError, match="another device"):
        device.done(stranger)
    with pytest.raises(ValueError, match="another device"):
        device.wait_any([stranger])


def test_an_unfinished_event_has_no_span_yet(make, data):
    opened = threading.Event()
    device = make(read=lambda file, buffers, offset: opened.wait(10) and os.preadv(file, buffers, offset))
    event = device.fetch(device.reserve("dram", 6 * BLOCK_BYTES), range_of(data[0]))
    for question in (device.span, device.failure, device.tokens):
        with pytest.raises(ValueError, match="not finished"):
            question(event)
    opened.set()
    finish(device, event)
    with pytest.raises(ValueError, match="not a run"):
        device.tokens(event)


def test_load_is_cached_by_architecture_and_rule_set(make):
    device = make()
    first = RandomExpert(device, "odd")
    assert RandomExpert(device, "odd", seed=4).exe is first.exe
    assert RandomExpert(device, "odd", rule_set="none").exe is not first.exe
    assert RandomExpert(device, "mqa").exe is not first.exe


def test_a_region_without_a_kernel_is_named(make):
    device = make()
    program = RandomExpert(device, "odd").program
    region = dataclasses.replace(program.regions[0], kernel="warp")
    with pytest.raises(UnsupportedError, match="warp"):
        device.load(dataclasses.replace(program, rule_set="other", regions=(region, *program.regions[1:])))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tokens_T": np.array([1, 67], dtype=np.int32)}, "tokens"),
        ({"tokens_T": np.array([-1, 5], dtype=np.int32)}, "tokens"),
        ({"positions_T": np.array([0, 24 * 5], dtype=np.int32)}, "positions"),
        ({"positions_T": np.array([0], dtype=np.int32)}, "positions"),
        ({"sequence_T": np.array([0, 1], dtype=np.int32)}, "sequence"),
        ({"block_tables_BM": np.full((1, 24), 96, dtype=np.int32)}, "block_tables"),
        ({"rows_R": np.array([2], dtype=np.int32)}, "rows"),
        ({"sampling": ()}, "sampling"),
        ({"end_ids": ((1,), (2,))}, "end_ids"),
    ],
)
def test_rows_that_do_not_fit_are_refused(make, change, word):
    expert = RandomExpert(make(), "odd")
    step = dataclasses.replace(step_of(([1, 2], 0)), **change)
    with pytest.raises(ValueError, match=word):
        expert.run(step)


def test_bindings_that_do_not_fit_are_refused(make):
    expert = RandomExpert(make(), "odd")
    good = expert.binding(step_of(([1, 2], 0)))
    high = (good.weights.size_bytes, *good.offsets[1:])
    for change, word in (
        ({"offsets": good.offsets[1:]}, "offsets"),
        ({"offsets": high}, "extent"),
        ({"offsets": (-1, *good.offsets[1:])}, "offset is -1"),
        ({"block_bytes": 3}, "holds no token"),
        ({"kv": good.kv.view(0, 2 * good.block_bytes)}, "block_tables"),
    ):
        with pytest.raises(ValueError, match=word):
            expert.device.run(expert.exe, dataclasses.replace(good, **change))


def test_many_steps_grow_only_by_their_tokens(make):
    expert = RandomExpert(make(), "odd")
    expert.run(step_of(([1, 2, 3], 0)))
    drawn = expert.run(step_of(([4], 3), sampling=[Sampling(temperature=1.0, seed=1)]), steps=100)
    assert drawn.shape == (100, 1)
    with pytest.raises(ValueError, match="positions"):
        expert.run(step_of(([4], 3)), steps=118)


def test_the_default_device_is_this_machine():
    device = CpuDevice()
    try:
        assert device.spec.run_tier == "dram"
        assert 1 <= device.threads <= (os.cpu_count() or 1)
        assert device.isa == kernels.ISAS[-1]
        assert not device.synthetic()
    finally:
        device.close()
