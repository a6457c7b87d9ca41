"""Rows that only some graphs declare, and attention that sees all of a sequence: legality, cost, batches."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError, UsageError
from coterie.core.shapes import Sizes
from coterie.engine.batch import cut_whole
from coterie.graph.cost import pairs_of
from coterie.graph.ir import Graph
from coterie.graph.ops import HORIZON
from coterie.graph.rows import derived_rows, is_bidirectional, min_table_rows, with_bidirectional_attention
from coterie.graph.verify import verify
from coterie.models.config import ModelConfig
from coterie.models.registry import decoder_graph, weight_shapes

CONFIG = {
    **{"model_type": "bert", "vocab_size": 31, "hidden_size": 12, "intermediate_size": 20, "hidden_act": "gelu"},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 9},
}


def encoder() -> Graph:
    config = ModelConfig.from_hf(CONFIG, "here")
    return decoder_graph(config, dict.fromkeys(weight_shapes(config, False), DType.F32), samples_tokens=False)


def changed(graph: Graph, name: str, **attrs: object) -> Graph:
    ops = [replace(op, attrs=MappingProxyType({**op.attrs, **attrs})) if op.name == name else op for op in graph.ops]
    return replace(graph, ops=tuple(ops))


def test_a_horizon_is_the_last_position_of_each_sequence() -> None:
    graph = encoder()
    verify(graph)
    found = derived_rows(graph, np.array([0, 1, 2, 0, 0, 1]), np.array([0, 0, 0, 2, 1, 1]))
    np.testing.assert_array_equal(found[HORIZON], [2, 2, 2, 0, 1, 1])
    np.testing.assert_array_equal(found["types"], np.zeros(6))
    assert all(row.dtype == np.int32 for row in found.values())
    assert [len(row) for row in derived_rows(graph, np.zeros(0, int), np.zeros(0, int)).values()] == [0, 0]
    np.testing.assert_array_equal(derived_rows(graph, np.arange(3), np.zeros(3, int), [0, 1, 1])["types"], [0, 1, 1])
    for wrong in ([0, 1], [0, 2, 0], [0, -1, 0]):
        with pytest.raises(ValueError, match="for 3 tokens, or outside 0 to 1"):
            derived_rows(graph, np.arange(3), np.zeros(3, int), wrong)
    assert is_bidirectional(graph)
    assert (min_table_rows(graph, "positions"), min_table_rows(graph, "rows")) == (9, None)


def test_all_layers_keep_keys_and_values_in_one_place() -> None:
    assert encoder().values["kv"].shape == (1, 2, 2, 6)


def test_what_sees_all_has_no_queries_that_grow() -> None:
    with pytest.raises(UsageError, match="sees all of a sequence"):
        verify(changed(encoder(), "layers.0/attention", growth=0.1, every=8))
    verify(changed(encoder(), "layers.0/attention", window=4))


def test_what_keeps_other_state_cannot_see_all() -> None:
    llama = {**CONFIG, "model_type": "llama", "hidden_act": "silu"}
    config = ModelConfig.from_hf(llama, "here")
    graph = decoder_graph(config, dict.fromkeys(weight_shapes(config), DType.BF16))
    assert with_bidirectional_attention(graph).values["kv"].shape == (1, 2, 2, 6)
    others = [replace(op, kind="alibi_attention") if op.kind == "attention" else op for op in graph.ops]
    with pytest.raises(UnsupportedError, match="plain attention alone"):
        with_bidirectional_attention(replace(graph, ops=tuple(others)))


def test_a_place_is_read_before_it_is_stored_in_again() -> None:
    graph = encoder()
    ops = tuple([op for op in graph.ops if op.name != "layers.1/kv_append"])
    with pytest.raises(UsageError, match="read before this step's tokens are in it"):
        verify(replace(graph, ops=ops))


def test_each_pair_of_tokens_is_counted_both_ways() -> None:
    attention = next(op for op in encoder().ops if op.kind == "attention")
    lengths = (3, 1, 5)
    causal = sum(length * (length + 1) // 2 for length in lengths)
    sizes = Sizes(sum(lengths), len(lengths), 1, sum(lengths), causal)
    assert pairs_of(attention, sizes) == sum(length**2 for length in lengths)
    windowed = replace(attention, attrs=MappingProxyType({**attention.attrs, "window": 2}))
    assert pairs_of(windowed, sizes) == 3 * sum(lengths)  # at most: each sees one before and one behind it


def test_prompts_are_taken_whole_within_a_step() -> None:
    waiting = [
        SimpleNamespace(number=number, order=(0, number), tokens=[1] * count, computed=0)
        for number, count in ((4, 3), (1, 9), (2, 2), (3, 6), (5, 1))
    ]

    def taken(tokens: int) -> list[tuple[int, int]]:
        return [(part.sequence.number, part.count) for part in cut_whole(waiting, tokens)]

    assert taken(8) == [(1, 9)]
    assert taken(12) == [(1, 9), (2, 2), (5, 1)]
    assert taken(100) == [(1, 9), (2, 2), (3, 6), (4, 3), (5, 1)]
    assert cut_whole([], 8) == ()


def test_biases_by_distance_have_a_row_for_each_bucket() -> None:
    more = {"model_type": "mpnet", "architectures": ["MPNetModel"]}
    config = ModelConfig.from_hf({**CONFIG, **more}, "here")
    graph = decoder_graph(config, dict.fromkeys(weight_shapes(config), DType.BF16))
    verify(graph)
    assert graph.values["encoder.relative_attention_bias.weight"].shape == (32, 2)
    buckets = graph.values["buckets"]
    for data in (buckets.data[1:], (32.0, *buckets.data[1:]), (-1.0, *buckets.data[1:]), (0.5, *buckets.data[1:])):
        wrong = replace(buckets, data=data, shape=(len(data),))
        with pytest.raises(UsageError, match=r"relative_attention: .* has \d+ (numbers|rows)"):
            verify(replace(graph, values=MappingProxyType({**graph.values, "buckets": wrong})))
    others = [
        replace(op, inputs=(*op.inputs[:5], "", op.inputs[6])) if op.kind == "relative_attention" else op
        for op in graph.ops
    ]
    with pytest.raises(UsageError, match="or without buckets one"):
        verify(replace(graph, ops=tuple(others)))
