"""The engine serves: tokens as if each request were alone, whatever shares the step, the memory and the KV blocks."""

from __future__ import annotations

import pytest
from engine_world import Words, alone, ask, kinds, run_all, text_of, world
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core.errors import (
    CapacityError,
    DeviceError,
    NotFoundError,
    OversizeError,
    RequestError,
    TransferError,
    UsageError,
)
from coterie.engine.policy import Policy
from coterie.engine.request import SamplingParams
from coterie.spec.load import load_machine


def test_one_request_gets_its_tokens_and_timings():
    w = world({"a": 4}, near_blocks=4)
    request = ask("r", "a", prompt=(5, 6), max_tokens=6)
    w.engine.submit(request)
    got = run_all(w)["r"]
    assert got.tokens == alone(request)
    assert got.last.finish_reason == "length"
    timings = got.last.timings
    assert timings.arrival_s <= timings.scheduled_s < timings.first_token_s < timings.end_s
    assert not timings.hit
    assert timings.switch_s > 0


def test_the_second_request_for_an_expert_is_a_hit():
    w = world({"a": 4}, near_blocks=4)
    w.engine.submit(ask("r", "a"))
    run_all(w)
    w.engine.submit(ask("s", "a"))
    timings = run_all(w)["s"].last.timings
    assert (timings.hit, timings.switch_s) == (True, 0.0)
    assert (w.engine.metrics.hits, w.engine.metrics.misses, w.engine.metrics.switches) == (1, 1, 1)
    assert "1 hits, 1 misses, 1 switches (3 s mean of 1), 0 failed" in str(w.engine.metrics)


def test_a_run_starts_while_its_last_layers_are_on_their_way():
    w = world({"a": 9}, near_blocks=9, max_steps=1)
    w.engine.submit(ask("r", "a"))
    run_all(w)
    assert w.device.unfinished_gates == [2, 0, 0, 0]


requests = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.lists(st.integers(0, 49), min_size=1, max_size=20),
        st.integers(1, 12),
        st.booleans(),
    ),
    min_size=1,
    max_size=24,
)
policies = st.builds(
    lambda batch, extra, **settings: Policy(max_batch=batch, max_step_tokens=batch + extra, **settings),
    schedule=st.sampled_from(["grouped", "fcfs"]),
    batch=st.integers(1, 8),
    extra=st.integers(1, 9),
    age_bound=st.integers(0, 6),
    turn_steps=st.integers(1, 20),
    quantum_steps=st.integers(1, 5),
    max_active_experts=st.integers(1, 4),
    overlap=st.booleans(),
    prefetch=st.integers(0, 2),
    max_steps=st.integers(1, 4),
)


@settings(max_examples=80, deadline=None)
@given(requests, policies, st.integers(5, 12), st.integers(8, 30), st.integers(1, 4))
def test_everyone_is_served_as_if_alone_and_nobody_is_overtaken_too_often(items, policy, near, kv_blocks, arrivals):
    w = world({"a": 2, "b": 3, "c": 4, "d": 5}, near, kv_blocks, policy)
    asked, got = [], {}
    for number, (expert, prompt, max_tokens, ends) in enumerate(items):
        request = ask(f"r{number}", expert, prompt, max_tokens, end_ids=(7, 8, 9), ignore_end=not ends)
        try:
            w.engine.submit(request)
        except CapacityError:
            continue
        asked.append(request)
        if number % arrivals == 0:
            for output in w.engine.step():
                got.setdefault(output.request_id, []).append(output)
    for name, result in run_all(w).items():
        got.setdefault(name, []).append(result)
    assert set(got) == {request.request_id for request in asked}
    for request in asked:
        pieces = got[request.request_id]
        tokens = sum((getattr(p, "tokens", None) or getattr(p, "token_ids", ()) for p in pieces), ())
        last = getattr(pieces[-1], "last", pieces[-1])
        assert tokens == alone(request)
        assert last.finish_reason == ("stop" if tokens[-1] in request.end_ids and not request.ignore_end else "length")
        assert last.timings.overtaken <= (policy.age_bound if policy.schedule == "grouped" else 0)
    assert w.pool.free_blocks == w.pool.num_blocks


@settings(max_examples=40, deadline=None)
@given(requests)
def test_many_steps_at_once_decide_what_single_steps_decide(items):
    logs = []
    for max_steps in (1, 5):
        w = world({"a": 2, "b": 3, "c": 4, "d": 5}, 6, 40, Policy(max_steps=max_steps))
        for number, (expert, prompt, max_tokens, ends) in enumerate(items):
            w.engine.submit(ask(f"r{number}", expert, prompt, max_tokens, end_ids=(7, 8, 9), ignore_end=not ends))
        run_all(w)
        logs.append(list(w.engine.decisions))
    assert logs[0] == logs[1]


def test_a_request_that_can_never_run_is_refused_with_numbers():
    w = world({"a": 4}, near_blocks=4, kv_blocks=2)
    for request, error, words in [
        (ask("r", "zz"), NotFoundError, "zz"),
        (ask("r", "a", prompt=range(40)), RequestError, "40 tokens but the context of this expert holds 40"),
        (ask("r", "a", prompt=(50,)), RequestError, "token 50 but the vocabulary has 50"),
        (ask("r", "a", max_tokens=38), OversizeError, r"the KV state of 39 tokens \(3 of the prompt"),
    ]:
        with pytest.raises(error, match=words):
            w.engine.submit(request)
    w.engine.submit(ask("r", "a"))
    with pytest.raises(RequestError, match="being served"):
        w.engine.submit(ask("r", "a"))


def test_the_context_ends_a_request():
    w = world({"a": 4}, near_blocks=4)
    request = ask("r", "a", prompt=range(35), max_tokens=100)
    w.engine.submit(request)
    got = run_all(w)["r"]
    assert (len(got.tokens), got.last.finish_reason) == (5, "length")
    assert got.tokens == alone(request)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": ()}, "empty"),
        ({"max_tokens": 0}, "max_tokens is 0; allowed is 1 or more"),
        ({"stop": ("",), "detokenizer": Words()}, "stop string is empty"),
        ({"stop": ("x",)}, "without text"),
    ],
)
def test_requests_are_checked(fields, words):
    with pytest.raises(RequestError, match=words):
        ask("r", "a", **fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 1e-38),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_sampling_settings_are_checked(field, value):
    with pytest.raises(RequestError, match=rf"\[{field}\] {field} is .*allowed is"):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Policy(max_batch=0), "max_batch is 0; give 1 or more"),
        (lambda: Policy(overdue_factor=-0.5), "overdue_factor is -0.5; give 0 or more"),
        (lambda: Policy(max_batch=8, max_step_tokens=8), "no prompt could start"),
        (lambda: world({"a": 2}, 2, schedule="nice"), "nice.*grouped, fcfs"),
    ],
)
def test_policies_are_checked(make, words):
    with pytest.raises(UsageError, match=words):
        make()


@pytest.mark.parametrize(
    ("machine", "gib", "steps"),
    [("epyc-2core", 0.01, 8), ("epyc-2core", 0.2, 5), ("epyc-2core", 2.2, 1), ("h100", 2.2, 8), ("h100", 13.5, 4)],
)
def test_a_run_is_as_many_steps_as_read_in_some_40_ms(machine, gib, steps):
    spec, size_bytes = load_machine(machine), int(gib * 2**30)
    assert Policy().steps_of(size_bytes, spec) == steps
    assert Policy(max_run_bytes=2 * size_bytes).steps_of(size_bytes, spec) == 2
    assert Policy(max_run_bytes=1).steps_of(size_bytes, spec) == 1


def test_cancel_ends_a_waiting_and_a_running_request():
    w = world({"a": 4}, near_blocks=4, policy=Policy(max_batch=1))
    w.engine.submit(ask("r", "a", max_tokens=20))
    w.engine.submit(ask("s", "a", max_tokens=20))
    while not w.engine.metrics.drawn_tokens:
        w.engine.step()
    w.engine.cancel("r")
    w.engine.cancel("s")
    w.engine.cancel("nobody")
    ended = {output.request_id: output.finish_reason for output in w.engine.step()}
    assert ended == {"r": "cancelled", "s": "cancelled"}
    assert w.pool.free_blocks == w.pool.num_blocks
    assert w.engine.idle


@pytest.mark.parametrize("overlap", [True, False])
def test_a_failed_fetch_fails_those_who_wait_for_it_and_nobody_else(overlap):
    w = world({"a": 3, "b": 3}, near_blocks=6, overlap=overlap)
    w.engine.submit(ask("good", "a", max_tokens=20))
    while not w.engine.metrics.drawn_tokens:
        w.engine.step()
    w.device.broken = {"b"}
    for name in ("bad", "bad too"):
        w.engine.submit(ask(name, "b"))
    ended = {}
    while not ended:
        ended |= {o.request_id: o for o in w.engine.step() if o.finish_reason is not None}
    assert {name: o.finish_reason for name, o in ended.items()} == {"bad": "error", "bad too": "error"}
    assert isinstance(ended["bad"].error, TransferError)
    w.device.broken = set()
    again = ask("again", "b")
    w.engine.submit(again)
    results = run_all(w)
    assert results["good"].last.finish_reason == "length"
    assert results["again"].tokens == alone(again)
    assert w.engine.metrics.failed_fetches == 1


def test_the_failure_of_a_fetch_is_not_charged_to_who_asks_next():
    w = world({"a": 3}, near_blocks=3, overlap=False)
    w.device.broken, w.device.is_slow_to_fail = {"a"}, True
    w.engine.submit(ask("bad", "a"))
    (output,) = w.engine.step()
    assert isinstance(output.error, TransferError)
    w.device.broken = set()
    again = ask("again", "a")
    w.engine.submit(again)
    assert run_all(w)["again"].tokens == alone(again)


def test_a_failed_run_fails_its_batch_and_the_engine_goes_on():
    w = world({"a": 3, "b": 3}, near_blocks=6)
    w.engine.submit(ask("bad", "a"))
    while w.engine.metrics.steps == 0:
        w.engine.step()
    w.device.broken = {"run"}
    (output,) = w.engine.step()
    assert isinstance(output.error, DeviceError)
    assert "the kernel trapped" in str(output.error)
    w.device.broken = set()
    again = ask("again", "a")
    w.engine.submit(again)
    assert run_all(w)["again"].tokens == alone(again)


def test_an_expert_that_cannot_come_in_is_refused_not_waited_for():
    w = world({"a": 3, "b": 4}, near_blocks=4)
    w.engine.submit(ask("r", "a"))
    run_all(w)
    w.cache.pin("a")
    w.engine.submit(ask("s", "b"))
    w.engine.submit(ask("t", "a"))
    results = run_all(w)
    assert isinstance(results["s"].last.error, CapacityError)
    assert "unpin a" in str(results["s"].last.error)
    assert results["t"].last.finish_reason == "length"
    w.cache.unpin("a")
    w.engine.submit(ask("u", "b"))
    assert run_all(w)["u"].last.finish_reason == "length"


def test_a_refused_expert_is_tried_again_once_a_pin_is_undone():
    w = world({"a": 2, "c": 1, "b": 2}, near_blocks=4, turn_steps=1000)
    w.engine.submit(ask("r", "a", max_tokens=30))
    w.engine.submit(ask("s", "c", max_tokens=1))
    while not kinds(w, "finish"):
        w.engine.step()
    w.cache.pin("c")
    w.engine.submit(ask("t", "b"))
    for _ in range(5):
        w.engine.step()
    assert ("b",) not in kinds(w, "fetch")
    w.cache.unpin("c")
    w.engine.step()
    assert kinds(w, "fetch")[-1] == ("b",)
    assert {result.last.finish_reason for result in run_all(w).values()} == {"length"}


def test_a_wait_ends_at_the_time_given():
    w = world({"a": 3}, near_blocks=3)
    w.engine.submit(ask("r", "a"))
    assert w.engine.step(until=w.device.now()) == []
    assert kinds(w, "run") == []


stops = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 49), min_size=1, max_size=8), stops)
def test_text_ends_before_the_first_stop_string(prompt, stop):
    w = world({"a": 3}, near_blocks=3)
    request = ask("r", "a", prompt, 20, stop=tuple(stop), detokenizer=Words())
    w.engine.submit(request)
    got = run_all(w)["r"]
    whole = text_of(alone(request))
    ends = [whole.find(s) + len(s) for s in stop if s in whole]
    if not ends:
        assert (got.text, got.last.finish_reason) == (whole, "length")
        return
    first = min(whole.find(s) for s in stop if s in whole and whole.find(s) + len(s) == min(ends))
    assert got.text == whole[:first]
    assert got.last.finish_reason == "stop"
    assert got.tokens == alone(request)[: len(got.tokens)]


def test_an_end_token_is_counted_and_not_shown():
    request = ask("r", "a", max_tokens=10)
    end = alone(request)[3]
    assert end not in alone(request)[:3]
    request = ask("r", "a", max_tokens=10, end_ids=(end,), ignore_end=False, detokenizer=Words())
    w = world({"a": 3}, near_blocks=3)
    w.engine.submit(request)
    got = run_all(w)["r"]
    assert got.tokens == alone(request)
    assert got.text == text_of(got.tokens[:-1])
    assert got.last.finish_reason == "stop"
