"""Legality: every decoder passes; each way of being wrong is named, with the op, the operand and both sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from tests.pure.graphs import STEADY, change_op, change_value, decoder, decoders, the_op, with_ops, with_values

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Symbol
from coterie.graph.cost import FLOPS
from coterie.graph.ir import Kind, Value
from coterie.graph.ops import OPS, ROW_INPUTS
from coterie.graph.reference import OPS as RUN
from coterie.graph.verify import LEGAL, verify
from coterie.models.blocks import EMBED_WEIGHT

T, R = Symbol.T, Symbol.R


def test_the_tables_have_the_same_rows():
    assert set(OPS) == set(LEGAL) == set(FLOPS) == set(RUN)


def test_row_inputs_are_the_labels_of_the_table():
    labels = {operand.partition(":")[0] for spec in OPS.values() for operand in spec.inputs}
    assert set(ROW_INPUTS) <= labels


@settings(STEADY, max_examples=30)
@given(decoders())
def test_decoders_are_legal(graph):
    verify(graph)


def inputs_of(graph, name, position, value):
    inputs = list(the_op(graph, name).inputs)
    inputs[position] = value
    return change_op(graph, name, inputs=tuple(inputs))


def moved(graph, name, before):
    op = the_op(graph, name)
    rest = [other for other in graph.ops if other is not op]
    rest.insert(next(i for i, other in enumerate(rest) if other.name == before), op)
    return with_ops(graph, rest)


def unlike_kv(graph):
    """Attention over a state whose heads do not divide the query heads."""
    return change_value(graph, "kv", shape=(2, 2, 3, 6))


WRONG = {
    "unknown op": (
        lambda g: change_op(g, "layers.0/silu", kind="swoosh"),
        ["layers.0/silu", "swoosh", "not in the table"],
    ),
    "too few inputs": (lambda g: change_op(g, "layers.0/out", inputs=("embed/x",)), ["layers.0/out", "1", "2"]),
    "no output": (lambda g: change_op(g, "embed/x", outputs=()), ["embed/x", "0 outputs", "1"]),
    "missing operand": (lambda g: inputs_of(g, "layers.0/q", 1, ""), ["layers.0/q", "weight", "missing"]),
    "undeclared": (lambda g: inputs_of(g, "layers.0/q", 1, "nowhere"), ["layers.0/q", "nowhere"]),
    "attribute missing": (lambda g: change_op(g, "head/norm", attrs={}), ["head/norm", "eps"]),
    "attribute too many": (lambda g: change_op(g, "layers.0/silu", attrs={"eps": 1.0}), ["layers.0/silu", "eps"]),
    "used too early": (
        lambda g: moved(g, "layers.0/gate", "layers.0/post_norm"),
        ["layers.0/gate", "layers.0/post_norm", "before it is made"],
    ),
    "made twice": (
        lambda g: change_op(g, "layers.0/up", outputs=("layers.0/gate",)),
        ["layers.0/up", "layers.0/gate", "twice"],
    ),
    "weight made": (lambda g: change_op(g, "layers.0/silu", outputs=("positions",)), ["layers.0/silu", "positions"]),
    "same name": (lambda g: change_op(g, "layers.0/up", name="layers.0/gate"), ["layers.0/gate", "own name"]),
    "weight shape": (
        lambda g: change_value(g, "model.layers.0.self_attn.q_proj.weight", shape=(24, 13)),
        ["layers.0/q", "q_proj.weight", "(24, 13)", "(24, 12)"],
    ),
    "bias shape": (
        lambda g: change_value(g, "model.layers.1.self_attn.k_proj.bias", shape=(11,)),
        ["layers.1/k", "k_proj.bias", "(11,)", "(12,)"],
    ),
    "norm weight": (
        lambda g: change_value(g, "model.norm.weight", shape=(13,)),
        ["head/norm", "model.norm.weight", "(13,)", "(12,)"],
    ),
    "table width": (
        lambda g: change_value(g, "model.embed_tokens.weight", shape=(37, 11)),
        ["embed/x", "embed_tokens", "(37, 11)", "(37, 12)"],
    ),
    "integer weight": (
        lambda g: change_value(g, "model.norm.weight", dtype=DType.I32),
        ["head/norm", "model.norm.weight", "I32"],
    ),
    "activation as weight": (lambda g: inputs_of(g, "layers.0/q", 1, "embed/x"), ["layers.0/q", "embed/x"]),
    "half activation": (lambda g: change_value(g, "layers.0/mul", dtype=DType.BF16), ["layers.0/mul", "BF16", "F32"]),
    "fixed rows": (lambda g: change_value(g, "layers.0/silu", shape=(3, 20)), ["layers.0/silu", "(3, 20)"]),
    "symbolic width": (lambda g: change_value(g, "layers.0/gate", shape=(T, T)), ["layers.0/gate", "(T, T)"]),
    "empty width": (lambda g: change_value(g, "layers.0/gate", shape=(T, 0)), ["layers.0/gate", "(T, 0)"]),
    "unequal addends": (
        lambda g: inputs_of(g, "layers.0/attention_out", 0, "layers.0/q_rope"),
        ["layers.0/attention_out", "(T, 4, 6)", "(T, 12)"],
    ),
    "rounding of an unpacked weight": (
        lambda g: change_op(g, "layers.0/gate", attrs={"rounding": "int8"}),
        ["layers.0/gate", "int8", "type F32"],
    ),
    "rounding to another type": (
        lambda g: change_op(g, "layers.0/gate", attrs={"rounding": "int3"}),
        ["layers.0/gate", "int3", "'int8'"],
    ),
    "rounding to bfloat16 of another weight": (
        lambda g: change_op(g, "layers.0/gate", attrs={"rounding": "bf16"}),
        ["layers.0/gate", "bf16", "type F32", "where it is BF16"],
    ),
    "rounding to whole numbers of a bfloat16 weight": (
        lambda g: change_op(
            change_value(g, "model.layers.0.mlp.gate_proj.weight", dtype=DType.BF16),
            "layers.0/gate",
            attrs={"rounding": "int16"},
        ),
        ["layers.0/gate", "int16", "type BF16"],
    ),
    "negative eps": (lambda g: change_op(g, "head/norm", attrs={"eps": -1.0}), ["head/norm", "-1.0"]),
    "frequencies": (
        lambda g: change_value(g, "inv_freq", data=(1.0, 0.5, 0.2, 0.1)),
        ["layers.0/q_rope", "inv_freq", "4 numbers", "6 channels", "give 3, or fewer"],
    ),
    "other positions": (
        lambda g: inputs_of(with_values(g, Value("here", (T,), DType.I32, Kind.INPUT)), "layers.0/q_rope", 1, "here"),
        ["layers.0/q_rope", "positions", "here"],
    ),
    "float positions": (
        lambda g: change_value(g, "positions", dtype=DType.F32),
        ["layers.0/q_rope", "positions", "F32", "I32"],
    ),
    "rows per token": (lambda g: change_value(g, "rows", shape=(T,)), ["head/rows", "rows", "(T,)", "(R,)"]),
    "state shape": (lambda g: change_value(g, "kv", shape=(2, 2, 6)), ["layers.0/kv_append", "kv", "(2, 2, 6)"]),
    "state heads": (unlike_kv, ["layers.0/kv_append", "(T, 2, 6)", "(T, 3, 6)"]),
    "integer state": (lambda g: change_value(g, "kv", dtype=DType.I32), ["layers.0/kv_append", "kv"]),
    "state not threaded": (
        lambda g: change_op(
            with_values(g, Value("other", (2, 2, 2, 6), DType.F32, Kind.STATE)),
            "layers.0/kv_append",
            outputs=("other",),
        ),
        ["layers.0/kv_append", "other", "kv"],
    ),
    "no such layer": (
        lambda g: change_op(g, "layers.1/kv_append", attrs={"layer": 2}),
        ["layers.1/kv_append", "layer 2", "2 of kv"],
    ),
    "layer twice": (
        lambda g: change_op(g, "layers.1/kv_append", attrs={"layer": 0}),
        ["layers.1/kv_append", "layer 0", "twice"],
    ),
    "attention too early": (
        lambda g: change_op(g, "layers.0/attention", attrs={"layer": 1, "scale": 1.0, "window": 0}),
        ["layers.0/attention", "layer 1", "before"],
    ),
    "negative window": (
        lambda g: change_op(g, "layers.0/attention", attrs={"layer": 0, "scale": 1.0, "window": -4}),
        ["layers.0/attention", "-4"],
    ),
    "a small table": (
        lambda g: change_value(g, EMBED_WEIGHT, shape=(2, *g.values[EMBED_WEIGHT].shape[1:])),
        ["head/sample", "tokens", "2 rows"],
    ),
    "sampled type": (
        lambda g: change_value(g, "next_tokens", dtype=DType.F32),
        ["head/sample", "F32", "I32"],
    ),
    "sampled rows": (
        lambda g: change_value(g, "next_tokens", shape=(T,)),
        ["head/sample", "next_tokens", "(T,)", "(R,)"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case):
    change, words = WRONG[case]
    graph = decoder(qkv_bias=True)
    verify(graph)
    with pytest.raises(UsageError) as caught:
        verify(change(graph))
    for word in words:
        assert word in str(caught.value)


def test_query_heads_must_divide():
    """One projection changed all the way: five query heads over two key and value heads."""
    graph = decoder()
    q = (T, 5, 6)
    for name in ("layers.0/q", "layers.0/q_rope", "layers.0/attention"):
        graph = change_value(graph, name, shape=q)
    graph = change_value(graph, "model.layers.0.self_attn.q_proj.weight", shape=(30, 12))
    with pytest.raises(UsageError, match="5 query heads share 2"):
        verify(graph)


def test_odd_heads_are_not_rotated():
    graph = decoder()
    graph = change_value(graph, "layers.0/q", shape=(T, 8, 3))
    graph = change_value(graph, "layers.0/q_rope", shape=(T, 8, 3))
    with pytest.raises(UsageError, match="even number"):
        verify(graph)


def test_a_weight_has_no_symbols():
    """A norm over the tokens themselves would want a weight as long as the step."""
    graph = with_ops(decoder(), [the_op(decoder(), "head/norm")])
    for name in ("head/rows", "head/norm", "model.norm.weight"):
        graph = change_value(graph, name, shape=(R,))
    graph = change_value(graph, "head/rows", kind=Kind.INPUT)
    with pytest.raises(UsageError, match=r"head/norm.*model\.norm\.weight has shape \(R,\)"):
        verify(graph)


def test_a_state_may_be_any_float():
    for dtype in (DType.F32, DType.F16, DType.BF16):
        verify(change_value(decoder(), "kv", dtype=dtype))


def test_verify_does_not_need_a_whole_decoder():
    graph = decoder()
    verify(replace(graph, ops=graph.ops[:3]))
