"""Latent attention in graphs: what is legal, what a token keeps, what a step costs, and the reference in pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.pure.graphs import (
    change_attributes,
    change_value,
    check_closed_costs,
    check_pieces,
    check_refused,
    decoder,
    the_op,
)
from tests.pure.test_graph_shard import check_ranks

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.graph.compile import kv_shape
from coterie.graph.cost import op_cost
from coterie.graph.program import KvShape, architecture_key
from coterie.graph.shard import shard
from coterie.graph.verify import verify
from coterie.models.latent import Latent

LATENT = Latent(query_rank=0, rank=5, rotated=4, plain=3, values=7, scale=0.4)
APPEND, QUERIES, ATTEND, VALUES = (f"layers.1/{n}" for n in ("latent_append", "latent_q", "attention", "attended"))
UP = "model.layers.1.self_attn.kv_b_proj.weight"


def latent(found=LATENT, **changes):
    """A decoder of two layers and four heads, whose queries have a rank or none."""
    return decoder(**{"latent": found, "head_dim": found.rotated, "interleaved": True, **changes})


WRONG = {
    "keys and values": (lambda g: change_value(g, "kv", shape=(2, 2, 1, 9)), ["kv is state (2, 2, 1, 9)"]),
    "a row for each head": (lambda g: change_value(g, "kv", shape=(2, 1, 4, 9)), ["give a float state [L, 1, 1, N]"]),
    "wider rows": (lambda g: change_value(g, "kv", shape=(2, 1, 1, 11)), ["layers.0/latent", "(T, 11)"]),
    "layer": (lambda g: change_attributes(g, APPEND, layer=2), ["layer 2 is not among the 2 of kv"]),
    "twice": (lambda g: change_attributes(g, APPEND, layer=0), ["layer 0 of kv is appended to twice"]),
    "too early": (lambda g: change_attributes(g, "layers.0/attention", layer=1), ["layer 1 of kv is read before"]),
    "pairs": (lambda g: change_attributes(g, QUERIES, interleaved=2), ["interleaved is 2"]),
    "norm": (lambda g: change_value(g, "model.layers.1.self_attn.kv_a_layernorm.weight", shape=(4,)), ["(5,)"]),
    "heads": (lambda g: change_value(g, UP, shape=(39, 5)), ["39 rows for 4 heads"]),
    "no rows for values": (lambda g: change_value(g, UP, shape=(12, 5)), ["12 rows for 4 heads, 3 of each"]),
    "other columns": (lambda g: change_value(g, UP, shape=(40, 6)), ["layers.1/latent_q", "(T, 4, 10)"]),
    "packed": (lambda g: change_value(g, UP, dtype=DType.Q8), ["kv_b_proj.weight is weight Q8", "F32, F16 or BF16"]),
    "queries": (lambda g: change_value(g, QUERIES, shape=(*the_shape(g, QUERIES)[:2], 8)), [QUERIES, "9)"]),
    "more than a row": (
        lambda g: change_value(g, ATTEND, shape=(*the_shape(g, ATTEND)[:2], 10)),
        ["rows of 9 numbers"],
    ),
    "other heads": (lambda g: change_value(g, ATTEND, shape=(the_shape(g, ATTEND)[0], 2, 5)), [ATTEND, "(T, 4)"]),
}


def the_shape(graph, name):
    return graph.values[name].shape


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong):
    verify(latent())
    check_refused(latent(), *WRONG[wrong])


def test_what_is_kept_of_a_token():
    """One row, however many heads there are."""
    for heads in (1, 4, 16):
        kv = kv_shape(latent(num_heads=heads, dtypes=(DType.BF16,)))
        assert kv == KvShape(2, 1, 9, DType.BF16, parts=1)
        assert (kv.bytes_per_token, kv.recurrent, kv.tokens_per_block(100)) == (2 * 9 * 2, False, 2)


def test_the_key_is_that_of_latent_attention_too():
    changed = (replace(LATENT, plain=4), replace(LATENT, values=6), replace(LATENT, query_rank=4))
    keys = {architecture_key(latent(found)) for found in (LATENT, *changed, replace(LATENT, scale=0.3))}
    assert len(keys | {architecture_key(latent(interleaved=False))}) == 6


@pytest.mark.parametrize("query_rank", [0, 4])
def test_pieces_equal_the_whole_and_others_change_nothing(query_rank):
    check_pieces(latent(replace(LATENT, query_rank=query_rank)))


def test_a_step_reads_a_row_for_each_position_and_a_heads_rows_once():
    graph, row = latent(), 9 * 4
    for sizes in (Sizes.decode(2, 100), Sizes.prefill(2, 50)):
        append, queries, attend, values = (
            op_cost(graph, the_op(graph, n), sizes) for n in (APPEND, QUERIES, ATTEND, VALUES)
        )
        assert (append.kv_write_bytes, attend.kv_read_bytes) == (sizes.T * row, sizes.context_tokens * row)
        assert append.kv_read_bytes == attend.kv_write_bytes == 0
        assert attend.flops == sizes.pairs * 4 * (2 * 9 + 2 * 5 + 5)
        assert (append.flops, append.weight_bytes) == (sizes.T * (4 * 5 + 3 * 4), 5 * 4)
        assert (queries.flops, queries.weight_bytes) == (sizes.T * 4 * (2 * 3 * 5 + 3 * 4), 4 * 3 * 5 * 4)
        assert (values.flops, values.weight_bytes) == (sizes.T * 4 * 2 * 7 * 5, 4 * 7 * 5 * 4)


@pytest.mark.parametrize("rule_set", ["none", "cache", "section"])
def test_costs_have_a_closed_form(rule_set):
    check_closed_costs(latent(), rule_set)


@pytest.mark.parametrize("query_rank", [0, 4])
@pytest.mark.parametrize("degree", [2, 4])
def test_all_ranks_together_equal_the_whole(degree, query_rank):
    """Ranks split heads; all of them keep the rows, and what they are made of."""
    graph = latent(replace(LATENT, query_rank=query_rank), vocab_size=40)
    check_ranks(graph, degree)
    own = shard(graph, degree)
    assert kv_shape(own) == kv_shape(graph)
    assert own.values[UP].shape == (40 // degree, 5)
    assert own.values["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"].shape == (9, 12)


def test_heads_that_ranks_cannot_split_are_refused():
    with pytest.raises(UsageError, match=r"layers.0/q has 4 heads, which do not split over 8 ranks"):
        shard(latent(vocab_size=40), 8)
