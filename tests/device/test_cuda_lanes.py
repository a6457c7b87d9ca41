"""Who queues work of the CUDA device and who sees it end: the lane's threads, or in their place whoever asks.

Knows nothing about what programs compute.
"""

from __future__ import annotations

import threading
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.cuda_devices import making
from tests.device.lazy_gpu import LazyDriver
from tests.device.programs import Desk, decode, loaded, rows

from coterie.device import Sampling
from coterie.devices.cuda.inputs import Inputs
from coterie.devices.real.step import INPUTS, StepRows

WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)


class Watched(LazyDriver):
    """Remembers which threads queued captured steps, and which waited."""

    def __init__(self, **options):
        super().__init__(**options)
        self.queued_by, self.waited_by = [], []
        self.stops_next = False  # who waits next is stopped by Ctrl-C

    def replay(self, stream, captured, times=1):
        self.queued_by.append(threading.current_thread())
        super().replay(stream, captured, times)

    def wait(self, mark):
        self.waited_by.append(threading.current_thread())
        if self.stops_next:
            self.stops_next = False
            raise KeyboardInterrupt
        super().wait(mark)


@pytest.fixture
def make():
    with making() as make_device:
        yield make_device


@pytest.fixture
def warm(make, layout):
    """A desk whose step of one token is captured, and what it draws in three."""
    desk = loaded(Desk(make(driver=Watched()), layout))
    whole = desk.tokens(desk.run(decode(7, 0, WARM), steps=3))
    desk.device.driver.queued_by.clear()
    return desk, whole


@pytest.fixture
def late(warm, monkeypatch):
    """Wakes the thread that sees runs end, which sleeps, so that who waits is first: else microseconds decide."""
    lane, notify = warm[0].device._lane("compute"), threading.Condition.notify
    with lane._lock:
        assert not lane._flights
    monkeypatch.setattr(lane._to_end, "notify", lambda: None)

    def wake():
        monkeypatch.undo()
        with lane._lock:
            notify(lane._to_end)

    return wake


def test_a_captured_run_is_queued_by_who_asks_and_ended_by_who_waits_for_it_alone(warm, late):
    desk, whole = warm
    driver, me = desk.device.driver, threading.current_thread()
    driver.waited_by.clear()
    assert desk.tokens(desk.run(decode(7, 0, WARM), steps=3)) == whole
    assert driver.queued_by == driver.waited_by == [me]
    late()


def test_a_run_that_nobody_waits_for_ends_too(warm):
    desk, whole = warm
    run, ended = desk.run(decode(7, 0, WARM), steps=3), threading.Event()
    desk.device._lanes.when_ended(run, lambda _: ended.set())
    assert ended.wait(30)
    assert desk.device.tokens(run).tolist() == whole


def test_what_is_not_captured_yet_or_waits_for_others_is_queued_by_the_lane(make, layout):
    desk = loaded(Desk(make(driver=Watched()), layout))
    driver, me = desk.device.driver, threading.current_thread()
    first = desk.tokens(desk.run(decode(7, 0, WARM), steps=3))  # is compiled and captured meanwhile
    assert me not in driver.queued_by
    gated = desk.run(decode(7, 0, WARM), steps=3, gates=desk.fetch())
    assert desk.tokens(gated) == first
    assert me not in driver.queued_by


@pytest.mark.parametrize("alone", [True, False])
def test_runs_that_many_threads_wait_for_end_once_each(warm, alone):
    desk, whole = warm
    runs = [desk.run(decode(7, 0, WARM), steps=3) for _ in range(6)]
    found = []

    def wait(run):
        while not desk.device.done(run):
            desk.device.wait_any([run] if alone else runs)
        found.append(desk.device.tokens(run).tolist())

    threads = [threading.Thread(target=wait, args=(run,)) for run in runs[::-1] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [whole] * 12
    assert not desk.device._runs.interrupts._current


def test_a_wait_that_is_stopped_leaves_the_end_to_the_lane(warm, late):
    desk, whole = warm
    run, ended = desk.run(decode(7, 0, WARM), steps=3), threading.Event()
    desk.device._lanes.when_ended(run, lambda _: ended.set())
    desk.device.driver.stops_next = True
    with pytest.raises(KeyboardInterrupt):
        desk.device.wait_any([run])
    assert not desk.device.done(run)
    late()
    assert ended.wait(30)
    assert desk.tokens(run) == desk.tokens(desk.run(decode(7, 0, WARM), steps=3)) == whole


def test_a_thread_that_is_stopped_behind_a_run_that_it_queued_leaves_nothing_under_way(warm, late):
    """Its event fails when what was queued is over; the next runs can be interrupted as all can."""
    desk, whole = warm
    driver = desk.device.driver
    mark, marks = driver.mark, []

    def stop(stream, soon=False):
        marks.append(soon)
        if soon:
            driver.mark = mark
            raise KeyboardInterrupt
        return mark(stream, soon)

    driver.mark = stop
    with pytest.raises(KeyboardInterrupt):
        desk.run(decode(7, 0, WARM), steps=3)
    assert marks[-1]
    run = desk.run(decode(7, 0, WARM), steps=3)
    late()
    assert desk.tokens(run) == whole
    assert not desk.device._runs.interrupts._current


def test_a_thread_that_is_stopped_while_it_ends_a_run_fails_it_and_the_next_one_works(warm, late):
    desk, whole = warm
    packets = desk.device._shared.packets
    give_back = packets.give_back

    def stop(packet):
        give_back(packet)
        raise KeyboardInterrupt

    run = desk.run(decode(7, 0, WARM), steps=3)
    packets.give_back = stop
    with pytest.raises(KeyboardInterrupt):
        desk.wait(run)
    packets.give_back = give_back
    late()
    assert "was stopped while it was ended" in str(desk.device.failure(run))
    assert desk.tokens(desk.run(decode(7, 0, WARM), steps=3)) == whole


def test_inputs_are_written_anew_where_they_change(layout):
    """Beside a layout that had nothing before."""
    kept = None
    settings, ends = (Sampling(), WARM), ((3, 4), (5,))
    for tokens, sampling, end_ids, blocks in (
        ([1, 2], settings, ends, 4),
        ([3, 4], settings, ends, 3),
        ([5, 6], (WARM, Sampling(seed=2**64 - 1)), ends, 3),
        ([7, 8], settings, ((9,), (1, 2)), 4),
        ([9, 1], settings, ((), (8, 7, 6)), 5),
        ([9, 2], settings, (), 7),
    ):
        chunks = [([token], 4 + i) for i, token in enumerate(tokens)]
        step = rows(chunks, list(sampling), blocks_per_sequence=blocks)
        arrays = (step.tokens_T, step.positions_T, step.sequence_T, step.block_tables_BM, step.rows_R)
        inputs = {name: np.array(one, np.int32) for name, one in zip(INPUTS, arrays, strict=True)}
        given = StepRows(inputs, sampling, end_ids, step.sizes)
        if kept is None or kept.key != Inputs.key_of(given):
            kept = Inputs(Inputs.key_of(given))
        kept.put(given)
        fresh = Inputs(Inputs.key_of(given))
        fresh.put(given)
        np.testing.assert_array_equal(kept.bytes, fresh.bytes)
        width = fresh.named["table_width"]
        tables = fresh.bytes[fresh.parts["block_tables"].start :].view(np.int32)[: 2 * width].reshape(2, width)
        assert tables[:, :blocks].tolist() == arrays[3].tolist()
        assert not tables[:, blocks:].any()
        first_end = fresh.bytes[fresh.parts["first_end"].start :].view(np.int32)[:3]
        flat = fresh.bytes[fresh.parts["ends"].start :].view(np.int32)[: first_end[-1]]
        found = [tuple(flat[a:b].tolist()) for a, b in pairwise(first_end)]
        assert found == list(end_ids or ((), ()))
