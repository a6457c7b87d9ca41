"""Kernels of steps that are expected: likely ones that are not there are asked for, decode of one sequence first."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import tests.device.interpreted  # noqa: F401  before anything that imports triton
from tests.device.devices import gpu
from tests.device.random_expert import BASE, SHAPES

from coterie.device import Limits
from coterie.devices.cuda.dry_run import DryRun, likely_buckets
from coterie.devices.cuda.expected import Expected
from coterie.engine.assembly import page_bytes
from coterie.graph.compile import compile_graph
from coterie.models.model import synthetic_model

LIMITS = Limits(sequences=3, tokens=40, context=700)
MODEL = synthetic_model(BASE | SHAPES["odd"])
PROGRAM, BLOCK = compile_graph(MODEL.graph, "cache"), page_bytes(MODEL.kv)


class Noted:
    """Compilers that only remember; `then` is called with how often they have been asked."""

    def __init__(self, then=lambda times: None):
        self.asked, self.then = [], then

    def ask(self, wanted, urgent=False):
        assert not urgent, "a step that waits comes first"
        self.asked.append(list(wanted))
        self.then(len(self.asked))
        return [Future() for _ in self.asked[-1]]


def like_it():
    return DryRun((9, 0), 132)


def keep(monkeypatch, *names):
    """These kernels were compiled before, and no others."""
    monkeypatch.setattr(DryRun, "kept", lambda self, wanted: {one: one.name in names for one in wanted})


def ended(expected):
    """All that it was told has been looked at."""
    expected._waiting.put(None)
    expected._thread.join(60)
    assert not expected._thread.is_alive()


def test_what_most_steps_launch_is_asked_for_but_what_is_there(monkeypatch):
    keep(monkeypatch, "_sample")
    compilers = Noted()
    expected = Expected(like_it, compilers)
    expected(PROGRAM, LIMITS, BLOCK, None)
    ended(expected)
    ahead = like_it()
    exe = ahead.load(PROGRAM)
    every = ahead.wanted(exe, likely_buckets(LIMITS), BLOCK)
    assert "_sample" in {one.name for one in every}
    assert {one for some in compilers.asked for one in some} == {one for one in every if one.name != "_sample"}
    alone = ahead.wanted(exe, likely_buckets(LIMITS)[:1], BLOCK)
    assert compilers.asked[0] == [one for one in alone if one.name != "_sample"]
    assert set(ahead.wanted(exe, likely_buckets(LIMITS), 2 * BLOCK)) != set(every)
    expected.close()


def test_sequences_that_share_no_step_need_no_kernels_for_it(monkeypatch):
    """Of experts with all weights in common there are none to tell apart, and a step of several is not asked for."""
    keep(monkeypatch)
    compilers = Noted()
    expected = Expected(like_it, compilers)
    places = [index for index, name in enumerate(PROGRAM.weights) if "q_proj" not in name]
    assert not like_it().load(PROGRAM).mixes(places[:1])
    expected(PROGRAM, LIMITS, BLOCK, places[:1])
    ended(expected)
    assert compilers.asked == []


def test_steps_of_several_are_asked_for_as_such():
    seen = []

    class Mixing:
        """A GPU that says for which steps it is asked."""

        def load(self, _program):
            return SimpleNamespace(mixes=lambda places: places == (1, 2))

        def wanted(self, _exe, _buckets, block_bytes, shared=None):
            seen.append((block_bytes, shared))
            return {}

        def kept(self, wanted):
            return wanted

    expected = Expected(Mixing, Noted())
    expected(PROGRAM, LIMITS, BLOCK, [1, 2])
    ended(expected)
    assert set(seen) == {(BLOCK, (1, 2))}


def test_what_goes_wrong_costs_the_others_nothing(monkeypatch):
    keep(monkeypatch)
    compilers = Noted()
    expected = Expected(like_it, compilers)
    expected(None, LIMITS, BLOCK, None)  # no program
    expected(PROGRAM, LIMITS, BLOCK, None)
    ended(expected)
    assert len(compilers.asked) == len(likely_buckets(LIMITS))


def test_closing_stops_behind_the_bucket_that_is_looked_at(monkeypatch):
    keep(monkeypatch)
    compilers = Noted(then=lambda times: setattr(expected, "_closed", times >= 2))
    expected = Expected(like_it, compilers)
    expected(PROGRAM, LIMITS, BLOCK, None)
    ended(expected)
    assert len(compilers.asked) == 2
    expected.close()
    expected(PROGRAM, LIMITS, BLOCK, None)
    assert expected._waiting.get(timeout=1) is None  # what woke it to end, and nothing behind it
    assert expected._waiting.empty()


def test_nobody_was_told_anything_and_it_closes():
    expected = Expected(like_it, Noted())
    expected.close()
    expected.close()
    expected(PROGRAM, LIMITS, BLOCK, None)
    assert expected._thread is None


def test_closing_waits_for_the_thread(monkeypatch):
    keep(monkeypatch)
    expected = Expected(like_it, Noted())
    expected(PROGRAM, LIMITS, BLOCK, None)
    expected.close()
    assert not expected._thread.is_alive()


def test_a_device_takes_it_and_closes():
    """What stands for a GPU compiles nothing; a real one begins to, and ends with the device."""
    device = gpu()
    try:
        device.expect(device.load(PROGRAM), LIMITS, BLOCK)
    finally:
        device.close()
