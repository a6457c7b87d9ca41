"""The CPU device reads ranges of files: direct or not, short, changed, refused, failing in the middle.

Knows nothing about what the bytes are for.
"""

from __future__ import annotations

import dataclasses
import errno
import os

import numpy as np
import pytest
from tests.device.cpu_devices import data, finish, make, range_of

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import DeviceError, TransferError
from coterie.devices.real import host_memory

__all__ = ["data", "make"]  # fixtures


@pytest.mark.parametrize("chunk_bytes", [BLOCK_BYTES, 2 * BLOCK_BYTES, 2**23])
@pytest.mark.parametrize(("first", "blocks"), [(0, 6), (1, 2), (2, 4), (5, 1)])
def test_fetch_reads_the_range_and_nothing_else(make, data, monkeypatch, first, blocks, chunk_bytes):
    monkeypatch.setattr(host_memory, "CHUNK_BYTES", chunk_bytes)
    path, content = data
    device = make()
    buffer = device.reserve("dram", 8 * BLOCK_BYTES)
    device.memory(buffer)[:] = 7
    source = range_of(path, first * BLOCK_BYTES, blocks * BLOCK_BYTES)
    assert finish(device, device.fetch(buffer.view(BLOCK_BYTES, source.size_bytes), source)) is None
    expected = content[source.offset : source.offset + source.size_bytes]
    memory = device.memory(buffer)
    np.testing.assert_array_equal(memory[BLOCK_BYTES : BLOCK_BYTES + len(expected)], expected)
    assert (memory[:BLOCK_BYTES] == 7).all()
    assert (memory[BLOCK_BYTES + source.size_bytes :] == 7).all()


def test_an_unaligned_slab_is_read_the_ordinary_way(make, data):
    path, content = data
    device = make()
    buffer = device.reserve("dram", 8 * BLOCK_BYTES)
    assert finish(device, device.fetch(buffer.view(3, 6 * BLOCK_BYTES), range_of(path))) is None
    np.testing.assert_array_equal(device.memory(buffer)[3 : 3 + len(content)], content)


def flaky(failures):
    """A read that fails with these error numbers, one call each (None: it works), before it works for good."""
    queue = list(failures)

    def read(file, buffers, offset):
        number = queue.pop(0) if queue else None
        if number is not None:
            raise OSError(number, os.strerror(number))
        return os.preadv(file, buffers, offset)

    return read


def test_a_file_system_that_refuses_direct_reads_is_read_the_ordinary_way(make, data):
    path, content = data
    device = make(read=flaky([errno.EINVAL]))
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)
    assert finish(device, device.fetch(buffer, range_of(path))) is None
    np.testing.assert_array_equal(device.memory(buffer)[: len(content)], content)


def test_an_open_that_refuses_direct_reads_is_followed_by_an_ordinary_one(make, data, monkeypatch):
    path, content = data
    real_open = os.open

    def refuse(name, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O here")
        return real_open(name, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    device = make()
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)
    assert finish(device, device.fetch(buffer, range_of(path))) is None
    np.testing.assert_array_equal(device.memory(buffer)[: len(content)], content)


def test_a_read_error_in_the_middle_fails_the_fetch_and_the_next_one_works(make, data, monkeypatch):
    monkeypatch.setattr(host_memory, "CHUNK_BYTES", BLOCK_BYTES)
    path, content = data
    device = make(read=flaky([None, None, errno.EIO]))
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)
    failure = finish(device, device.fetch(buffer, range_of(path)))
    assert isinstance(failure, TransferError)
    assert str(path) in str(failure)
    assert os.strerror(errno.EIO) in str(failure)
    assert finish(device, device.fetch(buffer, range_of(path))) is None
    np.testing.assert_array_equal(device.memory(buffer)[: len(content)], content)


def test_reads_that_come_short_are_continued(make, data):
    path, content = data
    lengths = iter([100, BLOCK_BYTES, 1, 5000])

    def read(file, buffers, offset):
        return os.preadv(file, [buffers[0][: next(lengths, None)]], offset)

    device = make(read=read)
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)
    # the first short read breaks direct I/O's alignment
    assert finish(device, device.fetch(buffer, range_of(path))) is None
    np.testing.assert_array_equal(device.memory(buffer)[: len(content)], content)


def test_a_file_that_ends_early_is_named(make, data):
    path, _ = data
    device = make(read=lambda file, buffers, offset: 0)
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)
    failure = finish(device, device.fetch(buffer, range_of(path)))
    assert isinstance(failure, TransferError)
    assert "ended after 0 of" in str(failure)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mtime_ns": 1}, "modification time"),
        ({"ctime_ns": 1}, "status time"),
        ({"inode": 1}, "inode"),
        ({"size_bytes": 4096}, "size"),
    ],
)
def test_a_changed_file_is_named(make, data, change, word):
    device = make()
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)
    source = range_of(data[0])
    source = dataclasses.replace(source, identity=dataclasses.replace(source.identity, **change))
    failure = finish(device, device.fetch(buffer, source))
    assert isinstance(failure, TransferError)
    assert word in str(failure)


def test_an_expert_without_a_file_is_named(make, data):
    device = make()
    buffer = device.reserve("dram", 6 * BLOCK_BYTES)
    failure = finish(device, device.fetch(buffer, dataclasses.replace(range_of(data[0]), path="")))
    assert isinstance(failure, TransferError)
    assert "no file" in str(failure)


@pytest.mark.parametrize(("offset", "blocks"), [(0, 8), (5 * BLOCK_BYTES, 2), (6 * BLOCK_BYTES, 1), (0, 0)])
def test_a_range_that_the_file_does_not_hold_is_refused(make, data, offset, blocks):
    device = make()
    buffer = device.reserve("dram", 8 * BLOCK_BYTES)
    failure = finish(device, device.fetch(buffer, range_of(data[0], offset, blocks * BLOCK_BYTES)))
    assert isinstance(failure, TransferError)
    assert "in the file" in str(failure)


def test_memory_that_the_system_does_not_give_is_one_sentence():
    with pytest.raises(DeviceError, match="in one piece cannot be had: Cannot allocate memory; lower --near or --kv"):
        host_memory.Slab(2**60, touched=False)
