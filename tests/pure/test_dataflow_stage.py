"""What single ops of a family become in space: the loops of their normal form, and their stages.

Knows nothing about sections.
"""

from __future__ import annotations

import pytest
from graphs import decoder, of_family
from test_dataflow_sections import SOCKET

from coterie.core.dtypes import DType
from coterie.core.shapes import Sizes
from coterie.dataflow.loops import Tag
from coterie.dataflow.mapping import Mapped, map_section
from coterie.dataflow.nest import nest
from coterie.dataflow.stage import Unit
from coterie.graph.ops import BF16, INT8, ROUNDING
from coterie.graph.rounding import with_rounding


def op_of(graph, name):
    return next(op for op in graph.ops if op.name == name)


@pytest.mark.parametrize(("family", "whole", "weights"), [("olmo2", 2, 4 * 6), ("qwen3", 1, 6)])
def test_what_a_norm_of_heads_needs_whole(family, whole, weights):
    """A token's heads, whose weights are as many, or just each head: then heads may be walked too."""
    graph = decoder(**of_family(family))
    found = nest(graph, op_of(graph, "layers.0/q_norm"), Sizes.prefill(1, 5))
    assert [loop.size for loop in found.loops] == [5, 4, 6]
    assert [loop.tag for loop in found.loops] == [Tag.PARALLEL] * (3 - whole) + [Tag.REDUCTION] * whole
    assert found.elements(found.reads[1]) == weights


@pytest.mark.parametrize(("dtype", "to", "walked"), [(DType.Q8, INT8, False), (DType.BF16, BF16, True)])
def test_a_row_that_is_rounded_in_groups_is_needed_whole(dtype, to, walked):
    """Its largest number says how; to bfloat16 each number is rounded by itself."""
    graph = with_rounding(decoder((dtype,)), to)
    op = op_of(graph, "layers.0/gate")
    assert op.attrs[ROUNDING] == to
    (columns,) = (loop for loop in nest(graph, op, Sizes.prefill(1, 5)).loops if loop.tag is Tag.REDUCTION)
    assert columns.online == walked


@pytest.mark.parametrize("window", [0, 3])
def test_a_cap_is_work_of_the_softmax_and_changes_no_product(window):
    """Five flops a score, as many as the rest of it."""
    found = []
    for cap in (0.0, 2.0):
        graph = decoder(attention_cap=cap, windows=(window, window))
        mapped = map_section(graph, [op_of(graph, "layers.0/attention")], Sizes.prefill(2, 5), SOCKET)
        assert isinstance(mapped, Mapped)
        found.append({stage.kind: (stage.flops, stage.seen) for stage in mapped.stages})
    plain, capped = found
    assert plain["scores"] == capped["scores"]
    assert plain["weigh"] == capped["weigh"]
    assert capped["softmax"][0] == 2 * plain["softmax"][0] > 0


@pytest.mark.parametrize(("scale", "unit"), [(1.0, Unit.MEMORY), (2.5, Unit.SIMD)])
def test_an_embedding_that_is_scaled_takes_more_than_memory_units(scale, unit):
    graph = decoder(embed_scale=scale)
    mapped = map_section(graph, [op_of(graph, "embed/x")], Sizes.prefill(1, 5), SOCKET)
    assert isinstance(mapped, Mapped)
    assert [stage.unit for stage in mapped.stages] == [unit]
