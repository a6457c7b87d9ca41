"""The loop that measures the disk's limit reads all of a file, by every way that it may choose.

Knows nothing about how fast.
"""

from __future__ import annotations

import numpy as np
import pytest

from coterie.bench import disk
from coterie.bench.disk import BY_QUEUE, BY_THREADS, DiskLimit
from coterie.devices.real.host_memory import BLOCK_BYTES

SIZE = 9 * 2**20 + 3 * BLOCK_BYTES + 17


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("disk") / "some.bin"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def ways():
    return DiskLimit().ways()


@pytest.mark.parametrize("way", ways(), ids=str)
def test_every_way_reads_the_whole_file(file, way):
    limit = DiskLimit(way)
    assert limit.read(file) > 0
    assert limit._buffer.bytes[:SIZE].tobytes() == file.read_bytes()


@pytest.mark.parametrize("size", [1, 4096, 10_000, 12_288])
def test_a_file_of_any_size_is_read_to_its_end(tmp_path, size):
    path, limit = tmp_path / "some.bin", DiskLimit(("threads", 4096, 1))
    path.write_bytes(np.random.default_rng(size).bytes(size))
    assert limit.read(path) > 0
    assert limit._buffer.bytes[:size].tobytes() == path.read_bytes()


def test_the_fastest_way_is_chosen(file, monkeypatch):
    limit, fast = DiskLimit(), BY_THREADS[3]
    monkeypatch.setattr(DiskLimit, "_read", lambda self, file, way, limit: 2.0 if way == fast else 1.0)
    limit.search(file)
    assert limit.way == fast


def test_without_direct_reads_there_is_no_queue():
    assert DiskLimit(direct=False).ways() == BY_THREADS
    assert not set(BY_THREADS) & set(BY_QUEUE)


def test_a_system_without_a_queue_is_read_by_threads(monkeypatch):
    def refuse(*sizes):
        raise RuntimeError("no queue")

    monkeypatch.setattr(disk.kernels, "Reads", refuse)
    assert DiskLimit().ways() == BY_THREADS
