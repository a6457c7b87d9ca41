"""Whether a device is asked: failures in a row, and a way back whose share of requests is bounded."""

from __future__ import annotations

import random

from coterie.engine.health import FAILURES, FIRST_WAIT, MAX_WAIT, Health


def failing() -> Health:
    health = Health()
    for _ in range(FAILURES):
        assert not health.avoided
        health.failed()
    return health


def test_an_answer_between_failures_forgives_them() -> None:
    health = Health()
    for _ in range(10):
        for _ in range(FAILURES - 1):
            health.failed()
        assert not health.failing
        health.answered()
    assert (health.failures, health.avoided) == (0, False)


def test_it_is_tried_by_one_request_after_some_that_went_to_others() -> None:
    health = failing()
    for _ in range(FIRST_WAIT):
        assert health.avoided
        health.passed_over()
    assert (health.avoided, health.failing) == (False, True)
    health.passed_over()  # it costs more than another one, all the same
    assert not health.avoided
    health.asked()
    assert health.avoided  # until that one has ended
    health.answered()
    assert health == Health()


def test_a_trial_that_fails_makes_the_next_one_rarer_up_to_a_bound() -> None:
    health, waits = failing(), []
    for _ in range(9):
        waits.append(health.waits)
        for _ in range(health.waits):
            health.passed_over()
        health.asked()
        health.failed()
    assert waits == [16, 32, 64, 128, 256, 512, 1024, MAX_WAIT, MAX_WAIT]


def test_failures_of_requests_that_it_had_before_are_no_trials() -> None:
    health = failing()
    for _ in range(5):
        health.failed()
    assert (health.waits, health.failures) == (FIRST_WAIT, FAILURES)


def test_a_trial_of_which_nothing_is_learnt_is_followed_by_another_one() -> None:
    """Both devices failed that request, or its caller left."""
    health = failing()
    for _ in range(3):
        for _ in range(FIRST_WAIT):
            assert health.avoided
            health.passed_over()
        assert not health.avoided
        health.asked()


def test_where_nobody_else_can_be_asked_nothing_is_a_trial() -> None:
    health = failing()
    health.asked()
    assert health.waits == FIRST_WAIT
    health.answered()
    assert not health.failing


def test_the_share_of_requests_that_a_device_which_always_fails_gets_is_bounded() -> None:
    health, draw, asked, count = Health(), random.Random(3), 0, 20_000
    for _ in range(count):
        if health.avoided or draw.random() < 0.5:
            health.passed_over()
        else:
            asked += 1
            health.asked()
            health.failed()
    assert FAILURES + 7 <= asked <= FAILURES + 7 + count // MAX_WAIT
