"""Groups: what a decision may depend on, kept from step to step; only what has changed is rebuilt.

    queue, loads, KV pool --view--> View --scheduler--> Decision

Knows nothing about how the decision is made, or what carries it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from itertools import islice
from types import MappingProxyType

from coterie.engine.kv import KVPool
from coterie.engine.loads import Loads
from coterie.engine.policy import Policy
from coterie.engine.queue import Queue
from coterie.engine.sequence import Sequence
from coterie.engine.variants import largest_group
from coterie.engine.view import READY, First, Group, Residence, View, Waiting

NO_SEQUENCES: Mapping[int, Sequence] = MappingProxyType({})
NO_VARIANTS: Mapping[str, str] = MappingProxyType({})


class Groups:
    """Builds views. It must be told when an expert's requests change, and what ran."""

    def __init__(
        self,
        queue: Queue,
        loads: Loads,
        kv: KVPool,
        policy: Policy,
        variant_groups: Mapping[str, str] = NO_VARIANTS,
    ) -> None:
        self._queue, self._loads, self._kv, self._policy = queue, loads, kv, policy
        self._variant_groups, self._num_firsts = variant_groups, max(2, 1 + largest_group(variant_groups.values()))
        self._isolated: frozenset[str] = frozenset()
        self._of: dict[str, Group] = {}
        self._first: tuple[First, ...] | None = None
        self._seen_residence_version = -1
        self._last_run: dict[str, int] = {}
        self._turn_steps: dict[str, int] = {}
        self._current: str | None = None
        self._streak = 0

    def renewed(self, variant_groups: Mapping[str, str]) -> None:
        """Replace the variant groups: which experts can share steps has changed."""
        self._variant_groups, self._num_firsts = variant_groups, max(2, 1 + largest_group(variant_groups.values()))
        self._isolated, self._first = frozenset(), None
        self._of.clear()

    @property
    def residence_unchanged(self) -> bool:
        """Whether every expert's residence is as in the last view."""
        return self._loads.residence_version == self._seen_residence_version

    def changed(self, expert_id: str) -> None:
        """An expert's requests or residence changed since the last view."""
        self._of.pop(expert_id, None)
        self._first = None

    def new_turn(self, expert_id: str) -> None:
        """An expert was loaded, or ran out of work: its next step starts a new turn."""
        self._turn_steps.pop(expert_id, None)

    def isolate(self, expert_ids: Iterable[str]) -> None:
        """A step of these experts failed. To find the culprit, each runs alone until a step of its own succeeds."""
        self._isolated |= frozenset(expert_ids)
        for expert_id in expert_ids:
            self.changed(expert_id)

    def rejoin(self, expert_ids: Iterable[str]) -> None:
        """A step of these experts succeeded."""
        if self._isolated:
            for expert_id in self._isolated.intersection(expert_ids):
                self.changed(expert_id)
            self._isolated -= frozenset(expert_ids)

    def ran(self, lead: str, expert_ids: Seq[str], steps: int, all_steps: int) -> None:
        """Count a run of `steps` steps of these experts, in the turn of `lead`; `all_steps`: total since the start."""
        self._streak = steps + (self._streak if lead == self._current else 0)
        self._current = lead
        for expert_id in expert_ids:
            self._count(expert_id, steps, all_steps)

    def _count(self, expert_id: str, steps: int, all_steps: int) -> None:
        self._last_run[expert_id] = all_steps
        turn_steps = self._turn_steps[expert_id] = self._turn_steps.get(expert_id, 0) + steps
        known = self._of.get(expert_id)
        if known is not None:  # running changes nothing else of it
            self._of[expert_id] = known.after_run(all_steps, turn_steps)

    def view(self, refused: frozenset[str]) -> View:
        """The current state."""
        self._seen_residence_version = self._loads.residence_version
        known = self._of
        for expert_id in self._loads.take_changed():
            known.pop(expert_id, None)
        groups = tuple([known.get(expert_id) or self._group(expert_id) for expert_id in self._queue.experts])
        first = self._firsts() if self._first is None else self._first
        queue, under_way = self._queue, self._loads.under_way
        # Positional arguments, for speed: a view is built for every decision.
        free, has_variants = self._kv.free_blocks, bool(self._variant_groups)
        return View(groups, free, first, queue.arrived, self._current, self._streak, under_way, refused, has_variants)

    def _firsts(self) -> tuple[First, ...]:
        """The first waiting requests of the experts that have waited longest, kept until the queue changes.

        Two of them, or one more than can share a step, so that at least one is of an expert outside the step.
        """
        found, overtaken = self._queue.firsts(self._num_firsts), self._queue.overtaken
        self._first = tuple(
            [
                First(s.request.expert_id, s.number, overtaken(s.number, s.request.priority), s.blocks, s.priority)
                for s in found
            ]
        )
        return self._first

    def _group(self, expert_id: str) -> Group:
        """The group of an expert, kept until something about it changes."""
        residence = self._loads.residence(expert_id)
        waiting = self._queue.waiting.get(expert_id, NO_SEQUENCES)
        running = self._queue.running.get(expert_id, NO_SEQUENCES)
        # Of an absent expert, only the first request and the number of requests matter.
        shown = 1 if residence is Residence.ABSENT else self._policy.max_batch
        first = tuple([Waiting(s.number, s.blocks, s.priority) for s in islice(waiting.values(), shown)])
        priority, oldest = min([next(iter(side.values())).order for side in (waiting, running) if side])
        ranks = tuple([s.priority for s in running.values()])
        last_run, turn_steps = self._last_run.get(expert_id, -1), self._turn_steps.get(expert_id, 0)
        shares = residence is READY and expert_id not in self._isolated
        variants = self._variant_groups.get(expert_id, "") if shares else ""
        counts = len(waiting), len(running)
        group = Group(expert_id, residence, first, *counts, oldest, last_run, turn_steps, variants, (), priority, ranks)
        self._of[expert_id] = group
        return group
