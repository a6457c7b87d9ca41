"""Fusion: canonical decoders match every rule, and what is wanted outside is not hidden."""

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
from coterie.graph.fuse import RULE_SETS, fuse
from coterie.graph.ir import Kind
from coterie.graph.ops import OPS
from coterie.graph.verify import verify

LAYER = ["norm_qkv_rope_append", "attention", "linear_add", "norm_gate_up_silu_mul", "linear_add"]


def kernels_of(graph, rule_set="cache", stage=None):
    return [region.kernel for region in fuse(graph, rule_set) if stage in (None, region.stage)]


def region_at(graph, kernel, rule_set="cache"):
    return next(region for region in fuse(graph, rule_set) if region.kernel == kernel)


def without(graph, op):
    return with_ops(graph, (other for other in graph.ops if other is not op))


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


@pytest.mark.parametrize("how", [{}, {"rotated": 4}, {"layers_without_rope": (0,)}], ids=str)
def test_heads_normed_together_are_normed_and_put_in_their_place_as_one_region(how):
    graph = decoder(qk_norm=True, qk_norm_all_heads=True, **how)
    wanted = ["rms_norm", *["linear"] * 3, "norm_rope_append", "attention", *LAYER[2:]]
    assert kernels_of(graph, stage="layers.0") == wanted
    made = "q_norm" if "layers_without_rope" in how else "q_rope"
    assert region_at(graph, "norm_rope_append").outputs == (f"layers.0/{made}", "kv")


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
    graph = decoder(qk_norm=True, qk_norm_all_heads=True)
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
    wanted = ["layer_norm", "layer_norm", "linear", "rope", "rope", "kv_append", "attention", "linear"]
    assert kernels_of(falcon, stage="layers.0") == [*wanted, "norm_linear_gelu", "linear_add", "add"]


def test_decoders_with_layer_norms_become_five_regions_a_layer():
    plain, side_by_side = (decoder(**of_family("stablelm", parallel_norms=n)) for n in (0, 1))
    verify(plain)
    assert kernels_of(plain) == ["embed", *LAYER * 2, "take_norm_linear", "sample"]
    code = decoder(**of_family("starcoder2"))
    feed_forward = ["norm_linear_gelu", "linear_add"]
    assert kernels_of(code, stage="layers.1") == ["norm_qkv_rope_append", "attention", "linear_add", *feed_forward]
    # One norm serves both blocks, so it is stored; the residual waits for them.
    verify(side_by_side)
    wanted = ["layer_norm", "norm_qkv_rope_append", "attention", "linear", "norm_gate_up_silu_mul", "linear_add", "add"]
    assert kernels_of(side_by_side, stage="layers.0") == wanted


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
    """Regions that a value that must be seen takes apart; projections go on without their norm."""
    return 0 if name in ("input_norm", "post_norm") else 1


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


def test_rules_are_rows_with_reasons():
    for rules in RULE_SETS.values():
        assert len({rule.name for rule in rules}) == len(rules)
        for rule in rules:
            roles = [part.role for part in rule.pattern]
            assert rule.reason
            assert rule.name not in OPS
            assert len(set(roles)) == len(roles)
            assert set(rule.alike) | set(rule.share) <= set(roles)
            assert {kind for part in rule.pattern for kind in part.kind.split("|")} <= set(OPS)
            for i, part in enumerate(rule.pattern):
                assert all(set(role.removesuffix("|").split("|")) <= set(roles[:i]) for _, role in part.reads)


def test_an_unknown_rule_set_is_named():
    with pytest.raises(UsageError, match=r"'rdu' is unknown; use one of none, cache"):
        fuse(decoder(), "rdu")
