"""Rows of an embedding first: which blocks they are, in which order all is fetched, and what each batch awaits."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_device import FakeDevice, fake_spec
from hypothesis import given
from hypothesis import strategies as st

from coterie.checkpoint.folder import Checkpoint
from coterie.checkpoint.layout import BLOCK_BYTES, FileIdentity
from coterie.checkpoint.place import place
from coterie.checkpoint.safetensors import Shard, TensorInfo
from coterie.core.dtypes import DType
from coterie.memory.cache import ExpertCache
from coterie.memory.rows import PART_COST_BYTES, early_rows

STAGES = ("embed", "layers.0", "head")
NUM_ROWS, ROW_BYTES = 1000, 1000


def layout(before=100, after=500, tied=False):
    """A table between two tensors of layers.0 that share its first and last block, and a head behind."""
    sizes = {"low": before, "table": NUM_ROWS * ROW_BYTES, "high": after, "layer": 9 * BLOCK_BYTES, "norm": BLOCK_BYTES}
    shard = Shard("file", FileIdentity(sum(sizes.values())))
    stage_of = {"low": "layers.0", "table": "embed", "high": "layers.0", "layer": "layers.0", "norm": "head"}
    tensors, at = {}, 0
    for name, size in sizes.items():
        shape = (NUM_ROWS, ROW_BYTES) if name == "table" else (size,)
        tensors[name] = TensorInfo(name, DType.U8, shape, shard, at)
        at += size
    return place(Checkpoint(Path(), {}, tensors), stage_of, STAGES, "table", ("head",) if tied else ())


def make(near="dram", *lower):
    device = FakeDevice(fake_spec(near, *lower, "disk"))
    return device, ExpertCache(device, dict.fromkeys((near, *lower), 400 * BLOCK_BYTES))


@given(
    st.integers(0, 3 * BLOCK_BYTES),
    st.integers(0, 3 * BLOCK_BYTES),
    st.sets(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=6),
)
def test_the_parts_hold_the_rows_and_what_is_beside_the_table(before, after, rows):
    placed = layout(before, after)
    table, early = placed.table, early_rows(placed, rows)
    if early is None:
        return
    base, size_bytes = placed.ranges[table.range_index].offset, placed.ranges[table.range_index].source.size_bytes
    covered = set()
    for start, length in early.parts:
        assert start % BLOCK_BYTES == length % BLOCK_BYTES == 0 <= start < start + length <= size_bytes
        blocks = set(range(start // BLOCK_BYTES, (start + length) // BLOCK_BYTES))
        assert not covered & blocks
        covered |= blocks
    assert early.size_bytes == len(covered) * BLOCK_BYTES
    first, end = table.offset - base, table.offset - base + NUM_ROWS * ROW_BYTES
    needed = {byte // BLOCK_BYTES for byte in (*range(first), *range(end, size_bytes))}
    for row in rows:
        needed |= {(first + row * ROW_BYTES + byte) // BLOCK_BYTES for byte in (0, ROW_BYTES - 1)}
    assert needed <= covered


def test_near_rows_are_one_read_and_far_ones_are_not():
    near = early_rows(layout(), {0, PART_COST_BYTES // ROW_BYTES})
    far = early_rows(layout(), {0, 500})
    assert (len(near.parts), len(far.parts)) == (2, 3)  # the last block of the table is shared


def test_rows_come_first_only_where_that_takes_less_than_half_of_the_table():
    assert early_rows(layout(), range(0, NUM_ROWS, 300)) is not None
    assert early_rows(layout(), range(0, NUM_ROWS, 100)) is None
    assert early_rows(layout(), ()) is None


@pytest.mark.parametrize("tied", [False, True])
def test_the_order_and_the_gates(tied):
    device, cache = make()
    placed = layout(tied=tied)
    got = cache.want("a", placed, {3, 500})
    lane = [device.work[event.event_id] for event in cache._near.copies["a"].arrivals]
    table = placed.ranges[placed.table.range_index].source
    others = [r.source for r in placed.ranges if r.source != table]
    assert [work.source for work in lane] == [table, *others, table]
    assert [work.parts is None for work in lane] == [False, True, True, True]
    rows, layer, head, whole = (work.event for work in lane)
    assert dict(got.gates) == {"embed": whole, "layers.0": layer, "head": whole if tied else head}
    assert (got.first, got.ready, got.early.gate) == (rows, whole, rows)
    assert got.gates_of([500, 3, 3], 1)["embed"] == rows
    assert got.gates_of([500, 4], 1)["embed"] == got.gates_of([500, 3], 2)["embed"] == whole
    for event in (rows, layer):
        device.finish(event)
    held = device.content(got.weights)
    for row in (3, 500):
        block = (placed.table.offset + row * ROW_BYTES) // BLOCK_BYTES
        assert held[block] == ("file", block)
    assert held[PART_COST_BYTES // BLOCK_BYTES] == "torn"
    assert cache.want("a", placed).early == got.early
    while device.open:
        device.finish(device.runnable()[0])
    cache.poll()
    assert device.content(got.weights) == [("file", block) for block in range(placed.size_bytes // BLOCK_BYTES)]
    again = cache.want("a", placed, {9})
    assert (again.early, again.first, dict(again.gates)) == (None, None, {})


def test_a_failed_row_fails_the_load_once():
    device, cache = make()
    got = cache.want("a", layout(), {3})
    device.fail(got.first)
    assert all(device.done(gate) for gate in got.gates.values())
    cache.poll()
    assert (cache.resident(), cache.stats.failures) == ((), 1)
    assert not cache.want("a", layout()).hit


def test_a_prefetch_takes_rows_and_a_tier_between_takes_none():
    _, cache = make()
    assert not cache.want("a", layout(), rows={3}).hit
    assert cache.want("a", layout()).early.rows == {3}
    assert cache.stats.moved_bytes["disk->dram"] > layout().size_bytes
    _, cache = make("hbm", "ddr")
    got = cache.want("a", layout(), {3})
    assert got.early is None
    assert got.first == got.gates["embed"]


def test_rows_come_first_from_a_copy_below_too():
    device, placed = FakeDevice(fake_spec("hbm", "ddr", "disk")), layout()
    cache = ExpertCache(device, {"hbm": placed.size_bytes, "ddr": 2 * placed.size_bytes})
    for name in ("a", "b"):  # in ddr there is room for both
        cache.want(name, placed)
        while device.open:
            device.finish(device.runnable()[0])
        cache.poll()
    assert cache.resident() == ("b",)
    got = cache.want("a", placed, {3, 500})
    lane = [device.work[event.event_id] for event in cache._near.copies["a"].arrivals]
    assert [work.parts is None for work in lane] == [False, True, True, True]
    rows, layer, head, whole = (work.event for work in lane)
    assert dict(got.gates) == {"embed": whole, "layers.0": layer, "head": head}
    assert (got.first, got.ready, got.early.gate) == (rows, whole, rows)
    device.finish(rows)
    held = device.content(got.weights)
    for row in (3, 500):
        block = (placed.table.offset + row * ROW_BYTES) // BLOCK_BYTES
        assert held[block] == ("file", block)
    while device.open:
        device.finish(device.runnable()[0])
    cache.poll()
    assert device.content(got.weights) == [("file", block) for block in range(placed.size_bytes // BLOCK_BYTES)]
