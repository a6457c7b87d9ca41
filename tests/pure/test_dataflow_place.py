"""Placement: every unit has one owner and lies on the grid; pictures, traces and prices come from the same mapping.

Knows nothing about how sections are chosen.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, pairwise
from xml.etree import ElementTree

import pytest
from graphs import STEADY, decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dataflow_sections import SOCKET, chip, layer, steps

from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.dataflow.chip import chip_of
from coterie.dataflow.draw import picture
from coterie.dataflow.mapping import Mapped, map_section
from coterie.dataflow.place import place
from coterie.dataflow.price import section_price
from coterie.dataflow.report import tile_trace
from coterie.dataflow.shapes import to_svg
from coterie.graph.shard import shard
from coterie.models.zoo import zoo_graph
from coterie.spec.load import load_machine


def mapped_layer(sizes=None, on=None) -> Mapped:
    graph = decoder()
    found = map_section(graph, layer(graph), sizes or Sizes.prefill(2, 12), on or chip())
    assert isinstance(found, Mapped)
    return found


@settings(STEADY, max_examples=10)
@given(steps, st.integers(0, 50))
def test_every_unit_has_one_owner_and_lies_on_the_grid(sizes, swaps):
    mapped = mapped_layer(sizes)
    placed = place(mapped, swaps)
    for cells, counts in (
        (placed.pcus, [s.pcus for s in mapped.splits]),
        (placed.pmus, [b.pmus for b in mapped.buffers]),
    ):
        assert [len(found) for found in cells] == counts
        flat = list(chain.from_iterable(cells))
        assert len(flat) == len(set(flat))
        assert all(0 <= x < placed.columns and 0 <= y < placed.rows for x, y in flat)
    assert placed == place(mapped, swaps), "the same every time"
    assert placed.mean_hops >= 0


def test_swaps_bring_bytes_nearer_to_their_readers():
    graph = zoo_graph("llama-2-7b")
    mapped = map_section(graph, layer(graph, "layers.1"), Sizes.prefill(1, 512), SOCKET)
    assert isinstance(mapped, Mapped)
    assert place(mapped).mean_hops < place(mapped, swaps=0).mean_hops


@settings(STEADY, max_examples=12)
@given(steps, st.sampled_from([8.0, 64.0]))
def test_the_most_loaded_link_is_one_more_bound(sizes, bytes_per_cycle):
    grid = replace(chip().grid, pmu_bytes_per_cycle=bytes_per_cycle)
    mapped = mapped_layer(sizes, replace(chip(pmus=200), grid=replace(grid, pmus=200)))
    placed = place(mapped)
    drawn = sum(wire.seconds for wire in placed.wires)
    assert drawn == pytest.approx(placed.worst_link * mapped.interval_s)
    free, held = mapped.l2_s(), mapped.l2_s(placed.wires)
    assert mapped.l0_s <= mapped.l1_s <= free * (1 + 1e-9)
    assert free <= held * (1 + 1e-9)
    assert held - mapped.start_s >= drawn * (1 - 1e-9)
    double = mapped.l2_s([replace(wire, seconds=2 * wire.seconds) for wire in placed.wires])
    assert held <= double * (1 + 1e-9)


def test_units_among_their_readers_load_links_less():
    """Llama-2-7B's prefill on eight sockets: PMUs in a row beside their reader loaded one link four times."""
    graph, node = shard(zoo_graph("llama-2-7b"), 8), chip_of(load_machine("sn40l-node"))
    mapped = map_section(graph, layer(graph, "layers.1"), Sizes.prefill(1, 4096), node, ranks=8)
    assert isinstance(mapped, Mapped)
    placed = place(mapped)
    assert placed.worst_link < 2.5
    assert placed.mean_hops < 3
    assert mapped.l2_s(placed.wires) < 2.5 * mapped.l2_s()


def test_a_picture_shows_every_stage_and_marks_the_slowest():
    mapped = mapped_layer()
    svg = to_svg(picture(mapped, place(mapped), "a <layer>"))
    root = ElementTree.fromstring(svg)
    words = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <layer>" in words
    for n, stage in enumerate(mapped.stages, start=1):
        assert any(word.startswith(f"{n} {stage.name.removeprefix('layers.0/')} (") for word in words)
    bold = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text") if text.get("font-weight") == "bold"]
    assert len(bold) == 1


def test_the_tile_timeline_has_each_tile_of_each_stage_once():
    mapped = mapped_layer(Sizes.prefill(1, 24))
    trace = tile_trace(mapped)
    ends = {}
    for stage, service in zip(mapped.stages, mapped.service_s, strict=True):
        pieces = sorted((p for p in trace.slices if p.lane == stage.name), key=lambda p: p.start_s)
        assert [p.args["tile"] for p in pieces] == list(range(len(service)))
        assert all(a.end_s <= b.start_s + 1e-15 for a, b in pairwise(pieces))
        ends[stage.name] = pieces[-1].end_s
    assert max(ends.values()) + mapped.start_s <= mapped.l2_s(place(mapped).wires) * (1 + 1e-9)


def test_the_price_of_a_section_is_that_of_its_mapping():
    graph, spec, sizes = zoo_graph("llama-2-7b"), load_machine("sn40l-socket"), Sizes.decode(1, 2048)
    price = section_price(spec, graph, layer(graph, "layers.1"), sizes)
    mapped = map_section(graph, layer(graph, "layers.1"), sizes, SOCKET)
    assert price is not None
    assert isinstance(mapped, Mapped)
    assert price.memory_bytes == mapped.memory_bytes
    assert price.compute_s + price.fill_s == pytest.approx(mapped.pipe_s)
    assert 0 < price.configured <= 1
    with pytest.raises(UsageError, match="no grid"):
        section_price(load_machine("h100"), graph, layer(graph, "layers.1"), sizes)
