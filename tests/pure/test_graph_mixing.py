"""Which weights may differ among sequences: those of products that are kernels of their own, and no others."""

from __future__ import annotations

import pytest
from tests.pure.graphs import decoder
from tests.pure.test_graph_low_rank import changed

from coterie.core.dtypes import DType
from coterie.graph.compile import compile_graph
from coterie.graph.delta import with_differences
from coterie.graph.ir import Kind, Value
from coterie.graph.mixing import mixes, own_bytes


def shared_but(program, *ends):
    """The places of all weights but those that end so."""
    return tuple(i for i, name in enumerate(program.weights) if not name.endswith(ends))


def differing(graph, *parts):
    """The graph with a difference beside each weight so called, of packed numbers."""
    names = [value.name for value in graph.weights if value.name.endswith(parts)]
    return with_differences(
        graph, {name: Value(f"{name}.diff", graph.values[name].shape, DType.Q8, Kind.WEIGHT) for name in names}
    )


@pytest.mark.parametrize("rule_set", ["none", "cache", "section", "served"])
def test_factors_beside_products_may_differ_however_the_graph_is_cut(rule_set):
    program = compile_graph(changed(decoder(), rank=3)[0], rule_set)
    assert mixes(program, shared_but(program, ".A", ".B"))
    assert not mixes(program, ())
    assert not mixes(program, range(len(program.weights)))
    assert not mixes(program, shared_but(program, ".A", ".B", "norm.weight"))


def test_products_inside_larger_kernels_may_not():
    program = compile_graph(decoder(o_bias=True), "cache")
    assert mixes(program, shared_but(program, "down_proj.weight", "o_proj.weight"))
    assert not mixes(program, shared_but(program, "q_proj.weight"))
    assert not mixes(program, shared_but(program, "o_proj.bias")), "kernels take a bias for all rows"
    unfused = compile_graph(decoder(), "none")
    assert mixes(unfused, shared_but(unfused, "q_proj.weight", "gate_proj.weight"))


def test_differences_of_products_may_and_those_of_tables_may_not():
    program = compile_graph(differing(decoder(), "q_proj.weight", "down_proj.weight"), "cache")
    assert mixes(program, shared_but(program, ".diff"))
    program = compile_graph(differing(decoder(), "q_proj.weight", "embed_tokens.weight"), "cache")
    assert not mixes(program, shared_but(program, ".diff"))


def test_what_differs_has_the_bytes_of_its_weights():
    graph, changes = changed(decoder(), ("q_proj",), rank=3)
    program = compile_graph(graph, "cache")
    values = [value for change in changes.values() for value in (change.a, change.b)]
    wanted = sum(4 * value.shape[0] * value.shape[1] for value in values)
    assert own_bytes(program, shared_but(program, ".A", ".B")) == wanted
