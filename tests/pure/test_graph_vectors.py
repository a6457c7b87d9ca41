"""Graphs without a head: what is left of a model's, what it costs, and its share on a machine of several units."""

from __future__ import annotations

import pytest

from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Sizes
from coterie.graph.compile import compile_graph
from coterie.graph.cost import program_cost
from coterie.graph.fuse import RULE_SETS
from coterie.graph.ir import Graph, Kind
from coterie.graph.program import architecture_key
from coterie.graph.shard import shard
from coterie.graph.vectors import row_values, samples_tokens, vectors_graph
from coterie.graph.verify import verify
from coterie.models.zoo import zoo_model

SIZES = Sizes(T=7, B=2, R=3, context_tokens=40, pairs=60)


@pytest.fixture(scope="module")
def whole() -> Graph:
    return zoo_model("llama-2-7b", "whole").graph


def test_all_before_the_head_stays_as_it_is(whole: Graph) -> None:
    bare = vectors_graph(whole)
    verify(bare)
    assert samples_tokens(whole)
    assert not samples_tokens(bare)
    assert bare.ops == whole.ops[: len(bare.ops)]
    assert [op.kind for op in whole.ops[len(bare.ops) :]] == ["linear", "sample"]
    assert bare.values[row_values(bare)].kind is Kind.OUTPUT
    assert {value.name for value in whole.weights} - {value.name for value in bare.weights} == {"lm_head.weight"}
    assert architecture_key(bare) != architecture_key(whole)
    assert vectors_graph(bare) is bare


@pytest.mark.parametrize("rule_set", ["none", "cache", "section", "o0"])
def test_programs_of_it_cost_less_by_the_head(whole: Graph, rule_set: str) -> None:
    assert rule_set in RULE_SETS
    bare, full = compile_graph(vectors_graph(whole), rule_set), compile_graph(whole, rule_set)
    assert (bare.vocab_size, bare.result_width, full.result_width) == (32000, 4096, 32000)
    assert bare.kv == full.kv
    head = 2 * SIZES.R * 32000 * 4096
    less = program_cost(full, SIZES).flops - program_cost(bare, SIZES).flops
    assert head <= less < 1.01 * head


@pytest.mark.parametrize("degree", [2, 8])
def test_it_is_shared_by_units(whole: Graph, degree: int) -> None:
    program = compile_graph(shard(vectors_graph(whole), degree), "cache")
    assert not program.samples_tokens
    assert program.result_width == 4096


def test_a_graph_without_such_rows_is_refused(whole: Graph) -> None:
    ops = tuple(op for op in whole.ops if op.kind != "take_rows")
    with pytest.raises(UnsupportedError, match="no norm of a step's rows"):
        vectors_graph(Graph(whole.name, whole.values, ops))
