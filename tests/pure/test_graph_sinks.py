"""Attention with sinks, branches with clipped gates and biases: what is legal, what they cost, how ranks split them."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from tests.pure.graphs import Player, change_op, change_value, check_refused, decoder, the_op
from tests.pure.test_graph_shard import STEPS, check_ranks

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.scales import in_bf16
from coterie.core.shapes import Sizes
from coterie.graph.backward.build import training_graph
from coterie.graph.compile import compile_graph
from coterie.graph.cost import op_cost
from coterie.graph.eager.rewrite import expand
from coterie.graph.ops import BF16, INT8, ROUNDING
from coterie.graph.rounding import with_kept_kv, with_rounding
from coterie.graph.verify import verify
from coterie.models.branches import Branches, BranchNames
from coterie.models.choice import Choice
from coterie.models.family import Names

CLIPPED = Branches(4, 2, 8, Choice(normalised=True), frozenset((0, 1)), BranchNames(), clipped=(1.702, 0.3))
SINKS = {"names": Names(sinks="self_attn.sinks")}
LIKE_GPT_OSS = {**SINKS, "branches": CLIPPED, "windows": (3, 0), "vocab_size": 40, "qkv_bias": True, "o_bias": True}
ATTENTION, GATE_UP, BIASED = "layers.1/attention", "layers.1/branch_gate_up", "layers.1/biased"
OF_LAYER = "model.layers.1."


def attribute(graph, name, key, value):
    return change_op(graph, name, attrs=MappingProxyType({**the_op(graph, name).attrs, key: value}))


WRONG = {
    "sinks of other heads": (
        lambda g: change_value(g, f"{OF_LAYER}self_attn.sinks", shape=(3,)),
        ["self_attn.sinks has shape (3,), wanted is (4,)"],
    ),
    "packed sinks": (lambda g: change_value(g, f"{OF_LAYER}self_attn.sinks", dtype=DType.Q8), ["weight Q8"]),
    "biases of fewer branches": (
        lambda g: change_value(g, f"{OF_LAYER}mlp.experts.up_proj_bias", shape=(3, 8)),
        ["up_proj_bias has shape (3, 8), wanted is (4, 8)"],
    ),
    "biases of another width": (
        lambda g: change_value(g, f"{OF_LAYER}mlp.experts.down_proj_bias", shape=(4, 8)),
        ["down_proj_bias has shape (4, 8), wanted is (4, 12)"],
    ),
    "a limit of 0": (lambda g: attribute(g, GATE_UP, "limit", 0.0), ["its limit is 0.0"]),
    "no alpha": (lambda g: attribute(g, GATE_UP, "alpha", float("inf")), ["its alpha is inf"]),
    "another number": (lambda g: attribute(g, BIASED, "top_k", 3), ["top_k is 3 where 2 are chosen"]),
    "half a pair": (
        lambda g: change_op(g, GATE_UP, inputs=the_op(g, GATE_UP).inputs[1:]),
        ["it has 11 inputs"],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong):
    check_refused(decoder(**LIKE_GPT_OSS), *WRONG[wrong])


def test_regions_of_a_layer():
    program = compile_graph(decoder(**LIKE_GPT_OSS), "cache")
    assert [region.kernel for region in program.regions if region.stage == "layers.1"] == [
        *("norm_qkv_rope_append", "attention", "linear_add", "rms_norm", "linear", "choose_branches"),
        *("branch_gate_up_clipped", "branch_down_add", "add_branch_bias"),
    ]


@pytest.mark.parametrize("degree", [2, 4])
def test_all_ranks_together_equal_the_whole(degree):
    graph = decoder(**LIKE_GPT_OSS)
    check_ranks(graph, degree)


def with_sinks(sink):
    """A player of a graph all of whose sinks are this score."""
    player = Player(decoder(**SINKS))
    for name in [name for name in player.reference.fixed if name.endswith("sinks")]:
        player.reference.fixed[name] = np.full(4, sink, np.float32)
    return player.play(*STEPS[0])


def test_a_sink_takes_from_all_values_alike():
    """Of no weight nothing, of all weight all; one as large as a score that is alone half of it."""
    graph = decoder(**SINKS)
    without = replace(graph, ops=tuple(replace(op, inputs=op.inputs[:5]) if op.sinks else op for op in graph.ops))
    plain = Player(without)
    plain.reference.fixed = Player(graph).reference.fixed
    np.testing.assert_array_equal(with_sinks(-200.0)["head/logits"], plain.play(*STEPS[0])["head/logits"])
    np.testing.assert_array_equal(with_sinks(200.0)["layers.0/attention"], 0)
    values = with_sinks(0.0)
    first, v = values["layers.0/attention"][0], np.repeat(values["layers.0/v"][0], 2, axis=0)
    score = np.sum(values["layers.0/q_rope"][0] * np.repeat(values["layers.0/k_rope"][0], 2, axis=0), axis=1) / 6**0.5
    np.testing.assert_allclose(first, v * (np.exp(score) / (np.exp(score) + 1))[:, None], rtol=1e-5)


def test_what_they_cost():
    """A score more for each head and token; of biases those of the branches that are read."""
    sizes = Sizes.decode(3, 30)
    (plain, sunk) = (op_cost(g, the_op(g, ATTENTION), sizes) for g in (decoder(), decoder(**SINKS)))
    assert sunk.flops - plain.flops == 3 * 4 * 5
    assert sunk.weight_bytes == 4 * 4
    graph = decoder(**LIKE_GPT_OSS)
    both, one = op_cost(graph, the_op(graph, GATE_UP), Sizes.decode(1, 7)), 2 / 4 * 4
    assert both.weight_bytes == pytest.approx(one * (2 * 8 * 12 + 2 * 8) * 4, abs=12)
    assert both.flops == 2 * 8 * (4 * 12 + 12)
    biased = op_cost(graph, the_op(graph, BIASED), Sizes.decode(1, 7))
    assert (biased.weight_bytes, biased.flops) == (2 * 12 * 4, 2 * 2 * 12)
    assert op_cost(graph, the_op(graph, BIASED), Sizes.prefill(1, 50)).weight_bytes == 4 * 12 * 4


def test_rounding_reaches_clipped_gates():
    graph = decoder(**LIKE_GPT_OSS)
    for value in [v for v in graph.weights if ".experts." in v.name and v.name.endswith(".weight")]:
        graph = change_value(graph, value.name, dtype=DType.Q4)
    rounded = with_rounding(graph, INT8)
    of_layer = {op.name for op in rounded.ops if ROUNDING in op.attrs and op.stage == "layers.1"}
    assert of_layer == {GATE_UP, "layers.1/branch_down"}
    verify(rounded)


def rounded(graph):
    """Ops that attend and round; the graph is legal."""
    verify(graph)
    return [op.name for op in graph.ops if op.kind == "attention" and ROUNDING in op.attrs]


def test_attention_rounds_over_kept_bfloat16_alone_where_products_do():
    """In whatever order it is said how keys are kept and what is rounded."""
    every = ["layers.0/attention", ATTENTION]
    graph = decoder((DType.BF16,), **SINKS)
    assert rounded(with_rounding(graph, BF16)) == every
    assert not rounded(with_rounding(graph, INT8))
    assert rounded(with_kept_kv(with_rounding(graph, BF16), DType.BF16)) == every
    for dtype in (DType.F32, DType.F16, DType.KV8):
        assert not rounded(with_kept_kv(with_rounding(graph, BF16), dtype))
        assert not rounded(with_rounding(with_kept_kv(graph, dtype), BF16))
    packed = change_value(graph, "lm_head.weight", dtype=DType.Q8)
    assert not rounded(with_rounding(packed, BF16))
    check_refused(
        with_kept_kv(graph, DType.F16),
        lambda g: attribute(g, ATTENTION, ROUNDING, BF16),
        ["rounding is 'bf16'", "of type F16", "give 'bf16', where it is BF16"],
    )


@pytest.mark.parametrize("sink", [None, -1.0, 9.0])
def test_rounded_attention_weighs_by_rounded_exponentials(sink):
    """Of the largest score of a value: a sink above it takes its share, and rounds nobody finer."""
    graph = with_rounding(decoder((DType.BF16,), **({} if sink is None else SINKS)), BF16)
    player = Player(graph)
    for name in [name for name in player.reference.fixed if name.endswith("sinks")]:
        player.reference.fixed[name] = np.full(4, sink, np.float32)
    values = player.play((0, [7, 3, 20, 11, 2]))
    k, v = (np.repeat(in_bf16(values[f"layers.0/{name}"]), 2, axis=1) for name in ("k_rope", "v"))
    scores = np.einsum("hc,shc->hs", in_bf16(values["layers.0/q_rope"][-1]).astype(np.float64), k) / 6**0.5
    highest = scores.max(axis=1, keepdims=True)
    p = in_bf16(np.exp(scores - highest).astype(np.float32)).astype(np.float64)
    total = p.sum(axis=1) + (0 if sink is None else np.exp(sink - highest[:, 0]))
    wanted = np.einsum("hs,shc->hc", p, v) / total[:, None]
    found = values["layers.0/attention"][-1]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())
    plain = np.exp(scores - highest)
    plain /= (plain.sum(axis=1) + (0 if sink is None else np.exp(sink - highest[:, 0])))[:, None]
    exact = np.einsum("hs,shc->hc", plain, v)
    assert np.abs(wanted - exact).max() > 1e-4 * np.abs(exact).max()


def test_what_no_one_trains_or_expands_is_named():
    graph = decoder(**SINKS)
    with pytest.raises(UnsupportedError, match=r"layers.1/attention.* attention with sinks has no gradient"):
        training_graph(graph)
    with pytest.raises(UnsupportedError, match="attention with sinks is not written as kernels of PyTorch"):
        expand(graph)
