"""Sharded sections run on all their sockets together: what they exchange tile by tile makes them the whole again.

Knows nothing about time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from graphs import SPLIT, STEADY, Choice, Player, decoder, gpt, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from section_checks import check_run, check_sockets
from test_dataflow_sections import chip, layer

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.dataflow.chip import chip_of
from coterie.dataflow.interpret import Interpreter, run_sockets
from coterie.dataflow.mapping import Mapped, map_section
from coterie.dataflow.sections import sections_of
from coterie.dataflow.stage import Unit
from coterie.graph.backward.build import TARGETS, split_training_graph, training_graph
from coterie.graph.ir import GraphBuilder, Kind
from coterie.graph.ops import COLLECTIVES
from coterie.graph.reference import KvState, Reference, run_ranks
from coterie.graph.shard import split_graph
from coterie.graph.stored import value_bytes
from coterie.spec.load import load_machine

NODE = chip_of(load_machine("sn40l-node"))


def linked(**changes):
    """A small socket with the links of a node."""
    links = {"link_bytes_per_s": NODE.link_bytes_per_s, "link_latency_s": NODE.link_latency_s}
    return replace(chip(**changes), **links)


def part_of(weights, splits, rank, degree):
    """What a rank has of each weight."""
    return {n: a[splits[n].of_rank(a.shape, rank, degree)] if n in splits else a for n, a in weights.items()}


def sharded(graph, degree, past, lengths):
    """Graphs, values and states before a step of all ranks, the whole's values, and the sizes of the step."""
    player, weights = Player(graph), random_weights(graph)
    found = [split_graph(graph, degree, rank) for rank in range(degree)]
    ranks = [Reference(f.graph, part_of(weights, f.splits, r, degree)) for r, f in enumerate(found)]
    states = [KvState(f.graph, 64, 4) for f in found]
    vocab = graph.values["head/logits"].shape[-1]
    if past:
        rows = player.rows(*((s, [(s + t) % vocab for t in range(past)]) for s in range(len(lengths))))
        run_ranks(ranks, rows, player.greedy(rows), states)
        player.reference.run(rows, player.greedy(rows), player.state)
    rows = player.rows(*((s, [(3 * t + s + 1) % vocab for t in range(n)]) for s, n in enumerate(lengths)))
    before = [KvState(f.graph, 64, 4) for f in found]
    for copy, state in zip(before, states, strict=True):
        copy.pages[:] = state.pages
    parts = run_ranks(ranks, rows, player.greedy(rows), states)
    whole = player.reference.run(rows, player.greedy(rows), player.state)
    tokens, pairs = sum(lengths), sum(n * past + n * (n + 1) // 2 for n in lengths)
    sizes = Sizes(tokens, len(lengths), tokens, tokens + past * len(lengths), pairs)
    return [f.graph for f in found], parts, before, whole, sizes


SHAPES = {**SPLIT, "three": {"vocab_size": 42, "num_heads": 6, "num_kv_heads": 3, "intermediate_size": 21}}
# (past, lengths): prefill of odd and even lengths, decode, a prompt behind another.
STEPS = [(0, (7,)), (5, (1, 1, 1)), (3, (4, 4)), (0, (12,))]


@settings(STEADY, max_examples=8)
@given(
    st.sampled_from([("three", 3), *((name, n) for name in SHAPES if name != "three" for n in (1, 2, 4))]),
    st.sampled_from(STEPS),
    st.sampled_from(["best", "stage"]),
)
def test_sockets_together_are_the_whole_model(which, step, how):
    name, degree = which
    graph = decoder(**SHAPES[name])
    graphs, parts, states, whole, sizes = sharded(graph, degree, *step)
    plans = [sections_of(g, sizes, linked(pmus=120), how, degree, share_equal=False) for g in graphs]
    known = check_sockets(graphs, plans, parts, states, [Choice()] * sizes.R)
    for values in known:
        np.testing.assert_array_equal(values["next_tokens"], whole["next_tokens"])
        np.testing.assert_allclose(values["layers.1/out"], whole["layers.1/out"], rtol=2e-4, atol=3e-5)


@pytest.mark.parametrize("degree", [1, 2, 4])
@pytest.mark.parametrize("step", STEPS)
def test_a_layer_is_one_section_whose_exchanges_are_stages_in_it(degree, step):
    graph = decoder((DType.BF16,), vocab_size=40, num_kv_heads=2)
    graphs, parts, states, whole, sizes = sharded(graph, degree, *step)
    mapped = [map_section(g, layer(g), sizes, linked(pmus=120), ranks=degree) for g in graphs]
    assert all(isinstance(part, Mapped) for part in mapped)
    assert sum(stage.unit is Unit.LINK for stage in mapped[0].stages) == (2 if degree > 1 else 0)
    group = [
        (Interpreter(g, part, key_block=3), values, state)
        for g, part, values, state in zip(graphs, mapped, parts, states, strict=True)
    ]
    for rank, ran in enumerate(run_sockets(group)):
        check_run(ran, mapped[rank])
        np.testing.assert_allclose(ran.outputs["layers.0/out"], whole["layers.0/out"], rtol=2e-4, atol=3e-5)
        assert ran.exchanged == exchanged_of(graphs[rank], mapped[rank].ops, sizes)
        assert (ran.exchanged["all_reduce"] > 0) == (degree > 1)
    assert len({tuple(sorted(ran.moved.items())) for ran in run_sockets(group)}) == 1, "sockets do equal work"


def exchanged_of(graph, ops, sizes):
    """Bytes of the results of a section's exchanges, by the cost model."""
    found = dict.fromkeys(COLLECTIVES, 0)
    for op in ops:
        if op.kind in found:
            found[op.kind] += value_bytes(graph.values[op.outputs[0]], sizes)
    return found


@settings(STEADY, max_examples=3)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["gpt", "llama", "biases and norms"]),
    st.sampled_from([2, 4]),
    st.sampled_from([(5, 3), (9,), (4, 4)]),
    st.sampled_from(["best", "stage"]),
)
def test_a_training_step_of_sockets_is_that_of_the_reference(heads, name, degree, lengths, how):
    more = dict.fromkeys(("qkv_bias", "o_bias", "qk_norm"), name != "llama")
    graph = gpt("tanh", 1.0) if name == "gpt" else decoder(num_kv_heads=heads, **more)
    graphs, known, rows, weights = training_sockets(with_vocabulary(graph, 40), degree, lengths, how)
    whole = Reference(training_graph(with_vocabulary(graph, 40)), weights).run(rows, [], KvState(graph, 64, 4))
    name = next(n for n, v in graphs[0].values.items() if v.kind is Kind.OUTPUT and ".grad/norm.model" in n)
    np.testing.assert_allclose(known[0][name], whole[name], rtol=5e-4, atol=2e-5)


def training_sockets(graph, degree, lengths, how):
    """A training step run section by section on all sockets: their graphs, what is known after it, rows and weights."""
    player, dice, tokens = Player(graph), np.random.default_rng(1), sum(lengths)
    rows = player.rows(*((s, dice.integers(0, 40, n).tolist()) for s, n in enumerate(lengths)))
    rows |= {"rows": dice.permutation(tokens).astype(np.int32), TARGETS: dice.integers(0, 40, tokens).astype(np.int32)}
    weights, found = random_weights(graph), [split_training_graph(graph, degree, rank) for rank in range(degree)]
    ranks = [Reference(f.graph, part_of(weights, f.splits, r, degree)) for r, f in enumerate(found)]
    parts = run_ranks(ranks, rows, [], [KvState(f.graph, 64, 4) for f in found])
    sizes = Sizes(tokens, len(lengths), tokens, tokens, sum(n * (n + 1) // 2 for n in lengths))
    plans = [sections_of(f.graph, sizes, linked(pmus=160), how, degree, share_equal=False) for f in found]
    states = [KvState(f.graph, 64, 4) for f in found]
    known = check_sockets([f.graph for f in found], plans, parts, states, rtol=5e-4)
    return [f.graph for f in found], known, rows, weights


def with_vocabulary(graph, size):
    """The graph with a vocabulary of this size in place of 37."""
    values = {
        name: replace(value, shape=tuple(size if dim == 37 else dim for dim in value.shape))
        for name, value in graph.values.items()
    }
    return replace(graph, values=values)


@pytest.mark.long
def test_eighty_times():
    shapes = st.sampled_from([("three", 3), *((name, n) for name in SHAPES if name != "three" for n in (1, 2, 4))])
    claim = test_sockets_together_are_the_whole_model.hypothesis.inner_test
    lengths = st.tuples(st.integers(0, 9), st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))
    settings(STEADY, max_examples=80)(given(shapes, lengths, st.sampled_from(["best", "stage", "unfused"]))(claim))()
    claim = test_a_training_step_of_sockets_is_that_of_the_reference.hypothesis.inner_test
    models = (st.sampled_from([1, 2, 4]), st.sampled_from(["gpt", "llama", "biases and norms"]))
    cases = (*models, st.sampled_from([2, 4]), st.sampled_from([(5, 3), (9,)]))
    settings(STEADY, max_examples=15)(given(*cases, st.sampled_from(["best", "unfused"]))(claim))()


def gathered(ranks):
    """Columns of every rank joined, and read again."""
    b = GraphBuilder("gathered", "s")
    tokens = Sizes.prefill(1, 6)
    b.value("x", (6, 4), DType.F32, Kind.INPUT)
    b.value("w", (5, 4 * ranks), DType.F32, Kind.WEIGHT)
    b.value("all", (6, 4 * ranks), DType.F32, Kind.TENSOR)
    b.value("y", (6, 5), DType.F32, Kind.OUTPUT)
    b.op("all_gather", "gather", ("x",), ("all",), ranks=ranks)
    b.op("linear", "linear", ("all", "w", ""), ("y",))
    return b.build(), tokens


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("tiles", [1, 2, 3, 6])
def test_columns_of_all_sockets_are_joined_tile_by_tile(ranks, tiles):
    graph, sizes = gathered(ranks)
    dice = np.random.default_rng(0)
    parts = [dice.standard_normal((6, 4)).astype(np.float32) for _ in range(ranks)]
    w = dice.standard_normal((5, 4 * ranks)).astype(np.float32)
    mapped = map_section(graph, graph.ops, sizes, linked(), ranks=ranks, tiles=tiles)
    assert isinstance(mapped, Mapped)
    group = [(Interpreter(graph, mapped), {"x": x, "w": w}, None) for x in parts]
    for ran in run_sockets(group):
        check_run(ran, mapped)
        np.testing.assert_allclose(ran.outputs["y"], np.concatenate(parts, axis=1) @ w.T, rtol=1e-5, atol=1e-5)
        assert ran.exchanged["all_gather"] == 6 * 4 * ranks * 4
        assert Counter(at for at, _ in ran.order) == {0: tiles, 1: tiles}


def test_sockets_that_are_missing_are_counted():
    graph, sizes = gathered(3)
    mapped = map_section(graph, graph.ops, sizes, linked(), ranks=3)
    assert isinstance(mapped, Mapped)
    with pytest.raises(UsageError, match=r"\[gathered: s\] its exchanges are among 3 sockets, not 1; run all of them"):
        Interpreter(graph, mapped).run({})
