"""Sections: the cut against every cut, bounds in order, bytes, monotone machines, units never exceeded, refusals.

Knows nothing about devices.
"""

from __future__ import annotations

import random
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import product

import pytest
from graphs import STEADY, decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core.dtypes import DType
from coterie.core.errors import CapacityError, UnsupportedError, UsageError
from coterie.core.shapes import Sizes, Symbol
from coterie.dataflow.balance import balance, fewest
from coterie.dataflow.chip import Chip, chip_of
from coterie.dataflow.deadlock import shallow
from coterie.dataflow.estimate import Estimate
from coterie.dataflow.mapping import Mapped, Misfit, map_section
from coterie.dataflow.partition import best_cut, members
from coterie.dataflow.sections import HOW, sections_of
from coterie.dataflow.stage import Split, Stage, Unit, cycles
from coterie.dataflow.traffic import section_cost
from coterie.dataflow.walk import EdgeKind, walk
from coterie.graph.compile import compile_graph
from coterie.graph.cost import op_cost, region_cost
from coterie.graph.fuse import SECTION
from coterie.graph.ir import Graph, GraphBuilder, Kind
from coterie.spec.load import load_machine

T = Symbol.T
CASES = settings(STEADY, max_examples=8)
SOCKET = chip_of(load_machine("sn40l-socket"))


def chip(pcus=40, pmus=70, pmu_bytes=4096, **changes) -> Chip:
    """A small socket, so that small graphs fill it."""
    grid = replace(SOCKET.grid, tiles=1, pcus=pcus, pmus=pmus, pmu_bytes=pmu_bytes, lanes=4, stages=2)
    return replace(SOCKET, grid=grid, **{"peak_flops_per_s": pcus * grid.pcu_flops_per_s, **changes})


def layer(graph: Graph, name="layers.0"):
    return [op for op in graph.ops if op.stage == name]


small = st.builds(
    decoder,
    num_heads=st.just(4),
    num_kv_heads=st.sampled_from([1, 2, 4]),
    qkv_bias=st.booleans(),
    windows=st.sampled_from([(0, 0), (3, 3)]),
    density=st.sampled_from([1.0, 0.25]),
)
steps = st.one_of(
    st.builds(Sizes.prefill, st.integers(1, 3), st.integers(1, 24)),
    st.builds(Sizes.decode, st.integers(1, 4), st.integers(1, 40)),
)


@st.composite
def dags(draw, most=8):
    count = draw(st.integers(2, most))
    pairs = {(draw(st.integers(0, n - 1)), n) for n in range(1, count)}
    pairs |= {(a, b) for a, b in draw(st.lists(st.tuples(*[st.integers(0, count - 1)] * 2), max_size=5)) if a < b}
    return count, sorted(pairs), draw(st.integers(0, 10**6))


def partitions(count):
    """Every partition of `count` ops, as masks."""
    if count == 0:
        yield ()
        return
    op = 1 << (count - 1)
    for parts in partitions(count - 1):
        yield from ((*parts[:at], part | op, *parts[at + 1 :]) for at, part in enumerate(parts))
        yield (*parts, op)


def have_an_order(pairs, parts):
    """Whether parts can run one after another: what each reads was made before."""
    of = {op: at for at, part in enumerate(parts) for op in members(part)}
    reads = {at: {of[a] for a, b in pairs if of[b] == at} - {at} for at in range(len(parts))}
    try:
        TopologicalSorter(reads).prepare()
    except CycleError:
        return False
    return True


def brute_force(count, pairs, cost):
    """The least cost over all partitions whose parts have an order."""
    ordered = (parts for parts in partitions(count) if have_an_order(pairs, parts))
    prices = ([cost(part) for part in parts] for parts in ordered)
    return min(sum(found) for found in prices if None not in found)


@settings(STEADY, max_examples=12)
@given(dags(7))
def test_the_cut_is_the_best_of_all(case):
    count, pairs, seed = case
    dice = random.Random(seed)
    table: dict[int, float | None] = {}

    def cost(mask):
        if mask not in table:
            table[mask] = None if dice.random() < 0.2 and mask & (mask - 1) else dice.random() + 0.2
        return table[mask]

    cut = best_cut(count, pairs, cost)
    wanted = brute_force(count, pairs, cost)
    assert cut is not None
    assert sum(cost(part) for part in cut) == pytest.approx(wanted)
    done = 0
    for part in cut:
        assert not done & part
        done |= part
        assert all(done >> src & 1 for src, dst in pairs if part >> dst & 1), "what a section reads is made before it"


@pytest.mark.parametrize("room", [6, 14, 400])
def test_the_cut_of_eight_real_ops_is_the_best_of_all(room):
    graph = decoder()
    ops, sizes = layer(graph)[:8], Sizes.prefill(2, 12)
    price = Estimate(graph, ops, sizes, chip(pmus=room))
    pairs = [(edge.src, edge.dst) for edge in walk(graph, ops, sizes).edges]
    cut = best_cut(len(ops), pairs, price)
    assert cut is not None
    assert sum(price(mask) for mask in cut) == pytest.approx(brute_force(len(ops), pairs, price))


@CASES
@given(small, steps, st.sampled_from(HOW))
def test_every_op_is_in_one_section_and_bounds_are_in_order(graph, sizes, how):
    plan = sections_of(graph, sizes, chip(), how)
    assert sum(len(plan.mapped[i].ops) for i in plan.index) == len(graph.ops)
    for part in plan.mapped:
        assert part.l0_s <= part.l1_s <= part.l2_s() * (1 + 1e-9)
        assert not shallow(part.machine()), "no section can wait for ever, whatever its stages' speeds"
        assert part.pcus <= part.chip.grid.pcus
        assert part.pmus <= part.chip.grid.pmus
        assert all(b.size_bytes <= b.pmus * part.chip.grid.pmu_bytes for b in part.buffers)
        assert sum(s.size_bytes for s in part.streams) == part.cost.total_bytes
        assert sum(stage.flops for stage in part.stages) == part.cost.flops
    assert plan.seconds(looping=True) <= plan.seconds() * (1 + 1e-9)


@CASES
@given(small, steps)
def test_equal_layers_are_mapped_once_and_alike(graph, sizes):
    shared, apart = (sections_of(graph, sizes, chip(), "best", share_equal=share) for share in (True, False))
    assert len(shared.mapped) < len(apart.mapped)
    assert [shared.mapped[i].l1_s for i in shared.index] == [apart.mapped[i].l1_s for i in apart.index]


@CASES
@given(small, steps, st.integers(0, 3))
def test_a_better_machine_is_never_slower(graph, sizes, what):
    before = chip()
    after = [
        chip(
            memory_bytes_per_s=before.memory_bytes_per_s * 2, peak_memory_bytes_per_s=before.peak_memory_bytes_per_s * 2
        ),
        chip(pcus=80),
        chip(pmus=140),
        chip(launch_s=before.launch_s / 2, launch_full_s=before.launch_full_s / 2),
    ][what]
    for name in graph.stages:
        slow, fast = (map_section(graph, layer(graph, name), sizes, c) for c in (before, after))
        assert isinstance(slow, Mapped)
        assert isinstance(fast, Mapped)
        assert fast.work_s <= slow.work_s * (1 + 1e-9)


@CASES
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=3),
    st.integers(3, 9),
)
def test_balance_is_exact(shapes, pcus):
    """Against every division into rows and columns of every stage (reductions whole)."""
    grid = chip(pcus).grid
    tiles = [Stage(f"s{i}", "linear", i, Unit.SYSTOLIC, m, 0, 0, m=m, n=n, k=k) for i, (m, n, k) in enumerate(shapes)]
    splits = [Split(a, b) for a in range(1, pcus + 1) for b in range(1, pcus // a + 1)]
    wanted = min(
        max(cycles(tile, split, grid) for tile, split in zip(tiles, chosen, strict=True))
        for chosen in product(splits, repeat=len(tiles))
        if sum(split.pcus for split in chosen) <= pcus
    )
    found = balance(tiles, grid, pcus)
    assert found is not None
    assert found.slowest_cycles <= wanted
    assert found.pcus <= pcus
    whole = [fewest(tile, grid, wanted) for tile in tiles]
    assert all(split is not None for split in whole)


def test_a_decoder_layer_streams_along_its_tokens():
    graph = decoder()
    steps = walk(graph, layer(graph), Sizes.prefill(1, 16))
    assert {edge.kind for edge in steps.edges} == {EdgeKind.STREAM}
    assert max(steps.phases) == 0


def test_rows_taken_by_number_need_a_whole_buffer_and_a_phase_of_their_own():
    graph = decoder()
    steps = walk(graph, graph.ops[-6:], Sizes.prefill(1, 16))
    edge = next(edge for edge in steps.edges if edge.kind is not EdgeKind.STREAM)
    assert (edge.kind, edge.reason) == (EdgeKind.FULL, "take_rows takes its rows by number, in any order")
    assert steps.phases[-1] == 1


def computed_rows() -> Graph:
    """Rows taken by numbers that the graph itself draws."""
    b = GraphBuilder("loop", stage="s")
    table = b.value("table", (37, 12), DType.F32, Kind.WEIGHT)
    b.value("logits", (T, 37), DType.F32, Kind.INPUT)
    b.value("sampling", (T,), DType.F32, Kind.INPUT)
    b.value("drawn", (T,), DType.I32, Kind.TENSOR)
    b.op("sample", "sample", ("logits", "sampling"), ("drawn",))
    b.value("y", (T, 12), DType.F32, Kind.TENSOR)
    b.op("embed", "embed", ("drawn", table), ("y",))
    return b.build()


def test_an_op_addressed_by_what_its_section_computes_is_a_barrier():
    graph, sizes = computed_rows(), Sizes.prefill(1, 8)
    plan = sections_of(graph, sizes, chip())
    assert len(plan.mapped) == 2
    assert [b.kind for b in plan.boundaries] == ["data-dependent"]
    assert plan.boundaries[0].reason == "embed is addressed by drawn, which is computed"
    with pytest.raises(UsageError, match=r"\[loop: s\] .*embed is addressed by drawn, which is computed; cut"):
        sections_of(graph, sizes, chip(), "stage")


def test_too_little_memory_cuts_a_layer_and_says_so():
    graph = decoder(hidden_size=64, intermediate_size=96)
    plan = sections_of(graph, Sizes.prefill(4, 32), chip(pmus=80, pmu_bytes=1024, memory_bytes_per_s=1e9))
    kinds = {b.kind for b in plan.boundaries}
    assert "capacity" in kinds
    assert any(reason in b.reason for b in plan.boundaries for reason in ("PMUs, ", "read again"))


def test_what_fits_nowhere_is_refused_with_numbers():
    graph = decoder()
    tiny = chip(pmus=3, pmu_bytes=64)
    found = map_section(graph, layer(graph), Sizes.prefill(1, 16), tiny)
    assert isinstance(found, Misfit)
    assert "more than there are (the largest is " in str(found)
    with pytest.raises(CapacityError, match=r"what it holds on chip .* needs .* but 192 B can be had"):
        sections_of(graph, Sizes.prefill(1, 16), tiny)
    few = map_section(graph, layer(graph), Sizes.prefill(1, 16), chip(pcus=5))
    assert str(few).endswith("stages need a PCU each, 13 more than there are")
    with pytest.raises(UsageError, match="fits nowhere"):
        sections_of(graph, Sizes.prefill(1, 16), chip(pcus=5), "stage")


def test_machines_without_units_ops_without_a_form_and_ways_without_a_name_are_refused():
    with pytest.raises(UsageError, match="no grid of compute and memory units"):
        chip_of(load_machine("dgx-h100"))
    with pytest.raises(UsageError, match="there is no way 'fast'"):
        sections_of(decoder(), Sizes.prefill(1, 4), chip(), "fast")
    graph = decoder()
    odd = replace(graph.ops[1], kind="sort")
    with pytest.raises(UnsupportedError, match="op sort has no normal form"):
        map_section(graph, [odd], Sizes.prefill(1, 4), chip())


def test_costs_are_those_of_the_graph():
    graph, sizes = decoder(), Sizes.prefill(2, 9)
    program = compile_graph(graph, SECTION)
    assert [region.stage for region in program.regions] == list(graph.stages)
    costs = [section_cost(graph, layer(graph, stage), sizes) for stage in graph.stages]
    assert costs == [region_cost(program, region, sizes) for region in program.regions]
    assert sum(cost.flops for cost in costs) == sum(op_cost(graph, op, sizes).flops for op in graph.ops) > 0


def test_members_of_a_mask_ascend():
    assert members(0b1011) == [0, 1, 3]


@pytest.mark.long
@pytest.mark.parametrize(
    ("claim", "given_"),
    [
        (test_every_op_is_in_one_section_and_bounds_are_in_order, (small, steps, st.sampled_from(HOW))),
        (test_equal_layers_are_mapped_once_and_alike, (small, steps)),
        (test_a_better_machine_is_never_slower, (small, steps, st.integers(0, 3))),
        (test_the_cut_is_the_best_of_all, (dags(8),)),
    ],
)
def test_two_hundred_times(claim, given_):
    settings(STEADY, max_examples=200)(given(*given_)(claim.hypothesis.inner_test))()
