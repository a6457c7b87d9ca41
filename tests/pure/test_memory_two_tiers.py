"""ExpertCache with a tier below the one that experts run in: what passes through, what stays, what a failure leaves."""

from __future__ import annotations

import pytest
from cached import A, B, C, expected, load, make, settle
from fake_device import fake_layout

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError
from coterie.memory.victims import Busy


def test_a_cold_expert_passes_through_both_and_each_copy_waits_for_its_range():
    device, cache = make(4, 8)
    got = cache.want("a", A)
    assert device.log == [("disk->ddr", "a")] * 2 + [("ddr->hbm", "copy")] * 2
    device.finish(device.runnable()[0])
    assert got.gates["layers.0"] in device.runnable()
    device.finish(got.gates["layers.0"])
    assert device.content(got.weights) == [("a", 0), "torn"]
    settle(device, cache)
    assert device.content(got.weights) == expected(A)


def test_a_copy_left_below_saves_the_fetch():
    device, cache = make(2, 8)
    load(device, cache, "a", A)
    assert load(device, cache, "b", B).evicted == (("a", "hbm"),)
    assert cache.resident() == ("b",)
    device.log.clear()
    got = load(device, cache, "a", A)
    assert not got.hit
    assert device.log == [("ddr->hbm", "copy")] * 2
    assert device.content(got.weights) == expected(A)
    assert cache.stats.moved_bytes == {"disk->ddr": 4 * BLOCK_BYTES, "ddr->hbm": 6 * BLOCK_BYTES}


def test_a_refusal_below_leaves_the_tier_above_as_it_was():
    device, cache = make(2, 2)
    load(device, cache, "a", A)
    with pytest.raises(CapacityError, match="raise --near"):
        cache.want("big", fake_layout("big", 3))
    device, cache = make(4, 2)
    load(device, cache, "a", A)
    with pytest.raises(CapacityError, match="raise the budget of ddr"):
        cache.want("big", fake_layout("big", 4))
    assert cache.resident() == ("a",)


def test_a_failed_copy_keeps_what_arrived_below():
    device, cache = make(2, 4)
    got = cache.want("a", A)
    device.finish(device.runnable()[0])
    device.fail(got.gates["layers.0"])
    cache.poll()
    assert cache.resident() == ()
    device.log.clear()
    again = cache.want("a", A)
    assert device.log == [("ddr->hbm", "copy")] * 2
    settle(device, cache)
    assert device.content(again.weights) == expected(A)


def test_a_copy_that_is_being_read_upwards_is_not_evicted_below():
    device, cache = make(4, 2)
    got = cache.want("a", A)
    device.finish(device.runnable()[0])
    device.fail(got.gates["layers.0"])
    settle(device, cache)
    again = cache.want("a", A)
    with pytest.raises(Busy) as busy:
        cache.want("b", B)
    assert busy.value.tier == "ddr"
    settle(device, cache)
    assert device.content(again.weights) == expected(A)
    assert not cache.want("b", B).hit


def test_a_failed_fetch_waits_for_a_copy_that_still_runs():
    device, cache = make(2, 4)
    got = cache.want("a", A)
    device.finish(device.runnable()[0])
    second_fetch = next(event for event in device.runnable() if event.lane == "disk->ddr")
    device.fail(second_fetch)
    assert device.done(got.ready)
    assert cache.poll() == (("a", device.failure(got.ready)),)
    assert cache.poll() == ()
    with pytest.raises(Busy) as busy:
        cache.want("b", B)
    assert busy.value.events == (got.gates["layers.0"],)
    device.finish(got.gates["layers.0"])
    assert cache.poll() == ()
    assert [ledger.used_bytes for ledger in cache.ledgers] == [0, 0]


def test_a_cheaper_return_makes_a_better_victim():
    device, cache = make(4, 4, evict="cost")
    load(device, cache, "a", A)
    load(device, cache, "b", B)
    cache.ledgers[1].drop("b")
    load(device, cache, "c", C)
    assert "b" in cache.resident()
