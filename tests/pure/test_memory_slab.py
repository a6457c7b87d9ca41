"""The slab: best fit, joined neighbours, and accounts that balance after any sequence of operations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.memory.slab import Extent, Slab, SlabFullError

BLOCK = BLOCK_BYTES


def test_sizes_are_rounded_up_to_blocks_and_the_tail_stays_unused():
    slab = Slab(3 * BLOCK + 5)
    assert slab.size_bytes == 3 * BLOCK
    assert slab.alloc(1) == Extent(0, BLOCK)
    assert slab.alloc(BLOCK + 1) == Extent(BLOCK, 2 * BLOCK)
    assert (slab.free_bytes, slab.used_bytes, slab.largest_hole) == (0, 3 * BLOCK, 0)


def test_best_fit_takes_the_smallest_hole():
    slab = Slab(10 * BLOCK)
    extents = [slab.alloc(n * BLOCK) for n in (3, 1, 2, 1, 3)]
    for index in (0, 2):
        slab.free(extents[index])
    assert slab.alloc(2 * BLOCK) == extents[2]


def test_freed_neighbours_join_on_both_sides():
    slab = Slab(4 * BLOCK)
    a, b, c = (slab.alloc(BLOCK) for _ in range(3))
    slab.free(a)
    slab.free(c)
    assert slab.largest_hole == 2 * BLOCK
    slab.free(b)
    assert slab.largest_hole == 4 * BLOCK
    slab.check_integrity()


def test_mistakes_are_refused():
    slab = Slab(2 * BLOCK)
    extent = slab.alloc(BLOCK)
    with pytest.raises(SlabFullError, match=r"8192 bytes.*4096"):
        slab.alloc(2 * BLOCK)
    with pytest.raises(ValueError, match="at least one"):
        slab.alloc(0)
    with pytest.raises(ValueError, match="not taken"):
        slab.free(Extent(0, 2 * BLOCK))
    slab.free(extent)
    with pytest.raises(ValueError, match="not taken"):
        slab.free(extent)
    with pytest.raises(ValueError, match="smaller than one block"):
        Slab(BLOCK - 1)


def test_integrity_sees_a_lost_hole_and_a_double_one():
    slab = Slab(4 * BLOCK)
    slab.alloc(BLOCK)
    holes = slab._free
    slab._free = []
    with pytest.raises(RuntimeError, match="16384"):
        slab.check_integrity()
    slab._free = [Extent(0, 4 * BLOCK)]
    with pytest.raises(RuntimeError, match="does not follow"):
        slab.check_integrity()
    slab._free = [Extent(BLOCK, BLOCK), Extent(2 * BLOCK, 2 * BLOCK)]
    with pytest.raises(RuntimeError, match="does not follow"):
        slab.check_integrity()
    slab._free = holes
    slab.check_integrity()


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6), st.integers(0, 99)), max_size=40))
def test_any_sequence_keeps_the_balance(operations):
    slab, taken = Slab(16 * BLOCK), []
    for is_alloc, size, pick in operations:
        if is_alloc and slab.largest_hole >= size * BLOCK:
            taken.append(slab.alloc(size * BLOCK))
        elif is_alloc:
            with pytest.raises(SlabFullError):
                slab.alloc(size * BLOCK)
        elif taken:
            slab.free(taken.pop(pick % len(taken)))
        slab.check_integrity()
        assert slab.used_bytes == sum(extent.size_bytes for extent in taken)
        assert slab.free_bytes + slab.used_bytes == slab.size_bytes
    for extent in taken:
        slab.free(extent)
    assert slab.largest_hole == slab.size_bytes
