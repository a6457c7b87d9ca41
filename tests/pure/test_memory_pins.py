"""Room beside pinned experts: whole blocks, one piece whenever they come in, and of what is leaving none is kept."""

from __future__ import annotations

from contextlib import suppress

import pytest
from cached import A, B, load, make, settle
from fake_device import fake_layout
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError, ConflictError
from coterie.memory.pins import check_room, offsets_if_added, offsets_if_pinned
from coterie.memory.victims import Busy


def test_experts_take_whole_blocks() -> None:
    """Two experts of a block and a byte take four blocks."""
    _, cache = make(3)
    with pytest.raises(ConflictError, match=r"would take 8.00 KiB of 12.00 KiB .* leave 4.00 KiB .* needs 8.00 KiB"):
        offsets_if_pinned(cache, "x", {"x": BLOCK_BYTES + 1, "y": BLOCK_BYTES + 1})
    _, cache = make(4)
    offsets_if_pinned(cache, "x", {"x": BLOCK_BYTES + 1, "y": BLOCK_BYTES + 1})


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
        offsets_if_pinned(cache, "a", {"a": A.size_bytes, "big": 3 * BLOCK_BYTES})
    assert str(caught.value) == (
        "[pin a] as a would lie in dram, the holes beside have no piece for each of big (12.00 KiB); "
        "unpin another, or unload a and pin again before they come in: then they lie side by side"
    )
    cache.forget("a")
    assert offsets_if_pinned(cache, "a", {"a": A.size_bytes, "big": 3 * BLOCK_BYTES}) == {"a": 3 * BLOCK_BYTES}


def sizes_of(blocks):
    return {name: count * BLOCK_BYTES for name, count in blocks.items()}


def pin(cache, name, blocks):
    cache.pin(name, offsets_if_pinned(cache, name, sizes_of(blocks)))


def grow(cache, name, blocks):
    """As an expert becomes larger: first it is found out whether it may, then its former weights go."""
    places = offsets_if_added(cache, name, sizes_of(blocks))
    cache.forget(name)
    for pinned in places:
        cache.pin(pinned, places)


def test_a_pinned_expert_that_comes_in_later_does_not_cut_memory_in_two() -> None:
    """The hole behind others is free, but there it would leave neither side for the largest."""
    blocks = {"a": 2, "b": 2, "late": 2, "big": 8}
    layouts = {name: fake_layout(name, count) for name, count in blocks.items()}
    device, cache = make(10)
    pin(cache, "late", blocks)
    for name in ("a", "b", "late"):
        load(device, cache, name, layouts[name])
    assert set(cache.resident()) == {"a", "b", "late"}
    load(device, cache, "big", layouts["big"])
    assert set(cache.resident()) == {"big", "late"}


def test_whoever_lies_in_the_place_of_a_pinned_expert_is_waited_for_or_spared() -> None:
    blocks = {"a": 2, "late": 2, "big": 4}
    device, cache = make(6)
    load(device, cache, "big", fake_layout("big", 4))
    there = load(device, cache, "a", fake_layout("a", 2))
    reading = device.read_weights(there.weights)
    cache.hold("a", reading)
    pin(cache, "late", blocks)
    cache.forget("big")
    late = fake_layout("late", 2)
    with pytest.raises(Busy) as busy:
        cache.want("late", late)
    assert busy.value.events == (reading,)
    settle(device, cache)
    with pytest.raises(CapacityError):
        cache.want("late", late, protected=frozenset("a"))
    assert cache.want("late", late).evicted == (("a", "dram"),)


def test_a_pinned_expert_whose_load_failed_comes_in_where_it_would_have_been() -> None:
    blocks = {"a": 2, "late": 2, "big": 4}
    device, cache = make(6)
    for name in ("a", "late"):
        pin(cache, name, blocks | {"big": 2})
        cache.want(name, fake_layout(name, 2))
    places = {name: copy.extent for name, copy in cache.ledgers[0].copies.items()}
    device.fail(device.runnable()[0])
    settle(device, cache)
    assert len(cache.resident()) == 1
    for name in ("big", "a", "late"):
        load(device, cache, name, fake_layout(name, 2))
    assert {name: cache.ledgers[0].copies[name].extent for name in places} == places


NAMES = "abcdef"
deed = st.tuples(st.sampled_from(["want", "want", "pin", "unpin", "unload", "grow"]), st.sampled_from(NAMES))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 8), min_size=len(NAMES), max_size=len(NAMES)),
    st.integers(8, 20),
    st.lists(deed, max_size=30),
)
@example([2, 2, 2, 2, 1, 1], 8, [("pin", "a"), ("grow", "d"), ("want", "a"), ("want", "d")])
@example([2, 2, 2, 4, 1, 1], 8, [("pin", "a"), ("want", "b"), ("want", "a"), ("grow", "d"), ("want", "d")])
@example([2, 2, 2, 8, 1, 1], 10, [("pin", "c"), ("want", "a"), ("want", "b"), ("want", "c"), ("want", "d")])
def test_beside_pins_whoever_is_wanted_has_room(counts, capacity, deeds) -> None:
    """Whenever pins were granted, and wherever others lie, of whatever size they have become since; and without one in
    the middle all that fits is granted.
    """
    blocks = dict(zip(NAMES, counts, strict=True))
    device, cache = make(capacity)
    for what, name in deeds:
        copies = cache.ledgers[0].copies
        if what == "want":
            load(device, cache, name, fake_layout(name, blocks[name]))
            assert cache.pinned & copies.keys() <= set(cache.resident())
        elif what == "unpin":
            cache.unpin(name)
        elif what == "unload" and name not in cache.pinned:
            cache.forget(name)
        elif what == "grow" and name not in cache.pinned:
            grown = blocks | {name: (blocks[name] + 2) % 8 + 1}
            fits = sum([grown[other] for other in cache.pinned]) + grown[name] <= capacity
            if fits or not cache.pinned or grown[name] < max(c for o, c in grown.items() if o not in cache.pinned):
                with suppress(ConflictError):
                    grow(cache, name, grown)
                    blocks = grown
            else:
                with pytest.raises(ConflictError, match="would not leave"):
                    grow(cache, name, grown)
        elif what == "pin":
            pinned = cache.pinned | {name}
            most = max([count for other, count in blocks.items() if other not in pinned], default=0)
            fits = sum([blocks[other] for other in pinned]) + most <= capacity
            if name in cache.pinned or (fits and not pinned & copies.keys()):
                pin(cache, name, blocks)
            elif not fits:
                with pytest.raises(ConflictError, match="would take"):
                    pin(cache, name, blocks)
            else:
                with suppress(ConflictError):
                    pin(cache, name, blocks)
