"""Direct reads that the system has together: bytes, order, bounds, and faults in the same words as read one by one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coterie.checkpoint.layout import BLOCK_BYTES, FileIdentity, FileRange
from coterie.core.errors import DeviceError, TransferError
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.real import fetch as lane
from coterie.devices.real.fetch_direct import DirectReads
from coterie.devices.real.host_memory import Slab, SourceFile
from coterie.kernels import cpu as kernels
from coterie.kernels.cpu import READ_FIRST_BYTES, READ_LONG_BYTES, READ_PIECE_BYTES, READS_AT_ONCE
from coterie.spec.this_machine import this_machine

SIZE = 6 * READ_PIECE_BYTES + 5 * BLOCK_BYTES - 100  # the last block is cut
BLOCKS = -(-SIZE // BLOCK_BYTES)
WAIT_S = 10

# Forks while a range is read again and again; the child sees zeros where the slab is.
FORK = """
import os, sys
from pathlib import Path
from coterie.checkpoint.layout import FileIdentity, FileRange
from coterie.devices.cpu.device import CpuDevice
from coterie.spec.this_machine import this_machine

path, size = Path(sys.argv[1]), int(sys.argv[2])
device = CpuDevice(this_machine(), threads=1)
slab = device.reserve("dram", size)
source = FileRange(str(path), 0, size, FileIdentity.of(path.stat()))
device.memory(slab)[:] = 1
for _ in range(8):
    device.memory(slab)[1:] = 0
    event = device.fetch(slab, source)
    child_id = os.fork()
    if child_id == 0:
        os._exit(int(device.memory(slab).any()))
    assert os.waitstatus_to_exitcode(os.waitpid(child_id, 0)[1]) == 0, "a child has the slab's bytes"
    while not device.done(event):
        device.wait_any([event])
    assert device.failure(event) is None
    assert device.memory(slab)[: path.stat().st_size].tobytes() == path.read_bytes(), "bytes are missing"
device.close()
"""


# A child lets go of a slab after it has taken other memory, which must still be there.
LET_GO = """
import gc, os
import numpy as np
from coterie.devices.real.host_memory import Slab

slab = Slab(64 << 20)
child = os.fork()
if child == 0:
    others = [np.ones(16 << 20, np.uint8) for _ in range(12)]
    del slab
    gc.collect()
    os._exit(int(not all(other.all() for other in others)))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("direct") / "weights"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


@pytest.fixture
def reads():
    try:
        return kernels.Reads()
    except RuntimeError:
        pytest.skip("this system does not read asynchronously")


@pytest.fixture
def device() -> Iterator[CpuDevice]:
    device = CpuDevice(this_machine(), threads=1)
    yield device
    device.close()


@pytest.fixture
def slab(device):
    return device.reserve("dram", BLOCKS * BLOCK_BYTES)


def source_of(path: Path, first: int = 0, blocks: int = BLOCKS) -> FileRange:
    return FileRange(str(path), first * BLOCK_BYTES, blocks * BLOCK_BYTES, FileIdentity.of(path.stat()))


def fetch(device, path, slab, first, blocks, after=(), parts=()):
    view = slab.view(first * BLOCK_BYTES, blocks * BLOCK_BYTES)
    return device.fetch(view, source_of(path, first, blocks), after, parts)


def finish(device, event):
    while not device.done(event):
        device.wait_any([event])
    return device.failure(event)


def spans(*blocks):
    return np.array([(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES) for block in blocks], dtype=np.int64)


@pytest.fixture
def direct(reads, path):
    """Skips where the file system of temporary files refuses direct reads."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system refuses direct reads")


def is_direct(device):
    return device._disk._direct is not None


def test_a_file_that_allows_it_is_read_directly(direct, device, slab, path, monkeypatch):
    begin, begun = DirectReads.begin, []
    monkeypatch.setattr(DirectReads, "begin", lambda *args: begun.append(begin(*args)) or begun[-1])
    assert finish(device, fetch(device, path, slab, 0, BLOCKS)) is None
    assert begun == [True]


def test_there_is_always_a_range_behind_the_one_that_is_read_however_long(direct, device, slab, path, monkeypatch):
    queued, waited, tags = threading.Event(), [], []

    class Slow:
        """Ends ranges in order, once all are queued; notes how many were handed over by then."""

        def add(self, tag, *rest):
            tags.append(tag)

        def next(self):
            queued.wait(10)
            waited.append(len(tags))
            return tags.pop(0), True

    monkeypatch.setattr(kernels, "Reads", Slow)
    monkeypatch.setattr("coterie.devices.real.fetch_direct.AHEAD_BYTES", BLOCK_BYTES)
    events = [fetch(device, path, slab, 4 * at, 4) for at in range(6)]
    queued.set()
    assert all(finish(device, event) is None for event in events)
    assert waited[1:-1] == [2] * 4
    assert waited[-1] == 1


def test_scattered_parts_are_begun_at_once_and_long_ones_behind_them_up_to_a_bound(reads, path):
    slab, number = Slab(BLOCKS * BLOCK_BYTES), os.open(path, os.O_RDONLY)
    whole = np.array([(0, BLOCKS * BLOCK_BYTES)], dtype=np.int64)
    try:
        reads.add(1, number, slab.address, 0, SIZE, spans(*range(0, 2 * READS_AT_ONCE + 6, 2)), True)
        assert reads.under_way == (READS_AT_ONCE, 0)
        reads.add(2, number, slab.address, 0, SIZE, whole, False)
        reads.add(3, number, slab.address, 0, SIZE, whole, False)
        assert reads.under_way[1] == 0
        assert reads.next() == (1, True)
        assert reads.under_way[0] == 0
        assert READ_FIRST_BYTES <= reads.under_way[1] < READ_FIRST_BYTES + READ_PIECE_BYTES
        assert reads.next() == (2, True)
        assert 0 < reads.under_way[1] < READ_LONG_BYTES + READ_PIECE_BYTES
        assert [reads.next(), reads.next()] == [(3, True), None]
        assert reads.under_way == (0, 0)
    finally:
        os.close(number)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_all_ranges_arrive_in_order_and_right(device, slab, path, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, BLOCKS - 1), max_size=6)) | {0, BLOCKS})
    events, file, wanted = [], np.fromfile(path, np.uint8), np.zeros(SIZE, np.uint8)
    blocks = st.sets(st.integers(0, BLOCKS - 1), max_size=200)
    drawn = [data.draw(st.one_of(st.just(set()), blocks)) for _ in cuts[1:]]  # all before anything is under way
    device.memory(slab)[:] = 0
    for (first, end), chosen in zip(pairwise(cuts), drawn, strict=True):
        scattered = sorted({block % (end - first) for block in chosen})
        parts = [(block * BLOCK_BYTES, BLOCK_BYTES) for block in scattered]
        events.append(fetch(device, path, slab, first, end - first, events[-1:], parts))
        for start, stop in [(block, block + 1) for block in scattered] or [(0, end - first)]:
            at = slice((first + start) * BLOCK_BYTES, (first + stop) * BLOCK_BYTES)
            wanted[at] = file[at]
    assert [finish(device, event) for event in events] == [None] * len(events)
    ends = [device.span(event).end_s for event in events]
    assert ends == sorted(ends)
    np.testing.assert_array_equal(device.memory(slab)[:SIZE], wanted)


def test_who_queues_to_an_idle_lane_lets_it_begin_first(direct, device, reads, path, monkeypatch):
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    monkeypatch.setattr(lane, "BEGIN_S", WAIT_S)
    for _ in range(3):
        event = fetch(device, path, slab, 0, BLOCKS)
        queued = list(device._disk._queue)
        assert not queued or queued[0].start_s is not None
        assert finish(device, event) is None


def test_a_file_without_direct_reads_keeps_its_turn(device, path, tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    plain.write_bytes(path.read_bytes())
    opened = SourceFile.descriptor

    def descriptor(self, direct):
        return opened(self, direct and self._path != str(plain))

    monkeypatch.setattr(SourceFile, "descriptor", descriptor)
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    third = BLOCKS // 3
    events = []
    for first, file in ((0, path), (third, plain), (2 * third, path)):
        events.append(
            fetch(device, file, slab, first, third if file is plain or not first else BLOCKS - first, events[-1:])
        )
    assert [finish(device, event) for event in reversed(events)] == [None] * 3
    ends = [device.span(event).end_s for event in events]
    assert ends == sorted(ends)
    np.testing.assert_array_equal(device.memory(slab)[:SIZE], np.fromfile(path, np.uint8))


def test_where_the_system_does_not_read_so_readers_do(path, monkeypatch):
    def refuse():
        raise RuntimeError("no")

    monkeypatch.setattr(kernels, "Reads", refuse)
    device = CpuDevice(this_machine(), threads=1)
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    assert finish(device, fetch(device, path, slab, 0, BLOCKS)) is None
    assert not is_direct(device)
    np.testing.assert_array_equal(device.memory(slab)[:SIZE], np.fromfile(path, np.uint8))
    device.close()


def cut(path):
    os.truncate(path, SIZE // 2)
    return {}


def grown(path):
    os.truncate(path, SIZE + BLOCK_BYTES)
    return {}


def gone(path):
    path.unlink()
    return {}


@pytest.mark.parametrize("break_file", [cut, grown, gone])
@pytest.mark.parametrize("parts", [(), ((0, BLOCK_BYTES), (SIZE // 2 // BLOCK_BYTES * BLOCK_BYTES, BLOCK_BYTES))])
def test_faults_are_told_in_the_words_of_the_plain_reader(path, tmp_path, break_file, parts):
    told = []
    for read in (None, os.preadv):
        copy = tmp_path / "weights"
        copy.write_bytes(path.read_bytes())
        source = source_of(copy)
        break_file(copy)
        device = CpuDevice(this_machine(), threads=1, read=read)
        slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
        failed = device.fetch(slab, source, (), parts)
        good = fetch(device, path, slab, 0, 1)
        follower = fetch(device, path, slab, 1, 1, [failed])
        told.append(str(finish(device, failed)))
        assert isinstance(device.failure(failed), TransferError)
        assert finish(device, follower) is device.failure(failed)
        assert finish(device, good) is None
        device.close()
        copy.unlink(missing_ok=True)
    assert told[0] == told[1]
    assert "\n" not in told[0]


@pytest.mark.parametrize("cut_off", [False, True])
def test_what_the_system_did_not_read_whole_is_read_again(direct, device, path, tmp_path, monkeypatch, cut_off):
    copy = tmp_path / "weights"
    copy.write_bytes(path.read_bytes())
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    tags = []

    class Broken:
        """Reads nothing and says so, as after an error of the disk; the file may be cut off in the meantime."""

        def add(self, tag, *rest):
            tags.append(tag)
            if cut_off:
                os.truncate(copy, SIZE // 2)

        def next(self):
            return tags.pop(0), False

    monkeypatch.setattr(kernels, "Reads", Broken)
    failure = finish(device, fetch(device, copy, slab, 0, BLOCKS))
    if cut_off:
        assert isinstance(failure, TransferError)
        assert "size changed" in str(failure)
        return
    assert failure is None
    np.testing.assert_array_equal(device.memory(slab)[:SIZE], np.fromfile(path, np.uint8))


def test_closing_ends_what_is_being_read_and_cancels_the_rest(reads, path):
    device = CpuDevice(this_machine(), threads=1)
    slab = device.reserve("dram", BLOCKS * BLOCK_BYTES)
    begun = fetch(device, path, slab, 0, 1)
    rest = [fetch(device, path, slab, 0, BLOCKS) for _ in range(20)]  # the same bytes, so one after the other
    device.close()
    failures = [device.failure(event) for event in (begun, *rest)]
    assert isinstance(failures[-1], DeviceError)
    at = failures.index(next(failure for failure in failures if failure is not None))
    assert all(isinstance(failure, DeviceError) for failure in failures[at:])
    with pytest.raises(DeviceError, match="closed"):
        fetch(device, path, slab, 0, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="how a process sees its memory is Linux's")
def test_a_fork_while_the_disk_writes_leaves_all_bytes_here(path):
    command = [sys.executable, "-c", FORK, str(path), str(BLOCKS * BLOCK_BYTES)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="what a child has of a slab is Linux's")
def test_a_forked_child_may_let_go_of_a_slab():
    subprocess.run([sys.executable, "-c", LET_GO], check=True)
