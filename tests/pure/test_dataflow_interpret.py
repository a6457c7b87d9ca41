"""A mapped section computes what the reference computes, moves the bytes that the mapping says, and keeps to its FIFOs.

Knows nothing about time.
"""

from __future__ import annotations

from dataclasses import replace as with_

import numpy as np
import pytest
from graphs import STEADY, Choice, Player, decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from section_checks import check_plan, check_run
from test_dataflow_sections import SOCKET, chip, layer

from coterie.core.dtypes import DType
from coterie.core.shapes import Sizes
from coterie.dataflow.interpret import Interpreter
from coterie.dataflow.mapping import Mapped, map_section
from coterie.dataflow.sections import sections_of
from coterie.graph.ir import GraphBuilder, Kind
from coterie.graph.reference import KvState, Step, run_op
from coterie.models.monarch import monarch_example


def lived(graph, past, tokens):
    """A player whose state holds `past` tokens, the rows of a step of `tokens` more, its sizes and all its values."""
    player = Player(graph)
    V = graph.values["head/logits"].shape[-1]
    if past:
        player.feed((0, [t % V for t in range(past)]))
    rows = player.rows((0, [(3 * t + 1) % V for t in range(tokens)]))
    before = KvState(graph, player.num_blocks, player.tokens_per_block)
    before.pages[:] = player.state.pages
    n = len(rows["rows"])
    values = player.reference.run(rows, [Choice()] * n, player.state)
    pairs = tokens * past + tokens * (tokens + 1) // 2
    return player, before, values, Sizes(tokens, 1, n, past + tokens, pairs)


small = st.builds(
    decoder,
    num_kv_heads=st.sampled_from([1, 2, 4]),
    qkv_bias=st.booleans(),
    windows=st.sampled_from([(0, 0), (3, 5)]),
    density=st.sampled_from([1.0, 0.25]),
)


@settings(STEADY, max_examples=12)
@given(
    small,
    st.integers(0, 9),
    st.sampled_from([1, 4, 6, 12]),
    st.integers(1, 6),
    st.sampled_from(["best", "stage", "cache", "unfused"]),
)
def test_a_mapped_model_is_the_reference_tile_by_tile(graph, past, tokens, block, how):
    player, state, values, sizes = lived(graph, past, tokens)
    plan = sections_of(graph, sizes, chip(), how, share_equal=False)
    check_plan(graph, plan, values, state, [Choice()] * sizes.R, block)
    np.testing.assert_allclose(state.pages, player.state.pages, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("tiles", [1, 2, 3, 6, 12])
def test_any_number_of_tiles_gives_the_same(tiles):
    graph = decoder(num_layers=1, windows=(0,))
    _, state, values, sizes = lived(graph, 5, 12)
    mapped = map_section(graph, layer(graph), sizes, chip(), tiles=tiles)
    assert isinstance(mapped, Mapped)
    ran = Interpreter(graph, mapped, key_block=4).run(values, state)
    np.testing.assert_allclose(ran.outputs["layers.0/out"], values["layers.0/out"], rtol=2e-4, atol=2e-5)
    assert ran.moved_bytes == mapped.memory_bytes


def test_streamed_weights_are_counted_as_often_as_they_are_read():
    graph = decoder(num_layers=1, windows=(0,))
    _, state, values, sizes = lived(graph, 0, 12)
    mapped = map_section(graph, layer(graph), sizes, chip(), tiles=4)
    assert isinstance(mapped, Mapped)
    weight = "model.layers.0.mlp.up_proj.weight"
    again = with_(mapped, streamed=frozenset({weight}))
    ran = Interpreter(graph, again).run(values, state)
    assert ran.moved_bytes == again.memory_bytes > mapped.memory_bytes


def many(graph, sequences, past, tokens):
    """As `lived`, for equal sequences."""
    player = Player(graph)
    V = graph.values["head/logits"].shape[-1]
    for s in range(sequences if past else 0):
        player.feed((s, [(s + t) % V for t in range(past)]))
    rows = player.rows(*((s, [(3 * t + s + 1) % V for t in range(tokens)]) for s in range(sequences)))
    before = KvState(graph, player.num_blocks, player.tokens_per_block)
    before.pages[:] = player.state.pages
    values = player.reference.run(rows, [Choice()] * len(rows["rows"]), player.state)
    pairs = sequences * (tokens * past + tokens * (tokens + 1) // 2)
    sizes = Sizes(sequences * tokens, sequences, len(rows["rows"]), sequences * (past + tokens), pairs)
    return before, values, sizes


@settings(STEADY, max_examples=25)
@given(
    st.sampled_from([1, 2, 3, 4]),
    st.integers(0, 9),
    st.sampled_from([1, 2, 3, 6]),
    st.sampled_from([0, 1, 4]),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
)
def test_keys_that_are_not_kept_are_counted_as_often_as_tiles_read_them(sequences, past, tokens, window, tiles):
    graph = decoder(num_layers=1, windows=(window,))
    state, values, sizes = many(graph, sequences, past, tokens)
    mapped = map_section(graph, layer(graph), sizes, chip(), tiles=min(tiles, sizes.T))
    assert isinstance(mapped, Mapped)
    kept = with_(mapped, streamed=frozenset())
    again = with_(mapped, streamed=frozenset({"layers.0/attention.kv"}))
    for laid_out in (kept, again):
        ran = Interpreter(graph, laid_out, key_block=3).run(values, state)
        np.testing.assert_allclose(ran.outputs["layers.0/out"], values["layers.0/out"], rtol=2e-4, atol=2e-5)
        assert ran.moved_bytes == laid_out.memory_bytes
        assert laid_out.l0_s <= laid_out.l1_s <= laid_out.l2_s() * (1 + 1e-9)
    assert again.memory_bytes >= kept.memory_bytes
    if tokens == 1:
        assert again.memory_bytes == kept.memory_bytes, "each tile has sequences of its own"


def test_a_batch_whose_keys_do_not_fit_streams_them_and_keeps_the_weights():
    """32 sequences decode over 96 keys each: 288 KiB of keys and values beside 45 PMUs of 4 KiB."""
    graph = decoder(num_layers=1, windows=(0,))
    sizes = Sizes.decode(32, 96)
    mapped = map_section(graph, layer(graph), sizes, chip(pmus=45))
    assert isinstance(mapped, Mapped)
    assert mapped.streamed == {"layers.0/attention.kv"}
    assert sum(buffer.pmus for buffer in mapped.buffers) <= 45
    assert mapped.memory_bytes == mapped.cost.total_bytes
    # A long prompt that is read tile by tile goes over the keys before it again and again.
    prompt = map_section(graph, layer(graph), Sizes.prefill(1, 96), chip(), tiles=12)
    assert isinstance(prompt, Mapped)
    keys = sum(8 * (tile + 1) for tile in range(12)) - 96
    again = with_(prompt, streamed=mapped.streamed)
    assert again.memory_bytes == prompt.cost.total_bytes + keys * 2 * 2 * 6 * 4


def test_scores_far_apart_do_not_overflow_the_running_softmax():
    graph = decoder(num_layers=1, windows=(0,))
    _, state, values, sizes = lived(graph, 0, 12)
    state.pages[:] *= 1e4
    values["layers.0/q_rope"] = values["layers.0/q_rope"] * np.float32(1e3)
    op = next(op for op in graph.ops if op.kind == "attention")
    mapped = map_section(graph, [op], sizes, chip())
    assert isinstance(mapped, Mapped)
    found = Interpreter(graph, mapped, key_block=2).run(values, state).outputs["layers.0/attention"]
    assert np.isfinite(found).all()


def turned(outer=8, inner=12):
    """A linear between two transposes: what enters and what leaves is seen through a view."""
    b = GraphBuilder("turned", "s")
    for name, shape, kind in (
        ("x", (outer, inner), Kind.INPUT),
        ("w", (6, outer), Kind.WEIGHT),
        ("t", (inner, outer), Kind.TENSOR),
        ("y", (inner, 6), Kind.TENSOR),
        ("out", (6, inner), Kind.OUTPUT),
    ):
        b.value(name, shape, DType.F32, kind)
    b.op("swap", "in", ("x",), ("t",), outer=outer, middle=1, inner=inner)
    b.op("linear", "linear", ("t", "w", ""), ("y",))
    b.op("swap", "back", ("y",), ("out",), outer=inner, middle=1, inner=6)
    return b.build()


@pytest.mark.parametrize("tiles", [1, 3, 4])
@pytest.mark.parametrize("make", [lambda: monarch_example(DType.F32), turned], ids=["table-1", "turned"])
def test_transposes_are_ways_to_read(make, tiles):
    """The paper's Figure 4: a transpose moves no byte of its own, tile by tile as in whole."""
    graph, dice = make(), np.random.default_rng(1)
    sizes = Sizes.prefill(1, 1)
    entering = (v for v in graph.values.values() if v.kind in (Kind.INPUT, Kind.WEIGHT))
    values = {v.name: dice.standard_normal([sizes.of(n) for n in v.shape]).astype(np.float32) for v in entering}
    mapped = map_section(graph, graph.ops, sizes, SOCKET, tiles=tiles)
    assert isinstance(mapped, Mapped)
    ran = Interpreter(graph, mapped).run(values)
    step = Step(graph, dict(values), None)
    for op in graph.ops:
        run_op(step, op)
    np.testing.assert_allclose(ran.outputs["out"], step.values["out"], rtol=1e-4, atol=2e-3)
    check_run(ran, mapped)
    assert len(ran.order) == sum(len(service) for service in mapped.service_s)
