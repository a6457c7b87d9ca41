"""The disk lane: ranges are read ahead of their turn, end in order, and fail alone or with what they follow."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
from itertools import pairwise

import numpy as np
import pytest

from coterie.checkpoint.layout import BLOCK_BYTES, FileIdentity, FileRange
from coterie.core.errors import DeviceError, TransferError
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.real import fetch as lane
from coterie.devices.real import host_memory
from coterie.devices.real.fetch import PARTS_AT_ONCE, READERS
from coterie.spec.this_machine import this_machine

BLOCKS = 24
WAIT_S = 10
MOMENT_S = 0.05  # long enough for a read that should not begin to begin


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(host_memory, "CHUNK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(lane, "FIRST_READERS", READERS)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, BLOCKS * BLOCK_BYTES, dtype=np.uint8).tobytes())
    return path


class Gated:
    """A pread that says which offsets were asked for and waits for its turn; offsets in `broken` fail."""

    def __init__(self):
        self.opened = threading.Event()
        self.asked = []
        self.broken = set()
        self.changed = threading.Condition()

    def __call__(self, file, buffers, offset):
        with self.changed:
            self.asked.append(offset // BLOCK_BYTES)
            self.changed.notify_all()
        self.opened.wait(WAIT_S)
        if offset // BLOCK_BYTES in self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.preadv(file, buffers, offset)

    def wait_for(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, WAIT_S)


@pytest.fixture
def gated():
    return Gated()


@pytest.fixture
def device(gated):
    device = CpuDevice(this_machine(), threads=1, read=gated)
    yield device
    gated.opened.set()
    device.close()


def fetch(device, path, slab, first, blocks, after=()):
    source = FileRange(str(path), first * BLOCK_BYTES, blocks * BLOCK_BYTES, FileIdentity.of(path.stat()))
    return device.fetch(slab.view(first * BLOCK_BYTES, blocks * BLOCK_BYTES), source, after)


def finish(device, event):
    while not device.done(event):
        device.wait_any([event])
    return device.failure(event)


def test_the_next_range_is_read_before_the_last_one_ends_and_ends_after_it(device, gated, path):
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    events = [fetch(device, path, slab, 0, 2)]
    for first in range(2, BLOCKS, 2):
        events.append(fetch(device, path, slab, first, 2, after=events[-1:]))
    gated.wait_for(READERS)
    assert sorted(gated.asked) == list(range(READERS))  # in order, on through the ranges
    assert not any(device.done(event) for event in events)
    gated.opened.set()
    assert [finish(device, event) for event in reversed(events)] == [None] * len(events)
    spans = [device.span(event) for event in events]
    assert all(left.end_s <= right.start_s <= right.end_s for left, right in pairwise(spans))
    np.testing.assert_array_equal(device.memory(slab), np.fromfile(path, np.uint8))


def test_a_file_that_was_replaced_is_opened_anew_for_who_has_read_its_new_header(device, gated, path, tmp_path):
    """While a range of the old one is under way, which fails: it is no longer what its reader saw."""
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    old = fetch(device, path, slab, 0, 2)
    gated.wait_for(2)
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes()[::-1])
    os.replace(other, path)
    new = fetch(device, path, slab, 2, 2)
    gated.opened.set()
    assert (type(finish(device, old)), finish(device, new)) == (TransferError, None)
    read = slice(2 * BLOCK_BYTES, 4 * BLOCK_BYTES)
    np.testing.assert_array_equal(device.memory(slab)[read], np.fromfile(path, np.uint8)[read])


def test_after_idleness_the_reads_under_way_grow_one_by_one(device, gated, path, monkeypatch):
    monkeypatch.setattr(lane, "FIRST_READERS", 2)
    monkeypatch.setattr(lane, "MORE_EVERY", 3)
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    for _ in range(2):
        gated.opened.clear()
        gated.asked.clear()
        event = fetch(device, path, slab, 0, BLOCKS)
        gated.wait_for(2)  # a third would need a third begun
        device.wait_any([event], until=device.now() + MOMENT_S)
        assert sorted(gated.asked) == [0, 1]
        gated.opened.set()
        assert finish(device, event) is None
        assert sorted(gated.asked) == list(range(BLOCKS))


def test_scattered_parts_are_read_before_any_long_read_begins(device, gated, path):
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    source = FileRange(str(path), 0, 8 * BLOCK_BYTES, FileIdentity.of(path.stat()))
    parts = [(block * BLOCK_BYTES, BLOCK_BYTES) for block in (0, 2, 5, 7)]
    rows = device.fetch(slab.view(0, 8 * BLOCK_BYTES), source, (), parts)
    rest = fetch(device, path, slab, 8, BLOCKS - 8, after=[rows])
    gated.wait_for(-(-len(parts) // PARTS_AT_ONCE))
    device.wait_any([rest], until=device.now() + MOMENT_S)
    assert set(gated.asked) <= {0, 2, 5, 7}
    gated.opened.set()
    assert [finish(device, rows), finish(device, rest)] == [None, None]
    assert gated.asked[:4] == [0, 2, 5, 7]
    assert sorted(gated.asked[4:]) == list(range(8, BLOCKS))


def test_a_failure_is_its_ranges_own_and_that_of_what_follows_it(device, gated, path):
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    gated.broken = {3}
    good = fetch(device, path, slab, 0, 2)
    bad = fetch(device, path, slab, 2, 2, after=[good])
    follower = fetch(device, path, slab, 4, 2, after=[bad])
    last = fetch(device, path, slab, 6, 2, after=[follower])
    other = fetch(device, path, slab, 8, 2)
    gated.opened.set()
    assert finish(device, other) is None
    assert finish(device, good) is None
    assert isinstance(finish(device, bad), TransferError)
    assert finish(device, follower) is device.failure(bad)
    assert finish(device, last) is device.failure(bad)
    late = fetch(device, path, slab, 10, 2, after=[good, bad])
    assert finish(device, late) is device.failure(bad)
    np.testing.assert_array_equal(device.memory(slab)[8 * BLOCK_BYTES :][: 2 * BLOCK_BYTES], piece(path, 8, 2))


def test_a_failed_range_does_not_end_while_it_is_still_written(path):
    begun, held = threading.Event(), threading.Event()

    def read(file, buffers, offset):
        if offset == 0:
            begun.wait(WAIT_S)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        begun.set()
        held.wait(WAIT_S)
        return os.preadv(file, buffers, offset)

    device = CpuDevice(this_machine(), threads=1, read=read)
    event = fetch(device, path, device.reserve("dram", BLOCKS * BLOCK_BYTES), 0, 2)
    assert begun.wait(WAIT_S)
    device.wait_any([event], until=device.now() + 0.05)
    assert not device.done(event)
    held.set()
    assert isinstance(finish(device, event), TransferError)
    device.close()


def test_a_range_waits_for_another_lane_and_fails_with_it(device, gated, path):
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    gated.opened.set()
    missing = fetch(device, path, slab, 0, 1)
    copied = device.copy(slab.view(8 * BLOCK_BYTES, BLOCK_BYTES), slab.view(0, BLOCK_BYTES), after=[missing])
    event = fetch(device, path, slab, 8, 1, after=[copied])
    assert finish(device, event) is None
    assert device.span(copied).end_s <= device.span(event).start_s
    np.testing.assert_array_equal(device.memory(slab)[8 * BLOCK_BYTES :][:BLOCK_BYTES], piece(path, 8, 1))
    lost = device.fetch(slab.view(0, BLOCK_BYTES), FileRange("/nonexistent", 0, BLOCK_BYTES, FileIdentity(BLOCK_BYTES)))
    failed = device.copy(slab.view(0, BLOCK_BYTES), slab.view(BLOCK_BYTES, BLOCK_BYTES), after=[lost])
    assert finish(device, fetch(device, path, slab, 9, 1, after=[failed])) is finish(device, lost)


def test_ranges_that_write_the_same_bytes_take_turns(device, gated, path):
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    first = fetch(device, path, slab, 0, 1)
    source = FileRange(str(path), 5 * BLOCK_BYTES, BLOCK_BYTES, FileIdentity.of(path.stat()))
    second = device.fetch(slab.view(0, BLOCK_BYTES), source)
    gated.wait_for(1)
    assert gated.asked == [0]
    gated.opened.set()
    assert finish(device, second) is None
    assert device.done(first)
    np.testing.assert_array_equal(device.memory(slab)[:BLOCK_BYTES], piece(path, 5, 1))


def test_closing_ends_what_is_being_read_and_cancels_the_rest(gated, path):
    device = CpuDevice(this_machine(), threads=1, read=gated)
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    begun = fetch(device, path, slab, 0, 2)
    rest = fetch(device, path, slab, 2, BLOCKS - 2, after=[begun])
    gated.wait_for(READERS)
    threading.Timer(0.05, gated.opened.set).start()
    device.close()
    assert device.failure(begun) is None
    assert isinstance(device.failure(rest), DeviceError)
    assert len(gated.asked) == READERS
    with pytest.raises(DeviceError, match="closed"):
        fetch(device, path, slab, 0, 1)


def test_a_file_is_opened_once_for_all_its_queued_ranges(device, gated, path, monkeypatch):
    opened, closed, real_open, real_close = [], [], os.open, os.close

    def note_open(name, *rest):
        descriptor = real_open(name, *rest)
        if str(name) == str(path):
            opened.append(descriptor)
        return descriptor

    def note_close(descriptor):
        if descriptor in opened:
            closed.append(descriptor)
        real_close(descriptor)

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "close", note_close)
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    events = [fetch(device, path, slab, first, 1) for first in range(BLOCKS)]
    gated.opened.set()
    assert [finish(device, event) for event in events] == [None] * BLOCKS
    assert len(opened) == 1
    assert closed == opened


def test_a_file_that_is_replaced_between_ranges_is_seen(device, gated, path):
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    gated.opened.set()
    before = path.stat()
    source = FileRange(str(path), 0, BLOCK_BYTES, FileIdentity.of(before))
    assert finish(device, device.fetch(slab.view(0, BLOCK_BYTES), source)) is None
    data = path.read_bytes()
    path.write_bytes(data[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = dataclasses.replace(source, offset=BLOCK_BYTES)
    assert "status time" in str(finish(device, device.fetch(slab.view(BLOCK_BYTES, BLOCK_BYTES), second)))


def piece(path, first, blocks):
    return np.fromfile(path, np.uint8)[first * BLOCK_BYTES : (first + blocks) * BLOCK_BYTES]
