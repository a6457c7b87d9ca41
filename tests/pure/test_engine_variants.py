"""Variants share steps: whose sequences are in a step, who is admitted, and what happens when one of them fails."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from engine_world import alone, ask, kinds, run_all, world
from fake_device import fake_layout

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import DeviceError, TransferError
from coterie.engine.served import Base
from coterie.engine.variants import join_variants, largest_group, variant_groups_of
from coterie.engine.view import READY, Group, Waiting

VARIANTS = ("f0", "f1", "f2", "f3")


def team(near_blocks=20, blocks=2, others=None, **settings):
    """Four variants, and experts that are none."""
    return world(dict.fromkeys(VARIANTS, blocks) | (others or {}), near_blocks, variants=VARIANTS, **settings)


def submit(w, *requests):
    for request in requests:
        w.engine.submit(request)
    return requests


def steps_of_several(w):
    return [(name, *others) for name, _, _, *others in kinds(w, "run") if others]


def serve(w, *requests):
    """Serve them to their ends; each has the tokens that it has alone."""
    submit(w, *requests)
    check(run_all(w), requests)


def check(results, requests):
    for request in requests:
        assert results[request.request_id].tokens == alone(request), request.request_id


def test_sequences_of_all_that_are_there_run_in_one_step():
    w = team()
    requests = submit(w, *(ask(f"r{i}", name, (i, 2, 3), 12) for i, name in enumerate(VARIANTS)))
    check(run_all(w), requests)
    assert (*VARIANTS, 4, 4) in {(name, *others, tokens, rows) for name, tokens, rows, *others in kinds(w, "run")}
    assert w.engine.metrics.steps < 4 * 12 / 2


@pytest.mark.parametrize("settings", [{"share_steps": False}, {"schedule": "fcfs", "overlap": False, "prefetch": 0}])
def test_each_runs_alone_where_steps_are_not_shared(settings):
    w = team(**settings)
    requests = submit(w, *(ask(f"r{i}", name, (i, 2, 3), 6) for i, name in enumerate(VARIANTS)))
    check(run_all(w), requests)
    assert steps_of_several(w) == []


def test_a_prompt_joins_those_that_decode():
    w = team(max_step_tokens=9, max_batch=8)
    requests = submit(w, ask("a", "f0", max_tokens=30), ask("b", "f1", (5,) * 20, 8))
    check(run_all(w), requests)
    mixed = [(tokens, rows) for _, tokens, rows, *others in kinds(w, "run") if others]
    assert {(9, 1), (2, 2)} <= set(mixed), "a chunk beside a token, and then a token each"


def test_a_full_batch_is_one_of_all_variants():
    w = team(max_batch=3, max_step_tokens=16)
    serve(w, *(ask(f"warm-{name}", name, max_tokens=1) for name in VARIANTS))
    serve(w, *(ask(f"r{i}", VARIANTS[i % 4], (i, 2), 9) for i in range(10)))
    assert max(rows for _, _, rows, *_ in kinds(w, "run")) == 3
    admitted = [name for (name,) in kinds(w, "admit")]
    assert admitted[4:] == [f"r{i}" for i in range(10)], "by age, whoever of them was asked"


def test_one_that_is_absent_is_fetched_while_the_others_run():
    w = team(near_blocks=8)
    w.device.stalled.add("f3")
    requests = submit(w, *(ask(f"r{i}", name, (i, 2, 3), 12) for i, name in enumerate(VARIANTS)))
    while len(kinds(w, "finish")) < 3:
        w.engine.step()
    assert any("f3" in fetch for fetch in kinds(w, "fetch"))
    assert {len(step) for step in steps_of_several(w)} & {3}
    assert not any("f3" in step for step in steps_of_several(w))
    w.device.stalled.clear()
    results = run_all(w)
    assert results["r3"].tokens == alone(requests[3])


def test_only_who_has_something_to_do_is_read():
    w = team()
    serve(w, ask("a", "f1"), ask("b", "f2"))
    serve(w, ask("c", "f1", max_tokens=9), ask("d", "f3", max_tokens=9))
    assert steps_of_several(w)[-1] == ("f1", "f3")


def test_others_have_their_turns():
    w = team(others={"x": 2}, quantum_steps=2)
    requests = submit(w, *(ask(f"r{i}", name, (i, 2), 20) for i, name in enumerate((*VARIANTS, "x"))))
    check(run_all(w), requests)
    names = [name for name, *_ in kinds(w, "run")]
    first = names.index("x")
    assert "x" in names[first + 1 : first + 8]
    assert not any("x" in step for step in steps_of_several(w))


def test_a_prefix_of_one_is_no_others():
    w = team()
    prompt = tuple(range(1, 20))
    serve(w, ask("a", "f0", prompt))
    serve(w, ask("b", "f1", prompt), ask("c", "f0", prompt))
    assert {request for request, _ in kinds(w, "reuse")} == {"c"}


@pytest.mark.parametrize("steps", [0, 2])
def test_a_failed_step_fails_only_whose_fault_it_is(steps):
    """A step of several that fails is done again, each by itself; who fails alone runs alone until that ends."""
    w = team(max_steps=1)
    serve(w, *(ask(f"warm-{name}", name, max_tokens=1) for name in VARIANTS))
    requests = submit(w, *(ask(f"r{i}", name, (i, 2, 3), 12) for i, name in enumerate(VARIANTS)))
    for _ in range(steps):
        w.engine.step()
    w.device.bad = "f2"
    results = run_all(w)
    for request in requests:
        if request.expert_id != "f2":
            assert results[request.request_id].tokens == alone(request)[steps:]
    assert isinstance(results["r2"].last.error, DeviceError)
    failed = [binding for event, _, binding, _ in w.device.runs if w.device.failure(event)]
    assert [binding.variants is None for binding in failed] == [False, True], "together once, then who fails alone"
    assert len(steps_of_several(w)[-1]) == 3
    assert "f2" not in steps_of_several(w)[-1]
    w.device.bad = ""
    serve(w, *(ask(f"s{i}", name, (i, 2, 3), 12) for i, name in enumerate(VARIANTS)))
    assert "f2" in steps_of_several(w)[-1]


def test_of_more_than_a_full_batch_the_youngest_wait():
    """As there may be where variants ran apart for a while, each with a batch of its own."""
    w = team(max_batch=3)
    serve(w, *(ask(f"warm-{name}", name, max_tokens=1) for name in VARIANTS))
    requests = submit(w, *(ask(f"r{i}", VARIANTS[i % 2], (i, 2, 3), 16) for i in range(6)))
    w.device.bad = "f1"
    while not any(w.device.failure(event) for event, *_ in w.device.runs):
        w.engine.step()
    w.device.bad = ""
    while len(kinds(w, "admit")) < 4 + len(requests):
        w.engine.step()
    assert not kinds(w, "finish")[4:], "six are under way"
    begun = len(kinds(w, "run"))
    for name, got in run_all(w).items():
        assert got.tokens == alone(requests[int(name[1:])])[-len(got.tokens) :]
    of_several = [rows for _, _, rows, *others in kinds(w, "run")[begun:] if others]
    assert max(of_several) == 3


def test_another_is_overtaken_by_variants_no_more_often_than_by_one():
    """Though the two requests before its own are those of variants."""
    w = team(others={"x": 2}, max_batch=8, age_bound=2)
    serve(w, *(ask(f"warm-{name}", name, max_tokens=1) for name in VARIANTS))
    names = ("f0", "f1", "x", *("f0", "f1") * 4)
    serve(w, *(ask(f"r{i}", name, (i, 2), 9) for i, name in enumerate(names)))
    assert w.engine.metrics.max_overtaken == 2


def test_a_step_that_cannot_be_done_again_fails_all_in_it():
    """A recurrent state has met the step's tokens already."""
    w = team(recurrent=True)
    serve(w, *(ask(f"warm-{name}", name, max_tokens=1) for name in VARIANTS))
    submit(w, *(ask(f"r{i}", name, (i, 2, 3), 12) for i, name in enumerate(VARIANTS)))
    w.device.bad = "f2"
    results = run_all(w)
    assert [isinstance(results[f"r{i}"].last.error, DeviceError) for i in range(4)] == [True] * 4
    w.device.bad = ""
    serve(w, *(ask(f"s{i}", name, (i, 2, 3), 12) for i, name in enumerate(VARIANTS)))


def test_adapters_of_another_base_are_no_variants():
    """Though they have the same program."""
    w = team()
    other = Base(fake_layout("other", 1), w.device.reserve("dram", BLOCK_BYTES))
    assert variant_groups_of(w.experts) == dict.fromkeys(VARIANTS, "f0")
    experts = w.experts | {"f3": replace(w.experts["f3"], base=other)}
    assert variant_groups_of(experts) == dict.fromkeys(VARIANTS[:3], "f0")


def test_a_failed_fetch_fails_its_own_requests():
    w = team()
    w.device.broken.add("f1")
    requests = submit(w, *(ask(f"r{i}", name, (i, 2, 3), 12) for i, name in enumerate(VARIANTS)))
    results = run_all(w)
    assert isinstance(results["r1"].last.error, TransferError)
    check(results, [request for request in requests if request.expert_id != "f1"])


@pytest.mark.parametrize("seed", range(6))
def test_any_workload_gives_each_its_tokens_and_nobody_is_overtaken_too_often(seed):
    """Little memory, little KV, others beside them, some cancelled: evicted and read again, each token as alone."""
    rng = random.Random(seed)
    w = team(
        near_blocks=rng.choice([5, 8]),
        kv_blocks=rng.choice([30, 64]),
        others={"x": 3, "y": 1},
        age_bound=rng.choice([2, 5]),
        max_batch=rng.choice([2, 4]),
        max_step_tokens=rng.choice([6, 16]),
        turn_steps=rng.choice([2, 10]),
        quantum_steps=rng.choice([1, 3]),
        overlap=rng.random() < 0.7,
        multi_step_while_waiting=rng.random() < 0.5,
    )
    names = (*VARIANTS, "x", "y")
    requests = []
    for number in range(30):
        prompt = tuple(rng.randrange(50) for _ in range(rng.randrange(1, 14)))
        requests += submit(w, ask(f"r{number}", rng.choice(names), prompt, rng.randrange(1, 12)))
        if rng.random() < 0.15:
            w.engine.cancel(rng.choice(requests).request_id)
        for _ in range(rng.choice([0, 0, 1, 4])):
            w.engine.step()
    results = run_all(w)
    for request in requests:
        got = results.get(request.request_id)
        if got is not None and got.last.finish_reason != "cancelled":
            assert got.tokens == alone(request)[request.max_tokens - len(got.tokens) :]
    assert w.engine.metrics.max_overtaken <= w.engine.policy.age_bound
    assert steps_of_several(w)
    for _, _, binding, _ in w.device.runs:
        expert_B = binding.variants.expert_B if binding.variants else ()
        assert list(expert_B) == sorted(expert_B), (
            "sequences of one stand side by side: each one's weights are read once"
        )


def test_groups_of_variants_are_one():
    def group(name, variants, running, oldest, *waiting):
        return Group(
            name, READY, tuple(Waiting(n, 1) for n in waiting), len(waiting), running, oldest, oldest, 5, variants
        )

    a, b, c, d = group("a", "k", 2, 4, 7), group("b", "", 1, 1), group("c", "k", 0, 3, 3, 9), group("d", "l", 1, 2)
    whole, *rest = join_variants([a, b, c, d], None)
    assert rest == [b, d]
    assert (whole.expert_id, whole.partners) == ("a", ("c",))
    assert [one.number for one in whole.waiting] == [3, 7, 9]
    assert (whole.num_waiting, whole.running, whole.oldest) == (3, 2, 3)
    by_c = join_variants([a, b, c, d], "c")[0]
    assert (by_c.expert_id, by_c.partners, by_c.last_run) == ("c", ("a",), 4)
    assert join_variants([b, d], None) == [b, d]
    assert (largest_group(["k", "l", "k"]), largest_group([])) == (2, 0)
