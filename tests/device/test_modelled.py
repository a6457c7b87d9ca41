"""The modelled device: what work costs there, worked out by hand; sharing, overlap and synthetic tokens.

Knows nothing about real devices.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device.made_up import MIB, NEAR, PREFILL, desk_on, machine, play, spans, took
from tests.device.programs import rows, tiny_graph

from coterie.checkpoint.layout import FileIdentity, FileRange
from coterie.core.errors import UnsupportedError, UsageError
from coterie.device import Sampling, Shared
from coterie.devices.modelled.device import ModelledDevice
from coterie.devices.modelled.transfer import route
from coterie.graph.compile import compile_graph
from coterie.graph.cost import region_cost
from coterie.spec.load import load_machine
from coterie.spec.this_machine import this_machine


def costs(desk, step):
    program = desk.exe.program
    return [region_cost(program, region, step.sizes) for region in program.regions]


def moved_bytes(cost):
    return cost.weight_bytes + cost.input_bytes + cost.output_bytes + cost.kv_read_bytes + cost.kv_write_bytes


def test_a_run_without_contention_takes_the_larger_of_flops_and_bytes_in_every_region(layout):
    spec = machine(flops_per_s=2e7, hbm=1e7, host_s=3e-3, device_s=1e-3)
    desk = desk_on(spec, layout)
    regions = costs(desk, PREFILL)
    bound = [max(cost.flops / 2e7, moved_bytes(cost) / 1e7) for cost in regions]
    assert len({cost.flops / 2e7 > moved_bytes(cost) / 1e7 for cost in regions}) == 2, "both bounds should be seen"
    expected = 3e-3 + sum(1e-3 + seconds for seconds in bound)
    assert took(desk, desk.run(PREFILL)) == pytest.approx(expected, rel=NEAR)
    host = desk_on(spec, layout, orchestration="host")
    expected = sum(3e-3 + seconds for seconds in bound)
    assert took(host, host.run(PREFILL)) == pytest.approx(expected, rel=NEAR)


def test_steps_cost_what_each_step_reads(layout):
    desk = desk_on(machine(), layout)
    expected = 0.0
    for step in range(3):
        expected += sum(moved_bytes(cost) for cost in costs(desk, rows([([7], 5 + step)]))) / 1e8
    assert took(desk, desk.run(rows([([7], 5)]), steps=3)) == pytest.approx(expected, rel=NEAR)


def test_weights_are_charged_to_the_tier_that_holds_them(layout):
    desk = desk_on(machine(ddr=1e6), layout)
    far = desk.device.reserve("ddr", layout.size_bytes)
    regions = costs(desk, PREFILL)
    expected = sum(max(c.weight_bytes / 1e6, (moved_bytes(c) - c.weight_bytes) / 1e8) for c in regions)
    event = desk.device.run(desk.exe, desk.binding(PREFILL, far))
    assert took(desk, event) == pytest.approx(expected, rel=NEAR)


def test_a_copy_and_a_kernel_on_one_tier_take_as_long_as_the_sum_of_their_bytes(layout):
    desk = desk_on(machine(), layout)
    size = MIB
    dst, src = desk.device.reserve("hbm", size), desk.device.reserve("ddr", size)
    copy = desk.device.copy(dst, src)
    run = desk.run(PREFILL)
    desk.wait(copy, run)
    total = size + sum(moved_bytes(cost) for cost in costs(desk, PREFILL))
    ends = [desk.device.span(event).end_s for event in (copy, run)]
    assert max(ends) == pytest.approx(total / 1e8, rel=NEAR)
    run_bytes = total - size
    assert ends[1] == pytest.approx(2 * run_bytes / 1e8, rel=NEAR), "while both are active each has half"


def test_a_copy_on_another_tier_does_not_disturb(layout):
    quiet, busy = desk_on(machine(), layout), desk_on(machine(), layout)
    far = busy.device.reserve("ddr", MIB)
    fetch = busy.device.fetch(far, FileRange("", 0, MIB, FileIdentity(MIB)))
    run = busy.run(PREFILL)
    assert took(busy, run) == pytest.approx(took(quiet, quiet.run(PREFILL)), rel=NEAR)
    assert not busy.device.done(fetch)


def test_copies_in_two_directions_share_tiers_and_not_links(layout):
    desk = desk_on(machine(hbm=1e8, link=8e7), layout)
    near, far = desk.device.reserve("hbm", MIB), desk.device.reserve("ddr", MIB)
    up, down = desk.device.copy(near, far), desk.device.copy(far, near)
    assert up.lane == "ddr->hbm"
    assert down.lane == "hbm->ddr"
    assert took(desk, up) == pytest.approx(MIB / 5e7, rel=NEAR), "two links of 80 MB/s into a tier of 100 MB/s"


def test_a_copy_within_a_tier_reads_and_writes_it(layout):
    desk = desk_on(machine(), layout)
    a, b = desk.device.reserve("hbm", MIB), desk.device.reserve("hbm", MIB)
    assert took(desk, desk.device.copy(a, b)) == pytest.approx(2 * MIB / 1e8, rel=NEAR)
    parts = ((0, MIB // 8), (MIB // 2, MIB // 8))
    assert took(desk, desk.device.copy(a, b, parts=parts)) == pytest.approx(2 * MIB // 4 / 1e8, rel=NEAR)


def test_a_fetch_costs_latency_and_size_over_bandwidth():
    device = ModelledDevice(load_machine("toy"))
    event = device.fetch(device.reserve("dram", MIB), FileRange("", 0, MIB, FileIdentity(MIB)))
    device.wait_any([event])
    assert device.now() == pytest.approx(100e-6 + MIB / 1e7, rel=NEAR)


def test_a_fetch_past_a_tier_goes_through_it():
    spec = machine(ddr=1.5e6, disk_link=1e6)
    assert [(link.src, link.dst) for link in route(spec, "disk", "hbm")] == [("disk", "ddr"), ("ddr", "hbm")]
    assert [(link.src, link.dst) for link in route(spec, "hbm", "ddr")] == [("hbm", "ddr")]
    with pytest.raises(KeyError, match="ddr -> disk"):
        route(spec, "hbm", "disk")
    device = ModelledDevice(spec)
    event = device.fetch(device.reserve("hbm", MIB), FileRange("", 0, MIB, FileIdentity(MIB)))
    device.wait_any([event])
    assert device.now() == pytest.approx(MIB / 0.75e6, rel=NEAR), "ddr is written and read: 1.5 MB/s make 0.75"


def cold(spec, layout):
    """Seconds of a cold start with gates, of its fetches alone, and of its run alone."""
    desk = desk_on(spec, layout)
    gates = desk.fetch()
    run = desk.run(PREFILL, gates=gates)
    desk.wait(run, *gates.values())
    fetching, running = desk_on(spec, layout), desk_on(spec, layout)
    fetching.wait(*fetching.fetch().values())
    running.wait(running.run(PREFILL))
    return desk.device.now(), fetching.device.now(), running.device.now()


def test_gates_overlap_a_transfer_with_the_work(layout):
    total, fetch, run = cold(machine(disk_link=1e8, hbm=1e9, flops_per_s=1e9), layout)
    assert max(fetch, run) < total < 0.8 * (fetch + run)


def gated_spans(layout, orchestration="device", gated_launch=""):
    """Spans of a run that waits for its weights, and of one that finds them there; both of a prompt, then of steps."""
    slow = machine(disk_link=1e8, hbm=1e9, flops_per_s=1e9, host_s=3e-3, device_s=1e-3)
    found = []
    for step, steps in ((PREFILL, 1), (rows([([9], 5)]), 3)):
        desk = desk_on(dataclasses.replace(slow, gated_launch=gated_launch), layout, orchestration=orchestration)
        gates = desk.fetch()
        gated = desk.run(step, gates=gates, steps=steps)
        desk.wait(*gates.values(), gated)
        there = desk.run(step, gates=gates, steps=steps)
        desk.wait(there)
        found.append(spans(desk, (gated, there)))
    return found


def test_a_machine_says_who_starts_a_step_whose_weights_are_coming(layout):
    """To the bit as a device on which that one starts everything; what is there already is started as ever."""
    by = {who: gated_spans(layout, who) for who in ("host", "device")}
    for who, alike in by.items():
        assert gated_spans(layout, who, gated_launch=who) == alike, "that is what it does anyhow"
    (prompt, there), (steps, _) = gated_spans(layout, "device", gated_launch="host")
    assert prompt == by["host"][0][0] != by["device"][0][0]
    took_s = there.end_s - there.start_s
    assert took_s == pytest.approx(by["device"][0][1].end_s - by["device"][0][1].start_s)
    assert took_s < 0.9 * (by["host"][0][1].end_s - by["host"][0][1].start_s)
    regions = len(compile_graph(tiny_graph(), "cache").regions)
    later = by["host"][1][0].end_s - steps.end_s
    assert later == pytest.approx(2 * regions * 2e-3), "of three steps only the first waits"


speeds = st.floats(1e4, 1e9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(flops=speeds, hbm=speeds, ddr=speeds, disk_link=speeds, link=speeds)
def test_a_cold_start_takes_between_the_longer_part_and_the_sum(layout, flops, hbm, ddr, disk_link, link):
    total, fetch, run = cold(machine(flops, hbm, ddr, disk_link, link), layout)
    assert max(fetch, run) * (1 - NEAR) <= total <= (fetch + run) * (1 + NEAR)


NAMES = ("flops_per_s", "hbm", "ddr", "disk_link", "link")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(values=st.tuples(*[speeds] * len(NAMES)), name=st.sampled_from(NAMES), factor=st.floats(1.0, 1000.0))
def test_a_faster_machine_is_never_slower_to_start(layout, values, name, factor):
    numbers = dict(zip(NAMES, values, strict=True))
    slow = cold(machine(**numbers), layout)[0]
    fast = cold(machine(**(numbers | {name: numbers[name] * factor})), layout)[0]
    assert fast <= slow * (1 + NEAR)


def test_the_same_work_takes_the_same_time(layout):
    one, two = desk_on(machine(), layout), desk_on(machine(), layout)
    assert spans(one, play(one)) == spans(two, play(two))
    assert one.device.usage() == two.device.usage()


def test_usage_is_within_what_the_machine_can_give(layout):
    spec = machine(flops_per_s=1e8)
    desk = desk_on(spec, layout)
    play(desk)
    usage = desk.device.usage()
    assert usage["tier hbm"].drawn / 1e8 <= usage["tier hbm"].busy_s * (1 + NEAR) <= desk.device.now() * (1 + NEAR)
    assert usage["link disk->ddr"].drawn == pytest.approx(2 * layout.size_bytes, rel=NEAR)


def test_asking_moves_no_time(layout):
    desk = desk_on(machine(), layout)
    run = desk.run(PREFILL)
    for _ in range(3):
        assert not desk.device.done(run)
    assert desk.device.now() == 0.0
    for question in (desk.device.span, desk.device.failure, desk.device.tokens):
        with pytest.raises(ValueError, match="not finished"):
            question(run)
    desk.device.wait_any([run], until=1e-9)
    assert desk.device.now() == 1e-9
    assert not desk.device.done(run)


def test_injected_failures_reach_those_who_wait(layout):
    calls = []

    def fail(label):
        calls.append(label)
        return OSError("worn out") if len(calls) == 2 else None

    desk = desk_on(machine(), layout, fail=fail)
    gates = desk.fetch()
    run = desk.run(PREFILL, gates=gates)
    desk.wait(run)
    failed = [stage for stage, gate in gates.items() if desk.device.done(gate) and desk.device.failure(gate)]
    assert failed == [list(gates)[1]]
    assert str(desk.device.failure(run)) == "worn out"
    assert calls[-1] == "run tiny"


def test_synthetic_tokens_do_not_depend_on_the_batch_and_cover_the_vocabulary(layout):
    desk = desk_on(machine(), layout)
    assert desk.device.synthetic()
    seeds = [Sampling(seed=seed) for seed in range(50)]
    batch = rows([([5], 3)] * 50, seeds, blocks_per_sequence=1)
    tokens = np.array(desk.tokens(desk.run(batch, steps=40)))
    alone = desk.tokens(desk.run(rows([([5], 3)], [Sampling(seed=17)]), steps=40))
    assert tokens[:, 17].tolist() == [token for (token,) in alone]
    assert set(tokens.flatten().tolist()) == set(range(desk.exe.program.vocab_size))


def test_a_device_without_numbers_shows_none(layout):
    desk = desk_on(machine(), layout)
    with pytest.raises(UnsupportedError, match="no numbers"):
        desk.device.inspect(desk.exe, desk.binding(PREFILL))


@pytest.mark.parametrize(
    ("spec", "fact"),
    [
        (machine(flops_per_s=0.0), "FLOP/s"),
        (machine(hbm=0.0), "bandwidth of hbm"),
        (machine(disk_link=0.0), "disk -> ddr"),
        (this_machine(), "FLOP/s"),
    ],
)
def test_a_machine_with_unknown_speeds_is_refused(spec, fact):
    with pytest.raises(UsageError, match=fact):
        ModelledDevice(spec)


def test_weights_in_a_tier_of_unknown_bandwidth_are_refused(layout):
    desk = desk_on(machine(), layout)
    far = desk.device.reserve("disk", layout.size_bytes)
    with pytest.raises(ValueError, match="disk"):
        desk.device.run(desk.exe, desk.binding(PREFILL, far))


def within(device, tier):
    buffer = device.reserve(tier, 8192)
    return device.copy(buffer.view(0, 4096), buffer.view(4096, 4096))


def test_a_copy_within_a_tier_of_unknown_bandwidth_is_refused_unless_its_time_was_recorded():
    device = ModelledDevice(machine(ddr=0.0))
    with pytest.raises(UsageError, match=r"bandwidth of ddr is unknown.*; give the tier a bandwidth"):
        within(device, "ddr")
    with pytest.raises(UsageError, match="bandwidth of disk"):
        device.fetch(device.reserve("disk", 4096), FileRange("", 0, 4096, FileIdentity(4096)))
    replay = ModelledDevice(machine(ddr=0.0), durations={"ddr->ddr": [2.0]})
    event = within(replay, "ddr")
    replay.wait_any([event])
    assert replay.span(event).end_s == 2.0


def test_buffers_of_another_device_are_refused(layout):
    desk = desk_on(machine(), layout)
    with pytest.raises(ValueError, match="not of this device"):
        desk.device.copy(dataclasses.replace(desk.weights, slab_id=99), desk.weights)
    with pytest.raises(ValueError, match="outside"):
        desk.device.copy(dataclasses.replace(desk.weights, offset=4096), desk.weights)
    strange = Shared(dataclasses.replace(desk.weights, slab_id=99), (3,))
    with pytest.raises(ValueError, match="not of this device"):
        desk.device.run(desk.exe, dataclasses.replace(desk.binding(rows([([3, 14, 15], 0)])), shared=strange))


def test_a_binding_must_place_every_weight(layout):
    desk = desk_on(machine(), layout)
    binding = dataclasses.replace(desk.binding(PREFILL), offsets=(0,))
    with pytest.raises(ValueError, match="1 offsets"):
        desk.device.run(desk.exe, binding)


def test_a_closed_device_works_no_more(layout):
    desk = desk_on(machine(), layout)
    desk.device.close()
    with pytest.raises(RuntimeError, match="closed"):
        desk.device.reserve("hbm", 4096)
    with pytest.raises(RuntimeError, match="closed"):
        desk.run(PREFILL)


def test_an_interrupt_ends_a_run_after_the_step_that_time_is_in(layout):
    desk = desk_on(machine(host_s=0.0), layout)
    desk.wait(*desk.fetch().values())
    decode = rows([([7], 5)])
    spans = []
    for steps in (1, 2, 6):
        run = desk.run(decode, steps=steps)
        desk.wait(run)
        span = desk.device.span(run)
        spans.append(span.end_s - span.start_s)
    one, two, six = spans
    free = desk.tokens(desk.run(decode, steps=6))
    run = desk.run(decode, steps=6)
    desk.device.wait_any([run], until=desk.device.now() + (one + two) / 2)
    desk.device.interrupt()
    assert took(desk, run) == pytest.approx(two, rel=NEAR)
    assert desk.device.tokens(run).tolist() == free[:2]
    assert took(desk, desk.run(decode, steps=6)) == pytest.approx(six, rel=NEAR)
