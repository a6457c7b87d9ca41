"""Sections that sum over the loop that they walk: a convolution by FFT, and training steps, forward and backward.

Knows nothing about time.
"""

from __future__ import annotations

from dataclasses import replace as with_

import numpy as np
import pytest
from graphs import GPTS, STEADY, TRAINABLE, Player, decoder, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from section_checks import check_outputs, check_plan, check_run, run_graph
from test_dataflow_sections import SOCKET, chip, layer
from test_monarch import fft_conv_weights

from coterie.core.dtypes import DType
from coterie.core.shapes import Sizes, Symbol
from coterie.dataflow.deadlock import shallow
from coterie.dataflow.interpret import Interpreter
from coterie.dataflow.loops import Tag
from coterie.dataflow.mapping import Mapped, map_section
from coterie.dataflow.sections import sections_of
from coterie.dataflow.walk import EdgeKind, walk
from coterie.graph.backward.build import TARGETS, training_graph
from coterie.graph.ir import GraphBuilder, Kind
from coterie.graph.reference import KvState, Reference
from coterie.models.monarch import fft_conv_graph

T = Symbol.T


def sums_of(mapped):
    """Ops that sum over the loop that they walk."""
    pairs = zip(mapped.walk.nests, mapped.walk.loops, strict=True)
    return [nest.op.kind for nest, loop in pairs if loop and nest.loop(loop).tag is Tag.REDUCTION]


@pytest.mark.parametrize("factors", [(4, 3, 2), (3, 5), (2, 2, 2, 3)])
@pytest.mark.parametrize("sequences", [1, 2, 3])
@pytest.mark.parametrize("tiles", [None, 2, 3])
def test_a_convolution_by_fft_is_one_section_that_convolves(factors, sequences, tiles):
    """FlashFFTConv: against the convolution itself, summed term by term."""
    graph, dice, points = fft_conv_graph(factors, DType.F32), np.random.default_rng(0), int(np.prod(factors))
    kernel, x = dice.standard_normal(points), dice.standard_normal((sequences, points))
    mapped = map_section(graph, graph.ops, Sizes.prefill(sequences, 1), SOCKET, tiles=tiles)
    assert isinstance(mapped, Mapped)
    values = {
        **fft_conv_weights(factors, kernel),
        "x": x.reshape(sequences * factors[0], -1).astype(np.float32),
    }
    ran = Interpreter(graph, mapped).run(values)
    check_run(ran, mapped)
    found = ran.outputs["y"].reshape(sequences, points)
    turned = np.stack([np.roll(kernel, shift) for shift in range(points)], axis=1)  # [n, m]: kernel[n - m]
    np.testing.assert_allclose(found, x @ turned.T, atol=1e-4 * np.abs(found).max())
    if sequences == 1 and len(factors) > 2:
        assert "linear" in sums_of(mapped)
        assert max(mapped.walk.phases) > 0, "its readers wait for the sums"


def step_of(graph, lengths, seed=3):
    """A training graph of a decoder, every value of a step of sequences of these lengths, and its sizes."""
    train, player, dice = training_graph(graph), Player(graph), np.random.default_rng(seed)
    vocab, tokens = graph.values["head/logits"].shape[-1], sum(lengths)
    rows = player.rows(*((s, dice.integers(0, vocab, n).tolist()) for s, n in enumerate(lengths)))
    # Rows are targets in any order, so that putting them back is more than a copy.
    rows |= {"rows": dice.permutation(tokens).astype(np.int32)}
    rows |= {TARGETS: dice.integers(0, vocab, tokens).astype(np.int32)}
    values = Reference(train, random_weights(graph)).run(rows, [], KvState(train, 64, 4))
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    return train, values, Sizes(tokens, len(lengths), tokens, tokens, pairs)


@settings(STEADY, max_examples=6)
@given(
    st.one_of(TRAINABLE, GPTS),
    st.sampled_from([(7,), (5, 4), (4, 4, 4), (12,), (1,)]),
    st.sampled_from(["best", "stage", "unfused"]),
    st.sampled_from([{"pmus": 160}, {"pcus": 100, "pmus": 110, "pmu_bytes": 1024}]),
    st.sampled_from([1, 3, 64]),
)
def test_a_training_step_is_the_reference_section_by_section(graph, lengths, how, room, block):
    train, values, sizes = step_of(graph, lengths)
    plan = sections_of(train, sizes, chip(**room), how, share_equal=False)
    check_plan(train, plan, values, KvState(train, 64, 4), block=block, rtol=5e-4, atol=2e-5)


@pytest.mark.parametrize("tiles", [1, 2, 3, 6])
def test_gradients_are_the_same_for_any_number_of_tiles(tiles):
    train, values, sizes = step_of(decoder(num_layers=1, windows=(0,)), (4, 4, 4))
    mapped = map_section(train, layer(train, "layers.0.grad"), sizes, chip(pmus=200), tiles=tiles)
    assert isinstance(mapped, Mapped)
    ran = Interpreter(train, mapped, key_block=3).run(values)
    check_run(ran, mapped)
    check_outputs(ran, values)
    assert {"linear_dw", "rms_norm_dw"} <= set(sums_of(mapped))


def test_sums_are_on_chip_in_float32_until_they_leave():
    train, _, sizes = step_of(decoder((DType.BF16,), num_layers=1, windows=(0,)), (12,))
    mapped = map_section(train, layer(train, "layers.0.grad"), sizes, chip(pmus=200), tiles=4)
    assert isinstance(mapped, Mapped)
    gradients = [s for s in mapped.streams if train.values[s.value].kind is Kind.OUTPUT]
    assert gradients
    for stream in gradients:
        (buffer,) = [b for b in mapped.buffers if b.name == stream.value and b.stage == stream.stage]
        elements = sizes.count(train.values[stream.value].shape)
        assert (stream.by_tile, stream.sum_bytes, buffer.kind) == (False, 4 * elements, "whole")
        assert buffer.size_bytes == 4 * elements
    # They leave when the last tile is in them.
    network = mapped.machine()
    stores = [n for n, actor in enumerate(network.actors) if actor.name.startswith("store layers.0.grad/down.model")]
    assert [(network.actors[n].firings, network.fifos[network.ins(n)[0]].consume) for n in stores] == [(1, 4)]
    assert not shallow(network)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
def test_sums_that_have_no_room_are_read_and_written_for_each_tile(dtype):
    train, values, sizes = step_of(decoder((dtype,), num_layers=1, windows=(0,), density=0.25), (12,))
    mapped = map_section(train, layer(train, "layers.0.grad"), sizes, chip(pmus=200), tiles=4)
    assert isinstance(mapped, Mapped)
    name = "layers.0.grad/down.model.layers.0.mlp.down_proj.weight"
    again = with_(mapped, streamed=frozenset({name}))
    ran = Interpreter(train, again).run(values)
    check_run(ran, again)
    check_outputs(ran, values)
    assert again.memory_bytes - mapped.memory_bytes == 2 * 3 * 4 * round(0.25 * 12 * 20)
    assert again.l1_s <= again.l2_s() * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
def test_a_layer_too_large_for_its_chip_sends_sums_to_and_fro(dtype):
    graph = decoder((dtype,), num_layers=1, windows=(0,), hidden_size=40, intermediate_size=60)
    train, values, sizes = step_of(graph, (12,))
    mapped = map_section(train, layer(train, "layers.0.grad"), sizes, chip(pmus=110, pmu_bytes=1024), tiles=4)
    assert isinstance(mapped, Mapped)
    assert any(stream.sum_bytes for stream in mapped.streams if stream.value in mapped.streamed)
    ran = Interpreter(train, mapped).run(values)
    check_run(ran, mapped)
    check_outputs(ran, values)
    assert mapped.l0_s <= mapped.l1_s <= mapped.l2_s() * (1 + 1e-9)


def shared_input(order):
    """Two ops that read what enters, in either order: one row by row, one that could as well walk its columns."""
    b = GraphBuilder("shared", "s")
    for name, shape, kind in (
        ("x", (T, 6), Kind.INPUT),
        ("dy", (T, 4), Kind.INPUT),
        ("w", (4, 6), Kind.WEIGHT),
        ("dx", (T, 6), Kind.OUTPUT),
        ("dw", (4, 6), Kind.OUTPUT),
    ):
        b.value(name, shape, DType.F32, kind)
    ops = {"dx": ("linear_dx", ("dy", "w")), "dw": ("linear_dw", ("dy", "x", ""))}
    for name in order:
        kind, inputs = ops[name]
        b.op(kind, name, inputs, (name,))
    return b.build()


@pytest.mark.parametrize("order", [("dx", "dw"), ("dw", "dx")])
@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_ops_that_read_the_same_rows_walk_them_together(order, tiles):
    graph, sizes, dice = shared_input(order), Sizes.prefill(1, 12), np.random.default_rng(0)
    steps = walk(graph, graph.ops, sizes)
    assert set(steps.loops) == {"t"}
    values = {"x": (12, 6), "dy": (12, 4), "w": (4, 6)}
    values = {name: dice.standard_normal(shape).astype(np.float32) for name, shape in values.items()}
    mapped = map_section(graph, graph.ops, sizes, chip(), tiles=tiles)
    assert isinstance(mapped, Mapped)
    (kept,) = mapped.flows
    assert (kept.value, kept.kind) == ("dy", EdgeKind.STREAM)
    ran = Interpreter(graph, mapped).run(values)
    check_run(ran, mapped)
    check_outputs(ran, run_graph(graph, values))


def waiting(wide):
    """Rows put back, for which all must be there, and added to a product of `wide` columns, made of four."""
    b = GraphBuilder("waiting", "s")
    for name, shape, kind in (
        ("x", (T, 12), Kind.INPUT),
        ("wa", (4, 12), Kind.WEIGHT),
        ("wb", (wide, 4), Kind.WEIGHT),
        ("scale", (wide,), Kind.WEIGHT),
        ("r", (Symbol.R, wide), Kind.INPUT),
        *(("a", (T, 4), Kind.TENSOR), ("b", (T, wide), Kind.TENSOR), ("s", (Symbol.R, wide), Kind.TENSOR)),
        *(("p", (T, wide), Kind.TENSOR), ("y", (T, wide), Kind.OUTPUT), ("z", (T, 4), Kind.OUTPUT)),
    ):
        b.value(name, shape, DType.F32, kind)
    b.value("rows", (Symbol.R,), DType.I32, Kind.INPUT)
    b.value("positions", (T,), DType.I32, Kind.INPUT)
    b.op("rms_norm", "s", ("r", "scale"), ("s",), eps=1e-3)
    b.op("linear", "a", ("x", "wa", ""), ("a",))
    b.op("silu", "z", ("a",), ("z",))
    b.op("linear", "b", ("a", "wb", ""), ("b",))
    b.op("take_rows_dx", "p", ("s", "rows"), ("p",))
    b.op("add", "y", ("p", "b"), ("y",))
    return b.build()


@pytest.mark.parametrize(("wide", "held"), [(40, "a"), (4, "b"), (3, "b")])
def test_what_waits_for_a_later_phase_is_held_where_it_is_least(wide, held):
    """A product that its reader takes only later is made later, if what it is made of is less to hold."""
    graph, sizes, dice = waiting(wide), Sizes(12, 1, 6, 12, 78), np.random.default_rng(0)
    steps = walk(graph, graph.ops, sizes)
    assert {edge.value for edge in steps.edges if edge.kind is EdgeKind.FULL} == {"s", held}
    assert steps.phases == (0, 0, 0, int(held == "a"), 1, 1)
    shapes = {"x": (12, 12), "wa": (4, 12), "wb": (wide, 4), "r": (6, wide), "scale": (wide,)}
    values = {name: dice.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    values |= {"rows": dice.permutation(12)[:6].astype(np.int32), "positions": np.arange(12, dtype=np.int32)}
    mapped = map_section(graph, graph.ops, sizes, chip(), tiles=3)
    assert isinstance(mapped, Mapped)
    ran = Interpreter(graph, mapped).run(values)
    check_run(ran, mapped)
    check_outputs(ran, run_graph(graph, values))


def test_a_whole_value_is_held_once_for_all_its_readers():
    """Slopes of all values go to two ops: one buffer, as large as the float32 sums, with room for all that read it."""
    train, values, sizes = step_of(decoder(num_layers=1, windows=(0,)), (12,))
    name = "layers.0.grad/attention.dv"
    narrow = with_(train.values[name], dtype=DType.BF16)
    train = with_(train, values={**train.values, name: narrow})
    mapped = map_section(train, layer(train, "layers.0.grad"), sizes, chip(pmus=200), tiles=4)
    assert isinstance(mapped, Mapped)
    readers = [flow.dst for flow in mapped.flows if flow.value == name]
    (buffer,) = [buffer for buffer in mapped.buffers if buffer.name == name]
    assert (buffer.stage, *buffer.also) == tuple(readers)
    assert len(readers) == 2
    assert buffer.size_bytes == 4 * int(np.prod(values[name].shape))


@pytest.mark.long
def test_a_hundred_training_steps():
    claim = test_a_training_step_is_the_reference_section_by_section.hypothesis.inner_test
    cases = (
        st.one_of(TRAINABLE, GPTS),
        st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
        st.sampled_from(["best", "stage", "unfused"]),
        st.sampled_from([{"pmus": 160}, {"pcus": 100, "pmus": 110, "pmu_bytes": 1024}]),
        st.integers(1, 9),
    )
    settings(STEADY, max_examples=100)(given(*cases)(claim))()
