"""Everything at once, in random order: requests of each priority, guesses and drafts, cancels, loads and pins, faults,
other callers of a cache.

Whatever happens, each request ends once, with the tokens that it would have alone as far as it got; everybody who
asked for an expert is told once; no block of KV or memory is lost; and a step raises nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace

import engine_world
import pytest
from engine_world import GuessedDevice, Words, alone, ask, settle, world

from coterie.core.errors import ConflictError, CoterieError
from coterie.engine.policy import Policy
from coterie.engine.speculate.price import Price
from coterie.memory.victims import Busy

CLIENTS = ("", "", "a", "b")


def settings(rng: random.Random) -> Policy:
    batch = rng.randint(1, 5)
    return Policy(
        schedule=rng.choice(("grouped", "grouped", "fcfs")),
        age_bound=rng.randint(0, 9),
        max_batch=batch,
        max_step_tokens=rng.randint(batch + 1, 12),
        turn_steps=rng.choice((1, 5, 30)),
        quantum_steps=rng.choice((1, 4, 16)),
        max_active_experts=rng.randint(1, 3),
        overlap=rng.random() < 0.8,
        prefetch=rng.randint(0, 2),
        multi_step_while_waiting=rng.random() < 0.7,
        share_steps=rng.random() < 0.8,
        max_steps=rng.choice((1, 3, 8)),
        max_guesses=rng.choice((0, 3, 7)),
    )


@pytest.fixture(autouse=True)
def _guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who guesses for others takes nothing, and nor do rows: of experts so small nothing would be worth it."""

    def of(expert: object, balance: object) -> Price:
        first = 2.0**40 if expert.draft else 1.0  # type: ignore[attr-defined]
        return Price(first, first / 64, first / 64, 0.0, 0.0)

    monkeypatch.setattr(engine_world, "TellingDevice", GuessedDevice)
    monkeypatch.setattr(Price, "of", of)


class Chaos:
    """A world and what was asked of it; `outputs` by request, `told` by each load that somebody asked for.

    Of a calm one the few experts say alike, and a request is often alone: so who drafts for others comes to it.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.calm = rng.random() < 0.2
        self.names = [f"{rng.choice(('few', 'e', 'xx', 'abc'))}{number}" for number in range(rng.randint(2, 7))]
        self.names = [f"e{number}{9 - number}" for number in range(3)] if self.calm else self.names
        sizes = {name: rng.randint(1, 6) for name in self.names}
        near = rng.randint(max(sizes.values()), sum(sizes.values()) + 2) + 6 * self.calm
        variants = tuple(rng.sample(self.names, min(len(sizes), rng.randint(2, 4)))) if rng.random() < 0.5 else ()
        recurrent = bool(variants) and rng.random() < 0.3
        small = rng.sample(self.names, rng.randint(1, len(sizes) - 1))
        drafts = {name: rng.choice(small) for name in self.names if name not in small and rng.random() < 0.7}
        self.world = world(sizes, near, rng.randint(6, 60), settings(rng), variants, recurrent, drafts)
        self.prompts = [self.tokens(rng.randint(1, 14)) for _ in range(3)]
        self.requests, self.outputs = {}, {}
        self.cancelled, self.told, self.asked = set(), [], 0

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self.rng.randint(0, 5) for _ in range(count))

    def submit(self) -> None:
        rng = self.rng
        prompt = (*rng.choice(self.prompts), *self.tokens(rng.randint(0, 6)))
        more = {"ignore_end": False, "end_ids": (rng.randint(0, 49),)} if rng.random() < 0.3 else {}
        more |= {"stop": ("ab",), "detokenizer": Words()} if rng.random() < 0.15 else {}
        more |= {"priority": rng.randint(-2, 2)} if rng.random() < 0.5 else {}
        more |= {"prediction": self.tokens(rng.randint(1, 12))} if rng.random() < 0.2 else {}
        request = ask(
            f"r{len(self.requests)}",
            rng.choice(self.names),
            prompt[:20],
            rng.choice((1, 6, 12, 30)),
            client=rng.choice(CLIENTS),
            reuse=rng.random() < 0.8,
            **more,
        )
        with suppress(CoterieError):  # what can never fit
            self.world.engine.submit(request)
            self.requests[request.request_id] = request

    def cancel(self) -> None:
        if self.requests:
            request_id = self.rng.choice(sorted(self.requests))
            self.world.engine.cancel(request_id)
            self.cancelled.add(request_id)

    def control(self) -> None:
        control, name = self.world.engine.control, self.rng.choice(self.names)
        what = self.rng.choice(("load", "load", "unload", "pin", "unpin", "unpin"))
        with suppress(ConflictError):
            if what == "load":
                control.load(name, self.told.append)
                self.asked += 1
            else:
                getattr(control, what)(name)

    def harm(self) -> None:
        """Fetches of an expert, or all runs, fail from now on, or no longer; or the device soon refuses a transfer."""
        if self.rng.random() < 0.3:
            self.world.device.refuse_after = self.rng.randint(0, 4)
        else:
            self.world.device.broken ^= {self.rng.choice((*self.names, "run"))}

    def preload(self) -> None:
        """Another caller of the cache brings an expert in, and lets go whom it likes."""
        name = self.rng.choice(self.names)
        with suppress(Busy, CoterieError):
            self.world.cache.want(name, self.world.experts[name].layout, uses=0)

    def work(self) -> None:
        """Something ends between two steps."""
        if runnable := self.world.device.runnable():
            self.world.device.finish(self.rng.choice(runnable))

    def step(self) -> None:
        now = self.world.device.now()
        self.take(None if self.rng.random() < 0.3 else now + self.rng.choice((0, 1, 2, 5)))

    def take(self, until: float | None = None) -> None:
        w = self.world
        for output in w.engine.step(until):
            got = self.outputs.setdefault(output.request_id, SimpleNamespace(tokens=(), last=None))
            assert got.last is None, "an output after the last one"
            got.tokens += output.token_ids
            got.last = output if output.finish_reason is not None else None
        w.engine.check_integrity()
        w.cache.check_integrity()

    def end(self) -> None:
        """No more faults: all that was asked comes to an end, and nothing is left of it."""
        w = self.world
        w.device.broken.clear()
        w.device.refuse_after = None
        for _ in range(4000):
            if w.engine.idle:
                break
            self.take()
        assert w.engine.idle
        assert {name for name, got in self.outputs.items() if got.last is not None} == set(self.requests)
        assert len(self.told) == self.asked
        for name, got in self.outputs.items():
            request, reason = self.requests[name], got.last.finish_reason
            wanted = alone(request)
            whole = reason in ("stop", "length") and not request.stop
            assert got.tokens == (wanted if whole else wanted[: len(got.tokens)])
            assert reason != "cancelled" or name in self.cancelled
        assert w.pool.free_blocks == w.pool.num_blocks or settle(w)


CHANCES = {"submit": 35, "cancel": 10, "control": 15, "harm": 6, "preload": 2, "work": 10, "step": 22}


def run(seeds: range) -> None:
    decided, right = Counter[str](), 0
    for seed in seeds:
        chaos = Chaos(random.Random(seed))
        chances = {**CHANCES, "step": 300 if chaos.calm else 22}
        for what in chaos.rng.choices(list(chances), list(chances.values()), k=chaos.rng.randint(20, 160)):
            getattr(chaos, what)()
        chaos.end()
        decided.update(entry[0] for entry in chaos.world.engine.decisions)
        right += chaos.world.engine.metrics.accepted_drafted_tokens
    assert min(decided["draft"], decided["pause"], decided["raise"], right) > 0


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_nothing_is_lost(first: int) -> None:
    run(range(first, first + 50))


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 9000, 1000))
def test_nothing_is_lost_for_long(first: int) -> None:
    run(range(first, first + 1000))
