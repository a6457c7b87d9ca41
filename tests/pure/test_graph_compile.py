"""Programs: what is stored, where, and what a step costs, over random decoders and steps."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from tests.pure.graphs import (
    STEADY,
    change_value,
    decoder,
    decoders,
    sizes_of,
    step_sizes,
    the_op,
    with_ops,
    with_values,
)

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Symbol
from coterie.graph.buffers import ALIGN_BYTES
from coterie.graph.compile import compile_graph, kv_shape
from coterie.graph.cost import Cost, intermediate_bytes, op_cost, program_cost, region_cost
from coterie.graph.ir import Kind, Value
from coterie.graph.program import KvShape, architecture_key

T = Symbol.T


def lifetimes(program):
    """Stored value -> the regions [first, last] over which its bytes must stay, worked out from the regions alone."""
    found = {}
    for region in program.regions:
        for name in region.outputs:
            if program.graph.values[name].kind is not Kind.STATE:
                found[name] = [region.index, region.index]
        for name in region.inputs:
            if name in found:
                found[name][1] = region.index
    for name, life in found.items():
        if program.graph.values[name].kind is Kind.OUTPUT:
            life[1] = len(program.regions)
    return found


def bytes_of(program, name, sizes):
    value = program.graph.values[name]
    return sizes.count(value.shape) * value.dtype.size_bytes


def assert_live_values_are_apart(program, sizes, share):
    offsets, total = program.buffers.offsets(sizes)
    lives = lifetimes(program)
    assert set(offsets) == set(lives)
    places = {name: (offsets[name], offsets[name] + bytes_of(program, name, sizes)) for name in offsets}
    assert all(0 <= start <= end <= total and start % ALIGN_BYTES == 0 for start, end in places.values())
    for a, b in combinations(places, 2):
        if not share or (lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]):
            assert places[a][1] <= places[b][0] or places[b][1] <= places[a][0], (a, b)


@settings(STEADY, max_examples=30)
@given(decoders(), step_sizes())
def test_no_two_live_values_overlap(graph, sizes):
    for rule_set in ("none", "cache"):
        for share in (True, False):
            assert_live_values_are_apart(compile_graph(graph, rule_set, share), sizes, share)


@pytest.mark.parametrize("rule_set", ["none", "cache"])
def test_an_output_made_early_stays_to_the_end(rule_set):
    graph = change_value(decoder(), "layers.0/mul", kind=Kind.OUTPUT)
    assert_live_values_are_apart(compile_graph(graph, rule_set), sizes_of((3, 5), (1, 9)), share=True)


@settings(STEADY, max_examples=30)
@given(decoders(), step_sizes())
def test_plans_shrink_by_sharing_and_by_fusion(graph, sizes):
    def workspace(rule_set, share):
        return compile_graph(graph, rule_set, share).buffers.offsets(sizes)[1]

    assert workspace("none", True) <= workspace("none", False)
    assert workspace("cache", True) <= workspace("cache", False)
    assert workspace("cache", False) <= workspace("none", False)
    assert workspace("cache", True) <= workspace("none", True)


@settings(STEADY, max_examples=30)
@given(decoders(), step_sizes())
def test_a_fused_region_does_what_its_ops_do_and_moves_no_more(graph, sizes):
    fused, unfused = compile_graph(graph, "cache"), compile_graph(graph, "none")
    for region in fused.regions:
        cost = region_cost(fused, region, sizes)
        apart = sum((op_cost(graph, op, sizes) for op in region.ops), Cost())
        assert cost.flops == apart.flops
        assert (cost.kv_read_bytes, cost.kv_write_bytes) == (apart.kv_read_bytes, apart.kv_write_bytes)
        assert cost.weight_bytes == apart.weight_bytes
        assert cost.input_bytes <= apart.input_bytes
        assert cost.output_bytes <= apart.output_bytes
    assert program_cost(fused, sizes).flops == program_cost(unfused, sizes).flops
    assert program_cost(fused, sizes).total_bytes <= program_cost(unfused, sizes).total_bytes
    assert intermediate_bytes(fused, sizes) <= intermediate_bytes(unfused, sizes)
    each = [region_cost(fused, region, sizes) for region in fused.regions]
    assert sum(cost.flops for cost in each) == program_cost(fused, sizes).flops
    assert sum(cost.total_bytes for cost in each) == program_cost(fused, sizes).total_bytes


@settings(STEADY, max_examples=20)
@given(decoders(), step_sizes())
def test_unfused_stores_every_tensor(graph, sizes):
    program = compile_graph(graph, "none")
    tensors = [value for value in graph.values.values() if value.kind is Kind.TENSOR]
    assert intermediate_bytes(program, sizes) == sum(4 * sizes.count(value.shape) for value in tensors)


@settings(STEADY, max_examples=20)
@given(decoders())
def test_an_empty_step_reads_weights_and_constants_only(graph):
    program = compile_graph(graph, "cache")
    constants = sum(4 * len(graph.values["inv_freq"].data) for op in graph.ops if op.name.endswith("q_rope"))
    cost = program_cost(program, sizes_of())
    assert cost == Cost(weight_bytes=cost.weight_bytes, input_bytes=constants)


def test_costs_by_hand():
    """Two layers of 12, 4 heads over 2 of 6, 20 inside, 37 tokens; 3 new tokens behind 5 and 1 behind 9."""
    graph, sizes = decoder(dtypes=(DType.BF16,), num_layers=2), sizes_of((3, 5), (1, 9))
    assert (sizes.T, sizes.B, sizes.R, sizes.context_tokens, sizes.pairs) == (4, 2, 2, 18, 6 + 7 + 8 + 10)

    def cost(name):
        return op_cost(graph, the_op(graph, name), sizes)

    x = 4 * 12 * 4
    assert cost("embed/x") == Cost(0, 4 * 12 * 2, 4 * 4, x)
    assert cost("layers.0/q") == Cost(2 * 4 * 24 * 12, 24 * 12 * 2, x, 4 * 24 * 4)
    assert cost("layers.0/kv_append").kv_write_bytes == 4 * 2 * 2 * 6 * 2
    attention = cost("layers.0/attention")
    assert attention.flops == 31 * 4 * (4 * 6 + 5)
    assert attention.kv_read_bytes == 18 * 2 * 2 * 6 * 2
    assert cost("layers.0/attention_out") == Cost(4 * 12, 0, 2 * x, x)
    assert cost("head/rows") == Cost(0, 0, 2 * 12 * 4 + 2 * 4, 2 * 12 * 4)
    assert cost("head/logits") == Cost(2 * 2 * 37 * 12, 37 * 12 * 2, 2 * 12 * 4, 2 * 37 * 4)


def test_a_bias_adds_one_flop_and_its_bytes():
    sizes = sizes_of((3, 0))
    plain, biased = (decoder(qkv_bias=bias) for bias in (False, True))
    one, other = (op_cost(graph, the_op(graph, "layers.0/q"), sizes) for graph in (plain, biased))
    assert other.flops - one.flops == 3 * 24
    assert other.weight_bytes - one.weight_bytes == 24 * 4


def test_a_window_bounds_what_attention_reads_and_computes():
    windowed, full = decoder(windows=(7, 7)), decoder()

    def cost(graph, sizes):
        return op_cost(graph, the_op(graph, "layers.0/attention"), sizes)

    token = 2 * 2 * 6 * 4
    decode = sizes_of((1, 99), (1, 49))
    assert cost(windowed, decode).kv_read_bytes == 2 * 7 * token
    assert cost(windowed, decode).flops == 2 * 7 * 4 * (4 * 6 + 5)
    assert cost(full, decode).kv_read_bytes == 150 * token
    chunk = sizes_of((10, 90))
    assert cost(windowed, chunk).kv_read_bytes == 16 * token  # positions 84 to 99
    short = sizes_of((3, 0))
    assert cost(windowed, short) == cost(full, short)


def test_embedding_reads_the_rows_used_and_at_most_the_table():
    graph = decoder(tied_embeddings=True)
    embed = the_op(graph, "embed/x")
    assert op_cost(graph, embed, sizes_of((2, 0))).weight_bytes == 2 * 12 * 4
    assert op_cost(graph, embed, sizes_of((500, 0))).weight_bytes == 37 * 12 * 4
    program = compile_graph(graph, "cache")
    head = next(region for region in program.regions if region.kernel == "take_norm_linear")
    assert region_cost(program, head, sizes_of((2, 0))).weight_bytes == (37 * 12 + 12) * 4


def test_what_a_program_says():
    graph = decoder(dtypes=(DType.BF16,), tied_embeddings=True)
    program = compile_graph(graph, "cache")
    assert program.kv == KvShape(2, 2, 6, DType.BF16)
    assert program.kv.bytes_per_token == 2 * 2 * 2 * 6 * 2
    assert program.vocab_size == 37
    assert program.rule_set == "cache"
    assert program.weights == tuple(value.name for value in graph.weights)
    assert "lm_head.weight" not in program.weights
    first, second = program.regions[:2]
    assert (first.name, first.kernel, [op.kind for op in first.ops]) == ("embed/x", "embed", ["embed"])
    assert second.name == "layers.0/norm_qkv_rope_append(input_norm)"
    assert tuple(op.kind for op in second.ops) == (
        "rms_norm",
        "linear",
        "linear",
        "linear",
        "rope",
        "rope",
        "kv_append",
    )


def test_equal_architectures_share_a_key():
    assert architecture_key(decoder()) == architecture_key(decoder())
    keys = {architecture_key(decoder(**change)) for change in ({}, {"norm_eps": 1e-6}, {"qk_norm": True})}
    keys |= {architecture_key(decoder(dtypes=(dtype,))) for dtype in (DType.BF16, DType.F16)}
    assert len(keys) == 5


def test_graphs_that_are_no_program_are_refused():
    graph = decoder()
    two = with_values(graph, Value("more", (1, 2, 1, 2), DType.F16, Kind.STATE))
    with pytest.raises(UsageError, match="declares 2 KV states of 2 types, F16, F32"):
        compile_graph(two, "cache")
    with pytest.raises(UsageError, match="samples and declares no KV state"):
        kv_shape(change_value(graph, "kv", kind=Kind.TENSOR))
    with pytest.raises(UsageError, match="samples 0 times"):
        compile_graph(with_ops(graph, graph.ops[:-1]), "cache")
    with pytest.raises(UsageError, match="unknown"):
        compile_graph(graph, "cash")
    with pytest.raises(UsageError, match=r"layers\.0/q"):
        compile_graph(change_value(graph, "layers.0/q", shape=(T, 4, 7)), "cache")
