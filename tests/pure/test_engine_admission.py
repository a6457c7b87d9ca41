"""Several clients: who asks much at once keeps nobody else out, and everybody is answered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.engine_world import alone, ask, run_all, world

from coterie.core.errors import CrowdedError, RequestError, TransferError

SHARE = 4


def line_world(sizes=None, near=8, schedule="grouped", **settings):
    return world(sizes or {"a": 6}, near, schedule=schedule, max_batch=SHARE, **settings)


def waiting(w):
    return {client: len(part) for client, part in w.engine.queue.waiting_by_client.items()}


def test_who_is_alone_is_not_held_back() -> None:
    w = line_world()
    for number in range(20):
        w.engine.submit(ask(f"r{number}", "a", client="one"))
    assert (waiting(w), len(w.engine.admission)) == ({"one": 20}, 0)
    for number in range(9):
        w.engine.submit(ask(f"s{number}", "a"))  # of nobody in particular
    assert (waiting(w), len(w.engine.admission), w.engine.queue.num_waiting) == ({"one": 20}, 0, 29)
    assert len(run_all(w)) == 29


def test_another_client_sends_the_surplus_into_line_and_no_further() -> None:
    w = line_world()
    for number in range(20):
        w.engine.submit(ask(f"r{number}", "a", client="one"))
    w.engine.submit(ask("other", "a", client="two"))
    assert (waiting(w), len(w.engine.admission)) == ({"one": SHARE, "two": 1}, 16)
    assert w.engine.admission.by_expert() == {"a": 16}
    assert [s.request.request_id for s in w.engine.queue.of("a")] == ["r0", "r1", "r2", "r3", "other"]
    w.engine.submit(ask("last", "a", client="one"))
    assert (waiting(w), len(w.engine.admission)) == ({"one": SHARE, "two": 1}, 17)
    with pytest.raises(RequestError, match="a request of that id is being served"):
        w.engine.submit(ask("last", "a", client="two"))
    results = run_all(w)
    assert {result.last.finish_reason for result in results.values()} == {"length"}
    ends = [entry[1] for entry in w.engine.decisions if entry[0] == "admit"]
    assert [name for name in ends if name != "other"] == [*[f"r{n}" for n in range(20)], "last"]


@pytest.mark.parametrize("schedule", ["grouped", "fcfs"])
@pytest.mark.parametrize("named", [True, False])
def test_a_flood_delays_another_by_a_share_at_most(schedule: str, named: bool) -> None:
    w = line_world(schedule=schedule)
    for number in range(200):
        w.engine.submit(ask(f"r{number}", "a", client="flood" if named else ""))
    waits = []
    for number in range(6):
        w.engine.submit(ask(f"other{number}", "a", client="other"))
        last = None
        while last is None:
            last = next((o for o in w.engine.step() if o.request_id == f"other{number}" and o.finish_reason), None)
        waits.append(last.timings.queue_admissions)
    if named:
        assert max(waits) <= SHARE
        assert w.engine.metrics.admitted < 100, "the flood is not over"
    else:
        assert waits[0] >= 190
    run_all(w)
    assert w.engine.metrics.finished == {"length": 206}


def test_many_experts_of_a_flood_do_not_keep_another_waiting_for_all_of_them() -> None:
    w = line_world(dict.fromkeys("abcdefgh", 6), 12)
    for number in range(160):
        w.engine.submit(ask(f"r{number}", "abcdefg"[number % 7], client="flood"))
    w.engine.submit(ask("other", "h", client="other"))
    last = None
    while last is None:
        last = next((o for o in w.engine.step() if o.request_id == "other" and o.finish_reason), None)
    assert last.timings.queue_admissions < 40
    run_all(w)
    assert w.engine.metrics.finished == {"length": 161}


def test_time_in_line_is_part_of_the_wait() -> None:
    w = line_world()
    for number in range(12):
        w.engine.submit(ask(f"r{number}", "a", client="one"))
    w.engine.submit(ask("other", "a", client="two"))
    begun_s = w.device.now()
    results = run_all(w)
    assert all(result.last.timings.arrival_s == begun_s for result in results.values())


def test_one_in_line_can_be_cancelled() -> None:
    w = line_world()
    for number in range(10):
        w.engine.submit(ask(f"r{number}", "a", client="one"))
    w.engine.submit(ask("other", "a", client="two"))
    w.engine.cancel("r9")
    w.engine.cancel("r5")
    first = w.engine.step()
    assert [(o.request_id, o.finish_reason) for o in first if o.finish_reason] == [
        ("r9", "cancelled"),
        ("r5", "cancelled"),
    ]
    results = run_all(w)
    assert set(results) == {*[f"r{n}" for n in range(9) if n != 5], "other"}


def test_one_in_line_is_not_failed_by_a_load_that_it_did_not_wait_for() -> None:
    w = line_world()
    for number in range(6):
        w.engine.submit(ask(f"r{number}", "a", client="one"))
    w.engine.submit(ask("other", "a", client="two"))
    w.device.broken.add("a")
    outputs = []
    while not outputs:
        outputs = w.engine.step()
    w.device.broken.clear()
    assert {o.request_id for o in outputs} == {"r0", "r1", "r2", "r3", "other"}
    assert all(isinstance(o.error, TransferError) for o in outputs)
    results = run_all(w)
    assert {name: result.last.finish_reason for name, result in results.items()} == {"r4": "length", "r5": "length"}


def has_room(w, client):
    try:
        w.engine.check_room(client, 64)
    except CrowdedError:
        return False
    return True


def test_there_is_always_a_place_for_who_has_none() -> None:
    w = line_world()
    taken = {}
    for client in ("one", "two", "three", "four"):
        for number in range(200):
            if not has_room(w, client):
                break
            w.engine.submit(ask(f"{client}{number}", "a", client=client))
            taken[client] = number + 1
    assert taken == {"one": 32, "two": 16, "three": 8, "four": 4}
    w.engine.check_room("five", 64)
    assert w.engine.metrics.refused == 4
    for number in range(4):
        w.engine.check_room("", 64)
        w.engine.submit(ask(f"{number}", "a"))
    with pytest.raises(CrowdedError, match="64 requests wait, 0 of them yours, and 64 may"):
        w.engine.check_room("", 64)
    run_all(w)


def test_several_at_once_have_room_together_or_are_refused() -> None:
    w = line_world()
    check = w.engine.check_room
    check("one", 7, 4)
    check("", 7, 7)
    with pytest.raises(
        RequestError, match=r"\[n\] asks for 5 answers at once, but no more than 4 may wait; ask for fewer"
    ):
        check("one", 7, 5)
    with pytest.raises(RequestError, match=r"asks for 8 answers at once, but no more than 7 may wait"):
        check("", 7, 8)
    assert w.engine.metrics.refused == 0
    w.engine.submit(ask("r", "a", client="one"))
    check("one", 7, 3)
    check("two", 7, 3)
    for client in ("one", "two"):
        with pytest.raises(CrowdedError):
            check(client, 7, 4)
    check("", 7, 6)
    with pytest.raises(CrowdedError):
        check("", 7, 7)
    assert w.engine.metrics.refused == 4 + 4 + 7


@given(
    st.lists(st.sampled_from(["", "one", "two"]), max_size=12), st.integers(1, 9), st.sampled_from(["", "one", "six"])
)
def test_as_many_have_room_as_there_are_places(waiting, most, client) -> None:
    w = line_world()
    for number, name in enumerate(waiting):
        w.engine.submit(ask(f"r{number}", "a", client=name))
    places = w.engine.admission.places(client, most)
    own, left = waiting.count(client) if client else 0, most - len(waiting)
    for count in range(1, most + 2):
        # When the last one comes, there is a place for it, and its client has fewer than there are.
        fits = left - (count - 1) > (own + count - 1 if client else 0)
        assert (count <= places) == fits
        try:
            w.engine.check_room(client, most, count)
        except (CrowdedError, RequestError):
            assert not fits
        else:
            assert fits


actions = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(["", "one", "two", "three"]), st.integers(1, 9)),
    st.tuples(st.just("cancel"), st.just(""), st.integers(0, 60)),
    st.tuples(st.just("step"), st.just(""), st.integers(1, 3)),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(actions, max_size=30), st.sampled_from(["grouped", "fcfs"]), st.data())
def test_everyone_is_answered_as_if_alone(items, schedule, data) -> None:
    w = line_world(dict.fromkeys("abc", 4), 8, schedule=schedule)
    asked, cancelled, results = {}, set(), {}

    def take(outputs) -> None:
        for output in outputs:
            tokens, reason = results.get(output.request_id, ((), None))
            assert reason is None
            results[output.request_id] = tokens + output.token_ids, output.finish_reason

    for what, client, count in items:
        if what == "ask":
            for _ in range(count):
                name = f"r{len(asked)}"
                asked[name] = ask(name, data.draw(st.sampled_from("abc")), client=client, max_tokens=2)
                w.engine.submit(asked[name])
            several = waiting(w)
            if client and len(several) > 1:
                assert max(several.values()) <= SHARE
        elif what == "cancel" and f"r{count}" in asked:
            cancelled.add(f"r{count}")
            w.engine.cancel(f"r{count}")
        elif what == "step":
            for _ in range(count):
                take(w.engine.step())
    for _ in range(3000):
        if w.engine.idle:
            break
        take(w.engine.step())
    assert w.engine.idle
    assert (len(w.engine.admission), waiting(w), w.engine.queue.num_waiting) == (0, {}, 0)
    assert results.keys() == asked.keys()
    for name, (tokens, reason) in results.items():
        if reason == "cancelled":
            assert name in cancelled
            assert tokens == alone(asked[name])[: len(tokens)]
        else:
            assert (reason, tokens) == ("length", alone(asked[name]))
