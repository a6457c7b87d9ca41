"""Every call of the driver fails once, in each way that it can: what is asked for then fails with a sentence.

What is asked for again is right, unless the GPU is gone: then all fails at once, and closing works. Nothing is held
afterwards. One life of a device has all that is asked of one: memory, files, copies, steps, values, an end.
"""

from __future__ import annotations

import gc
from time import perf_counter

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.cuda_devices import cuda
from tests.device.failing_gpu import CALLS, MEMORY, FailingDriver
from tests.device.programs import KV_BLOCK_BYTES, NUM_KV_BLOCKS, Desk, decode, rows, tiny_graph

from coterie.core.errors import CoterieError
from coterie.graph.compile import compile_graph

PROMPT = rows([([3, 14, 15, 9, 26], 0)])
LATEST_S = 30.0  # far more than any of it takes
ATTEMPTS = 3
HOLDING = {("unpin", "error"), ("pin", "late")}  # what stays pinned then is the system's fault
FEW, STRIDE = 3, 97  # a call made at most FEW times fails each time in turn, any other every STRIDE times


class Life:
    """A device from its first memory to its end; what failed on the way, and what it gave."""

    def __init__(self, layout, driver, orchestration="device"):
        self.driver, self.failures, self.found = driver, [], []
        self.device = cuda(orchestration, driver=driver)
        self.desk = Desk.__new__(Desk)
        self.desk.device, self.desk.layout, self.desk.graph = self.device, layout, tiny_graph()
        self.below = None

    def live(self):
        """All of it; each thing is asked for again where it failed."""
        desk, device = self.desk, self.device
        size = desk.layout.size_bytes
        desk.weights = self.ask(lambda: device.reserve("hbm", size))
        desk.kv = self.ask(lambda: device.reserve("hbm", NUM_KV_BLOCKS * KV_BLOCK_BYTES))
        self.below = self.ask(lambda: device.reserve("ddr", size))
        desk.exe = self.ask(lambda: device.load(compile_graph(desk.graph, device.spec.rule_set)))
        self.ask(self.cold)
        for _ in range(3):  # launched, captured, replayed
            self.ask(lambda: self.tokens(desk.run(decode(7, 5), steps=3)))
        self.ask(self.logits)
        self.ask(self.inspected)
        self.ask(self.interrupted)
        self.ask(self.from_below)
        self.ask(self.away_and_back)
        self.ask(lambda: self.tokens(desk.run(decode(7, 5), steps=2)))

    def ask(self, what):
        for _ in range(ATTEMPTS):
            try:
                found = what()
            except CoterieError as error:
                said = f"{type(error).__name__}: {error}"  # not the error, whose frames hold memory
                self.failures.append(said)
                continue
            if isinstance(found, list):
                self.found.append(found)
            return found
        raise RuntimeError(f"asked {ATTEMPTS} times: {said}")

    def tokens(self, *events):
        """Of the last of them, once all have ended, whose failure is raised."""
        for event in events:
            end_s = perf_counter() + LATEST_S
            while not self.device.done(event):
                self.device.wait_any([event], end_s)
                assert perf_counter() < end_s, f"{event.label} does not end"
        for event in events:
            if self.device.failure(event) is not None:
                raise self.device.failure(event)
        return self.device.tokens(events[-1]).tolist() if events[-1].label.startswith("run") else []

    def cold(self):
        gates = self.desk.fetch()
        return self.tokens(*gates.values(), self.desk.run(PROMPT, gates=gates))

    def logits(self):
        event = self.desk.run(decode(7, 5))
        self.tokens(event)
        return self.device.logits(event, [0]).round(4).tolist()

    def inspected(self):
        found = self.device.inspect(self.desk.exe, self.desk.binding(decode(7, 5)))
        return [np.abs(value).sum().round(3).item() for _, value in sorted(found.items())]

    def interrupted(self):
        event = self.desk.run(decode(7, 5), steps=3)
        self.device.interrupt()
        return self.tokens(event)[:1]  # how many steps it came to is a matter of time

    def from_below(self):
        """By the pool: read into it, then copied up, the first range in pieces."""
        desk, gates, read = self.desk, {}, []
        for number, placed in enumerate(desk.layout.ranges):
            size = placed.source.size_bytes
            below, up = self.below.view(placed.offset, size), desk.weights.view(placed.offset, size)
            read.append(self.device.fetch(below, placed.source))
            parts = [(at, min(1024, size - at)) for at in range(0, size, 1024)] if number == 0 else ()
            gates[placed.stage] = self.device.copy(up, below, [read[-1]], parts)
        return self.tokens(*read, *gates.values(), desk.run(PROMPT, gates=gates))

    def away_and_back(self):
        """Memory of weights and of the pool goes, and comes again when it is used."""
        self.device.give_back(self.desk.weights)
        self.device.give_back(self.below)
        return self.from_below()

    def end(self):
        """Close, and see that nobody holds anything of the driver's."""
        self.device.close()
        driver, self.device, self.desk = self.driver, None, None
        gc.collect()
        return driver.held


def lives(layout, **fault):
    return Life(layout, FailingDriver(**fault, settle_s=1e-4))


@pytest.fixture(scope="module")
def sound(layout):
    """A life without a fault: what it gives, and how often it makes each call."""
    life = lives(layout)
    life.live()
    assert life.failures == []
    assert life.end() == {}
    return life


def faults(sound, how, every):
    counts = {call: sound.driver.counts[call] for call in (MEMORY if how == "full" else CALLS)}
    steps = {call: 1 if every or count <= FEW else STRIDE for call, count in counts.items()}
    return [(call, at) for call, count in counts.items() for at in range(0, count, steps[call])]


def test_a_life_makes_every_call(sound):
    assert {call for call in CALLS if sound.driver.counts[call]} == set(CALLS)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["error", "late", "full"])
def test_a_call_that_fails_fails_what_was_asked_for_and_nothing_else(layout, sound, how, every):
    wrong = {}
    for call, at in faults(sound, how, every):
        life = lives(layout, call=call, at=at, how=how)
        try:
            life.live()
            assert life.found == sound.found, "other values"
            assert all("\n" not in said for said in life.failures)
        except Exception as error:
            wrong[call, at] = f"{type(error).__name__}: {error}"
        held = life.end()
        if held and (call, how) not in HOLDING:
            wrong[call, at] = f"{wrong.get((call, at), '')} holds {len(held)}"
    assert wrong == {}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_gpu_that_is_gone_at_any_call_says_so_at_once_and_can_be_closed(layout, sound, every):
    wrong = {}
    for call, at in faults(sound, "gone", every):
        life = lives(layout, call=call, at=at, how="gone")
        try:
            life.live()
            said = "nothing" if life.driver.has_failed else ""  # it comes only when the device is closed
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        if said and not ("the GPU no longer answers" in said and "start Coterie again" in said):
            wrong[call, at] = said
        life.end()
    assert wrong == {}
