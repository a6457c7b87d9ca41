"""A step priced by laying its sections out: the mapping's own times, and whole regions where there is no grid.

Knows nothing about lanes.
"""

from __future__ import annotations

import pytest

from coterie.core.shapes import Sizes
from coterie.dataflow import price
from coterie.dataflow.chip import chip_of
from coterie.dataflow.mapping import Mapped, map_section
from coterie.dataflow.sections import sections_of
from coterie.dataflow.stream import first_s
from coterie.devices.modelled.price import step_time
from coterie.devices.modelled.transfer import PEERS
from coterie.graph.compile import compile_graph
from coterie.graph.fuse import SECTION
from coterie.graph.shard import shard
from coterie.models.zoo import zoo_graph
from coterie.spec.load import load_machine

NODE = load_machine("sn40l-node")


@pytest.mark.parametrize("sizes", [Sizes.decode(1, 2048), Sizes.prefill(1, 1024)], ids=["decode", "prefill"])
def test_a_mapped_step_takes_what_its_sections_take(sizes):
    graph = shard(zoo_graph("mistral-7b"), NODE.units)
    step = step_time(NODE, compile_graph(graph, SECTION), sizes, mapped=True)
    plan = sections_of(graph, sizes, chip_of(NODE), "stage", NODE.units)
    assert len(step.rows) == len(plan.index)
    for row, which in zip(step.rows, plan.index, strict=True):
        part = plan.mapped[which]
        assert row.seconds - row.launch_s == pytest.approx(part.l2_s() - part.start_s, rel=1e-6)
        assert row.work_s <= part.work_s * (1 + 1e-9)
        assert row.collective_s == 0
    assert step.rows[1].memory_s[PEERS] == pytest.approx(plan.mapped[1].link_s)


def test_whole_regions_and_mapped_sections_are_near_each_other():
    """Two models of one machine: they may differ by what fills, rounds and overlaps, not by more."""
    program = compile_graph(shard(zoo_graph("mistral-7b"), NODE.units), SECTION)
    for sizes in (Sizes.decode(1, 2048), Sizes.prefill(1, 2048)):
        whole, mapped = (step_time(NODE, program, sizes, mapped=flag).seconds for flag in (False, True))
        assert 0.6 < mapped / whole < 1.4


def test_machines_without_a_grid_price_as_before():
    dgx, sizes = load_machine("dgx-h100"), Sizes.decode(1, 512)
    program = compile_graph(shard(zoo_graph("mistral-7b"), dgx.units), "cache")
    assert step_time(dgx, program, sizes, mapped=True) == step_time(dgx, program, sizes)


@pytest.mark.parametrize("sizes", [Sizes.decode(1, 2048), Sizes.prefill(1, 2048)], ids=["decode", "prefill"])
def test_looped_layers_pay_their_start_once_and_wait_for_each_other(sizes):
    """As `sections_of` counts it; a layer's first tile needs that of the layer before."""
    graph = shard(zoo_graph("mistral-7b"), NODE.units)
    step = step_time(NODE, compile_graph(graph, SECTION), sizes, mapped=True, starts_run=False)
    part = sections_of(graph, sizes, chip_of(NODE), "stage", NODE.units).mapped[1]
    assert step.rows[1].repeat_s == pytest.approx(part.interval_s)
    assert part.interval_s >= first_s(part.pipeline)
    saved = sum(row.seconds - part.interval_s for row in step.rows[2:33])
    assert step.looped_s == pytest.approx(step.seconds - saved)
    assert 31 * step.rows[1].launch_s * (1 - 1e-9) <= saved < step.seconds
    whole = step_time(NODE, compile_graph(graph, SECTION), sizes)
    assert whole.looped_s == whole.seconds, "regions that are not laid out are not looped"


def test_a_token_passes_all_stages_of_a_layer_before_the_next_begins():
    """One tile: nothing overlaps but the start and the weights; many: nothing but the fill of the pipeline."""
    graph = shard(zoo_graph("mistral-7b"), NODE.units)
    layer = [op for op in graph.ops if op.stage == "layers.1"]
    one = map_section(graph, layer, Sizes.decode(1, 2048), chip_of(NODE), ranks=8, tiles=1)
    many = map_section(graph, layer, Sizes.prefill(1, 2048), chip_of(NODE), ranks=8, tiles=64)
    assert isinstance(one, Mapped)
    assert isinstance(many, Mapped)
    assert first_s(one.pipeline) == pytest.approx(one.pipe_s)
    assert one.interval_s == pytest.approx(max(one.pipe_s, one.memory_s, one.link_s))
    assert first_s(many.pipeline) < many.pipe_s / 4
    assert many.interval_s < many.work_s


def test_equal_sections_are_laid_out_once_for_a_machine_and_sizes(monkeypatch):
    """Layers, models of one shape and steps of one size share a price; another bandwidth or size has its own."""
    laid_out = []
    monkeypatch.setattr(price, "_PRICES", {})
    monkeypatch.setattr(price, "map_section", lambda *args, **named: laid_out.append(1) or map_section(*args, **named))
    first, again = (compile_graph(shard(zoo_graph("llama-2-7b"), NODE.units), SECTION) for _ in range(2))
    once = step_time(NODE, first, Sizes.decode(1, 512), mapped=True)
    kinds = len(laid_out)
    assert kinds < 6
    assert step_time(NODE, again, Sizes.decode(1, 512), mapped=True) == once
    assert len(laid_out) == kinds
    slower = load_machine("sn40l-node:peers.bandwidth=low")
    assert step_time(slower, again, Sizes.decode(1, 512), mapped=True).seconds > once.seconds
    step_time(NODE, again, Sizes.decode(1, 513), mapped=True)
    assert len(laid_out) == 3 * kinds
