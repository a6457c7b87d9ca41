"""The driver that is PyTorch's, on stand-ins for what of torch.cuda needs a GPU: every line of it runs at least once.

A stand-in does its work at once, so this says nothing about order; tests/device/test_gpu.py does, on a GPU.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

import torch
from tests.device import test_gpu as promises
from tests.device.cuda_devices import cuda
from tests.device.programs import Desk, rows

from coterie.core.errors import CapacityError, DeviceError, UsageError
from coterie.devices.cuda.driver import Health, NoRoomError
from coterie.devices.cuda.torch_driver import TorchDriver

GIB = 2**30
real_empty, real_zeros = torch.empty, torch.zeros


class Stream:
    def __init__(self, device=None):
        self.device = device

    def wait_event(self, event):
        assert event.recorded, "nobody waits for what was not recorded"


class Event:
    def __init__(self, enable_timing=False, blocking=False):
        assert enable_timing
        self.recorded, self.blocking = False, blocking

    def record(self, stream):
        assert isinstance(stream, Stream)
        self.recorded = True

    def synchronize(self):
        assert self.recorded

    def elapsed_time(self, end_event):
        assert end_event.recorded
        return 2.0


class Graph:
    """Captures by remembering that it was told to, and runs nothing when replayed."""

    def __init__(self):
        self.state = "new"

    def capture_begin(self, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.state = "capturing"

    def capture_end(self):
        assert self.state == "capturing"
        self.state = "captured"

    def replay(self):
        assert self.state == "captured"


class Cudart:
    def __init__(self):
        self.answer = 0
        self.pinned = {}

    def cudaHostRegister(self, address, size, flags):  # noqa: N802
        assert flags == 1 | 2
        if not self.answer:
            self.pinned[address] = size
        return self.answer

    def cudaHostUnregister(self, address):  # noqa: N802
        if not self.answer:
            del self.pinned[address]
        return self.answer


@pytest.fixture
def fake(monkeypatch):
    """What torch.cuda would be with one GPU whose memory is the host's."""
    state = SimpleNamespace(cudart=Cudart(), free=GIB, gone=False, streams=[Stream()])

    def empty(size, dtype, device=None, pin_memory=False):
        if device is not None and size > state.free:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if pin_memory and size > state.free:
            raise RuntimeError("CUDA error: out of memory")
        return real_empty(size, dtype=dtype)

    def zeros(size, device):
        if state.gone:
            raise RuntimeError("CUDA error: unspecified launch failure\nmore lines")
        return real_zeros(size, device=device)

    def synchronize(device=None):
        raise AssertionError("CUDA refuses to wait for the whole device while a stream is captured")

    found = SimpleNamespace(name="fake", total_memory=2 * GIB, multi_processor_count=3, major=9, minor=0)
    for name, stand_in in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_properties": lambda device: found,
        "mem_get_info": lambda device: (state.free, 2 * GIB),
        "memory_reserved": lambda device: 5,
        "memory_allocated": lambda device: 3,
        "cudart": lambda: state.cudart,
        "device": lambda device: nullcontext(),
        "current_stream": lambda: state.streams[-1],
        "set_stream": state.streams.append,
        "synchronize": synchronize,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "zeros", zeros)
    return state


@pytest.fixture
def driver(fake):
    made = TorchDriver()
    made._device = torch.device("cpu")
    return made


def test_it_says_what_the_gpu_is(driver):
    assert (driver.facts.name, driver.facts.total_bytes, driver.facts.capability) == ("fake", 2 * GIB, (9, 0))
    torch_, triton_, cuda_ = driver.facts.software.split(", ")
    assert (torch_, cuda_) == (f"torch {torch.__version__}", "CUDA 12.8")
    assert triton_.startswith("Triton 3."), "kernels are what it compiles"
    assert driver.free_bytes() == GIB + 2


@pytest.mark.parametrize(
    "promise",
    [
        promises.test_bytes_go_down_one_stream_and_up_another_behind_a_mark,
        promises.test_words_cross_in_both_directions,
        promises.test_pieces_of_memory_that_was_pinned_cross,
        promises.test_memory_that_exists_can_be_pinned,
        promises.test_limits_read_multiply_and_copy,
    ],
    ids=lambda promise: promise.__name__,
)
def test_it_keeps_what_needs_no_order(driver, fake, promise):
    promise(driver)
    assert not fake.cudart.pinned


def test_a_capture_that_fails_is_ended_and_leaves_the_collector_on(driver):
    stream = driver.stream()
    assert driver.capture(stream, [lambda: None]).state == "captured"
    driver.replay(stream, driver.capture(stream, [lambda: None]))
    with pytest.raises(ZeroDivisionError):
        driver.capture(stream, [lambda: 1 / 0])


def test_a_failure_says_the_first_line_of_what_cuda_says(driver):
    advice = "CUDA kernel errors might be asynchronously reported"
    failure = Health(driver).failure("a run", RuntimeError(f"CUDA error: invalid argument\n{advice}"))
    assert "a run failed: CUDA error: invalid argument; the GPU goes on" in str(failure)
    assert advice not in str(failure)


def test_who_waits_for_a_mark_sleeps_but_for_one_that_comes_soon(driver):
    stream = driver.stream()
    assert driver.mark(stream).blocking
    assert not driver.mark(stream, soon=True).blocking


def test_a_stream_is_made_current_once_and_the_one_before_comes_back(driver, fake):
    (default,), made, other = fake.streams, driver.stream(), driver.stream()
    there, host = driver.device_memory(4), driver.pinned_memory(4)
    with driver.on(made):
        driver.copy(there, host, made)
        driver.launch(made, [lambda: None])
        assert fake.streams == [default, made]
        with pytest.raises(ZeroDivisionError):
            driver.launch(other, [lambda: driver.launch(other, []), lambda: 1 / 0])
        assert fake.streams[2:] == [other, made]
        driver.launch(made, [])
    assert fake.streams[4:] == [default]
    driver.launch(made, [])
    assert fake.streams[5:] == [made, default]


def test_what_is_current_in_one_thread_is_not_in_another(driver, fake):
    made, found = driver.stream(), []
    with driver.on(made):
        thread = threading.Thread(target=driver.launch, args=(made, [lambda: found.extend(fake.streams)]))
        thread.start()
        thread.join()
    assert found[1:] == [made, made], "it was made current there too"


def test_a_gpu_that_is_too_old_is_refused(fake, monkeypatch):
    """Its programs have no room for the smallest tiles: 64 KiB of shared memory."""
    turing = SimpleNamespace(name="T4", total_memory=GIB, multi_processor_count=40, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: turing)
    with pytest.raises(UsageError, match=r"cuda:0\] a GPU of capability 7.5 is older than .*; use one of 8.0"):
        TorchDriver()


def test_refusals_are_no_room(driver, fake):
    fake.free = 10
    with pytest.raises(NoRoomError, match="out of memory"):
        driver.device_memory(11)
    with pytest.raises(NoRoomError, match="out of memory"):
        driver.pinned_memory(11)
    fake.cudart.answer = 2
    with pytest.raises(NoRoomError, match="cudaHostRegister answers 2"):
        driver.pin(np.zeros(4, np.uint8))


def test_memory_that_stays_pinned_is_no_memory_to_give_back(driver, fake):
    """The GPU would go on to read the pages that were there."""
    memory = np.zeros(4, np.uint8)
    driver.pin(memory)
    fake.cudart.answer = 4
    with pytest.raises(RuntimeError, match="cudaHostUnregister answers 4"):
        driver.unpin(memory)
    fake.cudart.answer = 0
    driver.unpin(memory)
    assert not fake.cudart.pinned


def test_a_gpu_that_is_gone_says_why(driver, fake):
    assert driver.lost() == ""
    fake.gone = True
    assert driver.lost() == "CUDA error: unspecified launch failure"


def test_what_is_no_stream_or_event_or_graph_is_refused(driver):
    for call in (
        lambda: driver.mark(object()),
        lambda: driver.wait(object()),
        lambda: driver.replay(driver.stream(), object()),
    ):
        with pytest.raises(TypeError):
            call()


def test_the_device_runs_on_it(driver, fake, layout):
    """Launch by launch: a stand-in for a graph runs nothing."""
    device = cuda("host", driver=driver)
    desk = Desk(device, layout)
    first = desk.tokens(desk.run(rows([([3, 14, 15], 0)]), gates=desk.fetch()))
    assert desk.tokens(desk.run(rows([([3, 14, 15], 0)]))) == first
    fake.free = 0
    with pytest.raises(CapacityError, match="hbm"):
        device.reserve("hbm", 2**20)
    fake.gone = True
    driver.launch = lambda stream, launches: (_ for _ in ()).throw(RuntimeError("CUDA error: launch failure"))
    with pytest.raises(DeviceError, match="no longer answers"):
        desk.tokens(desk.run(rows([([3, 14, 15], 0)])))
    device.close()


class Current(threading.local):
    """Each thread's current GPU: the first until it says otherwise."""

    index = 0

    @contextmanager
    def at(self, device):
        before, self.index = self.index, torch.device(device).index
        try:
            yield
        finally:
            self.index = before


SECOND = torch.device("cuda", 1)


@pytest.fixture
def amiss(fake, monkeypatch):
    """Which calls were not for the second of two GPUs: they named another, or none while another was current."""
    current, found = Current(), []

    def without_name(name, call):
        def asked(*given, **named):
            if current.index != 1:
                found.append(name)
            return call(*given, **named)

        return asked

    def with_name(name, call):
        def asked(*given, device, **named):
            if torch.device(device) != SECOND:
                found.append(name)
            return call(*given, device=torch.device("cpu"), **named)

        return asked

    empty = torch.empty
    pinned, there = without_name("pinned memory", empty), with_name("memory", empty)
    monkeypatch.setattr(
        torch, "empty", lambda size, device=None, **named: there(size, device=device, **named) if device else
        pinned(size, **named)
    )  # fmt: skip
    monkeypatch.setattr(torch, "zeros", with_name("zeros", torch.zeros))
    for name in ("current_stream", "set_stream", "cudart", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, without_name(name, getattr(torch.cuda, name)))
    for name in ("mem_get_info", "memory_reserved", "memory_allocated", "get_device_properties"):
        named = with_name(name, getattr(torch.cuda, name))
        monkeypatch.setattr(torch.cuda, name, lambda device, named=named: named(device=device))
    for name in ("__init__", "capture_begin", "capture_end"):
        monkeypatch.setattr(Graph, name, without_name(name, getattr(Graph, name)))
    monkeypatch.setattr(torch.cuda, "device", current.at)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return SimpleNamespace(calls=found, current=current)


def test_every_call_of_a_second_gpu_is_for_it(amiss, monkeypatch):
    """Also in a thread that has never named one; and afterwards the thread's own is current again."""
    launched, driver = [], TorchDriver(1)

    def use():
        stream, memory = driver.stream(), np.zeros(16, np.uint8)
        assert stream.device == SECOND
        there, host = driver.device_memory(16), driver.pinned_memory(16)
        driver.pin(memory)
        driver.unpin(memory)
        driver.copy(there, host, stream)
        driver.copy_words([(there, host)], stream)
        driver.launch(stream, [lambda: launched.append(amiss.current.index)])
        driver.replay(stream, driver.capture(stream, [lambda: launched.append(amiss.current.index)]))
        driver.wait(driver.mark(stream))
        driver.trim()
        assert driver.free_bytes() == GIB + 2
        assert driver.lost() == ""
        launched.append(amiss.current.index)  # the thread's own again

    threads = [threading.Thread(target=use) for _ in range(2)]
    for one in threads:
        one.start()
        one.join()
    assert amiss.calls == []
    assert launched == [1, 1, 0] * 2


def test_a_device_on_a_second_gpu_asks_nothing_of_the_first(amiss, layout):
    """In its lanes' threads too, which begin with the first as current."""
    device = cuda("host", driver=TorchDriver(1))
    desk = Desk(device, layout)
    for gates in (desk.fetch(), {}):
        desk.tokens(desk.run(rows([([3, 14, 15], 0)]), gates=gates))
    device.close()
    assert amiss.calls == []
