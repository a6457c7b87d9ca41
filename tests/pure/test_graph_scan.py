"""Selective state spaces in graphs: what is legal, what sequences keep, what a step costs, the reference in pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.pure.graphs import (
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
from coterie.graph.compile import compile_graph, kv_shape
from coterie.graph.cost import op_cost
from coterie.graph.delta_net.ops import CONV_STATE, DELTA_STATE
from coterie.graph.program import KvShape, architecture_key
from coterie.graph.shard import shard
from coterie.graph.verify import verify
from coterie.models.state_space import StateSpaces

SPACES = StateSpaces((0, 2), heads=4, head_dim=5, state=3, groups=2, taps=4, factors=(0.5, 2.0, 1.5))
CONV, SCAN, NORM, FACTORS = "layers.2/conv", "layers.2/scan", "layers.2/scan_norm", "layers.2/xbc_scaled"


def hybrid(spaces=SPACES, **changes):
    """A decoder of three layers of which the second attends."""
    return decoder(state_spaces=spaces, **{"num_layers": 3, "windows": (0,) * 3, **changes})


PREFIX = "model.layers.2.mamba."
WRONG = {
    "bias of the convolution": (lambda g: change_value(g, f"{PREFIX}conv1d.bias", shape=(3,)), ["conv1d.bias", "(3,)"]),
    "layer": (lambda g: change_attributes(g, SCAN, layer=2), ["layer 2 is not among the 2 of delta_state"]),
    "twice": (lambda g: change_attributes(g, SCAN, layer=0), ["layer 0 of delta_state is changed twice"]),
    "groups": (lambda g: change_attributes(g, SCAN, head_groups=3), ["4 heads are in 3 groups"]),
    "too many numbers": (lambda g: change_attributes(g, SCAN, head_groups=1), ["layers.2/conv", "give 26 numbers"]),
    "another state": (lambda g: change_operand(g, SCAN, 8, CONV_STATE), ["conv_state is state F32", "of 4 dimensions"]),
    "a rounded state": (lambda g: change_value(g, DELTA_STATE, dtype=DType.BF16), ["delta_state is state BF16"]),
    "steps": (lambda g: change_operand(g, SCAN, 1, "layers.2/z"), ["layers.2/z", "(T, 4)"]),
    "what passes by": (lambda g: change_value(g, f"{PREFIX}D", shape=(2,)), ["mamba.D", "(4,)"]),
    "bounds": (lambda g: change_attributes(g, SCAN, least=2.0, most=1.0), ["steps are from 2.0 to 1.0"]),
    "groups of the norm": (lambda g: change_attributes(g, NORM, head_groups=3), ["20 channels are in 3 groups"]),
    "eps": (lambda g: change_attributes(g, NORM, eps=-1.0), ["eps is -1.0"]),
    "weight of the norm": (lambda g: change_value(g, f"{PREFIX}norm.weight", shape=(10,)), ["norm.weight", "(20,)"]),
    "factors": (lambda g: change_operand(g, FACTORS, 1, f"{PREFIX}conv1d.bias"), ["conv1d.bias is weight (32,)"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong):
    verify(hybrid())
    check_refused(hybrid(), *WRONG[wrong])


def test_what_a_sequence_keeps():
    """Of each layer 4 matrices of 15 numbers, and 32 channels of the convolution, 5 of which fit beside three taps."""
    assert kv_shape(hybrid(dtypes=(DType.BF16,))) == KvShape(
        1, 2, 6, DType.BF16, state_units=2 * (4 + 7), unit_bytes=60
    )
    alone = kv_shape(hybrid(replace(SPACES, layers=(0, 1, 2))))  # a number of each token, so that it has blocks
    assert alone == KvShape(1, 1, 1, DType.F32, state_units=3 * (4 + 7), unit_bytes=60, parts=1)
    beside = kv_shape(hybrid(replace(SPACES, layers=(0, 1, 2), parallel_to_attention=True)))
    assert (beside.num_layers, beside.state_units) == (3, 33)


def test_the_key_is_that_of_the_spaces_too():
    changes = ({"taps": 3}, {"groups": 1, "state": 6}, {"layers": (0, 1)}, {"min_step": 0.1}, {"max_step": 9.0})
    changed = [replace(SPACES, **one) for one in (*changes, {"factors": (1.0, 1.0, 1.0)}, {"norm_first": True})]
    assert len({architecture_key(hybrid(spaces)) for spaces in (SPACES, *changed)}) == 8


KINDS = {
    "in place of attention": SPACES,
    "beside it": replace(SPACES, parallel_to_attention=True, norms=False),
    "alone": replace(SPACES, layers=(0, 1, 2), groups=1, norm_first=True, min_step=0.4, max_step=0.8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_equal_the_whole_and_others_change_nothing(kind):
    check_pieces(hybrid(KINDS[kind]))


def test_a_step_reads_and_writes_the_state_of_each_sequence_once():
    graph, matrices, inputs = hybrid(), 4 * 3 * 5 * 4, 3 * 32 * 4
    for sizes in (Sizes.decode(2, 100), Sizes.prefill(2, 50)):
        scan, conv, norm, row = (op_cost(graph, the_op(graph, name), sizes) for name in (SCAN, CONV, NORM, FACTORS))
        assert scan.kv_read_bytes == scan.kv_write_bytes == 2 * matrices
        assert conv.kv_read_bytes == conv.kv_write_bytes == 2 * inputs
        assert (scan.flops, conv.flops) == (5 * sizes.T * 60, 13 * sizes.T * 32)
        assert (norm.flops, row.flops) == (4 * sizes.T * 20, sizes.T * 32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule_set", ["none", "cache", "section"])
def test_costs_have_a_closed_form(rule_set, kind):
    check_closed_costs(hybrid(KINDS[kind]), rule_set)


def test_a_gate_is_one_with_its_scan_where_no_norm_is_between():
    def kernels(spaces):
        return [
            region.kernel for region in compile_graph(hybrid(spaces), "cache").regions if region.stage == "layers.0"
        ]

    block = ["norm_gate_up_silu_mul", "linear_add"]
    before = ["rms_norm", *["linear"] * 3, "mul_row", "causal_conv"]
    assert kernels(SPACES) == [*before, "selective_scan_gate", "group_norm", "linear_add", *block]
    first = kernels(replace(SPACES, norm_first=True))
    assert first == [*before, "selective_scan", "group_norm", "silu", "mul", "linear_add", *block]
    one = kernels(replace(SPACES, groups=1, state=3, factors=(1.0, 1.0, 1.0)))
    assert one == [*before[:4], "causal_conv", "selective_scan_gate", "rms_norm", "linear_add", *block]


def test_ranks_are_refused():
    with pytest.raises(UsageError, match=r"layers with a recurrent state are not split over 2 ranks"):
        shard(hybrid(), 2)
