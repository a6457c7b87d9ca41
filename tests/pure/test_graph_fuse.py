"""Fusion: canonical decoders match every rule; a graph that only looks similar is left unfused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from tests.pure.graphs import (
    STEADY,
    change_op,
    change_value,
    decoder,
    decoders,
    gemma,
    of_family,
    the_op,
    with_ops,
    with_values,
)

from coterie.core.errors import UsageError
from coterie.core.shapes import Symbol
from coterie.graph.fuse import RULE_SETS, fuse
from coterie.graph.ir import Kind
from coterie.graph.ops import OPS
from coterie.graph.verify import verify

T = Symbol.T
LAYER = ["norm_qkv_rope_append", "attention", "linear_add", "norm_gate_up_silu_mul", "linear_add"]


def kernels_of(graph, rule_set="cache", stage=None):
    return [region.kernel for region in fuse(graph, rule_set) if stage in (None, region.stage)]


def region_at(graph, kernel, rule_set="cache"):
    return next(region for region in fuse(graph, rule_set) if region.kernel == kernel)


def without(graph, op):
    return with_ops(graph, (other for other in graph.ops if other is not op))


def after(graph, name, op, *values):
    """The graph with an op behind the named one."""
    at = next(i for i, other in enumerate(graph.ops) if other.name == name)
    return with_values(with_ops(graph, (*graph.ops[: at + 1], op, *graph.ops[at + 1 :])), *values)


def spy(graph, name):
    """Somebody outside reads the value: an op at the end of the stage head adds it to itself."""
    read = graph.values[name]
    copy = replace(read, name=f"{name}/copy", kind=Kind.TENSOR)
    stage = graph.ops[-1].stage
    op = replace(
        the_op(graph, "layers.0/out"), name=f"{stage}/spy", stage=stage, inputs=(name, name), outputs=(copy.name,)
    )
    return with_values(with_ops(graph, (*graph.ops, op)), copy)


@settings(STEADY, max_examples=30)
@given(decoders())
def test_every_decoder_becomes_five_regions_a_layer(graph):
    layers = [stage for stage in graph.stages if stage.startswith("layers.")]
    assert kernels_of(graph) == ["embed", *LAYER * len(layers), "take_norm_linear", "sample"]


def test_a_region_without_an_operand_for_a_scale_leaves_a_scaled_product_out():
    graph = decoder()
    scaled = change_op(graph, "layers.0/up", attrs={"scale": 0.5})
    wanted = [*LAYER[:3], "rms_norm", "linear", "linear", "silu", "mul", "linear_add"]
    assert kernels_of(scaled, stage="layers.0") == wanted
    assert kernels_of(change_op(graph, "layers.0/down", attrs={"scale": 0.5})) == kernels_of(graph)
    assert kernels_of(change_op(graph, "head/logits", attrs={"scale": 0.5})) == kernels_of(graph)


def test_heads_normed_together_and_rotated_in_part_are_left_unfused():
    shape = {"qk_norm": True, "heads_normed_together": True}
    wanted = ["rms_norm", *["linear"] * 3, "norm_rope_append", "attention", *LAYER[2:]]
    assert kernels_of(decoder(**shape), stage="layers.0") == wanted
    wanted[4:5] = ["rms_norm", "rms_norm", "rope", "rope", "kv_append"]
    assert kernels_of(decoder(rotated=4, **shape), stage="layers.0") == wanted


def test_queries_that_are_turned_beside_keys_that_are_not_are_left_unfused():
    graph = decoder()
    rope = the_op(graph, "layers.0/k_rope")
    append = the_op(graph, "layers.0/kv_append")
    plain = change_op(without(graph, rope), append.name, inputs=(rope.inputs[0], *append.inputs[1:]))
    verify(plain)
    assert kernels_of(plain, stage="layers.0")[:6] == ["rms_norm", *["linear"] * 3, "rope", "kv_append"]
    assert kernels_of(plain, stage="layers.1") == LAYER


@settings(STEADY, max_examples=30)
@given(decoders())
def test_regions_cover_the_ops_in_order_and_agree_at_their_borders(graph):
    for rule_set in RULE_SETS:
        regions = fuse(graph, rule_set)
        assert [op for region in regions for op in region.ops] == list(graph.ops)
        assert [region.index for region in regions] == list(range(len(regions)))
        assert len({region.name for region in regions}) == len(regions)
        made = {name for name, value in graph.values.items() if value.kind not in (Kind.TENSOR, Kind.OUTPUT)}
        for region in regions:
            assert {op.stage for op in region.ops} == {region.stage}
            assert set(region.inputs) <= made
            made |= set(region.outputs)
            assert all(graph.values[name].kind in (Kind.TENSOR, Kind.OUTPUT, Kind.STATE) for name in region.outputs)


def test_norms_behind_the_blocks_are_added_with_the_residual():
    graph = decoder(**of_family("olmo2"))
    first = ["linear", "linear", "linear", "norm_rope_append", "attention", "linear", "norm_add"]
    assert kernels_of(graph, stage="layers.0") == [*first, "norm_gate_up_silu_mul", "linear", "norm_add"]
    assert "rms_norm" not in [op.kind for op in region_at(graph, "norm_gate_up_silu_mul").ops]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_gemmas_become_five_or_seven_regions_a_layer(version):
    graph = decoder(**gemma(version))
    verify(graph)
    gate_up = "norm_gate_up_gelu_mul"
    plain = ["norm_qkv_rope_append", "attention", "linear_add", gate_up, "linear_add"]
    behind = ["norm_qkv_rope_append", "attention", "linear", "norm_add", gate_up, "linear", "norm_add"]
    head = ["take_norm_linear", *(["softcap"] if version == 2 else []), "sample"]
    assert kernels_of(graph) == ["embed", *(plain if version == 1 else behind) * 2, *head]


def test_a_norm_over_all_heads_is_not_taken_for_one_of_each():
    graph = decoder(qk_norm=True, heads_normed_together=True)
    verify(graph)
    found = kernels_of(graph, stage="layers.0")
    assert found[:5] == ["rms_norm", "linear", "linear", "linear", "norm_rope_append"]


def test_gate_and_up_of_two_values_are_not_one_region():
    graph = decoder(**of_family("olmo2"))
    up = the_op(graph, "layers.1/up")
    graph = change_op(graph, up.name, inputs=("layers.0/out", *up.inputs[1:]))
    verify(graph)
    assert "norm_gate_up_silu_mul" not in kernels_of(graph, stage="layers.1")


def test_layers_with_layer_norms_fuse_as_far_as_a_tile_is_all_that_is_read():
    bloom, falcon = (decoder(**of_family(name, num_kv_heads=4)) for name in ("bloom", "falcon"))
    wanted = ["norm_linear", "kv_append", "attention", "linear_add", "norm_linear_gelu", "linear_add"]
    assert [k.removeprefix("alibi_") for k in kernels_of(bloom, stage="layers.0")] == wanted
    # Two norms of one row stand side by side, and the residual waits for both blocks.
    wanted = ["layer_norm", "layer_norm", "linear", "rope", "rope", "kv_append", "attention", "linear", "linear_gelu"]
    assert kernels_of(falcon, stage="layers.0") == [*wanted, "linear", "add", "add"]


def test_served_launches_merged_projections_and_the_rest_as_kernels_of_their_own():
    attention = ["rms_norm", "projections", "ropes", "kv_append", "attention", "linear", "add"]
    assert kernels_of(decoder(), "served", "layers.0") == [
        *attention,
        "rms_norm",
        "gate_up",
        "silu_mul",
        "linear",
        "add",
    ]
    assert region_at(decoder(), "projections", "served").outputs == ("layers.0/q", "layers.0/k", "layers.0/v")
    assert kernels_of(decoder(), "served", "head") == kernels_of(decoder(), "none", "head")


def test_matrices_that_read_different_rows_are_not_merged():
    """Falcon's output projection stands before its mlp, whose input is a norm of the layer's."""
    falcon = decoder(**of_family("falcon", num_kv_heads=4))
    kinds = [op.kind for op in falcon.ops if op.stage == "layers.0"]
    assert any(kinds[i : i + 2] == ["linear", "linear"] for i in range(len(kinds)))
    found = kernels_of(falcon, "served", "layers.0")
    assert "gate_up" not in found
    assert "projections" not in found


@given(decoders())
@settings(STEADY, max_examples=10)
def test_unfused_is_an_op_a_region(graph):
    assert kernels_of(graph, "none") == [op.kind for op in graph.ops]


def test_borders_of_the_fused_regions():
    graph = decoder()
    qkv = region_at(graph, "norm_qkv_rope_append")
    assert qkv.outputs == ("layers.0/q_rope", "kv")
    assert "embed/x" in qkv.inputs
    assert "kv" in qkv.inputs
    assert region_at(graph, "linear_add").outputs == ("layers.0/attention_out",)
    assert set(region_at(graph, "linear_add").inputs) >= {"embed/x", "layers.0/attention"}
    assert region_at(graph, "norm_gate_up_silu_mul").outputs == ("layers.0/mul",)
    assert region_at(graph, "take_norm_linear").outputs == ("head/logits",)
    assert region_at(graph, "sample").outputs == ("next_tokens",)


@pytest.mark.parametrize("kept", ["q_norm", "k_norm"])
def test_one_head_norm_alone_is_matched(kept):
    """Each optional part is optional by itself: its reader falls back to the projection."""
    graph = decoder(qk_norm=True)
    gone = {"q_norm": "k", "k_norm": "q"}[kept]
    rope = the_op(graph, f"layers.0/{gone}_rope")
    graph = without(graph, the_op(graph, f"layers.0/{gone}_norm"))
    graph = change_op(graph, rope.name, inputs=(f"layers.0/{gone}", *rope.inputs[1:]))
    verify(graph)
    kinds = [op.kind for op in fuse(graph, "cache")[1].ops]
    assert fuse(graph, "cache")[1].kernel == "norm_qkv_rope_append"
    assert kinds.count("rms_norm") == 2


HIDDEN = {
    "norm_qkv_rope_append": ["input_norm", "q", "k", "v", "q_norm", "k_norm", "k_rope"],
    "linear_add": ["o"],
    "norm_gate_up_silu_mul": ["post_norm", "gate", "up", "silu"],
}


def lost_without(name):
    """Regions that a value that must be seen takes apart; gate and up go on without their norm."""
    return 0 if name == "post_norm" else 1


@pytest.mark.parametrize(("kernel", "name"), [(kernel, name) for kernel, names in HIDDEN.items() for name in names])
def test_a_value_wanted_outside_is_not_hidden(kernel, name):
    graph = decoder(qk_norm=True)
    graph = spy(graph, f"layers.0/{name}")
    verify(graph)
    found = kernels_of(graph, stage="layers.0")
    assert found.count(kernel) == LAYER.count(kernel) - lost_without(name)
    assert any(f"layers.0/{name}" in region.outputs for region in fuse(graph, "cache"))
    assert kernels_of(graph, stage="layers.1") == LAYER


@pytest.mark.parametrize("name", ["rows", "norm"])
def test_the_head_hides_nothing_that_is_wanted(name):
    graph = decoder()
    copy = replace(graph.values[f"head/{name}"], name="copy")
    op = replace(the_op(graph, "layers.0/silu"), name="head/spy", stage="head", inputs=(f"head/{name}",))
    graph = with_values(with_ops(graph, (*graph.ops, replace(op, outputs=("copy",)))), copy)
    verify(graph)
    assert "take_norm_linear" not in kernels_of(graph)


@pytest.mark.parametrize(("kernel", "name"), [(kernel, name) for kernel, names in HIDDEN.items() for name in names])
def test_an_output_of_the_step_is_not_hidden(kernel, name):
    graph = change_value(decoder(qk_norm=True), f"layers.0/{name}", kind=Kind.OUTPUT)
    verify(graph)
    assert kernels_of(graph, stage="layers.0").count(kernel) == LAYER.count(kernel) - lost_without(name)
    assert any(f"layers.0/{name}" in region.outputs for region in fuse(graph, "cache"))


@pytest.mark.parametrize("name", ["q_rope", "attention_out", "mul", "out"])
def test_what_a_region_puts_out_may_be_read_anywhere(name):
    graph = spy(decoder(), f"layers.0/{name}")
    verify(graph)
    assert kernels_of(graph, stage="layers.0") == LAYER


def rewired(graph, name, *inputs):
    return change_op(graph, name, inputs=inputs)


def key_read_by_query(graph):
    """With as many key heads as query heads, q is rotated from the key's projection."""
    return rewired(graph, "layers.0/q_rope", "layers.0/k", "positions", "inv_freq")


def value_not_of_this_norm(graph):
    v = the_op(graph, "layers.0/v")
    return rewired(graph, v.name, "embed/x", *v.inputs[1:])


def keys_not_rotated(graph):
    append = the_op(graph, "layers.0/kv_append")
    return rewired(graph, append.name, "layers.0/k", *append.inputs[1:])


def angles_differ(graph):
    return change_op(graph, "layers.0/k_rope", attrs={"scale": 2.0})


def frequencies_differ(graph):
    other = replace(graph.values["inv_freq"], name="other", data=(0.3, 0.2, 0.1))
    graph = with_values(graph, other)
    return rewired(graph, "layers.0/k_rope", "layers.0/k", "positions", "other")


def residual_is_the_product(graph):
    return rewired(graph, "layers.0/attention_out", "layers.0/o", "layers.0/o")


def residual_comes_second(graph):
    return rewired(graph, "layers.0/attention_out", "layers.0/o", "embed/x")


def add_of_another(graph):
    """The add behind the projection does not read it; someone later does."""
    return spy(rewired(graph, "layers.0/attention_out", "embed/x", "embed/x"), "layers.0/o")


def gate_ungated(graph):
    return spy(rewired(graph, "layers.0/mul", "layers.0/silu", "layers.0/silu"), "layers.0/up")


def silu_of_up(graph):
    graph = rewired(graph, "layers.0/silu", "layers.0/up")
    return rewired(graph, "layers.0/mul", "layers.0/silu", "layers.0/gate")


def up_of_the_unnormed(graph):
    up = the_op(graph, "layers.0/up")
    return rewired(graph, up.name, "layers.0/attention_out", *up.inputs[1:])


def norm_per_head(graph):
    """The stream has two axes to a token: the norm is over the last alone, the linears over both."""
    for name in ("embed/x", "layers.0/input_norm", "layers.0/o", "layers.0/attention_out"):
        graph = change_value(graph, name, shape=(T, 3, 4))
    for name in ("layers.0/post_norm", "layers.0/down", "layers.0/out"):
        graph = change_value(graph, name, shape=(T, 3, 4))
    for name in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm"):
        graph = change_value(graph, f"model.{name}.weight", shape=(4,))
    return graph


def other_stage(graph):
    """An op between two stages' ops is not taken over the border."""
    return change_op(graph, "layers.0/attention_out", stage="elsewhere")


def an_op_between(graph):
    copy = replace(graph.values["layers.0/gate"], name="copy")
    op = replace(the_op(graph, "layers.0/silu"), name="layers.0/between", inputs=("layers.0/gate",), outputs=("copy",))
    return after(graph, "layers.0/up", op, copy)


LOOKALIKES = {
    key_read_by_query: "norm_qkv_rope_append",
    value_not_of_this_norm: "norm_qkv_rope_append",
    keys_not_rotated: "norm_qkv_rope_append",
    angles_differ: "norm_qkv_rope_append",
    frequencies_differ: "norm_qkv_rope_append",
    residual_is_the_product: "linear_add",
    residual_comes_second: "linear_add",
    add_of_another: "linear_add",
    other_stage: "linear_add",
    gate_ungated: "norm_gate_up_silu_mul",
    silu_of_up: "norm_gate_up_silu_mul",
    up_of_the_unnormed: "norm_gate_up_silu_mul",
    an_op_between: "norm_gate_up_silu_mul",
}


@pytest.mark.parametrize("change", LOOKALIKES, ids=lambda change: change.__name__)
def test_a_lookalike_is_left_unfused(change):
    kernel = LOOKALIKES[change]
    graph = change(decoder(num_heads=2))
    if change is not norm_per_head:
        verify(graph)
    found = kernels_of(graph)[1:]
    assert found.count(kernel) == 2 * LAYER.count(kernel) - 1


def test_a_norm_per_head_is_not_a_norm_of_the_row():
    graph = norm_per_head(decoder(num_layers=1, windows=(0,)))
    graph = with_ops(graph, (op for op in graph.ops if op.stage != "head"))
    found = kernels_of(graph)
    assert "norm_qkv_rope_append" not in found
    assert [op.kind for op in region_at(graph, "norm_gate_up_silu_mul").ops] == ["linear", "linear", "silu", "mul"]
    assert found.count("linear_add") == 2


def test_rules_are_rows_with_reasons():
    for rules in RULE_SETS.values():
        assert len({rule.name for rule in rules}) == len(rules)
        for rule in rules:
            roles = [part.role for part in rule.pattern]
            assert rule.reason
            assert rule.name not in OPS
            assert len(set(roles)) == len(roles)
            assert set(rule.alike) | set(rule.share) <= set(roles)
            assert {part.kind for part in rule.pattern} <= set(OPS)
            for i, part in enumerate(rule.pattern):
                assert all(set(role.removesuffix("|").split("|")) <= set(roles[:i]) for _, role in part.reads)


def test_an_unknown_rule_set_is_named():
    with pytest.raises(UsageError, match=r"'rdu' is unknown; use one of none, cache"):
        fuse(decoder(), "rdu")
