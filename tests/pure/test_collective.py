"""Exchanges by formula: by hand, and the same for a mapped section and for a whole region.

Knows nothing about measured exchanges.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pure.graphs import STEADY

from coterie.core.errors import UsageError
from coterie.dataflow.chip import chip_of
from coterie.devices.modelled.exchange import exchange
from coterie.graph.cost import Collective
from coterie.spec.collective import exchange_s
from coterie.spec.load import load_machine

A, BW = 1e-6, 1e9


@pytest.mark.parametrize(
    ("kind", "size", "ranks", "wanted"),
    [
        ("all_reduce", 8e9, 8, (14e-6, 14.0)),  # a ring: 14 messages, 7/8 of 8 s there and back
        ("all_reduce", 8, 8, (6e-6, 48e-9)),  # a tree: 3 levels there and back, all 8 bytes on each
        ("all_gather", 8e9, 8, (3e-6, 7.0)),
        ("all_reduce", 1e9, 1, (0.0, 0.0)),
        ("all_reduce", 3e9, 3, (4e-6, 4.0)),
    ],
)
def test_by_hand(kind, size, ranks, wanted):
    assert exchange_s(kind, size, ranks, A, BW) == pytest.approx(wanted)


def test_many_messages_take_the_way_with_more_bandwidth():
    """800 bytes: 6 us + 4.8 us each by a tree, 14 us + 1.4 us each by a ring."""
    assert exchange_s("all_reduce", 800, 8, A, BW) == pytest.approx((6e-6, 4.8e-6))
    assert exchange_s("all_reduce", 800, 8, A, BW, messages=100) == pytest.approx((14e-6, 1.4e-6))


@STEADY
@given(st.sampled_from(["all_reduce", "all_gather"]), st.integers(1, 10**9), st.sampled_from([2, 4, 8]))
def test_sections_and_regions_agree(kind, size, ranks):
    node = load_machine("sn40l-node")
    whole = exchange(node, Collective(kind, size, ranks))
    assert chip_of(node).collective_s(kind, size, ranks) == (whole.latency_s, whole.bytes_s)


@STEADY
@given(
    st.sampled_from(["all_reduce", "all_gather"]),
    st.integers(1, 10**9),
    st.integers(2, 64),
    st.integers(1, 1000),
)
def test_no_way_is_faster_than_the_bytes_that_a_rank_sends(kind, size, ranks, messages):
    latency, busy = exchange_s(kind, size, ranks, A, BW, messages)
    rounds = 2 if kind == "all_reduce" else 1
    assert busy >= rounds * (ranks - 1) / ranks * size / BW * (1 - 1e-12)
    assert latency >= rounds * A
    more = exchange_s(kind, size, ranks, A, BW, messages + 1)
    assert more[0] + messages * more[1] >= (latency + messages * busy) * (1 - 1e-12)
    assert more[0] + (messages + 1) * more[1] <= (latency + (messages + 1) * busy) * (1 + 1e-12)


def test_sockets_without_links_are_named():
    with pytest.raises(UsageError, match=r"machine sn40l-socket.*no links between sockets"):
        chip_of(load_machine("sn40l-socket")).collective_s("all_reduce", 8, 2)
