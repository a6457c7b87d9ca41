"""Fusion: a graph that only looks like what a rule takes is left unfused.

Knows nothing about what rules take (test_graph_fuse.py).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.pure.graphs import change_op, change_value, decoder, gemma, of_family, the_op, with_ops, with_values
from tests.pure.test_graph_fuse import LAYER, kernels_of, region_at, spy, without

from coterie.core.shapes import Symbol
from coterie.graph.verify import verify

T = Symbol.T


def after(graph, name, op, *values):
    """The graph with an op behind the named one."""
    at = next(i for i, other in enumerate(graph.ops) if other.name == name)
    return with_values(with_ops(graph, (*graph.ops[: at + 1], op, *graph.ops[at + 1 :])), *values)


def rewired(graph, name, *inputs):
    return change_op(graph, name, inputs=inputs)


def key_read_by_query(graph):
    """With as many key heads as query heads, q is rotated from the key's projection."""
    return rewired(graph, "layers.0/q_rope", "layers.0/k", "positions", "inv_freq")


def value_not_of_this_norm(graph):
    v = the_op(graph, "layers.0/v")
    return rewired(graph, v.name, "embed/x", *v.inputs[1:])


def keys_not_rotated(graph):
    append, rope = the_op(graph, "layers.0/kv_append"), the_op(graph, "layers.0/k_rope")
    return rewired(graph, append.name, rope.inputs[0], *append.inputs[1:])


def angles_differ(graph):
    return change_op(graph, "layers.0/k_rope", attrs={"scale": 2.0})


def frequencies_differ(graph):
    other = replace(graph.values["inv_freq"], name="other", data=(0.3, 0.2, 0.1))
    graph, rope = with_values(graph, other), the_op(graph, "layers.0/k_rope")
    return rewired(graph, rope.name, rope.inputs[0], "positions", "other")


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


def offset_of_one_norm(graph):
    return change_op(graph, "layers.0/k_norm", attrs={"eps": 1e-5, "offset": 1.0})


def normed_comes_first(graph):
    add = the_op(graph, "layers.0/attention_out")
    return rewired(graph, add.name, *reversed(add.inputs))


def up_of_another(graph):
    """Without the norm that gate and up have in common."""
    graph = without(graph, the_op(graph, "layers.0/post_norm"))
    for name, x in (("gate", "layers.0/attention_out"), ("up", "embed/x")):
        op = the_op(graph, f"layers.0/{name}")
        graph = rewired(graph, op.name, x, *op.inputs[1:])
    return graph


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


BEHIND, NORMED = of_family("olmo2", num_heads=2), {"num_heads": 2, "qk_norm": True}
OTHERS = [
    (angles_differ, BEHIND, "norm_rope_append"),
    (frequencies_differ, BEHIND, "norm_rope_append"),
    (keys_not_rotated, BEHIND, "norm_rope_append"),
    (offset_of_one_norm, BEHIND, "norm_rope_append"),
    (offset_of_one_norm, NORMED, "norm_qkv_rope_append"),
    (normed_comes_first, BEHIND, "norm_add"),
    (up_of_another, gemma(1, num_heads=2), "norm_gate_up_gelu_mul"),
]


@pytest.mark.parametrize(("change", "shape", "kernel"), OTHERS, ids=lambda part: getattr(part, "__name__", ""))
def test_a_lookalike_of_other_families_is_left_unfused(change, shape, kernel):
    graph = decoder(**shape)
    changed = change(graph)
    verify(changed)
    assert kernels_of(changed).count(kernel) == kernels_of(graph).count(kernel) - 1


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"shape": (T, 24)},  # no heads
        {"shape": (T, 3, 8)},  # of other channels than the keys
        {"shape": (Symbol.R, 4, 6)},  # of other rows
    ],
    ids=str,
)
def test_queries_that_are_no_heads_like_the_keys_are_left_unfused(change, together):
    """As if something else than attention read them."""
    graph = decoder(layers_without_rope=(0, 1), qk_norm=together, qk_norm_all_heads=together)
    kernel = "norm_rope_append" if together else "norm_qkv_rope_append"
    assert kernel in kernels_of(graph, stage="layers.0")
    for name in ("q", "q_norm") if together else ("q",):
        graph = change_value(graph, f"layers.0/{name}", **change)
    assert kernel not in kernels_of(graph, stage="layers.0")


@pytest.mark.parametrize("together", [False, True])
def test_heads_of_an_odd_number_of_channels_are_left_unfused(together):
    """Kernels take channels in pairs, turned or not."""
    graph = decoder(head_dim=5, layers_without_rope=(0, 1), qk_norm=together, qk_norm_all_heads=together)
    verify(graph)
    assert not {"norm_rope_append", "norm_qkv_rope_append"} & {*kernels_of(graph)}


def test_a_norm_of_heads_is_not_added_as_one_region():
    graph = norm_per_head(decoder(num_layers=1, windows=(0,)))
    norm, total = the_op(graph, "layers.0/post_norm"), replace(graph.values["layers.0/post_norm"], name="sum")
    add = replace(the_op(graph, "layers.0/out"), name="layers.0/sum", inputs=("embed/x", norm.outputs[0]))
    graph = after(graph, norm.name, replace(add, outputs=("sum",)), total)
    for name in ("gate", "up"):
        graph = rewired(graph, f"layers.0/{name}", "sum", *the_op(graph, f"layers.0/{name}").inputs[1:])
    found = kernels_of(graph, stage="layers.0")
    assert found[found.index("add") - 1 :][:2] == ["rms_norm", "add"]


def test_a_norm_per_head_is_not_a_norm_of_the_row():
    graph = norm_per_head(decoder(num_layers=1, windows=(0,)))
    graph = with_ops(graph, (op for op in graph.ops if op.stage != "head"))
    found = kernels_of(graph)
    assert "norm_qkv_rope_append" not in found
    assert [op.kind for op in region_at(graph, "norm_gate_up_silu_mul").ops] == ["linear", "linear", "silu", "mul"]
    assert found.count("linear_add") == 2
