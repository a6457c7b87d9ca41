"""What a step costs on a modelled machine, region by region; and that the device charges just that.

Knows nothing about lanes or events.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device.made_up import NEAR, PREFILL, desk_on, machine, took
from tests.device.programs import rows
from tests.pure.graphs import STEADY, decoders
from tests.pure.test_graph_mixing import shared_but

from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.device import Shared, Variants
from coterie.devices.modelled.exchange import exchange
from coterie.devices.modelled.price import roofline_s, step_time
from coterie.devices.modelled.region import facts
from coterie.devices.modelled.shard import rank_program
from coterie.graph.compile import compile_graph
from coterie.graph.cost import Collective, program_cost
from coterie.graph.mixing import own_bytes
from coterie.graph.ops import BF16, ROUNDING
from coterie.graph.rounding import with_rounding
from coterie.graph.shard import shard
from coterie.models.zoo import zoo_graph
from coterie.spec.load import load_machine
from coterie.spec.machine import Peers


@pytest.mark.parametrize("orchestration", ["device", "host"])
@pytest.mark.parametrize("name", ["toy", "sn40l-node", "dgx-h100", "made-up"])
def test_a_step_alone_takes_what_the_device_charges(layout, name, orchestration):
    spec = load_machine(name) if name != "made-up" else machine(2e7, 1e7, host_s=3e-3, device_s=1e-3)
    desk = desk_on(spec, layout, orchestration=orchestration)
    program = rank_program(spec, desk.exe.program)
    priced = step_time(spec, program, PREFILL.sizes, orchestration=orchestration)
    assert took(desk, desk.run(PREFILL)) == pytest.approx(priced.seconds, rel=NEAR)
    assert [row.region for row in priced.rows] == [region.name for region in program.regions]
    assert priced.seconds >= roofline_s(spec, program, PREFILL.sizes)


def test_a_row_says_what_bounds_it(layout):
    spec = machine(2e7, 1e7, host_s=3e-3, device_s=1e-6)
    program = desk_on(spec, layout).exe.program
    rows = step_time(spec, program, PREFILL.sizes).rows
    assert {row.bound for row in rows} <= {"launch", "compute", "hbm"}
    assert {"compute", "hbm"} <= {row.bound for row in rows}
    for row in rows:
        assert row.seconds == pytest.approx(row.launch_s + max(row.compute_s, row.memory_s["hbm"]))
        assert row.provenance == "analytic"
    first, later = rows[0].launch_s, rows[1].launch_s
    assert first == pytest.approx(later + 3e-3), "software starts a run, the device the rest"


@pytest.mark.parametrize("name", ["toy", "sn40l-node", "dgx-h100"])
def test_rounding_to_bfloat16_is_priced_as_what_is_not_rounded(name):
    """No more is read, and no row is needed whole before it is multiplied."""
    spec, graph, found = load_machine(name), zoo_graph("llama-3.1-8b"), set()
    for each in (graph, with_rounding(graph, BF16)):
        program = rank_program(spec, compile_graph(each, spec.rule_set))
        found.add(step_time(spec, program, PREFILL.sizes).seconds)
    assert len(found) == 1
    assert any(op.attrs.get(ROUNDING) == BF16 for region in program.regions for op in region.ops)


@cache
def llama(gpus, rule_set):
    """One rank's program of a model whose kernels were measured."""
    return compile_graph(shard(zoo_graph("llama-2-7b"), gpus), rule_set)


@pytest.mark.parametrize(("gpu", "published_us"), [("a100", (65, 25, 116, 60)), ("h100", (38, 16, 64, 38))])
def test_a_layer_on_a_gpu_takes_what_others_measured(gpu, published_us):
    """Vidur's profile of Llama-2-7B, one token: qkv, o, up and gate, down; TensorRT-LLM's kernels are near them."""
    spec = load_machine(gpu)
    rows = step_time(spec, llama(1, "cache"), Sizes.decode(1, 512)).rows
    layer = [row for row in rows if row.stage == "layers.7" and row.kernel != "attention"]
    assert [row.kernel for row in layer] == [
        "norm_qkv_rope_append", "linear_add", "norm_gate_up_silu_mul", "linear_add",
    ]  # fmt: skip
    for row, expected in zip(layer, published_us, strict=True):
        assert row.work_s == pytest.approx(expected * 1e-6, rel=0.1)
        assert row.provenance in ("measured", "interpolated", "transferred")


def test_units_share_the_work_and_pay_for_exchanges():
    sizes = Sizes.decode(1, 512)
    steps = {
        units: step_time(load_machine(f"dgx-h100:units={units}"), llama(units, "cache"), sizes) for units in (1, 8)
    }
    assert steps[8].seconds < steps[1].seconds
    assert sum(row.collective_s for row in steps[1].rows) == 0.0
    exchanges = [row for row in steps[8].rows if row.collective_s]
    assert len(exchanges) == 2 * 32 + 2, "two a layer, one after the embedding, one for the logits"
    assert sum(row.collective_s for row in exchanges) > 0.25 * steps[8].seconds, "at 8 GPUs the exchange is the model"


def test_what_cannot_be_split_by_all_units_is_split_by_fewer(layout):
    program = desk_on(machine(), layout).exe.program
    assert facts(rank_program(load_machine("sn40l-node"), program)).ranks == 4, "four query heads, eight sockets"


def test_units_that_cannot_share_a_model_are_not_priced_as_one_large_unit(layout):
    program = compile_graph(zoo_graph("llama-2-7b"), "cache")
    with pytest.raises(
        UsageError, match=r"dgx-h100: units\] llama cannot be shared by 3 units: 32 key/value heads .*; give"
    ):
        rank_program(load_machine("dgx-h100:units=3"), program)
    assert rank_program(load_machine("h100"), program) is program
    assert rank_program(load_machine("toy-tiers"), program) is program, (
        "no way between its units: rates of all together"
    )


def test_a_region_outside_what_was_measured_is_refused_unless_asked():
    spec, program = load_machine("h100"), llama(1, "cache")
    far = Sizes.prefill(1, 10**6)
    with pytest.raises(UsageError, match=r"h100.*outside the kernels that were measured.*allow analytic"):
        step_time(spec, program, far, allow_analytic=False)
    rows = step_time(spec, program, far).rows
    assert any(row.provenance == "carried over" for row in rows)
    near = step_time(spec, program, Sizes.prefill(1, 1024), allow_analytic=False)
    assert all(row.provenance in ("measured", "interpolated", "transferred") for row in near.rows)


def test_on_a_grid_exchanges_stream_beside_the_work():
    spec = load_machine("sn40l-node")
    program = llama(8, "section")
    row = step_time(spec, program, Sizes.prefill(1, 4096)).rows[5]
    wanted = exchange(spec, Collective("all_reduce", 4096 * 4096 * 2, 8))
    assert row.memory_s["peers"] == pytest.approx(2 * wanted.bytes_s)
    assert row.collective_s == pytest.approx(2 * wanted.latency_s)
    assert row.launch_s == pytest.approx(spec.launch_s("device", min(1.0, len(program.regions[5].ops) / 20)))


def test_a_ring_carries_large_messages_and_a_tree_small_ones():
    spec = load_machine("sn40l-node")
    small, large = (exchange(spec, Collective("all_reduce", size, 8)) for size in (8192, 10**9))
    assert small.latency_s == pytest.approx(2 * 3 * 1e-6)
    assert large.seconds == pytest.approx(14e-6 + 14 / 8 * 1e9 / 200e9)
    gather = exchange(spec, Collective("all_gather", 10**9, 8))
    assert gather.bytes_s == pytest.approx(large.bytes_s / 2)
    assert exchange(spec, Collective("all_reduce", 10**9, 1)).seconds == 0.0


def test_exchanges_of_large_steps_run_at_a_share_of_their_speed():
    plain = load_machine("dgx-h100")
    spec = replace(plain, exchange_share=0.25, large_step=2048)
    wanted = Collective("all_reduce", 2**26, 8)
    alone = exchange(plain, wanted)
    assert exchange(spec, wanted).seconds == exchange(spec, wanted, 2048).seconds == alone.seconds
    assert exchange(spec, wanted, 2049).seconds == pytest.approx(4 * alone.seconds)
    assert exchange(plain, wanted, 2049).seconds == alone.seconds
    for sizes, dearer in ((Sizes.prefill(1, 2048), 0), (Sizes.prefill(8, 512), 3), (Sizes.decode(8, 4096), 0)):
        steps = [step_time(at, llama(8, "cache"), sizes) for at in (plain, spec)]
        exchanged_s = sum(row.collective_s for row in steps[0].rows)
        assert steps[1].seconds - steps[0].seconds == pytest.approx(dearer * exchanged_s)


def test_alibi_attention_is_priced_by_measured_kernels():
    """As attention of as many heads without a window; a machine with measured kernels must not refuse it."""
    spec = load_machine("dgx-h100:units=8")
    for sizes in (Sizes.prefill(1, 1024), Sizes.decode(16, 512)):
        rows = step_time(spec, compile_graph(shard(zoo_graph("bloom-176b"), 8), "cache"), sizes).rows
        attentions = [row for row in rows if row.kernel == "alibi_attention"]
        assert len(attentions) == 70
        assert all(row.provenance in ("measured", "interpolated", "transferred") for row in attentions)


def test_units_without_a_way_between_them_cannot_exchange():
    with pytest.raises(UsageError, match=r"8 units.*add \[peers\]"):
        exchange(machine(), Collective("all_reduce", 8192, 8))


def test_kernels_and_libraries_that_nobody_measured_are_refused_by_name():
    spec = load_machine("h100")
    with pytest.raises(
        UsageError, match=r"machine h100: kernels.*no kernels were measured on mi300x.*a100, h100, h200"
    ):
        step_time(replace(spec, kernels="mi300x"), llama(1, "cache"), Sizes.decode(1, 512))
    node = load_machine("dgx-h100")
    with pytest.raises(UsageError, match=r"peers.library.*'mi300x/nccl'.*h100/nccl"):
        exchange(replace(node, peers=replace(node.peers, library="mi300x/nccl")), Collective("all_reduce", 8192, 8))


def test_measured_exchanges_are_those_of_the_library():
    nccl = load_machine("dgx-h100:stack=nemo-2023")
    custom = load_machine("dgx-h100:stack=trtllm-2024")
    wanted = Collective("all_reduce", 8192, 8)
    assert exchange(nccl, wanted).seconds == pytest.approx(16.4e-6)
    assert exchange(custom, wanted).seconds == pytest.approx(3.9e-6)
    assert exchange(custom, wanted).provenance == "measured"


def test_software_between_steps_is_charged_to_every_step():
    """Two runs of a stack: what it adds to the machine without it."""
    plain, slow = load_machine("dgx-a100:units=1"), load_machine("dgx-a100:units=1,stack=nemo-2023")
    program, sizes = llama(1, "cache"), Sizes.decode(4, 512)
    added = step_time(slow, program, sizes).seconds - step_time(plain, program, sizes).seconds
    assert added == pytest.approx(slow.step_host_s + 4 * slow.step_sequence_s)
    floor = load_machine("dgx-a100:stack=splitwise-2023")
    assert step_time(floor, llama(8, "cache"), Sizes.decode(1, 64)).seconds >= 44e-3


def test_software_issues_a_prompt_for_longer_than_a_token(layout):
    spec = replace(load_machine("toy"), step_floor_s=30.0, prompt_floor_s=50.0)
    desk = desk_on(spec, layout)
    program, decode = rank_program(spec, desk.exe.program), rows([([9], 5)])
    prompt, token = (step_time(spec, program, at.sizes) for at in (PREFILL, decode))
    assert (prompt.floor_s, token.floor_s) == (50.0, 30.0)
    begins_s = load_machine("toy").launch_host_s  # of a run, which the device charges beside the floor
    assert took(desk, desk.run(PREFILL)) == pytest.approx(prompt.seconds, abs=1.01 * begins_s)
    assert took(desk, desk.run(decode)) == pytest.approx(token.seconds, abs=1.01 * begins_s)
    assert 50.0 <= prompt.seconds < 51.0, "in which the device works too"
    assert step_time(replace(spec, prompt_floor_s=0.0), program, PREFILL.sizes).floor_s == 30.0


def test_a_run_and_a_prompt_take_a_start_whatever_their_length(layout):
    plain = load_machine("toy")
    slow = replace(plain, run_start_s=7.0, prompt_start_s=40.0)
    decode = rows([([9], 5)])

    def seconds(spec, at, orchestration, steps=1, starts_run=True):
        program = rank_program(spec, desk_on(spec, layout).exe.program)
        one = step_time(spec, program, at.sizes, orchestration=orchestration, starts_run=starts_run).seconds
        desk = desk_on(spec, layout, orchestration=orchestration)
        return one, took(desk, desk.run(at, steps=steps))

    for orchestration in ("host", "device"):
        for at, more in ((PREFILL, 47.0), (decode, 7.0)):
            reported, run = np.subtract(seconds(slow, at, orchestration), seconds(plain, at, orchestration))
            assert (reported, run) == (pytest.approx(more), pytest.approx(more))
        _, three = np.subtract(seconds(slow, decode, orchestration, 3), seconds(plain, decode, orchestration, 3))
        assert three == pytest.approx(7.0), "once a run, not once a step"
        assert seconds(slow, decode, orchestration, starts_run=False)[0] == pytest.approx(
            seconds(plain, decode, orchestration, starts_run=False)[0]
        )


MACHINES = ("toy", "sn40l-socket", "a100", "h200", "epyc-2core")
numbers = st.floats(0.01, 100.0)
sizes = st.builds(Sizes.prefill, st.integers(1, 3), st.integers(1, 70)) | st.builds(
    Sizes.decode, st.integers(1, 5), st.integers(1, 70)
)


def scaled(spec, flops, memory, launch):
    """The machine with its arithmetic, memories and launches faster by these factors."""
    tiers = tuple(replace(tier, bytes_per_s=tier.bytes_per_s * memory) for tier in spec.tiers)
    return replace(
        spec, flops_per_s=spec.flops_per_s * flops, tiers=tiers, launch_host_s=spec.launch_host_s / launch,
        launch_device_s=spec.launch_device_s / launch,
    )  # fmt: skip


@settings(STEADY, max_examples=60)
@given(decoders(), sizes, st.sampled_from(MACHINES), st.sampled_from(["none", "cache", "section"]), numbers, numbers)
def test_no_step_is_faster_than_the_roofline_and_no_faster_machine_slower(graph, size, name, rule_set, flops, memory):
    spec, program = scaled(load_machine(name), flops, memory, 1.0), compile_graph(graph, rule_set)
    seconds = step_time(spec, program, size).seconds
    assert seconds >= roofline_s(spec, program, size) * (1 - NEAR)
    for better in ((2.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 2.0)):
        assert step_time(scaled(spec, *better), program, size).seconds <= seconds * (1 + NEAR)


@settings(STEADY, max_examples=40)
@given(decoders(), sizes, st.sampled_from(["none", "cache", "section"]))
def test_bytes_are_conserved(graph, size, rule_set):
    """What regions keep memory busy for is just the program's bytes, at the achieved rate."""
    spec, program = load_machine("toy"), compile_graph(graph, rule_set)
    rows = step_time(spec, program, size).rows
    busy_s = sum(row.memory_s["dram"] for row in rows)
    assert busy_s * spec.tier("dram").achieved_bytes_per_s == pytest.approx(program_cost(program, size).total_bytes)
    assert sum(row.compute_s for row in rows) * spec.flops_per_s == pytest.approx(program_cost(program, size).flops)


@settings(STEADY, max_examples=40)
@given(st.integers(2, 64), st.floats(1.0, 1e10), st.floats(1e8, 1e12), st.floats(0.0, 1e-4), numbers)
def test_a_faster_exchange_is_never_slower(ranks, size, rate, latency, factor):
    peers = Peers(rate, latency, "made up")
    wanted = Collective("all_reduce", round(size), ranks)
    slow = exchange(replace(machine(), peers=peers), wanted)
    fast = exchange(replace(machine(), peers=replace(peers, bytes_per_s=rate * max(1.0, factor))), wanted)
    assert fast.seconds <= slow.seconds * (1 + NEAR)
    assert slow.seconds >= 2 * (ranks - 1) / ranks * round(size) / rate * (1 - NEAR), "a ring moves the fewest bytes"


def test_a_step_of_variants_reads_the_weights_of_each(layout):
    """What is shared is read once, whatever else the step is; several steps pay for each of them."""
    desk = desk_on(load_machine("toy"), layout)
    program, spec = desk.exe.program, desk.device.spec
    shared = Shared(desk.weights, shared_but(program, ".o", ".down"))
    alone = replace(desk.binding(rows([([token], 0) for token in (3, 9, 5)])), shared=shared)
    mixed = replace(alone, variants=Variants((desk.weights,) * 2, (alone.offsets,) * 2, (0, 1, 2)))
    more_s = 2 * own_bytes(program, shared.indices) / spec.tier(spec.run_tier).achieved_bytes_per_s
    for steps in (1, 4):
        seconds = [took(desk, desk.device.run(desk.exe, binding, steps=steps)) for binding in (alone, mixed)]
        assert seconds[1] - seconds[0] == pytest.approx(steps * more_s)
