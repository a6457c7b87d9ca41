"""Gated delta nets in graphs: what is legal, what sequences keep, what a step costs, and the reference in pieces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.pure.graphs import (
    Player,
    change_attributes,
    change_operand,
    change_value,
    check_closed_costs,
    check_pieces,
    check_refused,
    decoder,
    the_op,
)

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.graph.compile import kv_shape
from coterie.graph.cost import op_cost
from coterie.graph.delta_net.ops import CONV_STATE, DELTA_STATE
from coterie.graph.program import KvShape, architecture_key
from coterie.graph.shard import shard
from coterie.graph.verify import verify
from coterie.models.delta_net import DeltaNets

NETS = DeltaNets((0, 2), key_heads=2, value_heads=4, key_dim=3, value_dim=5, taps=4)
CONV, DELTA = "layers.2/conv", "layers.2/delta"


def delta_net(nets=NETS, **changes):
    """A decoder of three layers of which the second attends, behind a gate."""
    shape = {"num_layers": 3, "windows": (0,) * 3, "gated_attention": True, "qk_norm": True, "norm_offset": 1.0}
    return decoder(delta_nets=nets, **{**shape, **changes})


WRONG = {
    "taps": (lambda g: change_value(g, "model.layers.2.linear_attn.conv1d.weight", shape=(32, 1, 3)), ["(32, 1, 3)"]),
    "channels": (lambda g: change_value(g, "layers.2/qkv", shape=(32,)), ["layers.2/qkv", "(32,)"]),
    "conv's layer": (lambda g: change_attributes(g, CONV, layer=2), ["layer 2 is not among the 2 of conv_state"]),
    "layer": (lambda g: change_attributes(g, DELTA, layer=2), ["layer 2 is not among the 2 of delta_state"]),
    "twice": (lambda g: change_attributes(g, DELTA, layer=0), ["layer 0 of delta_state is changed twice"]),
    "key heads": (lambda g: change_attributes(g, DELTA, key_heads=3), ["4 value heads share 3 key heads"]),
    "too few numbers": (lambda g: change_attributes(g, DELTA, key_heads=1), ["layers.2/conv", "give 26 numbers"]),
    "another state": (
        lambda g: change_operand(g, DELTA, 8, CONV_STATE),
        ["conv_state is state F32", "of 4 dimensions"],
    ),
    "a rounded state": (lambda g: change_value(g, DELTA_STATE, dtype=DType.BF16), ["delta_state is state BF16"]),
    "gates": (lambda g: change_operand(g, DELTA, 1, "layers.2/z"), ["layers.2/z", "(T, 4)"]),
    "decay": (lambda g: change_value(g, "model.layers.0.linear_attn.A_log", shape=(2,)), ["A_log", "(4,)"]),
    "time step": (lambda g: change_value(g, "model.layers.0.linear_attn.dt_bias", shape=(2,)), ["dt_bias", "(4,)"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong):
    verify(delta_net())
    check_refused(delta_net(), *WRONG[wrong])


def test_what_a_sequence_keeps():
    """Of each net 4 matrices of 15 numbers, and 32 channels of the convolution, 5 of which fit beside three taps."""
    kv = kv_shape(delta_net(dtypes=(DType.BF16,)))
    assert kv == KvShape(1, 2, 6, DType.BF16, state_units=2 * (4 + 7), unit_bytes=60)
    assert kv.sequence_bytes(10) == 10 * 2 * 2 * 6 * 2 + 22 * 60
    assert (kv.recurrent, kv.bytes_per_token, kv.min_block_bytes) == (True, 48, 60)
    assert [kv.state_blocks(size) for size in (60, 119, 120, 1319, 1320)] == [22, 22, 11, 2, 1]
    assert [kv.tokens_per_block(size) for size in (59, 60, 200)] == [0, 1, 4]
    assert kv.blocks_for(9, 200) == 8 + 3
    plain = kv_shape(decoder())
    assert (plain.recurrent, plain.state_blocks(4096), plain.blocks_for(5, 4 * plain.bytes_per_token)) == (False, 0, 2)


def test_the_key_is_that_of_the_nets_too():
    changed = (replace(NETS, taps=3), replace(NETS, key_heads=4, key_dim=2), replace(NETS, layers=(0, 1)))
    assert len({architecture_key(delta_net(nets)) for nets in (NETS, *changed)}) == 4


def test_pieces_equal_the_whole_and_others_change_nothing():
    check_pieces(delta_net())


def test_a_sequence_begins_with_nothing_whoever_had_its_blocks():
    player = Player(delta_net())
    wanted = player.feed((0, [3, 1, 4, 1, 5]))
    player.lengths.clear()  # the same blocks, from position 0 on
    np.testing.assert_array_equal(player.feed((0, [3, 1, 4, 1, 5])), wanted)


def test_a_step_reads_and_writes_the_state_of_each_sequence_once():
    graph, matrices, inputs = delta_net(), 4 * 3 * 5 * 4, 3 * 32 * 4
    for sizes in (Sizes.decode(2, 100), Sizes.prefill(2, 50)):
        net, conv = (op_cost(graph, the_op(graph, name), sizes) for name in (DELTA, CONV))
        assert net.kv_read_bytes == net.kv_write_bytes == 2 * matrices
        assert conv.kv_read_bytes == conv.kv_write_bytes == 2 * inputs
        assert (net.flops, conv.flops) == (7 * sizes.T * 60, 12 * sizes.T * 32)
    assert op_cost(graph, the_op(graph, "layers.1/attention"), Sizes.decode(1, 9)).kv_read_bytes == 9 * 2 * 2 * 6 * 4


@pytest.mark.parametrize("rule_set", ["none", "cache", "section"])
def test_costs_have_a_closed_form(rule_set):
    check_closed_costs(delta_net(), rule_set)


def test_ranks_are_refused():
    with pytest.raises(
        UsageError, match=r"layers with a recurrent state are not split over 2 ranks; use a machine of one unit"
    ):
        shard(delta_net(), 2)
