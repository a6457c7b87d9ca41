"""PyTorch's kernels: they compute what the graph computes, never with fewer flops or bytes, and views cost nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.graphs import (
    SPLIT,
    STEADY,
    VARIANTS,
    Player,
    any_decoders,
    change_value,
    decoder,
    gemma,
    of_family,
    step_sizes,
)

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes, Symbol
from coterie.graph.compile import compile_graph
from coterie.graph.cost import intermediate_bytes, op_cost, program_cost, region_cost
from coterie.graph.eager.rewrite import RULES, expand
from coterie.graph.ops import OPS, SCALE
from coterie.graph.shard import shard
from coterie.graph.verify import verify
from coterie.models.zoo import zoo_graph

T = Symbol.T
SHAPES = {
    "bloom": of_family("bloom", num_kv_heads=4),
    "opt": of_family("opt", num_kv_heads=4),
    "falcon": of_family("falcon", num_kv_heads=2, head_dim=4),
    "olmo2": of_family("olmo2"),
    **{f"gemma {n}": gemma(n) for n in (1, 2, 3)},
    "plain": {"num_kv_heads": 4},
    "gqa": {},
    "window": {"windows": (3, 0)},
    **VARIANTS,
}
STEPS = [((0, [3, 1, 4, 1, 5]), (1, [9, 2, 6])), ((0, [5]), (1, [3])), ((1, [8]), (0, [7, 9]))]


@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_compute_what_the_graph_computes(shape):
    graph = decoder(**SHAPES[shape])
    whole, kernels = Player(graph), Player(expand(graph))
    for chunks in STEPS:
        wanted, found = whole.play(*chunks), kernels.play(*chunks)
        same = [n for n in ("layers.0/q_rope", "layers.0/attention", "layers.1/out", "head/logits") if n in wanted]
        for name in same:
            np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=2e-5, err_msg=name)


@settings(STEADY, max_examples=25)
@given(any_decoders(), step_sizes())
def test_kernels_do_no_less_than_the_graph(graph, sizes):
    """Flops and bytes: all scores of a rectangle, and every intermediate stored."""
    kernels = expand(graph)
    verify(kernels)
    assert not {op.kind for op in kernels.ops} & (set(RULES) - {"embed", "embed_part", "linear", "gelu", "take_heads"})
    fused, unfused, eager = (
        program_cost(compile_graph(g, rule_set), sizes)
        for g, rule_set in ((graph, "section"), (graph, "none"), (kernels, "none"))
    )
    assert fused.flops == unfused.flops <= eager.flops
    assert fused.total_bytes <= unfused.total_bytes
    assert unfused.weight_bytes == eager.weight_bytes
    stored = [intermediate_bytes(compile_graph(g, "none"), sizes) for g in (graph, kernels)]
    assert stored[0] <= stored[1]


@settings(STEADY, max_examples=25)
@given(any_decoders(), step_sizes(), st.sampled_from(["none", "o0", "section"]))
def test_what_one_region_stores_another_reads(graph, sizes, rule_set):
    """Bytes are conserved: a region's cost is the sum over its ops, less what stays inside it."""
    program = compile_graph(expand(graph), rule_set)
    whole = program_cost(program, sizes)
    each = [op_cost(program.graph, op, sizes) for op in program.graph.ops]
    assert whole.flops == sum(cost.flops for cost in each)
    assert whole.kv_read_bytes == sum(cost.kv_read_bytes for cost in each)
    assert whole.kv_write_bytes == sum(cost.kv_write_bytes for cost in each)
    assert whole.total_bytes <= sum(cost.total_bytes for cost in each)
    if rule_set == "o0":
        assert whole.total_bytes == sum(cost.total_bytes for cost in each)


@given(any_decoders())
@settings(STEADY, max_examples=10)
def test_a_view_joins_its_reader_or_is_a_kernel(graph):
    kernels = expand(graph)
    views = [op for op in kernels.ops if OPS[op.kind].view]
    eager, o0 = (compile_graph(kernels, rule_set) for rule_set in ("none", "o0"))
    assert len(o0.regions) == len(kernels.ops) == len(eager.regions) + len(views)
    for region in eager.regions:
        assert not OPS[region.kernel].view
        assert region.name == region.ops[-1].name
        stored = {name for op in region.ops[:-1] for name in op.outputs} & set(region.outputs)
        assert not stored, "what a view shows is not stored"


def test_a_mean_is_of_the_last_axis_or_of_a_whole_row():
    wrong = expand(decoder(**of_family("olmo2")))
    verify(wrong)
    for part in ("mean", "shifted", "rsqrt"):
        wrong = change_value(wrong, f"layers.0/q_norm/{part}", shape=(T, 2, 1))
    with pytest.raises(UsageError, match=r"layers.0/q_norm/mean\] mean: layers.0/q_norm/mean has shape"):
        verify(wrong)


@pytest.mark.parametrize("degree", [1, 2])
def test_what_an_op_scales_by_is_a_kernel_of_its_own(degree):
    """One of the embedding, two of each layer, one of the logits, beside those that any decoder has."""
    kernels = expand(shard(decoder(**SPLIT["scaled"]), degree))
    assert not [op.name for op in kernels.ops if op.kind in ("embed", "embed_part", "linear") and op.attrs.get(SCALE)]
    plain = expand(shard(decoder(**SPLIT["gqa"]), degree))
    scales = [sum(op.kind == "scale" for op in graph.ops) for graph in (kernels, plain)]
    assert scales[0] - scales[1] == 1 + 2 * 2 + 1


def test_a_region_reads_what_its_view_shows():
    program = compile_graph(expand(decoder((DType.BF16,))), "none")
    sizes = Sizes.prefill(1, 5)
    neg = next(region for region in program.regions if region.kernel == "neg")
    q_half = 5 * 4 * 3 * 4
    assert (region_cost(program, neg, sizes).input_bytes, region_cost(program, neg, sizes).output_bytes) == (
        q_half,
        q_half,
    )


def test_float32_activations_need_no_casts_and_half_ones_do():
    narrow = zoo_graph("llama-2-7b")
    assert sum(op.kind == "cast" for op in expand(narrow).ops) == 32 * 6 + 2 + 2
    assert not [op for op in expand(decoder()).ops if op.kind == "cast"]


def test_a_sharded_graph_keeps_its_exchanges():
    graph = expand(shard(decoder(vocab_size=40), 2))
    verify(graph)
    assert [op.kind for op in graph.ops].count("all_reduce") == 1 + 2 * 2


# Kernel calls of a decode step over those of sections, arXiv 2405.07518 Figure 11; ours from the op table: every
# op of PyTorch a kernel (rule set o0), eight sockets. No tolerance is fitted: the aim is a quarter.
FIGURE_11 = {"llama-2-7b": 67.68, "llama-2-70b": 57.19, "mistral-7b": 75.06}


@pytest.mark.parametrize("name", FIGURE_11)
def test_kernel_counts_of_figure_11(name):
    own = shard(zoo_graph(name), 8)
    kernels, sections = compile_graph(expand(own), "o0"), compile_graph(own, "section")
    ratio = len(kernels.regions) / len(sections.regions)
    assert abs(ratio / FIGURE_11[name] - 1) < 0.25
