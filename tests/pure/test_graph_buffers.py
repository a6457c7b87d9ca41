"""The buffer plan over random lifetimes: live values never overlap, and slots are shared where they can be."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core.shapes import Sizes, Symbol
from coterie.graph.buffers import ALIGN_BYTES, Lifetime, plan_buffers

DIMS = st.one_of(st.sampled_from([Symbol.T, Symbol.R]), st.integers(1, 50))
SIZES = st.builds(Sizes, *[st.integers(0, 9)] * 3, context_tokens=st.just(0), pairs=st.just(0))


@st.composite
def lifetimes(draw):
    """Values in no particular order; several may begin or end with the same region."""
    found = []
    for i in range(draw(st.integers(0, 12))):
        first = draw(st.integers(0, 15))
        shape = tuple(draw(st.lists(DIMS, min_size=1, max_size=3)))
        found.append(Lifetime(f"v{i}", shape, draw(st.sampled_from([2, 4])), first, first + draw(st.integers(0, 6))))
    return draw(st.permutations(found))


def size_of(life, sizes):
    return sizes.count(life.shape) * life.element_bytes


def live_together(a, b):
    return a.first <= b.last and b.first <= a.last


@settings(max_examples=40, deadline=None)
@given(lifetimes(), SIZES, st.booleans())
def test_values_that_live_together_never_overlap(lives, sizes, share):
    offsets, total = plan_buffers(lives, share).offsets(sizes)
    assert set(offsets) == {life.name for life in lives}
    for life in lives:
        assert offsets[life.name] % ALIGN_BYTES == 0
        assert 0 <= offsets[life.name] <= offsets[life.name] + size_of(life, sizes) <= total
    for a, b in combinations(lives, 2):
        if not share or live_together(a, b):
            a_end, b_end = offsets[a.name] + size_of(a, sizes), offsets[b.name] + size_of(b, sizes)
            assert a_end <= offsets[b.name] or b_end <= offsets[a.name], (a, b)


@settings(max_examples=40, deadline=None)
@given(lifetimes())
def test_there_are_as_many_slots_as_values_at_the_busiest_moment(lives):
    """First fit in order of birth colours intervals with the fewest slots that can do."""
    busiest = max((sum(life.first <= at <= life.last for life in lives) for at in range(22)), default=0)
    assert len(plan_buffers(lives).slots) == busiest
    assert len(plan_buffers(lives, share=False).slots) == len(lives)


@settings(max_examples=40, deadline=None)
@given(lifetimes(), SIZES)
def test_sharing_never_takes_more(lives, sizes):
    assert plan_buffers(lives).offsets(sizes)[1] <= plan_buffers(lives, share=False).offsets(sizes)[1]


@settings(max_examples=40, deadline=None)
@given(lifetimes())
def test_the_order_in_which_values_are_given_changes_nothing(lives):
    assert plan_buffers(lives).slot_of == plan_buffers(sorted(lives, key=lambda life: life.name)).slot_of


@settings(max_examples=40, deadline=None)
@given(lifetimes(), SIZES)
def test_a_value_read_after_the_end_is_never_overwritten(lives, sizes):
    """An output of the step lives past the last region: whatever begins later must be elsewhere."""
    result = Lifetime("result", (Symbol.T, 3), 4, 2, 99)
    offsets, _ = plan_buffers([*lives, result]).offsets(sizes)
    start, end = offsets["result"], offsets["result"] + size_of(result, sizes)
    for life in lives:
        if life.last >= result.first:
            assert offsets[life.name] + size_of(life, sizes) <= start or end <= offsets[life.name]


def test_a_slot_is_as_large_as_its_largest_value_in_each_step():
    lives = [Lifetime("a", (Symbol.T, 4), 4, 0, 0), Lifetime("b", (Symbol.R, 100), 4, 1, 1)]
    plan = plan_buffers(lives)
    assert plan.slot_of == {"a": 0, "b": 0}
    for rows, tokens, wanted in ((1, 8, 448), (1, 100, 1600), (0, 0, 0)):
        assert plan.offsets(Sizes(tokens, 1, rows, 0, 0)) == ({"a": 0, "b": 0}, wanted)


@pytest.mark.parametrize(("first", "slots"), [(2, 2), (3, 1)])
def test_a_region_never_writes_where_it_reads(first, slots):
    read = Lifetime("read", (Symbol.T,), 4, 0, 2)
    assert len(plan_buffers([read, Lifetime("written", (Symbol.T,), 4, first, 4)]).slots) == slots
