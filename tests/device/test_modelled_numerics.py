"""The modelled device with something real behind it: another device's numbers, or the durations of another run.

Knows nothing about prices.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.device.made_up import NEAR, PREFILL, desk_on, machine, play, spans, took
from tests.device.programs import Desk, rows

from coterie.core.errors import DeviceError
from coterie.device import Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.modelled.device import ModelledDevice
from coterie.devices.modelled.price import step_time
from coterie.graph.compile import compile_graph
from coterie.spec.load import load_machine
from coterie.spec.this_machine import this_machine


def test_recorded_durations_are_replayed_by_lane(layout):
    recorded = desk_on(machine(), layout)
    events = play(recorded)
    durations = {}
    for event, span in zip(events, spans(recorded, events), strict=True):
        durations.setdefault(event.lane, []).append(span.end_s - span.start_s)
    replayed = desk_on(dataclasses.replace(machine(), flops_per_s=0.0), layout, durations=durations)
    for a, b in zip(spans(recorded, events), spans(replayed, play(replayed)), strict=True):
        assert (b.start_s, b.end_s) == (pytest.approx(a.start_s, rel=1e-6), pytest.approx(a.end_s, rel=1e-6))
    with pytest.raises(DeviceError, match="2 recorded durations"):
        replayed.run(PREFILL)


def test_a_replayed_run_still_awaits_its_gates(layout):
    desk = desk_on(machine(), layout, durations={"disk->hbm": [2.0] * len(layout.ranges), "compute": [1.0]})
    run = desk.run(PREFILL, gates=desk.fetch())
    desk.wait(run)
    assert desk.device.span(run).end_s == pytest.approx(2.0 * len(layout.ranges))


def on_cpu(spec, layout, **options):
    return Desk(ModelledDevice(spec, numerics=CpuDevice(load_machine("toy"), threads=1), **options), layout)


def test_a_real_device_behind_computes_the_same_tokens_as_alone(layout):
    alone = Desk(CpuDevice(load_machine("toy"), threads=1), layout)
    behind = on_cpu(load_machine("toy-tiers"), layout)
    assert not behind.device.synthetic()
    answers = []
    for desk in (alone, behind):
        first = desk.tokens(desk.run(PREFILL, gates=desk.fetch()))
        decode = rows([([first[0][0]], 5)], [Sampling(temperature=1.0, seed=3)])
        answers.append((first, desk.tokens(desk.run(decode, steps=8))))
    assert answers[0] == answers[1]
    for desk in (alone, behind):
        desk.device.close()


def test_a_real_device_behind_changes_no_price(layout):
    behind, without = on_cpu(machine(), layout), desk_on(machine(), layout)
    assert spans(behind, play(behind)) == spans(without, play(without))
    behind.device.close()


def test_steps_that_end_early_are_charged_as_they_ended(layout):
    desk = on_cpu(machine(), layout)
    desk.wait(*desk.fetch().values())
    free = desk.tokens(desk.run(rows([([9], 0)]), steps=4))
    ended = desk.run(rows([([9], 0)], end_ids=((free[0][0],),)), steps=4)
    one = desk.run(rows([([9], 0)]))
    assert took(desk, ended) == pytest.approx(took(desk, one), rel=NEAR)
    assert desk.device.tokens(ended).tolist() == free[:1]
    desk.device.close()


def test_what_is_bound_to_fail_is_not_computed(layout):
    desk = on_cpu(machine(), layout, fail=lambda label: OSError("worn out") if label.startswith("fetch") else None)
    run = desk.run(PREFILL, gates=desk.fetch())
    good = desk.run(PREFILL)
    desk.wait(run, good)
    assert str(desk.device.failure(run)) == "worn out"
    assert desk.device.failure(good) is None, "weights are zeros, but nothing is wrong"
    assert desk.device.tokens(good).tolist() == [[0]]
    desk.device.close()


def test_values_are_shown_by_the_device_behind(layout):
    alone, behind = Desk(CpuDevice(load_machine("toy"), threads=1), layout), on_cpu(machine(), layout)
    shown = []
    for desk in (alone, behind):
        desk.wait(*desk.fetch().values())
        shown.append(desk.device.inspect(desk.exe, desk.binding(PREFILL)))
        desk.device.close()
    assert list(shown[0]) == list(shown[1])
    assert all(np.array_equal(shown[0][name], shown[1][name]) for name in shown[0])


def test_a_real_run_is_replayed_in_its_own_time(layout):
    real = Desk(CpuDevice(load_machine("toy"), threads=1), layout)
    gates = real.fetch()
    run = real.run(PREFILL, gates=gates)
    events = [*gates.values(), run]
    real.wait(*events)
    lasted = [span.end_s - span.start_s for span in spans(real, events)]
    replayed = desk_on(this_machine(), layout, durations={"disk->dram": lasted[:-1], "compute": lasted[-1:]})
    gates = replayed.fetch()
    events = [*gates.values(), replayed.run(PREFILL, gates=gates)]
    replayed.wait(*events)
    assert [event.lane for event in events] == ["disk->dram"] * len(gates) + ["compute"]
    assert replayed.device.span(events[-2]).end_s == pytest.approx(sum(lasted[:-1]))
    assert replayed.device.span(events[-1]).end_s == pytest.approx(max(lasted[-1], sum(lasted[:-1])))
    real.device.close()


def test_sections_are_priced_and_what_stands_behind_runs_its_own_kernels(layout):
    """The tokens are those of the CPU; the time is that of whole sections."""
    spec, prompt = load_machine("sn40l-socket"), rows([([3, 1, 4], 0)])
    real = Desk(CpuDevice(load_machine("toy"), threads=2), layout)
    modelled = Desk(ModelledDevice(spec, numerics=CpuDevice(load_machine("toy"), threads=2)), layout)
    tokens = []
    for desk in (real, modelled):
        desk.wait(*desk.fetch().values())
        run = desk.run(prompt)
        desk.wait(run)
        tokens.append(desk.device.tokens(run).tolist())
        desk.device.close()
    assert tokens[0] == tokens[1]
    program = compile_graph(modelled.graph, "section")
    span = modelled.device.span(run)
    assert span.end_s - span.start_s == pytest.approx(step_time(spec, program, prompt.sizes).seconds, rel=NEAR)
