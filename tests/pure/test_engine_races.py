"""What ends between two looks of one step, and what is cancelled after it has ended."""

from __future__ import annotations

import pytest
from tests.pure.engine_world import ask, run_all, world


@pytest.mark.parametrize("broken", [False, True])
def test_a_load_that_ends_between_two_looks_is_counted_once(broken: bool) -> None:
    w = world({"a": 6}, 8)
    engine, device, poll = w.engine, w.device, w.cache.poll
    engine.submit(ask("r0", "a"))
    ended = False

    def poll_and_then_the_disk_finishes() -> None:
        nonlocal ended
        poll()
        if not ended and w.cache.loading():
            ended = True
            device.broken |= {"a"} if broken else set()
            while reads := [event for event in device.runnable() if event.lane != "compute"]:
                device.finish(reads[0])

    w.cache.poll = poll_and_then_the_disk_finishes
    outputs = []
    while not engine.idle:
        outputs += engine.step()
        if broken and outputs and "a" in device.broken:
            device.broken.clear()
            engine.submit(ask("r1", "a"))
    last = {output.request_id: output.finish_reason for output in outputs if output.finish_reason}
    assert last == ({"r0": "error", "r1": "length"} if broken else {"r0": "length"})
    assert engine.metrics.failed_fetches == int(broken)
    assert engine.metrics.switch.total == 1


def test_cancelling_what_has_ended_harms_no_later_request_of_that_name() -> None:
    w = world({"a": 6}, 8)
    w.engine.submit(ask("r", "a"))
    run_all(w)
    w.engine.cancel("r")
    w.engine.submit(ask("r", "a"))
    assert run_all(w)["r"].last.finish_reason == "length"
