"""A router's weights beside the experts': neither evicts the other, and both are one cache to the engine."""

from __future__ import annotations

import pytest
from fake_device import FakeDevice, fake_layout

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError
from coterie.memory.cache import ExpertCache
from coterie.memory.split import SplitCache, side_of, sides_of, stays


@pytest.fixture
def device():
    return FakeDevice()


def split(device, expert_blocks, router_blocks):
    experts = ExpertCache(device, {"dram": expert_blocks * BLOCK_BYTES})
    routers = ExpertCache(device, {"dram": router_blocks * BLOCK_BYTES})
    return SplitCache(experts, {"router": (routers, {"r"})})


def drain(device, cache):
    while device.open:
        device.finish(device.runnable()[0])
    return cache.poll()


def test_neither_side_evicts_the_other(device):
    cache = split(device, 4, 4)
    cache.want("r", fake_layout("r", 4))
    drain(device, cache)
    for name in "abcd":
        got = cache.want(name, fake_layout(name, 2))
        assert all(gone != "r" for gone, _ in got.evicted)
        drain(device, cache)
    assert set(cache.resident()) == {"c", "d", "r"}
    assert cache.want("r", fake_layout("r", 4)).hit
    cache.check_integrity()


def test_each_side_has_its_own_bound(device):
    cache = split(device, 8, 2)
    with pytest.raises(CapacityError, match="expert r"):
        cache.want("r", fake_layout("r", 4))
    assert not cache.want("a", fake_layout("a", 8)).hit


def test_ends_loads_and_what_is_pending_are_of_both(device):
    cache = split(device, 4, 4)
    first, second = cache.want("a", fake_layout("a", 2)), cache.want("r", fake_layout("r", 2))
    assert set(cache.loading()) == {"a", "r"}
    assert {e.event_id for e in cache.pending()} == {first.ready.event_id, second.ready.event_id}
    assert {name for name, failure in drain(device, cache)} == {"a", "r"}
    cache.hold("r", device.read_weights(second.weights))
    assert len(cache.pending()) == 1


def test_bases_stay_whoever_comes_and_are_nobody_elses(device):
    bases = ExpertCache(device, {"dram": 3 * BLOCK_BYTES})
    cache = SplitCache(ExpertCache(device, {"dram": 2 * BLOCK_BYTES}), {"bases": (bases, {"big"})})
    assert not cache.want("big", fake_layout("big", 3)).hit
    for name in "abc":
        cache.want(name, fake_layout(name, 2))
        drain(device, cache)
    assert cache.resident() == ("c", "big")
    assert cache.want("big", fake_layout("big", 3)).hit
    assert [stays(cache, name) for name in ("big", "c")] == [True, False]
    assert not stays(cache.experts, "big")
    assert side_of(cache, "big") is bases is sides_of(cache)["bases"]
    cache.check_integrity()
