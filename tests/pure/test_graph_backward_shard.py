"""A training step on several ranks: all together compute the gradients of the whole; exchanges are the known ones.

Knows nothing about machines.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
import pytest
from graphs import (
    STEADY,
    VARIANTS,
    Player,
    change_op,
    change_value,
    decoder,
    gpt,
    of_family,
    random_weights,
    with_each,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dataflow_sections import chip

from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes, Symbol
from coterie.dataflow.chip import chip_of
from coterie.dataflow.sections import sections_of
from coterie.dataflow.stage import Unit
from coterie.graph.backward.build import TARGETS, split_training_graph, training_graph
from coterie.graph.cost import collectives, op_cost
from coterie.graph.ir import Kind
from coterie.graph.ops import COLLECTIVES
from coterie.graph.program import Region
from coterie.graph.reference import KvState, Reference, run_ranks
from coterie.graph.verify import verify
from coterie.models.family import FeedForward
from coterie.models.zoo import zoo_graph
from coterie.spec.load import load_machine

SHAPES = {
    "llama": {"num_kv_heads": 4},
    "biases": {"num_kv_heads": 4, "qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "tied": {"num_kv_heads": 4, "tied_embeddings": True},
    **with_each({name: VARIANTS[name] for name in ("scaled", "rotated in part", "not all rotated")}, num_kv_heads=4),
    "window": {"num_kv_heads": 2, "windows": (3, 0)},
    "sparse": {"num_kv_heads": 4, "density": 0.25},
    "grouped": {"num_kv_heads": 2, "qkv_bias": True},
    "one head": {"num_kv_heads": 1, "windows": (3, 0)},
    "norms of heads": {"num_kv_heads": 1, "qk_norm": True, "qkv_bias": True},
    "sparse and grouped": {"num_kv_heads": 1, "density": 0.25},
    "gpt": {**of_family("opt", num_kv_heads=4), "feed_forward": FeedForward.GELU},
}


def whole_and_ranks(graph, degree, seed):
    """Gradients of the whole step by weight, and of each rank with what it holds; a tied weight has two."""
    player, dice = Player(graph), np.random.default_rng(seed)
    V = graph.values["head/logits"].shape[-1]
    rows = player.rows((0, dice.integers(0, V, 5).tolist()), (1, dice.integers(0, V, 3).tolist()))
    rows = {**rows, TARGETS: dice.integers(0, V, 8).astype(np.int32)}
    weights = random_weights(graph)
    train = training_graph(graph)
    whole = Reference(train, weights).run(rows, [], KvState(train, 64, 4))
    ranks, splits = [], []
    for rank in range(degree):
        found = split_training_graph(graph, degree, rank)
        verify(found.graph)
        splits.append(found.splits)
        cut = found.splits
        own = {n: a[cut[n].of_rank(a.shape, rank, degree)] if n in cut else a for n, a in weights.items()}
        ranks.append(Reference(dense(found.graph), own))  # a rank's part may have more elements than its share
    states = [KvState(rank.graph, 64, 4) for rank in ranks]
    return train, whole, run_ranks(ranks, rows, [], states), splits


def dense(graph):
    """The graph with weights that may have any elements; gradients keep their pattern."""
    values = {n: replace(v, density=1.0) if v.kind is Kind.WEIGHT else v for n, v in graph.values.items()}
    return replace(graph, values=values)


def gradients(graph, values):
    """The gradients of each weight, in the order of the ops."""
    found = defaultdict(list)
    for name in (name for op in graph.ops for name in op.outputs if graph.values[name].kind is Kind.OUTPUT):
        weight = max((w.name for w in graph.weights if name.endswith(f".{w.name}")), key=len)
        found[weight].append(values[name])
    return found


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_of_all_ranks_are_those_of_the_whole(name, degree):
    check_gradients(decoder(**{"vocab_size": 40, **SHAPES[name]}), degree, 7)


def check_gradients(graph, degree, seed):
    train, whole, ranks, splits = whole_and_ranks(graph, degree, seed)
    wanted = gradients(train, whole)
    assert set(wanted) == {value.name for value in graph.weights}
    for rank, values in enumerate(ranks):
        found = gradients(split_training_graph(graph, degree, rank).graph, values)
        assert set(found) == set(wanted)
        for weight, parts in wanted.items():
            for mine, part in zip(found[weight], parts, strict=True):
                own = splits[rank][weight].of_rank(part.shape, rank, degree) if weight in splits[rank] else ...
                np.testing.assert_allclose(mine, part[own], rtol=5e-4, atol=5e-6, err_msg=weight)


@settings(STEADY, max_examples=4)
@given(st.sampled_from(["erf", "tanh"]), st.sampled_from([1.0, 0.5]), st.sampled_from([2, 4]), st.integers(0, 99))
def test_random_gpts_have_the_gradients_of_the_whole(form, density, degree, seed):
    graph = gpt(form, density)
    vocab = {n: replace(v, shape=(40, *v.shape[1:])) if v.shape[:1] == (37,) else v for n, v in graph.values.items()}
    logits = replace(vocab["head/logits"], shape=(*vocab["head/logits"].shape[:1], 40))
    check_gradients(replace(graph, values={**vocab, "head/logits": logits}), degree, seed)


@pytest.mark.parametrize(("name", "degree"), [("llama-2-7b", 8), ("sparse-gpt-13b", 8), ("llama-2-70b", 4)])
def test_a_layer_exchanges_twice_forward_and_twice_backward(name, degree):
    """Megatron-LM (arXiv 1909.08053, section 3): two all-reduces of the hidden states in each direction."""
    graph, sizes = zoo_graph(name), Sizes(128, 1, 128, 128, 128 * 129 // 2)
    train = training_graph(graph, degree)
    verify(train)
    counts = Counter(op.stage for op in train.ops if op.kind in COLLECTIVES)
    layers = [stage for stage in graph.stages if "layers." in stage]
    assert counts == Counter(
        {**dict.fromkeys(layers, 2), **{f"{s}.grad": 2 for s in layers}, "embed": 1, "head.grad": 2}
    )
    hidden = graph.values["embed/x"].shape[-1]
    for stage, size in (("layers.1", 2), ("layers.1.grad", 2), ("embed", 1)):
        ops = tuple(op for op in train.ops if op.stage == stage)
        program = Holder(train)
        exchanged = collectives(program, Region(0, stage, "section", stage, ops, (), ()), sizes)
        assert [found.bytes for found in exchanged] == [128 * hidden * 2] * size
        assert {found.ranks for found in exchanged} == {degree}
    (joined,) = [op for op in train.ops if op.kind == "all_gather"]
    assert train.values[joined.outputs[0]].shape[1] == 2 * degree, "a maximum and a sum of each rank, no logits"
    # A rank does its part of the work: everything but norms, residuals and what is done alike is divided.
    whole = training_graph(graph)
    flops = [sum(op_cost(g, op, sizes).flops for op in g.ops) for g in (whole, train)]
    assert 1.0 <= flops[1] * degree / flops[0] < 1.1


def test_ranks_that_share_a_head_add_up_its_gradients_among_themselves():
    """Llama-2-70B on 16 ranks: each two have one of 8 key/value heads."""
    graph, sizes = zoo_graph("llama-2-70b"), Sizes(128, 1, 128, 128, 128 * 129 // 2)
    train = training_graph(graph, 16)
    verify(train)
    ops = [op for op in train.ops if op.stage == "layers.1.grad" and op.kind == "all_reduce"]
    assert Counter(op.integer("ranks") for op in ops) == {16: 2, 2: 2}
    shared = [op for op in ops if op.integer("ranks") == 2]
    assert {op.outputs[0].rpartition(".self_attn.")[2] for op in shared} == {"k_proj.weight", "v_proj.weight"}
    assert all(train.values[op.outputs[0]].kind is Kind.OUTPUT for op in shared)
    # Of two summands each rank adds up half.
    assert {op_cost(train, op, sizes).flops for op in shared} == {128 * 8192 // 2}
    plan = sections_of(train, sizes, chip_of(load_machine("sn40l-node")), "best", 16)
    assert sum(len(plan.mapped[i].ops) for i in plan.index) == len(train.ops)


@dataclass(frozen=True)
class Holder:
    """As much of a program as its exchanges need."""

    graph: object


def test_what_cannot_be_trained_in_parts_is_refused_with_numbers():
    with pytest.raises(UsageError, match="37 rows, which do not split over 2 ranks"):
        training_graph(decoder(num_kv_heads=4), 2)


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("loss_parts", {"shape": (Symbol.R, 3)}, r"loss_parts: .* has shape \(R, 3\), wanted is \(R, 2\)"),
        ("loss_part_dx", {"shape": (Symbol.R, 39)}, r"loss_part_dx: .*wanted is"),
        ("embed_dw", {"shape": (20, 13)}, r"embed_dw: .* wanted is"),
    ],
)
def test_a_result_of_another_shape_is_refused(kind, changes, sentence):
    train = training_graph(decoder(vocab_size=40, num_kv_heads=4), 2)
    (op,) = [op for op in train.ops if op.kind == kind]
    with pytest.raises(UsageError, match=sentence):
        verify(change_value(train, op.outputs[0], **changes))


def test_a_rank_before_the_first_is_refused():
    train = training_graph(decoder(vocab_size=40, num_kv_heads=4), 2)
    for kind in ("loss_part_dx", "embed_dw"):
        (op,) = [op for op in train.ops if op.kind == kind]
        with pytest.raises(UsageError, match="first_row is -1"):
            verify(change_op(train, op.name, attrs={"first_row": -1}))


@pytest.mark.parametrize("how", ["best", "unfused"])
def test_a_rank_of_a_training_step_is_mapped_too(how):
    graph, sizes = training_graph(decoder(vocab_size=40, num_kv_heads=4), 2), Sizes(16, 2, 16, 16, 72)
    plan = sections_of(graph, sizes, chip(link_bytes_per_s=1e11, link_latency_s=1e-6), how, ranks=2)
    assert sum(len(plan.mapped[i].ops) for i in plan.index) == len(graph.ops)
    for part in plan.mapped:
        assert part.l0_s <= part.l1_s <= part.l2_s() * (1 + 1e-9) < float("inf")
        assert sum(s.size_bytes for s in part.streams) == part.cost.total_bytes
    stages = [stage for index in plan.index for stage in plan.mapped[index].stages]
    assert sum(stage.unit is Unit.LINK for stage in stages) == 1 + 2 * 2 + 2 * 2 + 2
