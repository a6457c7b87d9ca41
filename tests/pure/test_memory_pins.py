"""Room beside pinned experts: in whole blocks, in one piece, and of what is leaving none is kept."""

from __future__ import annotations

import pytest
from cached import A, B, load, make

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import ConflictError
from coterie.memory.pins import check_pin, check_room


def test_experts_take_whole_blocks() -> None:
    """Two experts of a block and a byte take four blocks."""
    _, cache = make(3)
    with pytest.raises(ConflictError, match=r"would take 8.00 KiB of 12.00 KiB .* leave 4.00 KiB .* needs 8.00 KiB"):
        check_pin(cache, "x", {"x": BLOCK_BYTES + 1, "y": BLOCK_BYTES + 1})
    _, cache = make(4)
    check_pin(cache, "x", {"x": BLOCK_BYTES + 1, "y": BLOCK_BYTES + 1})


def test_a_pinned_expert_that_is_about_to_go_takes_no_room() -> None:
    device, cache = make(4)
    there = load(device, cache, "a", A)
    cache.pin("a")
    cache.hold("a", device.read_weights(there.weights))
    with pytest.raises(ConflictError, match=r"\[load b\] it needs 12.00 KiB of dram but beside a, pinned, there are"):
        check_room(cache, "b", B.size_bytes + BLOCK_BYTES)
    cache.forget("a")
    assert cache.ledgers[0].copies["a"].is_doomed
    check_room(cache, "b", B.size_bytes + BLOCK_BYTES)


def test_where_memory_is_cut_in_two_no_larger_budget_is_asked_for() -> None:
    device, cache = make(5)
    for name, layout in (("b", B), ("a", A)):
        load(device, cache, name, layout)
    cache.forget("b")
    with pytest.raises(ConflictError) as caught:
        check_pin(cache, "a", {"a": A.size_bytes, "big": 3 * BLOCK_BYTES})
    assert str(caught.value).endswith(
        "leave 8.00 KiB in one piece, but big needs 12.00 KiB; "
        "unpin another, or unload what is pinned and load it again, as it lies in the middle"
    )
