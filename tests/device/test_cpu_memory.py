"""The CPU device's memory: slabs, what counts as taken, pages that are given back, and nodes."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from tests.device.cpu_devices import make
from tests.device.random_expert import SPEC

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError
from coterie.devices.real import host_memory
from coterie.devices.real.host_memory import Slab
from coterie.kernels import cpu as kernels

__all__ = ["make"]  # a fixture


def test_slabs_are_aligned_and_zero(make):
    device = make()
    for size in (1, BLOCK_BYTES, 3 * 2**20 + 5):
        buffer = device.reserve("dram", size)
        memory = device.memory(buffer)
        assert kernels.address(memory) % host_memory.HUGE_PAGE_BYTES == 0
        assert memory.size == buffer.size_bytes == size
        assert not memory.any()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says there how much is resident")
def test_memory_that_is_not_touched_counts_as_taken_and_stays_the_systems_until_it_is_written(make):
    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    device, size = make(), 2**26
    before = resident_bytes()
    buffer = device.reserve("dram", size, touched=False)
    assert resident_bytes() - before < size // 2
    memory = device.memory(buffer)
    memory[size // 2 : size // 2 + 3] = 7
    assert memory[size // 2 - 1 : size // 2 + 4].tolist() == [0, 7, 7, 7, 0]
    assert resident_bytes() - before < size // 2
    with pytest.raises(CapacityError):
        device.reserve("dram", SPEC.tier("dram").capacity_bytes - size + BLOCK_BYTES, touched=False)
    device.reserve("dram", size)
    assert resident_bytes() - before > size // 2


def test_the_file_tier_is_not_reserved_and_unknown_tiers_are_named(make):
    with pytest.raises(ValueError, match="disk"):
        make().reserve("disk", 10)
    with pytest.raises(KeyError, match="sram"):
        make().reserve("sram", 10)


def test_capacity_counts_what_is_reserved(make):
    device = make()
    capacity = SPEC.tier("dram").capacity_bytes
    device.reserve("dram", 2**20)
    with pytest.raises(CapacityError) as caught:
        device.reserve("dram", capacity - 2**20 + 1)
    assert caught.value.bound_bytes == capacity - 2**20


def test_just_the_whole_pages_of_a_piece_are_given_back():
    page = mmap.PAGESIZE
    slab = Slab(6 * page)
    slab.bytes[:] = 7
    slab.give_back(page + 1, 3 * page)
    kept = np.repeat(np.uint8([7, 7, 0, 0, 7, 7]), page)
    assert (slab.bytes == kept).all()


@pytest.mark.parametrize(("nodes", "asked"), [((), 0), ((1,), 0), ((0, 1), 1)])
def test_a_slab_is_laid_across_several_nodes_before_it_is_touched(monkeypatch, nodes, asked):
    taken = []

    def interleave(address, size_bytes, given):
        pages = Path("/proc/self/statm")
        taken.append((address, size_bytes, given, int(pages.read_text().split()[1]) * mmap.PAGESIZE))
        return True

    monkeypatch.setattr(host_memory, "interleave", interleave)
    slab = Slab(64 * 2**20, nodes=nodes)
    assert len(taken) == asked
    for address, size_bytes, given, resident_bytes in taken:
        assert given == nodes
        assert address % mmap.PAGESIZE == 0
        assert address <= slab.address
        assert address + size_bytes >= slab.address + slab.bytes.size
        after = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
        assert after - resident_bytes > 48 * 2**20


def test_the_system_hears_of_nodes():
    maps = Path("/proc/self/numa_maps")
    slab = Slab(4 * 2**20)
    if not maps.exists() or not host_memory.interleave(slab.address, slab.bytes.size, (0,)):
        pytest.skip("this system has no memory policies, or lets nobody set one here")
    policies = dict(line.split()[:2] for line in maps.read_text().splitlines())
    assert policies[f"{slab.address:08x}"] == "interleave:0"
    assert not host_memory.interleave(slab.address, slab.bytes.size, (1000,))
