"""Load, unload, pin and unpin with requests under way: nothing loses an answer, everybody is told once."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.engine_world import alone, ask, kinds, run_all, world

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError, ConflictError, NotFoundError

OPERATIONS = ("load", "unload", "pin", "unpin")


def load(w, name):
    """Wish for an expert; the list gets what is told."""
    told = []
    w.engine.control.load(name, told.append)
    return told


def steps(w, told, limit=400, until=None):
    """Step until it is told, or a request has a token, at most so often; returns the outputs."""
    outputs = []
    for _ in range(limit):
        if told or until in [output.request_id for output in outputs]:
            return outputs
        outputs += w.engine.step()
        w.cache.check_integrity()
    raise AssertionError(f"not told within {limit} steps")


def test_a_load_without_requests_brings_the_expert_in() -> None:
    w = world({"a": 6, "b": 6}, 12)
    told = load(w, "a")
    assert not w.engine.idle
    run_all(w)
    assert told == [None]
    assert (w.cache.resident(), w.cache.loading()) == (("a",), ())
    assert list(w.engine.decisions) == [("load", "a"), ("fetch", "a")]
    assert (w.engine.metrics.switches, w.engine.metrics.switch.total) == (1, 1)
    again = load(w, "a")
    run_all(w)
    assert again == [None]
    assert w.cache.stats.misses == 1


def test_loads_and_requests_of_one_expert_share_a_flight() -> None:
    w = world({"a": 6}, 8)
    first = load(w, "a")
    w.engine.submit(ask("r", "a"))
    second = load(w, "a")
    assert run_all(w)["r"].last.finish_reason == "length"
    assert first == second == [None]
    assert w.cache.stats.misses == len(kinds(w, "fetch")) == 1


def test_a_failed_load_is_told_and_the_next_one_works() -> None:
    w = world({"a": 6, "b": 6}, 12)
    w.device.broken.add("a")
    told, other = load(w, "a"), load(w, "b")
    run_all(w)
    assert "was not read" in str(told[0])
    assert (len(told), other) == (1, [None])
    w.device.broken.clear()
    told = load(w, "a")
    run_all(w)
    assert told == [None]
    assert w.engine.metrics.failed_fetches == 1


@pytest.mark.parametrize(("prefetch", "overlap", "ahead"), [(0, True, 0), (2, True, 2), (2, False, 0)])
def test_no_more_loads_are_under_way_than_for_requests(prefetch: int, overlap: bool, ahead: int) -> None:
    w = world(dict.fromkeys("abcde", 4), 20, prefetch=prefetch, overlap=overlap)
    told, most = [load(w, name) for name in "abcde"], 0
    while not w.engine.idle:
        w.engine.step()
        most = max(most, len(w.cache.loading()))
    assert told == [[None]] * 5
    assert most == 1 + ahead


def test_a_load_takes_the_place_of_who_has_nothing_to_do() -> None:
    w = world({"a": 6, "b": 6, "c": 6}, 12)
    for name in "ab":
        w.engine.submit(ask(f"first {name}", name))
    run_all(w)
    w.engine.submit(ask("r", "a", max_tokens=30))
    steps(w, load(w, "c"))
    assert set(w.cache.resident()) == {"a", "c"}
    assert run_all(w)["r"].last.finish_reason == "length"
    assert w.cache.stats.misses == 3


@pytest.mark.parametrize("overlapping", [True, False])
def test_constant_traffic_does_not_keep_a_load_out(overlapping: bool) -> None:
    """There is room for one, and the one that is there always has a request."""
    w = world({"a": 6, "b": 6}, 8, turn_steps=8)
    numbers = iter(range(1000))

    def more() -> None:
        w.engine.submit(ask(f"r{next(numbers)}", "a", max_tokens=4))

    def keep_busy(outputs) -> None:
        for output in outputs:
            if output.finish_reason is not None:
                assert output.finish_reason == "length"
                more()

    more()
    keep_busy(w.engine.step(until=0.0))
    if overlapping:  # one always runs: they do not end together
        for _ in range(2):
            keep_busy(w.engine.step())
        more()
    told, taken = load(w, "b"), 0
    while not told:
        keep_busy(w.engine.step())
        taken += 1
        assert taken < 60
    assert told == [None]
    assert {result.last.finish_reason for result in run_all(w).values()} == {"length"}


def test_a_load_never_takes_the_place_of_who_runs_in_its_turn() -> None:
    w = world({"a": 6, "b": 6}, 8)
    w.engine.submit(ask("r", "a", max_tokens=30))
    while "r" not in [o.request_id for o in w.engine.step()]:
        pass
    told = load(w, "b")
    run_all(w)
    assert told == [None]
    assert kinds(w, "fetch") == [("a",), ("b",)]
    assert [e[0] for e in w.engine.decisions if e[0] in ("finish", "evict")] == ["finish", "evict"]


def test_who_is_used_loaded_or_pinned_is_not_unloaded() -> None:
    w = world({"a": 6, "b": 6}, 16)
    control = w.engine.control
    control.unload("a")  # which is not there
    w.engine.submit(ask("r", "a"))
    with pytest.raises(ConflictError, match=r"\[unload a\] 0 requests of it are running and 1 waiting; wait for them"):
        control.unload("a")
    told = load(w, "b")
    with pytest.raises(ConflictError, match="it is being loaded"):
        control.unload("b")
    run_all(w)
    assert told == [None]
    control.pin("a")
    with pytest.raises(ConflictError, match="it is pinned; unpin it first"):
        control.unload("a")
    assert set(w.cache.resident()) == {"a", "b"}
    control.unpin("a")
    control.unload("a")
    assert w.cache.resident() == ("b",)
    assert w.cache.ledgers[0].used_bytes == 6 * BLOCK_BYTES
    w.engine.submit(ask("again", "a"))
    assert run_all(w)["again"].tokens == alone(ask("again", "a"))
    assert kinds(w, "unload") == [("a",), ("a",)]


def test_who_has_requests_in_line_alone_is_not_unloaded() -> None:
    w = world({"a": 6, "b": 6}, 16, max_batch=4)
    own = [ask(f"r{number}", "a" if number < 4 else "b", client="one") for number in range(6)]
    for request in (*own, ask("other", "a", client="two")):
        w.engine.submit(request)
    assert w.engine.admission.by_expert() == {"b": 2}
    with pytest.raises(ConflictError, match="0 requests of it are running and 2 waiting"):
        w.engine.control.unload("b")
    run_all(w)
    w.engine.control.unload("b")


@pytest.mark.parametrize("wish", [False, True])
def test_a_load_that_must_wait_hides_no_arrival_from_decisions(wish: bool) -> None:
    """Two blocks are left beside who runs and who is pinned: enough for the expert that requests wait for."""
    w = world({"runs": 6, "wished": 6, "pinned": 4, "wanted": 2}, 12, prefetch=0, quantum_steps=30, turn_steps=100)
    w.engine.submit(ask("long", "runs", max_tokens=30))
    steps(w, [], until="long")
    w.device.stalled.add("pinned")
    w.engine.submit(ask("first", "pinned"))
    w.engine.step(until=0.0)
    for number in range(6):
        w.engine.submit(ask(f"r{number}", "wanted"))
    w.engine.control.pin("pinned")
    told = load(w, "wished") if wish else []
    for _ in range(3):
        w.engine.step(until=0.0)
    w.device.stalled.clear()
    for _ in range(3):
        w.engine.step()
    assert kinds(w, "fetch") == [("runs",), ("pinned",), ("wanted",)]
    run_all(w)
    assert told == ([None] if wish else [])


def test_a_load_that_nobody_waits_for_any_more_is_learnt_of_by_a_step() -> None:
    w = world({"a": 6}, 8)
    w.engine.submit(ask("r", "a"))
    w.engine.step(until=0.0)
    w.engine.cancel("r")
    while not w.engine.idle:
        w.engine.step(until=0.0)
    with pytest.raises(ConflictError, match="it is being loaded"):
        w.engine.control.unload("a")
    while w.engine.loading:
        w.engine.step()
    assert w.cache.loading() == ()
    w.engine.control.unload("a")


def test_a_pin_that_leaves_no_room_is_refused_with_numbers() -> None:
    w = world({"a": 2, "b": 3, "big": 6}, 10)
    control = w.engine.control
    control.pin("a")
    with pytest.raises(ConflictError) as caught:
        control.pin("b")
    assert str(caught.value) == (
        "[pin b] the 2 pinned experts would take 20.00 KiB of 40.00 KiB of dram and leave 20.00 KiB in one piece, but "
        f"big needs 24.00 KiB; unpin another, or serve with a --near that is {BLOCK_BYTES} B larger"
    )
    assert w.cache.pinned == {"a"}
    control.pin("a")
    control.unpin("a")
    control.pin("b")
    control.unpin("b")
    with pytest.raises(NotFoundError, match="eve"):
        control.pin("eve")


def test_what_is_pinned_counts_where_it_lies() -> None:
    """In the middle it cuts the memory in two."""
    w = world({"a": 4, "b": 2, "big": 8}, 10)
    for name in "ab":
        w.engine.submit(ask(name, name))
        run_all(w)
    with pytest.raises(ConflictError, match=r"as b would lie in dram, .* big \(32.00 KiB\); .* unload b and pin again"):
        w.engine.control.pin("b")
    w.engine.control.unload("a")
    w.engine.control.unload("b")
    w.engine.control.pin("b")
    load(w, "b")
    run_all(w)
    w.engine.submit(ask("r", "big"))
    assert run_all(w)["r"].last.finish_reason == "length"
    assert set(w.cache.resident()) == {"b", "big"}


def test_all_may_be_pinned_where_all_have_room() -> None:
    w = world({"a": 4, "b": 4, "c": 4}, 11)
    for name in "ab":
        load(w, name)
    run_all(w)
    with pytest.raises(ConflictError, match="but"):
        world({"a": 4, "b": 4, "c": 4}, 7).engine.control.pin("a")
    w.engine.control.pin("a")
    with pytest.raises(ConflictError, match=r"would take 32.00 KiB of 44.00 KiB of dram and leave 12.00 KiB"):
        w.engine.control.pin("b")
    w = world({"a": 4, "b": 4, "c": 4}, 12)
    for name in "abc":
        w.engine.control.pin(name)
        load(w, name)
    run_all(w)
    assert set(w.cache.resident()) == set("abc")


def test_a_load_beside_pins_that_leave_no_room_is_refused() -> None:
    w = world({"a": 4, "b": 4, "c": 4}, 8)
    for name in "ab":
        load(w, name)
        w.cache.pin(name)
    run_all(w)
    with pytest.raises(ConflictError, match=r"it needs 16.00 KiB of dram but beside a, b, pinned, there are 0 B"):
        w.engine.control.load("c", lambda _: None)
    w.cache.unpin("a")
    told = load(w, "c")
    w.cache.pin("a")  # since then
    run_all(w)
    assert isinstance(told[0], CapacityError)


work = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from("abcd"), st.integers(1, 6)),
    st.tuples(st.sampled_from(OPERATIONS), st.sampled_from("abcd"), st.just(0)),
    st.tuples(st.just("step"), st.just(""), st.integers(1, 4)),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(work, max_size=40),
    st.lists(st.integers(2, 6), min_size=4, max_size=4),
    st.integers(6, 14),
    st.sampled_from(["grouped", "fcfs"]),
    st.booleans(),
)
def test_nothing_loses_an_answer(actions, sizes, near, schedule, overlap) -> None:
    w = world(dict(zip("abcd", sizes, strict=True)), near, schedule=schedule, overlap=overlap, turn_steps=4)
    asked, told, results = {}, [], {}

    def step() -> None:
        for output in w.engine.step():
            tokens, last = results.get(output.request_id, ((), None))
            assert last is None, "an output after the last one"
            results[output.request_id] = tokens + output.token_ids, output if output.finish_reason else None
        w.engine.check_integrity()
        w.cache.check_integrity()

    def wish(what: str, name: str) -> None:
        before = list(w.cache.decisions)
        try:
            if what == "load":
                told.append((name, load(w, name)))
            else:
                getattr(w.engine.control, what)(name)
        except ConflictError:
            assert list(w.cache.decisions) == before
            return
        if what == "unload":
            assert all(name not in ledger.copies for ledger in w.cache.ledgers)

    for number, (what, name, count) in enumerate(actions):
        if what == "ask":
            asked[f"r{number}"] = request = ask(f"r{number}", name, max_tokens=count)
            w.engine.submit(request)
        elif what == "step":
            deque((step() for _ in range(count)), maxlen=0)
        else:
            wish(what, name)
    for _ in range(2000):
        if w.engine.idle:
            break
        step()
    assert w.engine.idle
    for request_id, request in asked.items():
        tokens, last = results[request_id]
        assert last.finish_reason == "length", last.error
        assert tokens == alone(request)
    assert [said for _, said in told] == [[None]] * len(told)
