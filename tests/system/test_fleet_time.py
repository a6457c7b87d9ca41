"""Several modelled devices behind one placement, on modelled time, with the engine and the cache that serve.

An event is the next arrival, or a step of the device whose clock is behind. Tokens are synthetic.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from tests.system.test_simulate import case, workload

from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.assembly import Parts, plan, wire
from coterie.engine.placement import DeviceSnapshot, candidate_for, mean_switch_cost, place
from coterie.engine.request import Request
from coterie.plan.simulate import Case, settings_of
from coterie.plan.workload import Workload


@dataclass
class Node:
    """A modelled device, and what a placement knows of it."""

    parts: Parts
    asked: Counter[str] = field(default_factory=Counter)
    busy_s: float = 0.0

    @property
    def now(self) -> float:
        return self.parts.device.now()

    @property
    def seen(self) -> DeviceSnapshot:
        weights, metrics, near = self.parts.all_weights, self.parts.engine.metrics, self.parts.cache.ledgers[0]
        return DeviceSnapshot(
            residents=weights.residents.union(weights.loading()),
            near_bytes=near.capacity_bytes,
            free_bytes=near.capacity_bytes - near.used_bytes,
            num_loads=metrics.switches,
            switches=metrics.switch.total,
            switch_s=metrics.switch.sum_s,
            finished=sum(metrics.finished.values()),
            busy_s=self.busy_s,
        )

    def step(self, until: float | None) -> list[str]:
        """One step; who has ended."""
        begun_s = self.now
        ended = [one for one in self.parts.engine.step(until) if one.finish_reason is not None]
        self.busy_s += self.now - begun_s
        assert all(one.error is None for one in ended)
        self.asked.subtract([one.expert_id for one in ended])
        self.asked += Counter()
        return [one.request_id for one in ended]


@dataclass
class Outcome:
    """`ends`: how often each request ended; `placed`: where each went, in order."""

    seconds: float
    switches: list[int]
    ends: Counter[str]
    placed: list[int]


def serve(made: Case, load: Workload, devices: int) -> Outcome:
    """Serve a workload to its end, in a closed loop or as it arrives."""
    settings = settings_of(made, load)
    nodes = []
    for _ in range(devices):
        device = ModelledDevice(made.spec)
        nodes.append(Node(wire(made.models, plan(made.models, made.spec, settings), settings, device)))
    sizes = {name: model.layout.size_bytes for name, model in made.models.items()}
    arrivals = list(range(len(load)))
    open_, now, ends, placed = 0, 0.0, Counter[str](), list[int]()
    try:
        while arrivals or open_:
            busy = [node for node in nodes if not node.parts.engine.idle]
            slowest = min(busy, key=lambda node: node.now, default=None)
            due = bool(arrivals) and (open_ < load.in_flight if load.in_flight else True)
            at_s = (now if load.in_flight else float(load.at_s[arrivals[0]])) if due else np.inf
            if due and (slowest is None or at_s <= slowest.now):
                number = arrivals.pop(0)
                name = load.names[load.expert_index[number]]
                cost = mean_switch_cost([node.seen for node in nodes])
                found = place([candidate_for(node.seen, name, sizes, node.asked) for node in nodes], cost)
                assert found is not None
                node = nodes[found]
                while node.now < at_s:  # it was idle until then
                    node.parts.device.wait_any([], at_s)
                ids = tuple(range(int(load.prompt_tokens[number])))
                node.parts.engine.submit(
                    Request(f"r{number}", name, ids, int(load.new_tokens[number]), ignore_end=True, reuse=False)
                )
                node.asked[name] += 1
                placed.append(found)
                open_ += 1
                continue
            assert slowest is not None
            ended = slowest.step(at_s if due and not load.in_flight else None)
            if ended:
                now, open_ = max(now, slowest.now), open_ - len(ended)
                ends.update(ended)
        switches = [node.parts.engine.metrics.switches for node in nodes]
        return Outcome(max(node.now for node in nodes), switches, ends, placed)
    finally:
        for node in nodes:
            node.parts.cache.check_integrity()
            node.parts.device.close()


@pytest.mark.parametrize("mix", ["zipf", "uniform"])
def test_twice_the_load_on_two_takes_no_longer_and_no_device_switches_more(many, mix):
    """Each has as many in flight as one had; together their budgets hold more of what is asked for."""
    made = case(many, room=4)
    one = serve(made, workload(many, 300, mix=mix, in_flight=24, new="12"), 1)
    two = serve(made, workload(many, 600, mix=mix, in_flight=48, new="12"), 2)
    assert (600 / two.seconds) / (300 / one.seconds) > 1.95
    assert max(two.switches) <= one.switches[0]
    assert min(Counter(two.placed).values()) > 0.3 * 600


def test_the_same_load_is_served_sooner_with_fewer_switches(many):
    """Not in half the time: a batch of half as many costs more than half."""
    made, load = case(many, room=4), workload(many, 300, in_flight=24, new="12")
    one, two = serve(made, load, 1), serve(made, load, 2)
    assert one.seconds / two.seconds > 1.6
    assert sum(two.switches) < 1.3 * one.switches[0]


def test_an_expert_that_everybody_asks_for_is_on_both(many):
    made, load = case(many, room=4), workload(many, 200, in_flight=24, new="12")
    load = load.only(np.flatnonzero(load.expert_index == np.bincount(load.expert_index).argmax()))
    one, two = serve(made, load, 1), serve(made, load, 2)
    assert two.switches == [1, 1]
    assert abs(two.placed.count(0) - two.placed.count(1)) < 0.3 * len(load)
    assert two.seconds < one.seconds


@pytest.mark.parametrize("loop", [{"in_flight": 1}, {"in_flight": 9}, {"rate": 60.0}, {"rate": 400.0}])
@pytest.mark.parametrize("devices", [1, 2, 3])
def test_each_request_ends_once_and_decisions_are_repeatable(many, loop, devices):
    made, load = case(many, room=3), workload(many, 80, **loop)
    first, again = serve(made, load, devices), serve(made, load, devices)
    assert first.ends == {f"r{number}": 1 for number in range(len(load))}
    assert (first.placed, first.seconds, first.switches) == (again.placed, again.seconds, again.switches)


def test_one_at_a_time_the_budgets_are_as_one(many):
    """Nobody waits, so that room alone decides: two hold twice as many experts, and bring in no more than one that has
    as much room."""
    load = workload(many, 150, in_flight=1, mix="uniform")
    halves = serve(case(many, room=4), load, 2)
    whole, half = serve(case(many, room=8), load, 1), serve(case(many, room=4), load, 1)
    assert sum(halves.switches) < sum(half.switches)
    assert sum(halves.switches) <= 1.15 * sum(whole.switches)
