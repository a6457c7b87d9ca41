"""Lifetimes, addresses, spilling: no overlap, no overflow, the optimum is the optimum, and the paper's own example.

Knows nothing about time.
"""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from graphs import STEADY, decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core.errors import CapacityError, UsageError
from coterie.core.shapes import Sizes
from coterie.dataflow.lifetime import Symbol, live_bytes, symbols_of
from coterie.dataflow.spill import WAYS, pack, plan_memory
from coterie.graph.eager.rewrite import expand
from coterie.models.zoo import zoo_graph
from coterie.spec.load import load_machine

CASES = settings(STEADY, max_examples=60)
GIB = 2**30


@st.composite
def symbols(draw, most=14, unit=4096):
    found = []
    for n in range(draw(st.integers(1, most))):
        first = draw(st.integers(0, 9))
        last = draw(st.integers(first, 9))
        moves = draw(st.dictionaries(st.integers(first, last), st.integers(0, 50).map(lambda n: n * 999), max_size=3))
        found.append(Symbol(f"s{n}", "tensor", unit * draw(st.integers(1, 9)), first, last, tuple(moves.items())))
    return found


@CASES
@given(symbols())
def test_symbols_that_live_together_do_not_overlap(found):
    packed = pack(found)
    assert packed.bound_bytes == max(live_bytes(found, 10))
    assert packed.bound_bytes <= packed.peak_bytes <= sum(s.size_bytes for s in found)
    for a, b in combinations(found, 2):
        if a.overlaps(b):
            low, high = sorted((a, b), key=lambda s: packed.offsets[s.name])
            assert packed.offsets[low.name] + low.size_bytes <= packed.offsets[high.name]
    assert all(packed.offsets[s.name] + s.size_bytes <= packed.peak_bytes for s in found)


@CASES
@given(symbols(), st.integers(1, 40), st.sampled_from([w for w in WAYS if w != "optimal"]))
def test_no_plan_overflows_and_nothing_is_lost(found, room, how):
    plan = plan_memory(found, room * 4096, 10**9, 1e9, how)
    assert sorted(s.name for s in (*plan.near, *plan.far)) == sorted(s.name for s in found)
    assert plan.packed.peak_bytes <= room * 4096
    assert plan.spilled_bytes == sum(s.moved_bytes for s in plan.far)
    assert plan.timeline == tuple(live_bytes(found, len(plan.timeline)))
    assert {fetch.symbol for fetch in plan.fetches} == {s.name for s in plan.far if s.moved_bytes}
    assert sum(fetch.size_bytes for fetch in plan.fetches) == plan.spilled_bytes
    alive = {s.name: range(s.first, s.last + 1) for s in plan.far}
    assert all(fetch.step in alive[fetch.symbol] for fetch in plan.fetches)
    assert [fetch.step for fetch in plan.fetches] == sorted(fetch.step for fetch in plan.fetches)


@settings(STEADY, max_examples=25)
@given(symbols(most=8), st.integers(1, 25))
def test_the_optimum_is_the_best_of_all_and_the_others_are_no_better(found, room):
    pytest.importorskip("scipy")

    def fits(kept):
        return max(live_bytes(kept, 10)) <= room * 4096

    every = chain.from_iterable(combinations(found, n) for n in range(len(found) + 1))
    best = max(sum(s.moved_bytes for s in kept) for kept in every if fits(kept))
    near = {how: WAYS[how](found, room * 4096, 10) for how in WAYS}
    gained = {how: sum(s.moved_bytes for s in found if s.name in kept) for how, kept in near.items()}
    assert gained["optimal"] == best
    assert max(gained.values()) == best
    assert fits([s for s in found if s.name in near["optimal"]])


def test_symbols_of_a_graph_live_from_their_writer_to_their_last_reader():
    graph, sizes = decoder(), Sizes.prefill(1, 8)
    found = {s.name: s for s in symbols_of(graph, [(op,) for op in graph.ops], sizes)}
    names = [op.name for op in graph.ops]
    residual = found["layers.0/attention_out"]
    assert (residual.first, residual.last) == (names.index("layers.0/attention_out"), names.index("layers.0/out"))
    assert residual.moved_bytes == 3 * residual.size_bytes, "written once, read by the norm and by the sum"
    weight = found["model.layers.0.mlp.up_proj.weight"]
    assert (weight.first, weight.last) == (0, len(names) - 1)
    assert weight.moves == ((names.index("layers.0/up"), weight.size_bytes),), "read once, by its op"
    whole = symbols_of(graph, [[op for op in graph.ops if op.stage == stage] for stage in graph.stages], sizes)
    assert "layers.0/up" not in {s.name for s in whole}, "what stays inside a section is in no memory"


def test_llama_2_7b_at_4k_fits_a_socket_only_with_shared_lifetimes():
    """The paper, section V-A: sharing addresses is needed even for Llama2-7B in the 64 GiB of a socket."""
    graph = expand(zoo_graph("llama-2-7b"))
    found = symbols_of(graph, [(op,) for op in graph.ops], Sizes.prefill(1, 4096))
    hbm = load_machine("sn40l-socket").tier("hbm")
    plan = plan_memory(found, 64 * GIB, 1500 * GIB, hbm.achieved_bytes_per_s)
    assert plan.unshared_bytes > 64 * GIB
    assert not plan.far
    assert plan.packed.peak_bytes < 0.5 * 64 * GIB
    assert plan.packed.peak_bytes <= 1.1 * plan.packed.bound_bytes


def test_weights_stay_near_and_intermediates_are_spilled():
    graph, sizes = decoder(hidden_size=64, intermediate_size=96), Sizes.prefill(1, 64)
    found = symbols_of(graph, [(op,) for op in graph.ops], sizes)
    with pytest.raises(CapacityError, match=r"what does not lie in the near tier needs .* but 1\.00 KiB can be had"):
        plan_memory(found, 4096, 1024, 1e9)
    with pytest.raises(UsageError, match="there is no way 'guess' to spill"):
        plan_memory(found, 4096, 1 << 30, 1e9, "guess")
