"""Bounded FIFOs: four ways to the same times (clocks per channel, recurrence, events, simpy), bounds, deadlocks.

Knows nothing about ops or machines.
"""

from __future__ import annotations

import pytest
import simpy
from fifo_oracles import deadlocks, deepened, recurrence
from graphs import STEADY
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.dataflow.deadlock import shallow
from coterie.dataflow.share import simulate_shared
from coterie.dataflow.stream import Actor, Fifo, Network, hop_depths, simulate, steady_s

CASES = settings(STEADY, max_examples=20)


def simpy_makespan(network: Network) -> float | None:
    """The makespan by a discrete-event library: a process per actor, a container of tokens per FIFO. None: deadlock."""
    env = simpy.Environment()
    stores = [simpy.Store(env, capacity=fifo.depth) for fifo in network.fifos]
    ends = []

    def process(n, actor):
        for firing in range(actor.firings):
            for e in network.ins(n):
                for _ in range(network.fifos[e].consume):
                    yield stores[e].get()
            yield env.timeout(actor.service(firing))
            for e in network.outs(n):
                for _ in range(network.fifos[e].produce):
                    yield stores[e].put(None)
        ends.append(env.now)

    for n, actor in enumerate(network.actors):
        env.process(process(n, actor))
    env.run()
    return max(ends) if len(ends) == len(network.actors) else None


@st.composite
def networks(draw, reductions=False, most=9):
    """A connected DAG. With `reductions`, some actors swallow R tokens of each input before they put R of each."""
    count, tiles = draw(st.integers(2, most)), 4 * draw(st.integers(1, 5))
    rates = [draw(st.sampled_from([1, 1, 2, 4])) if reductions and 0 < n < count - 1 else 1 for n in range(count)]
    actors = []
    for n in range(count):
        firings = tiles // rates[n]
        times = st.integers(0, 9).map(float)
        service = draw(st.one_of(st.tuples(times), st.tuples(*[times] * firings)))
        actors.append(Actor(f"a{n}", firings, service))
    pairs = {(draw(st.integers(0, n - 1)), n) for n in range(1, count)}
    pairs |= set(draw(st.lists(st.tuples(st.integers(0, count - 2), st.integers(1, count - 1)), max_size=6)))
    ordered = sorted((a, b) for a, b in pairs if a < b)
    fifos = tuple(
        Fifo(f"f{a}-{b}", a, b, draw(st.integers(1, 5)), rates[a], rates[b]) for a, b in draw(st.permutations(ordered))
    )
    return Network(tuple(actors), fifos)


@CASES
@given(networks())
def test_four_simulations_of_one_network_agree(network):
    whole = simulate(network)
    assert not whole.stuck, "networks that move one token at a time never deadlock"
    assert whole.makespan_s == recurrence(network) == simpy_makespan(network)
    assert simulate_shared(network)[0].makespan_s == pytest.approx(whole.makespan_s)
    assert steady_s(network) <= whole.makespan_s


@CASES
@given(networks(reductions=True))
def test_reductions_and_deadlocks_agree_too(network):
    run, oracle = simulate(network), simpy_makespan(network)
    assert (oracle is None) == bool(run.stuck) == bool(deadlocks(network)) == bool(simulate_shared(network)[0].stuck)
    if oracle is not None:
        assert run.makespan_s == oracle


@CASES
@given(networks(reductions=True))
def test_the_rule_for_deadlocks_is_safe(network):
    if deadlocks(network):
        assert shallow(network), "a deadlock that the rule did not see"
    assert not deadlocks(deepened(network))


@CASES
@given(networks(reductions=True))
def test_tokens_are_put_and_taken_once_in_order_and_no_fifo_overflows(network):
    run = simulate(deepened(network))
    for e, fifo in enumerate(deepened(network).fifos):
        assert len(run.put_s[e]) == len(run.take_s[e]) == network.actors[fifo.src].firings * fifo.produce
        assert all(put <= take for put, take in zip(run.put_s[e], run.take_s[e], strict=True))
        assert run.put_s[e] == sorted(run.put_s[e])
        # Between the put and the take of a token at most `depth` others: the slot is freed before it is used again.
        later = zip(run.put_s[e][fifo.depth :], run.take_s[e], strict=False)
        assert all(put >= take for put, take in later)


@CASES
@given(networks(), st.data())
def test_deeper_fifos_and_faster_actors_are_never_slower(network, data):
    at = data.draw(st.integers(0, len(network.fifos) - 1))
    n = data.draw(st.integers(0, len(network.actors) - 1))
    deeper = tuple(
        Fifo(f.name, f.src, f.dst, f.depth + (i == at), f.produce, f.consume) for i, f in enumerate(network.fifos)
    )
    faster = tuple(
        Actor(a.name, a.firings, tuple(s / 2 for s in a.service_s) if i == n else a.service_s)
        for i, a in enumerate(network.actors)
    )
    before = simulate(network).makespan_s
    assert simulate(Network(network.actors, deeper)).makespan_s <= before
    assert simulate(Network(faster, network.fifos)).makespan_s <= before


@CASES
@given(networks(), st.data())
def test_sharing_is_never_faster_and_conserves_work(network, data):
    on_bus = data.draw(st.sets(st.integers(0, len(network.actors) - 1)))
    actors = tuple(
        Actor(a.name, a.firings, a.service_s, "bus" if n in on_bus else "") for n, a in enumerate(network.actors)
    )
    run, busy = simulate_shared(Network(actors, network.fifos))
    assert run.makespan_s >= simulate(network).makespan_s - 1e-9
    moved = sum(network.actors[n].total_s for n in on_bus)
    assert busy.get("bus", 0.0) == pytest.approx(moved, abs=1e-9)
    assert run.makespan_s >= moved - 1e-9


@CASES
@given(networks(), st.data())
def test_resources_that_nobody_shares_change_nothing(network, data):
    """Also where a transfer takes a billionth of the time before it."""
    actors = []
    for actor in network.actors:
        scale = 10.0 ** -data.draw(st.integers(0, 9))
        actors.append(Actor(actor.name, actor.firings, tuple(s * scale / 7 for s in actor.service_s), actor.name))
    plain = simulate(Network(tuple(actors), network.fifos)).makespan_s
    assert simulate_shared(Network(tuple(actors), network.fifos))[0].makespan_s == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize(
    ("compute_s", "transfer_s"), [(0.114, 6e-9), (9.6e-3, 2.2e-8), (2.4e-4, 1.2e-9), (1 / 3, 1e-8)]
)
def test_a_short_transfer_late_in_a_run_ends(compute_s, transfer_s):
    actors = (Actor("compute", 3, (compute_s,)), Actor("exchange", 3, (transfer_s,), "links"))
    run, busy = simulate_shared(Network(actors, (Fifo("f", 0, 1, 2),)))
    assert run.makespan_s == pytest.approx(3 * compute_s + transfer_s)
    assert busy["links"] == pytest.approx(3 * transfer_s, rel=1e-6)


def chain(services, tiles, depth=2):
    actors = tuple(Actor(f"s{i}", tiles, (float(s),)) for i, s in enumerate(services))
    return Network(actors, tuple(Fifo(f"f{i}", i, i + 1, depth) for i in range(len(services) - 1)))


def test_a_chain_takes_its_fill_and_its_bottleneck():
    network = chain([3, 5, 2, 1], 400)
    assert simulate(network).makespan_s == 3 + 5 + 2 + 1 + 399 * 5 == steady_s(network)


@pytest.mark.parametrize(("depth", "wanted"), [(1, 2252), (2, 1505), (4, 905), (8, 509), (9, 509)])
def test_a_shallow_skip_edge_throttles(depth, wanted):
    """Ten unit stages with an edge from the first to the last; figures of a trial with another simulator."""
    network = chain([1] * 10, 500)
    skip = Network(network.actors, (*network.fifos, Fifo("skip", 0, 9, depth)))
    assert simulate(skip).makespan_s == pytest.approx(wanted, rel=0.002)


def test_planned_depths_do_not_throttle():
    pairs = [*((i, i + 1) for i in range(9)), (0, 9), (2, 7)]
    depths = hop_depths(pairs, 10)
    network = chain([1] * 10, 500)
    fifos = tuple(Fifo(f"{a}-{b}", a, b, d) for (a, b), d in zip(pairs, depths, strict=True))
    assert simulate(Network(network.actors, fifos)).makespan_s == 509
    assert depths[:9] == [2] * 9
    assert depths[9:] == [9, 5]


def reduction(depth, rows=16):
    """A row reduction beside a skip edge."""
    actors = (Actor("in", 64, (1.0,)), Actor("reduce", 64 // rows, (1.0,)), Actor("join", 64, (1.0,)))
    fifos = (Fifo("x", 0, 1, 2, 1, rows), Fifo("sum", 1, 2, rows, rows, 1), Fifo("skip", 0, 2, depth))
    return Network(actors, fifos)


@pytest.mark.parametrize("depth", range(12, 19))
def test_a_reduction_beside_a_skip_edge(depth):
    """Up to R - 2 tokens deadlock; R - 1 run, but only because `in` puts the reduction's token first; R is the rule."""
    assert bool(deadlocks(reduction(depth))) == (depth <= 14)
    found = shallow(reduction(depth))
    assert bool(found) == (depth < 16)
    if found:
        assert str(found[0]) == (
            f"fifo skip holds {depth} tokens, but join takes none of them before in has put 16; make it 16 deep"
        )


def test_a_deadlock_says_who_waits():
    assert simulate(reduction(3)).stuck == (
        "in (firing 3 of 64) waits for room in skip",
        "reduce (firing 0 of 4) waits for a token of x",
        "join (firing 0 of 64) waits for a token of sum",
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("claim", "given_"),
    [
        (test_four_simulations_of_one_network_agree, (networks(most=14),)),
        (test_reductions_and_deadlocks_agree_too, (networks(reductions=True, most=14),)),
        (test_the_rule_for_deadlocks_is_safe, (networks(reductions=True, most=14),)),
        (test_tokens_are_put_and_taken_once_in_order_and_no_fifo_overflows, (networks(reductions=True, most=14),)),
        (test_deeper_fifos_and_faster_actors_are_never_slower, (networks(most=14), st.data())),
        (test_sharing_is_never_faster_and_conserves_work, (networks(most=14), st.data())),
    ],
)
def test_a_thousand_times(claim, given_):
    settings(STEADY, max_examples=1000)(given(*given_)(claim.hypothesis.inner_test))()
