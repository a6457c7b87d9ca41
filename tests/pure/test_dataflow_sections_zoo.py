"""Sections of the paper's models: its example, a convolution by FFT, decoder layers and a training step."""

from __future__ import annotations

import pytest
from graphs import decoder
from tests.pure.test_dataflow_sections import SOCKET, chip, layer

from coterie.core.shapes import Sizes
from coterie.dataflow.chip import chip_of
from coterie.dataflow.deadlock import shallow
from coterie.dataflow.mapping import Mapped, map_section
from coterie.dataflow.sections import sections_of
from coterie.dataflow.stage import Unit
from coterie.dataflow.walk import EdgeKind
from coterie.graph.backward.build import training_graph
from coterie.graph.shard import shard
from coterie.models.zoo import zoo_graph
from coterie.spec.load import load_machine


def test_the_papers_example_streams_through_its_transpose_as_one_section():
    """Fig. 4: the transpose costs nothing, only the four weights, the input and the result touch memory."""
    plan = sections_of(zoo_graph("monarch-example"), Sizes.prefill(1, 1), SOCKET)
    (part,) = plan.mapped
    assert plan.launches == 1
    assert {edge.kind for edge in part.walk.edges} == {EdgeKind.STREAM}
    assert [stage.kind for stage in part.stages] == ["linear", "mul_table", "linear"]
    assert any(flow.transposed for flow in part.flows)
    u = 128 * 1024 * 2
    assert part.memory_bytes == 12 * u, "operands and result 4 u, the scale 8 u"


def test_a_convolution_by_fft_is_one_section_whose_transforms_wait_for_each_other():
    plan = sections_of(zoo_graph("flash-fft-conv-1m"), Sizes.prefill(1, 1), SOCKET)
    (part,) = plan.mapped
    assert len(part.ops) == 97
    assert max(part.walk.phases) > 0
    assert part.l1_s <= part.l2_s() < float("inf")


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-2-70b", "bloom-176b", "mistral-7b", "falcon-40b"])
def test_a_decoder_layer_of_each_benchmark_is_one_section_of_each_of_eight_sockets(name):
    graph = shard(zoo_graph(name), 8)
    node = chip_of(load_machine("sn40l-node"))
    plan = sections_of(graph, Sizes.decode(1, 2048), node, ranks=8)
    assert plan.launches == len(graph.stages)
    layers = plan.mapped[plan.names.index("layers.1")]
    assert sum(stage.unit is Unit.LINK for stage in layers.stages) in (1, 2)
    assert layers.bound == "memory"


def test_a_layer_of_llama_2_7b_uses_nine_tenths_of_a_socket_in_prefill():
    """Section VI-C of the paper: about 90 % of PCUs and PMUs."""
    graph = zoo_graph("llama-2-7b")
    part = map_section(graph, layer(graph, "layers.1"), Sizes.prefill(1, 4096), SOCKET)
    assert isinstance(part, Mapped)
    assert 0.9 <= part.pcus / 1040 <= 1
    assert 0.85 <= part.pmus / 1040 <= 1
    assert not part.streamed


def test_scores_of_all_heads_and_groups_are_on_chip_at_once():
    """A vision tower's rows see each other in groups: two blocks of 256 keys, 2 bytes each, for every row and head."""
    graph, sizes = zoo_graph("llava-1.5-7b"), Sizes.prefill(2, 640)
    ops = [op for op in graph.ops if op.stage == next(o.stage for o in graph.ops if o.kind == "group_attention")]
    part = map_section(graph, ops, sizes, SOCKET)
    assert isinstance(part, Mapped)
    softmax = next(at for at, stage in enumerate(part.stages) if stage.kind == "softmax")
    heads, rows = 16, 577 * 2
    scores = next(b for b in part.buffers if b.stage == softmax and b.name.endswith("scores>"))
    assert scores.size_bytes >= 2 * 2 * heads * rows / part.tiles * 256
    assert scores.pmus * SOCKET.grid.pmu_bytes >= scores.size_bytes


@pytest.mark.parametrize("how", ["best", "unfused"])
def test_a_training_step_is_mapped_too_and_never_waits_for_ever(how):
    graph, sizes = training_graph(decoder()), Sizes(16, 2, 16, 16, 72)
    plan = sections_of(graph, sizes, chip(), how)
    assert sum(len(plan.mapped[i].ops) for i in plan.index) == len(graph.ops)
    for part in plan.mapped:
        assert part.l0_s <= part.l1_s <= part.l2_s() * (1 + 1e-9) < float("inf")
        assert not shallow(part.machine())
        assert sum(s.size_bytes for s in part.streams) == part.cost.total_bytes
