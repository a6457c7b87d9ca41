"""ExpertCache, case by case: hits, joins, victims, holds, pins, failures, prefetch, tiers, and what it refuses."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from cached import A, B, C, expected, load, make, settle
from fake_device import FakeDevice, fake_layout, fake_spec

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError, TransferError, UsageError
from coterie.memory.cache import ExpertCache
from coterie.memory.evict import belady
from coterie.memory.victims import Busy


def test_a_miss_brings_the_bytes_and_a_gate_for_each_stage():
    device, cache = make(4)
    got = cache.want("a", A)
    assert (got.hit, got.is_loading) == (False, True)
    assert list(got.gates) == ["layers.0", "layers.1"]
    assert got.ready == got.gates["layers.1"]
    device.finish(got.gates["layers.0"])
    assert device.content(got.weights)[0] == ("a", 0)
    assert device.content(got.weights)[1] == "torn"
    settle(device, cache)
    assert device.content(got.weights) == expected(A)
    again = cache.want("a", A)
    assert (again.hit, again.ready, dict(again.gates)) == (True, None, {})


def test_two_wants_share_one_load():
    device, cache = make(4)
    first, second = cache.want("a", A), cache.want("a", A)
    assert (second.hit, second.is_loading) == (True, True)
    assert (second.weights, second.gates) == (first.weights, first.gates)
    assert [lane for lane, _ in device.log] == ["disk->dram"] * 2
    assert (cache.stats.hits, cache.stats.joins, cache.stats.misses) == (1, 1, 1)


def test_what_is_remembered_of_many_requests_takes_less_than_a_megabyte():
    """An expert is wanted several times for each request: bytes count, of the newest decisions that are kept."""
    device, cache = make(4)
    load(device, cache, "a", A)
    cache.want("a", A)
    tracemalloc.start()
    try:
        for _ in range(20_000):
            cache.want("a", A)
        gc.collect()
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (cache.stats.hits, cache.decisions[-1]) == (20_001, ("hit", "a", "dram"))
    assert kept_bytes < 2**20


def test_lru_evicts_and_copies_nothing_back():
    device, cache = make(4)
    for name, layout in (("a", A), ("b", B)):
        load(device, cache, name, layout)
    cache.want("a", A)
    load(device, cache, "c", C)
    assert cache.resident() == ("a", "c")
    assert list(cache.decisions) == [
        ("miss", "a", "dram"),
        ("fetch", "a", "disk->dram"),
        ("miss", "b", "dram"),
        ("fetch", "b", "disk->dram"),
        ("hit", "a", "dram"),
        ("miss", "c", "dram"),
        ("evict", "b", "dram"),
        ("fetch", "c", "disk->dram"),
    ]
    assert cache.stats.evictions == {"dram": 1}
    assert cache.stats.moved_bytes == {"disk->dram": 6 * BLOCK_BYTES}
    assert {lane for lane, _ in device.log} == {"disk->dram"}


def test_a_held_expert_stays_until_the_event_is_finished_and_polled():
    device, cache = make(2)
    got = load(device, cache, "a", A)
    reading = device.read_weights(got.weights)
    cache.hold("a", reading)
    with pytest.raises(Busy) as busy:
        cache.want("b", B)
    assert busy.value.events == (reading,)
    device.finish(reading)
    with pytest.raises(Busy):
        cache.want("b", B)
    cache.poll()
    assert not cache.want("b", B).hit


def test_what_is_released_need_not_be_polled():
    device, cache = make(2)
    got = load(device, cache, "a", A)
    first, second = device.read_weights(got.weights), device.read_weights(got.weights)
    for reading in (first, second):
        cache.hold("a", reading)
        device.finish(reading)
    cache.release("a", first)
    assert cache.pending() == (second,)
    with pytest.raises(Busy):
        cache.want("b", B)
    cache.release("a", second)
    cache.release("a", second)  # again, or after the expert went, it changes nothing
    cache.check_integrity()
    assert not cache.want("b", B).hit
    cache.release("a", second)


def test_an_expert_that_was_told_to_go_goes_at_the_poll_though_it_was_released():
    device, cache = make(2)
    reading = device.read_weights(load(device, cache, "a", A).weights)
    cache.hold("a", reading)
    cache.forget("a")
    device.finish(reading)
    cache.release("a", reading)
    assert cache.resident() == ()
    assert cache.ledgers[0].used_bytes == 2 * BLOCK_BYTES
    cache.poll()
    assert cache.ledgers[0].used_bytes == 0
    cache.check_integrity()


def test_residents_are_those_that_are_told_in_order():
    device, cache = make(6)
    for name, layout in (("b", B), ("a", A), ("c", C)):
        load(device, cache, name, layout)
    cache.want("b", B)
    assert cache.resident() == ("a", "c", "b")
    assert cache.residents == {"a", "b", "c"}
    cache.hold("a", device.read_weights(cache.want("a", A).weights))
    cache.forget("a")
    assert cache.residents == {"b", "c"}


def test_hold_of_an_absent_expert_is_our_bug():
    _, cache = make(2)
    with pytest.raises(KeyError):
        cache.hold("a", cache.want("b", B).ready)


def test_a_loading_expert_is_busy():
    device, cache = make(2)
    got = cache.want("a", A)
    with pytest.raises(Busy) as busy:
        cache.want("b", B)
    assert busy.value.events == (got.ready,)
    settle(device, cache)
    assert not cache.want("b", B).hit


def test_a_pinned_expert_is_refused_for_ever_with_levers():
    device, cache = make(3)
    cache.pin("a")
    load(device, cache, "a", A)
    with pytest.raises(CapacityError) as refusal:
        cache.want("b", B)
    assert (refusal.value.demand_bytes, refusal.value.bound_bytes) == (2 * BLOCK_BYTES, BLOCK_BYTES)
    assert refusal.value.levers == ("raise --near by 4.00 KiB", "unpin a", "use a smaller expert")
    cache.unpin("a")
    assert not cache.want("b", B).hit
    assert cache.resident() == ("b",)


def test_larger_than_the_budget_is_refused_without_harm():
    device, cache = make(3)
    load(device, cache, "a", A)
    with pytest.raises(CapacityError, match=r"expert big.*16\.00 KiB but 12\.00 KiB.*--near"):
        cache.want("big", fake_layout("big", 4))
    assert cache.resident() == ("a",)


def test_a_failed_fetch_is_dropped_and_the_next_want_starts_afresh():
    device, cache = make(4)
    load(device, cache, "b", B)
    got = cache.want("a", A)
    device.fail(got.gates["layers.0"])
    assert isinstance(device.failure(got.ready), TransferError)
    cache.poll()
    assert cache.resident() == ("b",)
    assert cache.decisions[-1] == ("drop", "a", "dram")
    assert cache.stats.failures == 1
    again = load(device, cache, "a", A)
    assert not again.hit
    assert device.content(again.weights) == expected(A)
    assert cache.resident() == ("b", "a")


def test_a_failed_expert_that_is_still_read_is_not_joined():
    device, cache = make(4)
    got = cache.want("a", A)
    reading = device.read_weights(got.weights)
    cache.hold("a", reading)
    device.fail(got.gates["layers.0"])
    cache.poll()
    with pytest.raises(Busy) as busy:
        cache.want("a", A)
    assert busy.value.events == (reading,)
    assert cache.resident() == ()
    device.finish(reading)
    cache.poll()
    assert not cache.want("a", A).hit


def test_a_device_that_refuses_halfway_leaves_no_extent_behind():
    device, cache = make(4)
    device.refuse_after = 1
    with pytest.raises(TransferError):
        cache.want("a", A)
    with pytest.raises(Busy):
        cache.want("a", A)
    settle(device, cache)
    assert cache.ledgers[0].used_bytes == 0
    assert device.content(load(device, cache, "a", A).weights) == expected(A)


def test_a_want_never_evicts_the_protected_and_says_whom_it_evicted():
    device, cache = make(4)
    load(device, cache, "a", A)
    load(device, cache, "b", B)
    with pytest.raises(CapacityError):
        cache.want("c", C, protected={"a", "b"})
    assert cache.resident() == ("a", "b")
    got = cache.want("c", C, protected={"a"})
    assert (got.hit, got.evicted) == (False, (("b", "dram"),))
    with pytest.raises(Busy):
        cache.want("b", B, protected={"a"})
    assert cache.loading() == ("c",)
    settle(device, cache)
    again = cache.want("c", C)
    assert (again.hit, again.evicted) == (True, ())
    assert cache.want("a", A, protected={"a", "c"}).hit
    assert load(device, cache, "big", fake_layout("big", 4)).evicted == (("a", "dram"), ("c", "dram"))


def test_each_end_of_a_load_is_told_once():
    device, cache = make(4)
    a, b = cache.want("a", A), cache.want("b", B)
    assert cache.poll() == ()
    device.finish(a.gates["layers.0"])
    assert cache.poll() == ()
    device.finish(a.ready)
    device.fail(b.gates["layers.0"])
    assert cache.poll() == (("a", None), ("b", device.failure(b.ready)))
    assert cache.poll() == ()


def test_the_end_of_a_forgotten_load_is_told_and_that_of_a_refused_one_is_not():
    device, cache = make(4)
    ready = cache.want("a", A).ready
    cache.forget("a")
    device.refuse_after = 1
    with pytest.raises(TransferError):
        cache.want("b", B)
    while device.open:
        device.finish(device.runnable()[0])
    assert device.failure(ready) is None
    assert cache.poll() == (("a", None),)
    assert cache.ledgers[0].used_bytes == 0


def test_forget_waits_for_the_reader():
    device, cache = make(4)
    got = load(device, cache, "a", A)
    load(device, cache, "b", B)
    reading = device.read_weights(got.weights)
    cache.hold("a", reading)
    cache.forget("a")
    cache.forget("b")
    assert cache.resident() == ()
    assert cache.ledgers[0].used_bytes == 2 * BLOCK_BYTES
    device.finish(reading)
    cache.poll()
    assert cache.ledgers[0].used_bytes == 0


def test_a_changed_layout_is_loaded_again():
    device, cache = make(4)
    load(device, cache, "a", A)
    changed = fake_layout("a2", 3)
    got = load(device, cache, "a", changed)
    assert not got.hit
    assert device.content(got.weights) == expected(changed)


def test_experts_of_different_sizes_open_one_hole():
    device, cache = make(8)
    for index in range(4):
        load(device, cache, f"small{index}", fake_layout(f"small{index}", 2))
    cache.want("small1", fake_layout("small1", 2))
    got = load(device, cache, "big", fake_layout("big", 4))
    assert cache.resident() == ("small0", "small1", "big")
    assert got.weights.size_bytes == 4 * BLOCK_BYTES


def test_belady_on_a_known_order_misses_least():
    order = "abcabdabcd"
    layouts = {name: fake_layout(name, 1) for name in "abcd"}

    def misses(evict):
        device, cache = make(3, evict=evict)
        for name in order:
            load(device, cache, name, layouts[name])
        return cache.stats.misses

    assert misses(belady(order)) == 5
    assert misses("lru") == 6


def test_settings_are_checked():
    device = FakeDevice(fake_spec("hbm", "ddr", "disk"))
    with pytest.raises(UsageError, match="lru, lfu, cost"):
        ExpertCache(device, {"hbm": BLOCK_BYTES}, evict="mru")
    with pytest.raises(UsageError, match="without a gap"):
        ExpertCache(device, {"ddr": BLOCK_BYTES})
    with pytest.raises(UsageError, match="weights live in"):
        ExpertCache(device, {"hbm": BLOCK_BYTES, "moon": BLOCK_BYTES})
    with pytest.raises(UsageError, match="for none"):
        ExpertCache(device, {})
    with pytest.raises(CapacityError, match="hbm"):
        ExpertCache(device, {"hbm": 1})
