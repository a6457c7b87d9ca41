"""Recent uses: they fade, are counted by request, and decide who is evicted where plain counts would decide wrongly."""

from __future__ import annotations

import pytest
from fake_device import FakeDevice, fake_layout, fake_spec

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.memory.cache import ExpertCache
from coterie.memory.evict import Entry, recent
from coterie.memory.uses import MEMORY_USES, Uses


def evicted(evict, *wants, blocks=2, sizes=None):
    """Who was evicted for the last of these (expert, uses)."""
    device = FakeDevice(fake_spec("dram", "disk"))
    cache = ExpertCache(device, {"dram": blocks * BLOCK_BYTES}, evict)
    for name, uses in wants:
        got = cache.want(name, fake_layout(name, (sizes or {}).get(name, 1)), uses=uses)
        while device.open:
            device.finish(device.runnable()[0])
        cache.poll()
    return got.evicted


def test_a_use_fades_to_1_over_e_in_so_many_requests_for_each_known_expert():
    uses = Uses()
    uses.add("a", 10)
    uses.add("b", 1)
    assert uses.recent(uses.known("b")) == pytest.approx(1)
    before = uses.recent(uses.known("a"))
    uses.add("b", 2 * MEMORY_USES)
    assert uses.recent(uses.known("a")) == pytest.approx(before / 2.718281828)
    assert uses.known("a").uses == 10


@pytest.mark.parametrize("count", [1, 2, 5, 32, 128])
def test_requests_admitted_together_count_as_those_one_after_the_other(count):
    together, alone = Uses(), Uses()
    for uses in (together, alone):
        uses.add("a", 3)
        uses.add("b", 1)
    together.add("a", count)
    for _ in range(count):
        alone.add("a", 1)
    for name in "ab":
        assert together.recent(together.known(name)) == pytest.approx(alone.recent(alone.known(name)))
    assert together.requests == alone.requests == count + 4


def test_to_be_brought_in_ahead_is_no_use_but_is_the_latest():
    uses = Uses()
    uses.add("a", 3)
    uses.add("b", 0)
    assert (uses.known("b").uses, uses.recent(uses.known("b"))) == (0, 0)
    assert uses.known("b").last_used > uses.known("a").last_used
    assert uses.recent(uses.known("a")) == pytest.approx(3, rel=0.2)
    assert (uses.wants, uses.requests) == (2, 3)


def test_an_old_favourite_fades():
    wants = [*[("old", 1)] * 20, *[("new", 1)] * 19, ("next", 1)]
    assert evicted("lfu", *wants) == (("new", "dram"),)
    assert evicted("recent", *wants) == (("old", "dram"),)


def test_one_quiet_spell_does_not_cost_a_favourite_its_place():
    wants = [*[("hot", 1)] * 6, ("once", 1), ("next", 1)]
    assert evicted("lru", *wants) == (("hot", "dram"),)
    assert evicted("recent", *wants) == (("once", "dram"),)


def test_requests_count_not_wants():
    # A switch is two wants, one ahead and one for its requests: that makes nobody a favourite.
    wants = [("cold", 0), ("cold", 1), ("hot", 3), ("next", 1)]
    assert evicted("recent", *wants) == (("cold", "dram"),)


def test_every_victim_of_a_window_counts():
    sizes = {"big": 2, "next": 2}
    wants = [("x", 1), ("y", 1), ("big", 1), ("big", 0), ("next", 1)]
    assert {name for name, _ in evicted("lfu", *wants, blocks=4, sizes=sizes)} == {"x", "y"}
    assert evicted("recent", *wants, blocks=4, sizes=sizes) == (("big", "dram"),)


def test_of_equal_sums_the_fewest_bytes_go():
    entries = [Entry("a", 0, 3, 0, recent=1.0), Entry("b", 3, 2, 1, recent=1.0)]
    assert [e.expert_id for e in recent(entries, 5, 2, 9)] == ["b"]
