"""What every device must keep, real or modelled: events, lanes, gates, failures and time.

Knows nothing about which device it is given; what only devices with bytes can show asks `synthetic()`.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from tests.device.contract import Early, broken_range, prompt_rows
from tests.device.programs import loaded

from coterie.core.errors import TransferError
from coterie.device import wait_for


def test_a_finished_event_stays_finished(desk):
    gates = desk.fetch()
    run = desk.run(prompt_rows(), gates=gates)
    desk.wait(run)
    spans = [desk.device.span(event) for event in (*gates.values(), run)]
    later = desk.run(prompt_rows())
    for event, span in zip((*gates.values(), run), spans, strict=True):
        assert desk.device.done(event)
        assert desk.device.failure(event) is None
        assert desk.device.span(event) == span
    desk.wait(later)


def test_work_on_one_lane_is_done_in_order(desk):
    fetches = [*desk.fetch().values(), *desk.fetch().values()]
    desk.wait(fetches[-1])
    assert all(desk.device.done(event) for event in fetches)
    spans = [desk.device.span(event) for event in fetches]
    assert len({event.lane for event in fetches}) == 1
    for first, second in pairwise(spans):
        assert first.start_s <= first.end_s <= second.start_s <= second.end_s


def test_runs_are_done_in_order(desk):
    loaded(desk)
    runs = [desk.run(prompt_rows()) for _ in range(3)]
    desk.wait(runs[-1])
    spans = [desk.device.span(run) for run in runs]
    assert spans[0].end_s <= spans[1].start_s
    assert spans[1].end_s <= spans[2].start_s
    assert {run.lane for run in runs} == {"compute"}


def test_after_is_awaited(desk):
    fetches = list(desk.fetch().values())
    run = desk.run(prompt_rows(), after=iter(fetches))
    desk.wait(run)
    assert desk.device.span(run).start_s >= max(desk.device.span(event).end_s for event in fetches)


def test_a_run_is_not_done_before_its_gates(desk):
    gates = desk.fetch()
    run = desk.run(prompt_rows(), gates=gates)
    finished = False
    while not finished:
        finished = desk.device.done(run)
        assert not finished or all(desk.device.done(gate) for gate in gates.values())
        desk.device.wait_any([run], until=desk.device.now() + 1e-4)
    assert desk.device.span(run).end_s >= max(desk.device.span(gate).end_s for gate in gates.values())


def test_gated_tokens_equal_ungated_tokens(desk):
    cold = desk.tokens(desk.run(prompt_rows(), gates=desk.fetch()))
    assert cold == desk.tokens(desk.run(prompt_rows()))


def test_a_failure_passes_on_through_after(desk):
    view = desk.weights.view(0, desk.layout.ranges[0].source.size_bytes)
    bad = desk.device.fetch(view, broken_range(desk.layout))
    run = desk.run(prompt_rows(), after=[bad])
    second = desk.run(prompt_rows(), after=[run])
    desk.wait(second)
    assert isinstance(desk.device.failure(bad), TransferError)
    assert desk.device.failure(run) is desk.device.failure(bad)
    assert desk.device.failure(second) is desk.device.failure(bad)
    with pytest.raises(TransferError):
        desk.device.tokens(run)


@pytest.mark.parametrize("stage", ["embed", "layers.1"])
def test_a_failure_passes_on_through_a_gate_and_the_device_goes_on(desk, stage):
    loaded(desk)
    expected = desk.tokens(desk.run(prompt_rows()))
    view = desk.weights.view(0, desk.layout.ranges[0].source.size_bytes)
    bad = desk.device.fetch(view, broken_range(desk.layout))
    run = desk.run(prompt_rows(), gates={stage: bad})
    desk.wait(run)
    assert desk.device.failure(run) is desk.device.failure(bad)
    assert isinstance(desk.device.failure(bad), TransferError)
    assert desk.tokens(desk.run(prompt_rows(), gates=desk.fetch())) == expected


def test_wait_any_returns_when_one_is_finished(desk):
    fetches = list(desk.fetch().values())
    desk.device.wait_any(fetches)
    assert any(desk.device.done(event) for event in fetches)


@pytest.mark.parametrize("is_broken", [False, True])
def test_waiting_for_an_event_outlasts_waits_that_end_early(desk, is_broken):
    early = Early(desk.device)
    view = desk.weights.view(0, desk.layout.ranges[0].source.size_bytes)
    source = broken_range(desk.layout) if is_broken else desk.layout.ranges[0].source
    events = [desk.device.fetch(view, source) for _ in range(4)]
    for event in reversed(events):
        wait_for(early, event)
        assert desk.device.done(event)
        assert (desk.device.failure(event) is not None) == is_broken
    waits = early.waits
    wait_for(early, events[0])
    assert early.waits == waits  # nothing is left to wait for


def test_wait_any_returns_at_until(device):
    for delay_s in (0.0, 1e-3, 5e-3):
        until = device.now() + delay_s
        device.wait_any([], until=until)
        assert device.now() >= until
    before = device.now()
    device.wait_any([], until=before - 1.0)
    assert device.now() >= before


def test_wait_any_without_events_or_until_is_refused(device):
    with pytest.raises(ValueError, match="wait"):
        device.wait_any([])


def test_time_never_runs_backwards(desk):
    seen = [desk.device.now()]
    run = desk.run(prompt_rows(), gates=desk.fetch())
    seen.append(desk.device.now())
    while not desk.device.done(run):
        desk.device.wait_any([run], until=seen[-1] + 1e-4)
        seen.append(desk.device.now())
    seen.append(desk.device.now())  # it may have ended behind the last look
    span = desk.device.span(run)
    assert seen == sorted(seen)
    assert seen[0] <= span.start_s <= span.end_s <= seen[-1]


def test_closing_twice_is_closing_once(desk):
    loaded(desk)
    desk.device.close()
    desk.device.close()
