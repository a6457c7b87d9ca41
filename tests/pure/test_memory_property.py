"""Random operations on an ExpertCache over a fake device, checked against what must be true whatever happens.

The fake device holds the contents of every block and refuses to overwrite memory that is in use; the machine adds an
oracle for what each want and each poll must answer.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from fake_device import FakeDevice, fake_layout, fake_spec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError, TransferError
from coterie.memory.cache import ExpertCache
from coterie.memory.evict import belady
from coterie.memory.victims import Busy

NUM_EXPERTS = 7
EXPERTS = st.integers(0, NUM_EXPERTS - 1)
PICK = st.integers(0, 99)
BUDGETS = st.one_of(st.tuples(st.integers(4, 12)), st.tuples(st.integers(4, 12), st.integers(4, 16)))
SIZES = st.lists(st.integers(1, 14), min_size=NUM_EXPERTS, max_size=NUM_EXPERTS)
POLICIES = {
    **{name: name for name in ("lru", "lfu", "cost", "recent")},
    "belady": belady([f"e{i % NUM_EXPERTS}" for i in range(60)]),
}


def contents(layout):
    return [(layout.ranges[0].source.path, block) for block in range(layout.size_bytes // BLOCK_BYTES)]


def largest_gap(ledger, keep):
    """Bytes of the largest hole if only the copies for which keep(name, copy) holds were left."""
    at, best = 0, 0
    left = sorted(copy.extent for name, copy in ledger.copies.items() if keep(name, copy))
    for extent in left:
        best, at = max(best, extent.offset - at), extent.end
    return max(best, ledger.capacity_bytes - at)


class CacheMachine(RuleBasedStateMachine):
    @initialize(budgets=BUDGETS, sizes=SIZES, policy=st.sampled_from(sorted(POLICIES)), stages=st.integers(1, 3))
    def begin(self, budgets, sizes, policy, stages):
        tiers = ("hbm", "ddr")[: len(budgets)]
        self.stages = stages
        self.device = FakeDevice(fake_spec(*tiers, "disk"))
        self.cache = ExpertCache(
            self.device, {t: n * BLOCK_BYTES for t, n in zip(tiers, budgets, strict=True)}, evict=POLICIES[policy]
        )
        self.layouts = [fake_layout(f"e{i}.0", size, stages) for i, size in enumerate(sizes)]
        self.versions = 0
        self.reads = {}
        self.held = []  # (expert, event) of holds that were not released
        self.loads = {}

    # ---- what must come out of a want

    def forecast(self, index, protected=frozenset()):
        """One of hit, load, busy, never: computed from the ledgers alone, without policies."""
        name, layout = f"e{index}", self.layouts[index]
        answer = "hit"
        for level, ledger in enumerate(self.cache.ledgers):
            copy = ledger.copies.get(name)
            if copy is not None and not copy.is_doomed and copy.layout == layout:
                return answer
            if copy is not None and copy.is_busy:
                answer = "busy"
            kept = (self.cache.pinned | protected) if level == 0 else protected

            def is_kept(other, copy, kept=kept, name=name):
                return other in kept and not copy.is_doomed and other != name

            def is_there(other, copy, is_kept=is_kept, name=name):
                return other != name and (is_kept(other, copy) or copy.is_busy)

            if largest_gap(ledger, is_kept) < layout.size_bytes:
                return "never"
            if answer != "busy":
                answer = "load" if largest_gap(ledger, is_there) >= layout.size_bytes else "busy"
        return answer

    def attempt(self, index, protected=frozenset()):
        """want, compared with the forecast; the residency, or None when it was refused."""
        forecast, before, moves = self.forecast(index, protected), self.kept(protected), len(self.device.log)
        decided = len(self.cache.decisions)
        try:
            got = self.cache.want(f"e{index}", self.layouts[index], protected=protected)
        except Busy as busy:
            got, refused = None, "busy" if busy.events else "busy with nothing to wait for"
        except CapacityError as refusal:
            got, refused = None, "never" if refusal.demand_bytes > refusal.bound_bytes else "never, without a reason"
        evicted = self.evicted(decided)
        assert not set(evicted) & before
        if got is None:
            assert evicted == []
            assert forecast == refused
            return None
        assert forecast == ("hit" if got.hit else "load")
        assert got.hit == (len(self.device.log) == moves), "single flight: a hit moves nothing, a miss moves"
        assert got.weights.size_bytes == self.layouts[index].size_bytes
        assert got.evicted == tuple(evicted)
        if not got.hit:
            assert f"e{index}" not in self.loads, "two loads of one expert"
            self.loads[f"e{index}"] = got.ready
        return got

    def kept(self, protected=frozenset()):
        """Who must not be evicted now: the busy, and the pinned and protected unless they are doomed anyway."""
        kept = set()
        for level, ledger in enumerate(self.cache.ledgers):
            safe = protected | self.cache.pinned if level == 0 else protected
            for name, copy in ledger.copies.items():
                if copy.is_busy or (name in safe and not copy.is_doomed):
                    kept.add((name, ledger.tier))
        return kept

    def evicted(self, decided):
        """Who was evicted since the log had `decided` entries."""
        return [(who, tier) for what, who, tier in list(self.cache.decisions)[decided:] if what == "evict"]

    # ---- operations

    @rule(index=EXPERTS)
    def want(self, index):
        self.attempt(index)

    @rule(index=EXPERTS)
    def use(self, index):
        got = self.attempt(index)
        if got is not None:
            reading = self.device.read_weights(got.weights, got.gates)
            self.cache.hold(got.expert_id, reading)
            self.held.append((got.expert_id, reading))
            self.reads[reading] = (got.weights, contents(self.layouts[index]))

    @rule(index=EXPERTS, protected=st.frozensets(EXPERTS, max_size=4))
    def want_beside(self, index, protected):
        self.attempt(index, frozenset(f"e{i}" for i in protected))

    @precondition(lambda self: self.device.open)
    @rule(pick=PICK, count=st.integers(1, 4))
    def finish(self, pick, count):
        for _ in range(count):
            runnable = self.device.runnable()
            if runnable:
                self.end(runnable[pick % len(runnable)])

    def end(self, event):
        if event in self.reads:
            weights, expected = self.reads.pop(event)
            assert self.device.content(weights) == expected
        self.device.finish(event)

    @precondition(lambda self: self.device.open)
    @rule(pick=PICK)
    def fail(self, pick):
        runnable = self.device.runnable()
        self.device.fail(runnable[pick % len(runnable)])

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def release(self, pick):
        """Of any that is finished, polled or not."""
        name, reading = self.held[pick % len(self.held)]
        if self.device.done(reading):
            self.held.remove((name, reading))
            self.cache.release(name, reading)

    @rule()
    def poll(self):
        over = {name: ready for name, ready in self.loads.items() if self.device.done(ready)}
        ended = self.cache.poll()
        assert sorted(name for name, _ in ended) == sorted(over), "each end is told once, by the poll that sees it"
        for name, failure in ended:
            assert failure is self.device.failure(self.loads.pop(name))

    @rule(index=EXPERTS)
    def pin(self, index):
        if len(self.cache.pinned) < 2:
            self.cache.pin(f"e{index}")

    @rule(index=EXPERTS)
    def unpin(self, index):
        self.cache.unpin(f"e{index}")

    @rule(index=EXPERTS)
    def forget(self, index):
        self.cache.forget(f"e{index}")
        assert f"e{index}" not in self.cache.resident()

    @rule(index=EXPERTS, size=st.integers(1, 14))
    def change_file(self, index, size):
        self.versions += 1
        self.layouts[index] = fake_layout(f"e{index}.{self.versions}", size, self.stages)

    @rule(index=EXPERTS, refuse_after=st.integers(0, 3))
    def refuse_halfway(self, index, refuse_after):
        self.device.refuse_after = refuse_after
        with suppress(TransferError):
            self.attempt(index)
        self.device.refuse_after = None

    @rule(index=EXPERTS, unpin=st.booleans())
    def settle_and_want(self, index, unpin):
        """With nothing in flight nobody waits; with no pins either, whatever is not larger than a tier comes in."""
        while self.device.open:
            self.end(self.device.runnable()[0])
        self.poll()
        assert self.cache.pending() == ()
        if unpin:
            for name in self.cache.pinned:
                self.cache.unpin(name)
            has_room = all(ledger.capacity_bytes >= self.layouts[index].size_bytes for ledger in self.cache.ledgers)
            near = self.cache.ledgers[0].copies.get(f"e{index}")
            is_here = near is not None and near.layout == self.layouts[index]
            assert (self.attempt(index) is not None) == (has_room or is_here)
        else:
            assert self.forecast(index) != "busy"
            self.attempt(index)

    # ---- at every step

    @invariant()
    def accounts_balance(self):
        if hasattr(self, "cache"):
            self.cache.check_integrity()

    @invariant()
    def what_is_there_is_right(self):
        for ledger in self.cache.ledgers if hasattr(self, "cache") else ():
            for copy in ledger.copies.values():
                if not copy.is_loading and not copy.is_doomed:
                    assert self.device.content(copy.weights) == contents(copy.layout)


def run_machine(examples, steps):
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_thousands_of_random_operations():
    run_machine(examples=100, steps=60)


@pytest.mark.long
def test_forty_thousand_random_operations():
    run_machine(examples=500, steps=80)
