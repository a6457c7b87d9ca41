"""What a graph says arrives in the instructions: whatever is changed in an op changes an operand, or the regions.

Knows nothing about kernels.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
from tests.device.random_expert import BASE, SHAPES

from coterie.core.dtypes import DType
from coterie.devices.real.lower import lower
from coterie.devices.real.lowering import Lowering
from coterie.devices.real.operands import Weight, Weights
from coterie.graph.branch.ops import ADDED_SUM, TOP_K
from coterie.graph.compile import compile_graph
from coterie.graph.ir import Kind
from coterie.graph.ops import OPS, ROUNDING
from coterie.models.config import ModelConfig
from coterie.models.registry import decoder_graph, weight_shapes

# Attributes that may be left out, as they are where they are not.
LEFT_OUT = {"scale": 0.5, "offset": 0.25, "cap": 2.0, "interleaved": 1, "growth": 0.4, "every": 6}
IN_GROUPS = {"groups": 5, "taken_groups": 3, "group_best": 1}
LEFT_OUT |= {
    "plain": 1,
    "scores": "sigmoid",
    "least_sum": 0.125,
    "added_sum": 0.25,
    "least": 0.2,
    "most": 3.0,
    **IN_GROUPS,
}
BESIDE = {"growth": {"every": 6}, "every": {"growth": 0.4}}  # what must be there too
BESIDE |= dict.fromkeys(IN_GROUPS, IN_GROUPS)
OTHERS = {"groups": 2, "taken_groups": 3, "group_best": 1}  # as legal, of six branches in three groups
FOR_VERIFY = (
    "layer",
    TOP_K,
    "scores",
    "plain",
    "key_heads",
    "head_groups",
)  # attributes in which ops must agree, or that have one value
RULE_SETS = ("none", "cache")
YARN = "norms behind, cosines and sines scaled"
CHOSEN = [
    *("biases", "qk-norm", "window", "gemma2", "gemma3", "rotated-in-part", "not-all-rotated", "scaled"),
    *("interleaved", "interleaved-in-part", "queries-that-grow", "layer-norms", "side-by-side", "plain-feed-forward"),
    *("short-convolutions", "trained-activation", "state-spaces", "state-spaces-beside-attention"),
    *("branches", "branches-by-groups", "sinks-and-clipped-gates"),
    *("norms-behind-and-not-all-rotated", YARN),
]


def graph_of(shape):
    changes = SHAPES.get(shape, {})
    if shape == YARN:
        rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}
        changes = {**SHAPES["norms-behind"], "rope_scaling": rope}
    config = ModelConfig.from_hf(BASE | changes, shape)
    return decoder_graph(config, dict.fromkeys(weight_shapes(config), DType.BF16))


def lowered(graph, rule_set):
    """Operands of every region, with weights by name and constants by what is in them."""
    program = compile_graph(graph, rule_set)
    low = Lowering(program, "a test", address=lambda data: hash(data.tobytes()))

    def named(operand):
        if isinstance(operand, Weights):
            return tuple(program.weights[index] for index in operand.indices)
        return program.weights[operand.index] if isinstance(operand, Weight) else operand

    return [(r.kernel, {name: named(op) for name, op in lower(low, r).items()}) for r in program.regions]


def changed(graph, op, **changes):
    return replace(graph, ops=tuple(replace(other, **changes) if other is op else other for other in graph.ops))


def other(name, value):
    """Another value of an attribute, as legal as the first."""
    if name in ("interleaved", "normalise"):
        return 1 - value
    if isinstance(value, str):
        return "tanh" if value != "tanh" else "erf"
    if name in OTHERS:
        return OTHERS[name]
    return value + 1 if isinstance(value, int) else 1.5 * value + 0.125


def given(attrs, name, value):
    """Attributes with another value of one, and without what is legal beside the first alone."""
    only = {ADDED_SUM} if name == "normalise" and not value else set()
    return {**{key: its for key, its in attrs.items() if key not in only}, name: value}


def attributes(graph):
    """The graph with one attribute of one op changed, or given where it was left out; layers are for verify."""
    for op in graph.ops:
        left_out = {n.removesuffix("?") for n in OPS[op.kind].attrs if n.endswith("?")} - {ROUNDING, *op.attrs}
        branches = {"groups": graph.values[op.outputs[0]].shape[-1]}  # each one a group
        new = {name: {**LEFT_OUT, **branches}[name] for name in left_out}
        new |= {name: other(name, value) for name, value in op.attrs.items() if name not in FOR_VERIFY}
        for name, value in new.items():
            beside = {**BESIDE[name], **(branches if name in IN_GROUPS else {})} if name in BESIDE else {}
            attrs = MappingProxyType({**beside, **given(op.attrs, name, value)})
            yield f"{op.name} {name}", changed(graph, op, attrs=attrs)


def operands(graph):
    """The graph with one weight or constant of one op in another's place, which is like it."""
    for op in graph.ops:
        for i, name in enumerate(op.inputs):
            value = graph.values.get(name)
            if value is None or value.kind not in (Kind.WEIGHT, Kind.CONSTANT):
                continue
            like = replace(value, name=f"{name}/like", data=tuple(2 * number for number in value.data))
            inputs = (*op.inputs[:i], like.name, *op.inputs[i + 1 :])
            values = MappingProxyType({**graph.values, like.name: like})
            yield f"{op.name} {name}", replace(changed(graph, op, inputs=inputs), values=values)


def together(graph):
    """The graph with one attribute of all ops of a kind changed, or one constant wherever it is read.

    Ops that a region takes only if they are alike then stay so.
    """
    usual = {"rms_norm": {"offset": 0.0}, "rope": {"interleaved": 0}}
    full = [replace(op, attrs={**usual.get(op.kind, {}), **op.attrs}) for op in graph.ops]
    attrs = {(op.kind, name) for op in full for name in op.attrs if name not in (*FOR_VERIFY, ROUNDING)}
    for kind, name in sorted(attrs):
        ops = (
            replace(op, attrs=MappingProxyType(given(op.attrs, name, other(name, op.attrs[name]))))
            if op.kind == kind and name in op.attrs
            else op
            for op in full
        )
        yield f"{kind} {name}", replace(graph, ops=tuple(ops))
    for value in (value for value in graph.values.values() if value.kind is Kind.CONSTANT):
        other_data = replace(value, data=tuple(2 * number for number in value.data))
        yield value.name, replace(graph, values=MappingProxyType({**graph.values, value.name: other_data}))


@pytest.mark.parametrize("rule_set", RULE_SETS)
@pytest.mark.parametrize("shape", CHOSEN)
def test_nothing_of_ops_that_are_alike_is_lost(shape, rule_set):
    graph = graph_of(shape)
    plain = lowered(graph, rule_set)
    for what, different in together(graph):
        found = lowered(different, rule_set)
        assert [kernel for kernel, _ in found] == [kernel for kernel, _ in plain], what
        assert found != plain, what


@pytest.mark.parametrize("rule_set", RULE_SETS)
@pytest.mark.parametrize("shape", CHOSEN)
def test_nothing_of_an_op_is_lost(shape, rule_set):
    graph = graph_of(shape)
    plain = lowered(graph, rule_set)
    assert plain == lowered(graph, rule_set)
    for changes in (attributes, operands):
        found = list(changes(graph))
        assert len(found) > 20
        for what, different in found:
            assert lowered(different, rule_set) != plain, what
