"""Who answers: residency first, not for ever, and what is known of a prompt stays where it is."""

from __future__ import annotations

import random
from dataclasses import replace

from coterie.engine.placement import (
    MAX_REQUESTS,
    MIN_REQUESTS,
    PIECE_TOKENS,
    SWITCH_REQUESTS,
    TOKENS_PER_REQUEST,
    Candidate,
    DeviceSnapshot,
    SeenPrefixes,
    candidate_for,
    mean_switch_cost,
    place,
    switch_cost,
)

IDLE = Candidate(serves=True, holds=False, load=0, crowded=False, free=True, known_tokens=0, num_loads=0)
HOLDER = replace(IDLE, holds=True)
NEVER = DeviceSnapshot(
    frozenset(), near_bytes=100, free_bytes=100, num_loads=0, switches=0, switch_s=0.0, finished=0, busy_s=0.0
)


def test_who_has_the_expert_is_asked_while_its_line_is_shorter_than_a_switch():
    for load in range(20):
        found = place([IDLE, replace(HOLDER, load=load)], switch_requests=7)
        assert found == (1 if load < 7 else 0), load


def test_a_busy_device_gets_nothing_new():
    assert place([replace(IDLE, load=9), replace(IDLE, load=3), replace(IDLE, load=4)]) == 1


def test_of_two_who_hold_it_the_idler_one():
    assert place([replace(HOLDER, load=5), replace(HOLDER, load=4)]) == 1
    assert place([replace(HOLDER, num_loads=3), replace(HOLDER, num_loads=2)]) == 0  # nothing is brought in
    assert place([replace(HOLDER, load=4, free=False), IDLE], switch_requests=4) == 0  # nor must anybody go


def test_where_nobody_must_go_then_where_the_fewest_came():
    assert place([replace(IDLE, free=False), IDLE]) == 1
    full = replace(IDLE, free=False)
    assert place([replace(full, num_loads=4), replace(full, num_loads=3)]) == 1
    assert place([full, full]) == 0


def test_to_send_away_who_is_used_costs_twice():
    crowded = replace(IDLE, crowded=True)
    assert place([crowded, replace(IDLE, load=3)], switch_requests=4) == 1
    assert place([crowded, replace(IDLE, load=5)], switch_requests=4) == 0


def test_a_known_prefix_is_worth_what_it_costs_to_compute():
    known = replace(HOLDER, known_tokens=4 * TOKENS_PER_REQUEST)
    assert place([HOLDER, replace(known, load=3)]) == 1
    assert place([HOLDER, replace(known, load=5)]) == 0


def test_who_does_not_serve_is_never_asked():
    assert place([replace(HOLDER, serves=False), replace(IDLE, load=99)]) == 1
    assert place([replace(HOLDER, serves=False)]) is None
    assert place([]) is None


def test_it_is_the_least_cost_and_the_same_each_time():
    rng = random.Random(5)

    def drawn() -> Candidate:
        flags = [rng.random() < 0.5 for _ in range(3)]
        return Candidate(
            rng.random() < 0.9, flags[0], rng.randrange(12), *flags[1:], rng.randrange(2000), rng.randrange(4)
        )

    for _ in range(500):
        devices, switch = [drawn() for _ in range(rng.randint(1, 8))], rng.uniform(1, 9)
        found = place(devices, switch)
        assert found == place(devices, switch)
        if found is None:
            assert not any(one.serves for one in devices)
            continue
        costs = [
            one.load - one.known_tokens / TOKENS_PER_REQUEST + (0 if one.holds else switch * (1 + one.crowded))
            for one in devices
        ]
        assert devices[found].serves
        assert costs[found] == min(cost for cost, one in zip(costs, devices, strict=True) if one.serves)


def test_what_a_switch_costs_is_measured_within_bounds():
    assert switch_cost(0, 0.0, 0, 0.0) == SWITCH_REQUESTS
    assert switch_cost(3, 6.0, 0, 1.0) == SWITCH_REQUESTS
    assert switch_cost(3, 6.0, 5, 0.0) == SWITCH_REQUESTS
    assert switch_cost(10, 20.0, 100, 25.0) == 8.0
    assert switch_cost(10, 1e-9, 100, 25.0) == MIN_REQUESTS
    assert switch_cost(10, 1e9, 100, 25.0) == MAX_REQUESTS


def test_what_a_switch_costs_is_measured_of_all_devices_together():
    seen = [
        replace(NEVER, switches=3, switch_s=5.0, finished=40, busy_s=8.0),
        replace(NEVER, switches=1, switch_s=3.0, finished=10, busy_s=4.5),
    ]
    assert mean_switch_cost(seen) == switch_cost(4, 8.0, 50, 12.5) == 8.0
    assert mean_switch_cost([]) == SWITCH_REQUESTS


def test_how_a_device_stands():
    sizes = {"ada": 60, "bob": 30, "cyd": 50}
    seen = replace(NEVER, residents=frozenset({"ada"}), free_bytes=40, num_loads=7)
    assert candidate_for(seen, "ada", sizes, {}) == Candidate(True, True, 0, False, False, 0, 7)
    assert candidate_for(seen, "bob", sizes, {"ada": 2}) == Candidate(True, False, 2, False, True, 0, 7)
    assert candidate_for(seen, "cyd", sizes, {"ada": 2, "bob": 0}) == Candidate(True, False, 2, True, False, 0, 7)
    assert candidate_for(seen, "bob", sizes, {"bob": 1}).holds  # it is coming
    assert not candidate_for(seen, "bob", sizes, {"bob": 0}, serves=False).serves


def test_who_has_ended_uses_nothing_and_what_just_fits_does():
    sizes = {"ada": 60, "bob": 30, "cyd": 40}
    ended = candidate_for(NEVER, "cyd", sizes, {"ada": 0, "bob": 1, "cyd": 0})
    assert (ended.holds, ended.crowded) == (False, False)
    for near_bytes, free_bytes, found in ((100, 40, (False, True)), (99, 39, (True, False))):
        seen = replace(NEVER, near_bytes=near_bytes, free_bytes=free_bytes)
        one = candidate_for(seen, "cyd", sizes, {"ada": 1})
        assert (one.crowded, one.free) == found


def test_prefixes_are_known_where_they_were_computed():
    ids, prefixes = list(range(3 * PIECE_TOKENS + 5)), SeenPrefixes()
    assert prefixes.known("ada", ids, 2) == [0, 0]
    prefixes.learn("ada", ids[: 2 * PIECE_TOKENS + 1], 1)
    assert prefixes.known("ada", ids, 2) == [0, 2 * PIECE_TOKENS]
    assert prefixes.known("bob", ids, 2) == [0, 0]
    assert prefixes.known("ada", [9, *ids[1:]], 2) == [0, 0]
    assert prefixes.known("ada", ids[: PIECE_TOKENS - 1], 2) == [0, 0]
    prefixes.learn("ada", ids, 0)
    assert prefixes.known("ada", ids, 2) == [3 * PIECE_TOKENS, 2 * PIECE_TOKENS]


def test_the_oldest_prefixes_are_forgotten():
    prefixes = SeenPrefixes(max_pieces=4)
    for start in range(6):
        prefixes.learn("ada", [start] * PIECE_TOKENS, 0)
        assert len(prefixes) <= 4
    known = [prefixes.known("ada", [start] * PIECE_TOKENS, 1)[0] for start in range(6)]
    assert known == [0, 0, *[PIECE_TOKENS] * 4]


def test_a_prefix_that_came_again_is_not_the_oldest():
    prefixes = SeenPrefixes(max_pieces=2)
    for start in (0, 1, 0, 2):
        prefixes.learn("ada", [start] * PIECE_TOKENS, 0)
    known = [prefixes.known("ada", [start] * PIECE_TOKENS, 1)[0] for start in range(3)]
    assert known == [PIECE_TOKENS, 0, PIECE_TOKENS]


def test_a_piece_is_known_behind_what_came_before_it_alone():
    first, second, other = ([start] * PIECE_TOKENS for start in range(3))
    prefixes = SeenPrefixes()
    prefixes.learn("ada", first + second, 0)
    prefixes.learn("ada", other, 0)
    assert prefixes.known("ada", other + second, 1) == [PIECE_TOKENS]


def test_who_is_forgotten_at_a_prompts_beginning_knows_nothing_of_its_end():
    ids, prefixes = list(range(2 * PIECE_TOKENS)), SeenPrefixes(max_pieces=2)
    prefixes.learn("ada", ids, 1)
    prefixes.learn("bob", ids[:PIECE_TOKENS], 1)  # ada's first piece goes
    prefixes.learn("ada", ids, 0)
    assert prefixes.known("ada", ids, 2) == [2 * PIECE_TOKENS, 0]


def test_who_is_avoided_is_asked_only_where_nobody_else_can_be() -> None:
    failing = replace(IDLE, holds=True, known_tokens=4096, avoided=True)
    busy = replace(IDLE, load=100, crowded=True, free=False)
    assert place([failing, busy]) == 1
    assert place([failing, replace(busy, serves=False)]) == 0
    assert place([replace(failing, load=3), failing]) == 1  # among themselves as ever
    assert candidate_for(NEVER, "ada", {"ada": 1}, {}, avoided=True).avoided
