"""A router that asks models before it decides, driven through the engine's outputs."""

from __future__ import annotations

import pytest

from coterie.composition.router import Ask, Prompt, Route
from coterie.core.errors import DeviceError
from coterie.engine.request import Output
from coterie.engine.routing import RoutingJob


class Asking:
    """Asks two models and goes where the first answer says."""

    def ask(self, prompt):
        return (Ask("judge", f"who answers {prompt.text}?", 4), Ask("judge", "sure?", 1))

    def decide(self, prompt, results=()):
        return Route(results[0], 1.0, (), f"the judge said so: {results[1]}")


class Deciding:
    def ask(self, prompt):
        return ()

    def decide(self, prompt, results=()):
        return Route("sums", 0.9, (), "it has digits")


def answer(request_id, text, reason=None, error=None):
    return Output(request_id, "judge", (1,), text, reason, error)


def test_a_router_that_asks_nothing_decides_at_once():
    job = RoutingJob("p", Deciding(), Prompt("1+1"))
    assert job.done
    assert (job.asks, job.route().expert) == ({}, "sums")


def test_answers_are_put_together_and_given_in_order():
    job = RoutingJob("p", Asking(), Prompt("1+1"))
    first, second = job.asks
    assert job.asks[first].text == "who answers 1+1?"
    assert job.take(answer(second, "yes", "stop"))
    assert job.take(answer(first, "su"))
    assert not job.take(answer("other", "x", "stop"))
    with pytest.raises(ValueError, match="1 asks"):
        job.route()
    assert job.take(answer(first, "ms", "length"))
    assert job.done
    assert job.route() == Route("sums", 1.0, (), "the judge said so: yes")


def test_a_failed_ask_fails_the_route():
    job = RoutingJob("p", Asking(), Prompt("1+1"))
    job.take(answer(next(iter(job.asks)), "", "error", DeviceError("judge", "it broke")))
    assert job.done
    with pytest.raises(DeviceError, match="it broke"):
        job.route()
