"""Events of the modelled device: what they hold, how long, and whose they are.

Knows nothing about prices.
"""

from __future__ import annotations

import gc
import weakref

import pytest
from tests.device.made_up import PREFILL, desk_on, machine
from tests.device.programs import rows

from coterie.checkpoint.layout import FileIdentity, FileRange
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.modelled import device as modelled
from coterie.devices.modelled.fluid import Work
from coterie.devices.modelled.tokens import synthetic_tokens
from coterie.spec.load import load_machine


class WornError(OSError):
    """A failure that can be watched."""


def test_who_holds_an_event_holds_what_it_left_and_nobody_else_does(layout, monkeypatch):
    """5,000 works, a fifth of them bound to fail; of every 50th round the events are held."""
    drawn, failures = [], []

    def draw(*args):
        tokens = synthetic_tokens(*args)
        drawn.append(weakref.ref(tokens))
        return tokens

    def fail(label):
        if "lost" not in label:
            return None
        failure = WornError(label)
        failures.append(weakref.ref(failure))
        return failure

    monkeypatch.setattr(modelled, "synthetic_tokens", draw)
    desk = desk_on(machine(), layout, fail=fail)
    device, near, far = desk.device, desk.weights.view(0, 4096), desk.device.reserve("ddr", 4096)
    good, lost = FileRange("good", 0, 4096, FileIdentity(4096)), FileRange("lost", 0, 4096, FileIdentity(4096))
    step, held, last = rows([([7], 5)]), [], []
    for number in range(1000):
        fetched = device.fetch(far, good, after=last)
        copied = device.copy(near, far, after=[fetched])
        bad = device.fetch(far, lost)
        run, unrun = desk.run(step, gates={"embed": copied}), desk.run(step, after=[bad])
        desk.wait(run, unrun)
        last = [copied]
        if number % 50 == 0:
            held.append((fetched, copied, bad, run, unrun, device.span(run)))
    del fetched, copied, bad, run, unrun
    gc.collect()
    assert sum(ref() is not None for ref in drawn) <= 2 * len(held) + 2
    assert sum(ref() is not None for ref in failures) == len(held) == 20
    assert sum(type(item) is Work for item in gc.get_objects()) <= 5 * len(held) + 20
    for fetched, copied, bad, run, unrun, span in held:
        assert all(device.done(event) for event in (fetched, copied, bad, run, unrun))
        assert device.failure(run) is None
        assert isinstance(device.failure(bad), WornError)
        assert device.failure(unrun) is device.failure(bad)
        assert device.span(run) == span
        assert span.end_s >= device.span(copied).end_s >= device.span(fetched).end_s > 0
        assert device.tokens(run).shape == (1, 1)
        with pytest.raises(WornError):
            device.tokens(unrun)


def test_only_runs_draw_tokens(layout):
    desk = desk_on(machine(), layout)
    fetched = next(iter(desk.fetch().values()))
    desk.wait(fetched)
    with pytest.raises(ValueError, match="draws no tokens"):
        desk.device.tokens(fetched)


def test_events_of_another_device_are_refused(layout):
    desk, other = desk_on(machine(), layout), CpuDevice(load_machine("toy"), threads=1)
    buffer = other.reserve(other.spec.run_tier, 8192)
    foreign = other.copy(buffer.view(0, 4096), buffer.view(4096, 4096))
    for ask in (desk.device.done, desk.device.failure, desk.device.span, desk.device.tokens):
        with pytest.raises(ValueError, match="another device"):
            ask(foreign)
    with pytest.raises(ValueError, match="another device"):
        desk.run(PREFILL, after=[foreign])
    other.close()
