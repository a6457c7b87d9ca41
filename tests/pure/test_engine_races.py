"""What ends between two looks of one step, what other callers load, and what is cancelled after it has ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cached import make
from fake_device import fake_layout
from tests.pure.engine_world import ask, kinds, run_all, world

from coterie.checkpoint.layout import BLOCK_BYTES, Layout
from coterie.core.errors import TransferError
from coterie.device import Event
from coterie.engine.loads import Loads
from coterie.memory.cache import Residency
from coterie.memory.tiers import Ended


@pytest.mark.parametrize("broken", [False, True])
def test_a_load_that_ends_between_two_looks_is_counted_once(broken: bool) -> None:
    w = world({"a": 6}, 8)
    engine, device, poll = w.engine, w.device, w.cache.poll
    engine.submit(ask("r0", "a"))
    ended = False

    def poll_and_then_the_disk_finishes() -> tuple[Ended, ...]:
        nonlocal ended
        seen = poll()
        if not ended and w.cache.loading():
            ended = True
            device.broken |= {"a"} if broken else set()
            while reads := [event for event in device.runnable() if event.lane != "compute"]:
                device.finish(reads[0])
        return seen

    w.cache.poll = poll_and_then_the_disk_finishes
    outputs = []
    while not engine.idle:
        outputs += engine.step()
        if broken and outputs and "a" in device.broken:
            device.broken.clear()
            engine.submit(ask("r1", "a"))
    last = {output.request_id: output.finish_reason for output in outputs if output.finish_reason}
    assert last == ({"r0": "error", "r1": "length"} if broken else {"r0": "length"})
    assert engine.metrics.failed_fetches == int(broken)
    assert engine.metrics.switch.total == 1


@pytest.mark.parametrize("looks", range(1, 4))
def test_a_later_range_that_fails_after_any_look_fails_one_fetch(looks: int) -> None:
    w = world({"a": 6}, 8)
    device, done, wait_any = w.device, w.device.done, w.device.wait_any
    seen, waits = 0, False

    def wait_any_uncounted(*args: object) -> None:
        nonlocal waits
        waits = True
        wait_any(*args)
        waits = False

    def done_and_then_the_disk_fails(event: Event) -> bool:
        nonlocal seen
        answer = done(event)
        if event == ready and not answer and not waits:
            seen += 1
            if seen == looks:
                while (reads := device.runnable())[0] == first:
                    device.finish(first)
                device.fail(reads[0])
        return answer

    w.engine.submit(ask("r0", "a"))
    w.engine.step(until=0.0)
    first, *_, ready = (work.event for work in device.open)
    device.wait_any = wait_any_uncounted
    device.done = done_and_then_the_disk_fails
    results = run_all(w)
    assert seen == looks
    assert results["r0"].last.finish_reason == "error"
    w.engine.submit(ask("r1", "a"))
    assert run_all(w)["r1"].last.finish_reason == "length"
    assert w.engine.metrics.failed_fetches == 1
    assert w.engine.metrics.switches == w.cache.stats.misses == len(kinds(w, "fetch")) == 2


def test_a_switch_lasts_from_before_its_transfers_are_issued() -> None:
    w = world({"a": 6}, 8)
    fetch = w.device.fetch

    def fetch_that_takes_a_second_to_issue(*args: object, **kwargs: object) -> Event:
        w.device.clock += 1.0
        return fetch(*args, **kwargs)

    w.device.fetch = fetch_that_takes_a_second_to_issue
    w.engine.submit(ask("r", "a"))
    run_all(w)
    assert w.engine.metrics.switch.sum_s == 3 + 3


def preloading(first: str, after: str) -> SimpleNamespace:
    """A full world, x and y in it, that is asked for a. Just before, and just after, another caller loads others."""
    w = world(dict.fromkeys("abxy", 6), 12)
    want = w.cache.want
    for name in "xy":
        want(name, w.experts[name].layout)
    while w.device.open:
        w.device.finish(w.device.runnable()[0])
    w.cache.poll()
    others = {"before": first, "after": after}

    def want_among_others(expert_id: str, layout: Layout, *args: object) -> Residency:
        for name in others.pop("before", ""):
            want(name, w.experts[name].layout)
        got = want(expert_id, layout, *args)
        for name in others.pop("after", ""):
            want(name, w.experts[name].layout)
        return got

    w.cache.want = want_among_others
    w.engine.submit(ask("r", "a"))
    assert run_all(w)["r"].last.finish_reason == "length"
    return w


def test_evictions_for_another_caller_are_not_the_fetchs() -> None:
    w = preloading(first="", after="b")
    assert (kinds(w, "fetch"), kinds(w, "evict")) == ([("a",)], [("x", "dram")])
    assert w.cache.stats.evictions == {"dram": 2}
    assert (w.engine.metrics.switches, w.engine.metrics.fetched_bytes) == (1, w.experts["a"].layout.size_bytes)


def test_a_load_that_another_caller_began_is_no_switch_of_the_engine() -> None:
    w = preloading(first="ab", after="")
    assert (kinds(w, "fetch"), kinds(w, "evict")) == ([], [])
    assert w.cache.stats.evictions == {"dram": 2}
    assert (w.engine.metrics.switches, w.engine.metrics.fetched_bytes) == (0, 0)


def test_what_was_decided_for_several_steps_is_not_done_once_another_caller_evicted_the_expert() -> None:
    """It is waited for while the other one comes in, and was run without its weights as soon as nothing moved."""
    w = world({"a": 6, "b": 6}, 8, max_steps=1)
    w.engine.submit(ask("r", "a", max_tokens=20))
    while not kinds(w, "run") or w.cache.loading():
        w.engine.step()
    w.cache.want("b", w.experts["b"].layout)
    w.device.stalled.add("b")
    for _ in range(3):
        w.engine.step(until=w.device.now())
    w.device.stalled.clear()
    results = run_all(w)
    assert (results["r"].last.finish_reason, len(kinds(w, "fetch"))) == ("length", 2)


def test_cancelling_what_has_ended_harms_no_later_request_of_that_name() -> None:
    w = world({"a": 6}, 8)
    w.engine.submit(ask("r", "a"))
    run_all(w)
    w.engine.cancel("r")
    w.engine.submit(ask("r", "a"))
    assert run_all(w)["r"].last.finish_reason == "length"


def test_who_waits_for_a_copy_in_the_pool_that_was_given_up_lacks_no_memory() -> None:
    """The near tier has room, and its own copy went at once; what is short of memory is named where anything is."""
    device, cache = make(8, 8)
    experts = {"a": SimpleNamespace(layout=fake_layout("a", 4, 2)), "b": SimpleNamespace(layout=fake_layout("b", 6))}
    loads = Loads(device, cache, experts)
    device.refuse_after = 1
    with pytest.raises(TransferError):
        loads.start("a", set(), set())
    loads.poll()
    assert [list(ledger.copies) for ledger in cache.ledgers] == [[], ["a"]]
    assert loads.start("a", set(), set()) is None
    assert loads.shortage_error("a", "x") is None
    lack = loads.shortage_error("b", "x")
    assert lack is not None
    assert (lack.demand_bytes, lack.bound_bytes) == (6 * BLOCK_BYTES, 4 * BLOCK_BYTES)
    assert "set --pool to at least" in str(lack)
