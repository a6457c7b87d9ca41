"""Faults of the CUDA device on a GPU that is none: no room, no pinning, errors in the middle, a GPU that is gone.

Each fails what it must with a sentence, and what can go on does. Knows nothing about what programs compute.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.cuda_devices import cuda, making
from tests.device.expert import Expert
from tests.device.lazy_gpu import LazyDriver
from tests.device.programs import Desk, decode, loaded, rows
from tests.system.tiny import write_expert

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError, DeviceError, TransferError
from coterie.models.model import open_model

PROMPT = [3, 14, 15, 9, 26]


@pytest.fixture
def make():
    with making() as make_device:
        yield make_device


def test_a_gpu_without_room_for_a_slab_says_how_much_there_is(make):
    device = make(driver=LazyDriver(total_bytes=2**20))
    with pytest.raises(CapacityError, match=r"hbm\] a slab needs 2.00 MiB but 1.00 MiB can be had; reserve less or"):
        device.reserve("hbm", 2 * 2**20)
    device.reserve("hbm", 2**19)


def test_a_step_without_room_fails_and_smaller_ones_go_on(make, layout):
    driver = LazyDriver()
    desk = loaded(Desk(make(driver=driver), layout))
    expected = desk.tokens(desk.run(decode(7, 0)))
    driver.facts = driver.facts.__class__("full", driver.taken_bytes + 100, 1, (9, 0), "")
    failed = desk.run(rows([(list(range(16)), 0)]))
    desk.wait(failed)
    assert isinstance(desk.device.failure(failed), CapacityError)
    assert "100 B can be had" in str(desk.device.failure(failed))
    assert desk.tokens(desk.run(decode(7, 0))) == expected


def test_a_pool_that_the_system_does_not_pin_works_and_is_remarked(make, tmp_path):
    driver = LazyDriver()
    driver.pin_limit_bytes = 2**19
    model = open_model(write_expert(tmp_path / "one", 3))
    expert = Expert(make(driver=driver, machine="toy-tiers"), model, way="pool")
    device = expert.device
    assert device.remarks == ()
    device.reserve("ddr", 2**20)
    assert "does not pin the pool of 1.00 MiB (cudaErrorMemoryAllocation)" in device.remarks[0]
    assert expert.tokens(rows([(PROMPT, 0)]))


def test_staging_that_the_system_does_not_pin_is_a_sentence(make, layout):
    driver = LazyDriver()
    desk = Desk(make(driver=driver), layout)
    driver.pin_limit_bytes = driver.pinned_bytes
    with pytest.raises(DeviceError, match=r"the system pins no 128.00 KiB of memory for staging .*locked memory"):
        desk.fetch()
    driver.pin_limit_bytes = None
    desk.wait(*desk.fetch().values())


@pytest.mark.parametrize("at", [0, 5, 17])
@pytest.mark.parametrize("orchestration", ["host", "device"])
def test_an_error_in_the_middle_of_a_step_fails_the_run_and_the_next_one_works(make, layout, at, orchestration):
    driver = LazyDriver()
    desk = loaded(Desk(make(orchestration, driver=driver), layout))
    expected = [desk.tokens(desk.run(decode(7, 0), steps=3)) for _ in range(2)]
    driver.fail_at = at
    failed, behind = desk.run(decode(7, 0), steps=3), desk.run(decode(7, 0), steps=3)
    desk.wait(failed)
    failure = desk.device.failure(failed)
    assert isinstance(failure, DeviceError)
    assert "run tiny failed: CUDA error: an illegal memory access" in str(failure)
    assert "the GPU goes on" in str(failure)
    assert desk.tokens(behind) == expected[0] == expected[1]


def test_an_inspection_that_fails_gives_its_packet_back(make, tmp_path):
    driver = LazyDriver()
    expert = Expert(make("host", driver=driver), open_model(write_expert(tmp_path / "one", 3)), "none")
    step = rows([(PROMPT, 0)])
    expert.inspect(step)
    before = driver.pinned_bytes
    expected = expert.inspect(step)
    one = driver.pinned_bytes - before  # what stored values are copied to
    launch, driver.launch = driver.launch, fail
    with pytest.raises(DeviceError, match="an illegal memory access"):
        expert.device.inspect(expert.exe, expert.binding(step))
    driver.launch = launch
    for name, value in expert.inspect(step).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert driver.pinned_bytes == before + 2 * one


def fail(stream, launches):
    raise RuntimeError("CUDA error: an illegal memory access")


def test_a_gpu_that_disappears_fails_everything_at_once_with_one_sentence(make, layout):
    driver = LazyDriver()
    driver.is_fatal = True
    desk = loaded(Desk(make(driver=driver), layout))
    desk.tokens(desk.run(decode(7, 0)))
    driver.fail_at = 3
    runs = [desk.run(decode(7, 0), steps=2) for _ in range(3)]
    desk.wait(*runs)
    for run in runs:
        assert "the GPU no longer answers (CUDA error: device lost)" in str(desk.device.failure(run))
    fetches = list(desk.fetch().values())
    desk.wait(*fetches)
    assert "start Coterie again" in str(desk.device.failure(fetches[0]))
    with pytest.raises(DeviceError, match="no longer answers"):
        desk.tokens(desk.run(decode(7, 0)))
    desk.device.close()


def test_a_damaged_read_in_the_middle_of_a_range_fails_it_and_what_follows_and_gives_blocks_back(make, layout):
    bad = [5]

    def read(file, buffers, offset):
        bad[0] -= 1
        if bad[0] == 0:
            raise OSError(5, "Input/output error")
        return os.preadv(file, buffers, offset)

    desk = Desk(make(read=read), layout)
    placed, events = desk.layout.ranges, []
    for one in placed:
        view = desk.weights.view(one.offset, one.source.size_bytes)
        events.append(desk.device.fetch(view, one.source, events[-1:]))
    desk.wait(*events)
    failures = [desk.device.failure(event) for event in events]
    first = next(i for i, failure in enumerate(failures) if failure is not None)
    assert isinstance(failures[first], TransferError)
    assert all(failure is failures[first] for failure in failures[first:])
    expected = desk.tokens(desk.run(rows([(PROMPT, 0)]), gates=desk.fetch()))
    assert expected == desk.tokens(desk.run(rows([(PROMPT, 0)])))
    assert len(desk.device._staged._free) == 16


@pytest.mark.parametrize("refused", [0, 1])
def test_a_lane_whose_threads_did_not_start_can_be_started_later(make, on_cpu, layout, monkeypatch, refused):
    desk, real, asked = Desk(make(), layout), threading.Thread.start, []

    def refuse(thread):
        asked.append(thread)
        if len(asked) > refused:
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(DeviceError, match="the thread of lane compute could not be started"):
            desk.run(rows([(PROMPT, 0)]))
    assert desk.tokens(desk.run(rows([(PROMPT, 0)]), gates=desk.fetch())) == on_cpu.tokens(
        on_cpu.run(rows([(PROMPT, 0)]))
    )


def test_a_block_that_is_being_read_is_nobody_elses_where_its_copy_has_no_thread(make, on_cpu, layout, monkeypatch):
    asked, twice, go_on, real = [], threading.Event(), threading.Event(), threading.Thread.start

    def slow(file, parts, at):
        assert go_on.wait(60)
        return os.preadv(file, parts, at)

    def refuse(thread):
        if thread.name != "coterie staging->hbm":
            return real(thread)
        asked.append(thread)
        if len(asked) == 2:  # so the first block's copy was refused, and dealt with
            twice.set()
        raise RuntimeError("can't start new thread")

    desk = Desk(make(read=slow), layout)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        gates = desk.fetch()
        in_time = twice.wait(60)
        free = len(desk.device._staged._free)
        go_on.set()
        desk.wait(*gates.values())
    assert in_time
    assert free < 16
    for event in gates.values():
        assert "the thread of lane staging->hbm could not be started" in str(desk.device.failure(event))
    assert len(desk.device._staged._free) == 16
    assert desk.tokens(desk.run(rows([(PROMPT, 0)]), gates=desk.fetch())) == on_cpu.tokens(
        on_cpu.run(rows([(PROMPT, 0)]))
    )


def test_closing_with_work_queued_fails_it_and_ends_threads(layout):
    device = cuda(driver=LazyDriver(settle_s=0.02))
    desk = Desk(device, layout)
    gates = desk.fetch()
    runs = [desk.run(rows([(PROMPT, 0)]), gates=gates) for _ in range(5)]
    device.close()
    for event in (*gates.values(), *runs):
        assert device.done(event)
    assert isinstance(device.failure(runs[-1]), DeviceError)
    with pytest.raises(DeviceError, match=r"\[cuda\] the device was closed"):
        desk.run(rows([(PROMPT, 0)]))


def test_closing_waits_for_no_compiler_and_lets_none_begin(layout):
    """A step that is met first waits for processes; once they have ended, each launch would compile its own kernel."""
    device = cuda()
    desk, begun, ended = loaded(Desk(device, layout)), threading.Event(), threading.Event()

    def compile_all(launches):
        begun.set()
        assert ended.wait(60)

    device._shared.before_launch = partial(device._compile_first, compile_all)
    device._compilers = SimpleNamespace(close=ended.set)
    launched = device.driver.launched
    run = desk.run(decode(7, 0))
    assert begun.wait(60)
    closing = threading.Thread(target=device.close)
    closing.start()
    closing.join(10)
    in_time = not closing.is_alive()
    ended.set()
    closing.join()
    assert in_time
    assert "the device was closed" in str(device.failure(run))
    assert device.driver.launched == launched


def test_what_a_copy_down_would_be_is_refused(make):
    device = make()
    up, down = device.reserve("hbm", BLOCK_BYTES), device.reserve("ddr", BLOCK_BYTES)
    with pytest.raises(ValueError, match="read-only"):
        device.copy(down, up)
    with pytest.raises(ValueError, match="not reserved"):
        device.reserve("disk", BLOCK_BYTES)
