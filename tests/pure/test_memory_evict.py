"""Eviction policies: plain LRU, LFU and Belady where sizes are equal, one hole where they are not."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.memory.evict import EVICTION, Entry, HoleError, belady, cost, lfu, lru

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def names(window):
    return [entry.expert_id for entry in window]


def entry(name, offset, size, last_used=0, **more):
    return Entry(name, offset, size, last_used, **more)


@st.composite
def slabs(draw):
    """(entries, capacity): extents of sizes 1 to 4 with holes between them, some pinned or busy."""
    at, entries = 0, []
    for index in range(draw(st.integers(0, 7))):
        at += draw(st.integers(0, 2))
        size = draw(st.integers(1, 4))
        state = draw(st.sampled_from(["free", "free", "free", "pinned", "busy"]))
        use = {"last_used": draw(st.integers(0, 20)), "uses": draw(st.integers(1, 5)), "refetch_cost": size}
        use["recent"] = use["uses"] / 2
        entries.append(Entry(f"e{index}", at, size, pinned=state == "pinned", busy=state == "busy", **use))
        at += size
    return draw(st.permutations(entries)), at + draw(st.integers(0, 2))


def largest_hole(entries, capacity):
    at, best = 0, 0
    for e in sorted(entries, key=lambda e: e.offset):
        best, at = max(best, e.offset - at), e.offset + e.size_bytes
    return max(best, capacity - at)


@pytest.mark.parametrize("policy", [*EVICTION.values(), belady(["e1", "e3", "e0"])])
@QUICK
@given(slabs(), st.integers(1, 30))
def test_a_hole_opens_whenever_one_can(policy, slab, need):
    entries, capacity = slab
    movable = [e for e in entries if not (e.pinned or e.busy)]
    stays = [e for e in entries if e not in movable]
    try:
        window = policy(entries, capacity, need, 21)
    except HoleError as hole:
        reachable = largest_hole([e for e in stays if e.pinned], capacity)
        seen = (hole.reachable_bytes, hole.waiting_helps, largest_hole(stays, capacity) < need)
        window = None
    if window is None:
        assert seen == (reachable, reachable >= need, True)
    else:
        assert set(window) <= set(movable)
        assert largest_hole([e for e in entries if e not in window], capacity) >= need
        for some in combinations(window, max(len(window) - 1, 0)):
            rest = [e for e in entries if e not in some]
            assert not window or largest_hole(rest, capacity) < need, "nobody goes for nothing"


@QUICK
@given(st.permutations(range(8)), st.lists(st.integers(1, 4), min_size=8, max_size=8))
def test_with_equal_sizes_the_policies_are_the_plain_ones(ages, uses):
    entries = [entry(f"e{i}", 3 * i, 3, last_used=ages[i], uses=uses[i], refetch_cost=3) for i in range(8)]
    oldest = min(entries, key=lambda e: e.last_used)
    assert lru(entries, 25, 3, 8) == (oldest,)
    assert cost(entries, 25, 3, 8) == (oldest,)
    assert lfu(entries, 25, 3, 8) == (min(entries, key=lambda e: (e.uses, e.last_used)),)


def test_lru_chooses_the_window_whose_youngest_is_oldest_then_the_fewest_bytes():
    entries = [entry("a", 0, 2, 1), entry("b", 2, 2, 9), entry("c", 4, 2, 5), entry("d", 6, 2, 4), entry("e", 8, 1, 0)]
    assert names(lru(entries, 10, 4, 10)) == ["d", "e"]
    assert names(lru(entries, 10, 5, 10)) == ["c", "d", "e"]
    tie = [entry("a", 0, 4, 3), entry("x", 4, 1, 9), entry("b", 5, 3, 3)]
    assert names(lru(tie, 8, 3, 10)) == ["b"]


def test_a_hole_that_is_there_needs_no_victim():
    assert lru([entry("a", 2, 2)], 4, 2, 0) == ()
    assert lru([], 4, 4, 0) == ()


def test_cost_prefers_what_is_cheap_to_bring_back():
    entries = [entry("cold", 0, 4, 5, refetch_cost=40), entry("warm", 4, 4, 5, refetch_cost=4)]
    assert names(cost(entries, 8, 4, 6)) == ["warm"]
    older = [entry("cold", 0, 4, 0, refetch_cost=40), entry("warm", 4, 4, 99, refetch_cost=4)]
    assert names(cost(older, 8, 4, 99)) == ["cold"]


def test_belady_looks_ahead_from_now():
    entries = [entry("a", 0, 1), entry("b", 1, 1), entry("c", 2, 1)]
    policy = belady("abcdacb")
    assert names(policy(entries, 3, 1, 3)) == ["b"]
    assert names(policy(entries, 3, 1, 5)) == ["a"]


def test_pins_forbid_for_ever_and_busy_ones_for_now():
    entries = [entry("a", 0, 2), entry("b", 2, 2, busy=True), entry("c", 4, 2, pinned=True)]
    with pytest.raises(HoleError) as hole:
        lru(entries, 6, 4, 0)
    assert hole.value.waiting_helps
    with pytest.raises(HoleError) as hole:
        lru(entries, 6, 5, 0)
    assert (hole.value.waiting_helps, hole.value.reachable_bytes) == (False, 4)


def misses(policy, order, slots):
    """Misses of a policy on equal sizes, one slot of size 1 each."""
    entries, count, uses = {}, 0, {}
    for now, name in enumerate(order):
        uses[name] = uses.get(name, 0) + 1
        if name not in entries:
            count += 1
            for victim in policy(list(entries.values()), slots, 1, now):
                del entries[victim.expert_id]
            offset = min(set(range(slots)) - {e.offset for e in entries.values()})
        else:
            offset = entries[name].offset
        entries[name] = entry(name, offset, 1, now, uses=uses[name], refetch_cost=1)
    return count


@QUICK
@given(st.lists(st.sampled_from("abcde"), max_size=30), st.integers(1, 4))
def test_belady_is_a_lower_bound_on_equal_sizes(order, slots):
    bound = misses(belady(order), order, slots)
    assert all(bound <= misses(policy, order, slots) for policy in EVICTION.values())
    assert bound >= len(set(order))


@QUICK
@given(st.lists(st.sampled_from("abcdef"), max_size=40), st.integers(1, 5))
def test_lru_misses_as_a_plain_list_does(order, slots):
    recent, count = [], 0
    for name in order:
        count += name not in recent
        recent = [*(r for r in recent if r != name), name][-slots:]
    assert misses(lru, order, slots) == count
